"""MAML++: Antoniou, Edwards, Storkey 2019, How to train your MAML (arXiv 1810.09502)."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dsaml_jax.errors import UsageError
from dsaml_jax.meta.base import LearnedRates, LossFn, OuterLossFn, PyTree
from dsaml_jax.meta.descent import GradientDescent
from dsaml_jax.meta.parts import Adapting, wide
from dsaml_jax.meta.unrolling import InnerState


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAMLPlusPlus(GradientDescent):
    """MAML with learned rates, a loss after every step, and second order that comes later (section 4).

    What is learned is :class:`~dsaml_jax.meta.base.LearnedRates`: each parameter tensor that adapts has one rate for
    each step. The paper's running statistics of BatchNorm for each step are a state of the loss with `state_per_step`; its
    weights and biases of BatchNorm for each step are parameters with an axis of steps, which the loss indexes by a
    `jnp.arange(steps)` in that state.

    Attributes:
      multi_step_until: meta-step until which the query is judged after *every* inner step. At first all count the
        same; the weight moves linearly to the last one. 0: only the last, always.
      first_order_until: meta-step until which inner gradients count as constants.
    """

    multi_step_until: int = 0
    first_order_until: int = 0
    order: int = dataclasses.field(default=2, init=False)

    optimizer: None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UsageError("maml++ needs at least one inner step")
        if min(self.multi_step_until, self.first_order_until) < 0:
            raise UsageError("multi_step_until and first_order_until are 0 or more")

    def init(self, params: PyTree) -> LearnedRates:
        """Parameters, and rates `[steps]` for each, all `learning_rate`, in float32 at least."""
        parts = Adapting(params, self.adapting)
        return LearnedRates(
            params,
            {
                name: jnp.full((self.steps,), self.learning_rate or 0.0, wide(leaf.dtype))
                for name, leaf in zip(parts.names, parts.chosen, strict=True)
            },
        )

    def params(self, learned: LearnedRates) -> PyTree:
        """See :meth:`Algorithm.params`."""
        return learned.params

    def rates(self, learned: LearnedRates) -> dict[str, jax.Array]:
        """See :meth:`GradientDescent.rates`."""
        return learned.rates

    def descend(self, *arguments: Any, **more: Any) -> tuple[InnerState, PyTree]:
        """See :meth:`GradientDescent.descend`."""
        return super().descend(*arguments, rates_per_step=True, **more)

    def step_weights(self, step: chex.Numeric) -> jax.Array:
        """`[steps]`, adding up to 1: what the query's loss after each inner step counts at this meta-step."""
        early = jnp.clip(1.0 - step / max(self.multi_step_until, 1), 0.0, 1.0) / self.steps
        weights = jnp.full((self.steps,), early)
        return weights.at[-1].set(1.0 - early * (self.steps - 1))

    def task_loss(
        self,
        loss_fn: LossFn,
        outer: OuterLossFn,
        learned: LearnedRates,
        support: PyTree,
        query: PyTree,
        keys: tuple[chex.PRNGKey | None, chex.PRNGKey | None],
        step: jax.Array | None,
        state: PyTree = None,
    ) -> tuple[jax.Array, Any]:
        """See :meth:`Algorithm.task_loss`; aux and state are those of the last step.

        Raises:
          UsageError: something is annealed, and no step says how far.
        """
        if step is None and (self.multi_step_until or self.first_order_until):
            raise UsageError(
                "maml++ with multi_step_until or first_order_until needs step=, the number of the meta-step"
            )

        now = 0 if step is None else step

        def loss(learned: LearnedRates, *, order: int, every_step: bool) -> Any:
            def visit(params: PyTree, *state: PyTree) -> Any:
                return outer(params, query, keys[1], *state)

            after, visited = self.descend(
                loss_fn, learned, support, keys[0], state, order=order, visit=visit if every_step else None
            )  # fmt: skip
            if every_step:
                losses, seen = visited
                last = jax.tree.map(lambda x: x[-1], seen)
                # Of states for each step, what the query left after each.
                last = (last[0], seen[1]) if self.state_per_step else last
                return losses @ self.step_weights(now).astype(losses.dtype), last
            if state is None:
                return outer(after.params, query, keys[1])
            value, (aux, left) = outer(after.params, query, keys[1], self.last(after.state))
            return value, (aux, self.with_last(after.state, left))

        def by_order(learned: LearnedRates, *, every_step: bool) -> Any:
            return _until(
                self.first_order_until, now, learned,
                lambda learned: loss(learned, order=1, every_step=every_step),
                lambda learned: loss(learned, order=2, every_step=every_step),
            )  # fmt: skip

        return _until(
            self.multi_step_until, now, learned,
            lambda learned: by_order(learned, every_step=True),
            lambda learned: by_order(learned, every_step=False),
        )  # fmt: skip


def _until(last: int, step: chex.Numeric, learned: PyTree, before: Any, after: Any) -> Any:
    """`before(learned)` as long as `step < last`, then `after(learned)`; only what can happen is compiled."""
    if last == 0:
        return after(learned)
    return jax.lax.cond(step < last, before, after, learned)
