"""Gradient descent in the inner loop: what MAML and most of its relatives share."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import optax

from dsaml_jax.errors import UsageError
from dsaml_jax.meta.base import Algorithm, LossFn, ParameterFilter, PyTree
from dsaml_jax.meta.memory import MEMORY_MODES, MemoryMode
from dsaml_jax.meta.rules import Rates, one_of_two
from dsaml_jax.meta.unrolling import InnerState, unroll


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientDescent(Algorithm):
    """Inner steps of gradient descent.

    Attributes:
      adapts: which parameters the steps change; None for all.
      transform: what the gradient goes through before the rate, e.g. `optax.trace(0.9)`; None: plain SGD.
      optimizer: an optax optimiser with a rate of its own, instead of rate and transform.
      order: 1 or 2; see :func:`~dsaml_jax.meta.adapt.adapt`.
      first_order_steps: so many steps at the beginning whose gradients count as constants.
      memory: how the backward pass of second order is paid for; see :mod:`dsaml_jax.meta.memory`.
      batch_per_step: whether a task's support has a leading axis `steps`, and every step reads its own.
      state_per_step: whether the loss's state has one; see :func:`~dsaml_jax.meta.unrolling.unroll`. The query is judged
        with the state of the last step.
    """

    adapts: ParameterFilter | None = None
    transform: optax.GradientTransformation | None = None
    optimizer: optax.GradientTransformation | None = None
    order: int = 2
    first_order_steps: int = 0
    memory: MemoryMode = "mixed"
    batch_per_step: bool = False
    state_per_step: bool = False

    def __post_init__(self) -> None:
        try:
            one_of_two(self.learning_rate, self.optimizer, self.transform)
        except ValueError as error:
            raise UsageError(f"{type(self).__name__}: {error}") from None

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """See :attr:`Algorithm.memory_modes`."""
        return MEMORY_MODES if self.order == 2 else ()

    def adapting(self, name: str) -> bool:
        """See :meth:`Algorithm.adapting`."""
        return self.adapts is None or self.adapts(name)

    def adapt(
        self,
        loss_fn: LossFn,
        learned: PyTree,
        support: PyTree,
        key: chex.PRNGKey | None = None,
        state: PyTree = None,
    ) -> PyTree:
        """See :meth:`Algorithm.adapt`."""
        after, _ = self.descend(loss_fn, learned, support, key, state)
        return after.params if state is None else (after.params, after.state)

    def start(self, learned: PyTree) -> PyTree:
        """The model's parameters before the first step."""
        return self.params(learned)

    def rates(self, learned: PyTree) -> Rates | None:
        """Of the inner steps."""
        del learned
        return self.learning_rate

    def transformation(self, learned: PyTree) -> optax.GradientTransformation | None:
        """What the gradient goes through before the rate."""
        del learned
        return self.transform

    def descend(
        self,
        loss_fn: LossFn,
        learned: PyTree,
        support: PyTree,
        key: jax.Array | None,
        state: PyTree,
        **more: Any,
    ) -> tuple[InnerState, PyTree]:
        """:func:`~dsaml_jax.meta.unrolling.unroll` with what this algorithm is made of."""
        settings: dict[str, Any] = {
            "steps": self.steps,
            "learning_rate": self.rates(learned),
            "order": self.order,
            "first_order_steps": self.first_order_steps,
            "adapts": self.adapting,
            "transform": self.transformation(learned),
            "optimizer": self.optimizer,
            "memory": self.memory,
            "batch_per_step": self.batch_per_step,
            "state_per_step": self.state_per_step,
            "key": key,
        }
        inner = InnerState(self.start(learned), state=state)
        return unroll(loss_fn, inner, support, **(settings | more))

    def last(self, state: PyTree) -> PyTree:
        """What the query is judged with, of the state after the steps."""
        return jax.tree.map(lambda x: x[-1], state) if self.state_per_step else state

    def with_last(self, state: PyTree, last: PyTree) -> PyTree:
        """The state after the steps, with what the query left."""
        if not self.state_per_step:
            return last
        return jax.tree.map(lambda x, new: x.at[-1].set(new), state, last)
