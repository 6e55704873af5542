"""MAML++: Antoniou, Edwards, Storkey 2019, How to train your MAML (arXiv 1810.09502)."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dsaml_jax.errors import UsageError
from dsaml_jax.meta.adapt import Adapting
from dsaml_jax.meta.base import LearnedRates, LossFn, OuterLossFn, PyTree
from dsaml_jax.meta.descent import GradientDescent


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAMLPlusPlus(GradientDescent):
    """MAML with learned rates, a loss after every step, and second order that comes later (section 4).

    What is learned is :class:`~dsaml_jax.meta.base.LearnedRates`: each parameter tensor that adapts has one rate for
    each step. The paper's batch statistics per step are not part of it: the loss decides about BatchNorm.

    Attributes:
      multi_step_until: meta-step until which the query is judged after *every* inner step. At first all count the
        same; the weight moves linearly to the last one. 0: only the last, always.
      first_order_until: meta-step until which inner gradients count as constants.
    """

    multi_step_until: int = 0
    first_order_until: int = 0
    order: int = dataclasses.field(default=2, init=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError("maml++ needs at least one inner step")
        if min(self.multi_step_until, self.first_order_until) < 0:
            raise UsageError("multi_step_until and first_order_until are 0 or more")

    def init(self, params: PyTree) -> LearnedRates:
        """Parameters, and rates `[steps]` for each, all `learning_rate`."""
        parts = Adapting(params, self.adapting)
        return LearnedRates(
            params,
            {
                name: jnp.full((self.steps,), self.learning_rate, leaf.dtype)
                for name, leaf in zip(parts.names, parts.chosen, strict=True)
            },
        )

    def params(self, learned: LearnedRates) -> PyTree:
        """See :meth:`Algorithm.params`."""
        return learned.params

    def adapt(
        self,
        loss_fn: LossFn,
        learned: LearnedRates,
        support: PyTree,
        key: chex.PRNGKey | None = None,
    ) -> PyTree:
        """See :meth:`Algorithm.adapt`."""
        adapted, _ = self._descend(
            loss_fn, learned.params, support, learned.rates, key, rates_per_step=True
        )
        return adapted

    def step_weights(self, step: jax.Array) -> jax.Array:
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
    ) -> tuple[jax.Array, Any]:
        """See :meth:`Algorithm.task_loss`; aux is that of the last step."""

        def loss(learned: LearnedRates, *, order: int, every_step: bool) -> tuple[jax.Array, Any]:
            visit = (lambda params: outer(params, query, keys[1])) if every_step else None
            adapted, visited = self._descend(
                loss_fn, learned.params, support, learned.rates, keys[0],
                rates_per_step=True, order=order, visit=visit,
            )  # fmt: skip
            if visited is None:
                return outer(adapted, query, keys[1])
            losses, aux = visited
            assert step is not None  # without it nothing is annealed, see `_until`
            return losses @ self.step_weights(step), jax.tree.map(lambda x: x[-1], aux)

        def by_order(learned: LearnedRates, *, every_step: bool) -> tuple[jax.Array, Any]:
            return _until(
                self.first_order_until, step, learned,
                lambda learned: loss(learned, order=1, every_step=every_step),
                lambda learned: loss(learned, order=2, every_step=every_step),
            )  # fmt: skip

        return _until(
            self.multi_step_until, step, learned,
            lambda learned: by_order(learned, every_step=True),
            lambda learned: by_order(learned, every_step=False),
        )  # fmt: skip


def _until(last: int, step: jax.Array | None, learned: PyTree, before: Any, after: Any) -> Any:
    """`before(learned)` as long as `step < last`, then `after(learned)`; only what can happen is compiled."""
    if last == 0 or step is None:
        return after(learned)
    return jax.lax.cond(step < last, before, after, learned)
