"""What the meta-learner asks of a loss and of an algorithm.

The seam: a *loss* knows the task's data and the model; an *algorithm* knows what is learned across tasks, how one
task adapts, and what differentiating that means. :func:`dsaml_jax.meta.meta_gradient` puts them together. None of
them knows of music.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax

from dsaml_jax.meta.parts import ParameterFilter, PyTree

__all__ = ["Algorithm", "LearnedRates", "LossFn", "OuterLossFn", "ParameterFilter", "PyTree"]

LossFn = Callable[..., jax.Array]
"""`loss_fn(params, batch) -> scalar`, or `loss_fn(params, batch, key) -> scalar` where keys are given.

*BatchNorm*: the function is pure, so it decides. To normalise by the batch, apply the model with
`batch_norm=True` and drop the updated statistics; to stay on running statistics, close over them.
Either way nothing hidden is carried from step to step. To carry them, give a state: then the loss is
`loss_fn(params, batch, state) -> (scalar, state)`, and a key comes after the state.

*Dropout*: a loss with dropout takes a last argument, a key; the same key always gives the same numbers.
"""

OuterLossFn = Callable[..., tuple[jax.Array, Any]]
"""`(params, query, key) -> (scalar, aux)`: the loss that a task's adapted parameters are judged by.

With a state of the loss `(params, query, key, state) -> (scalar, (aux, state))`.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedRates:
    """Parameters and inner learning rates that are meta-learned together.

    Attributes:
      params: the model's parameters.
      rates: path of each parameter that adapts -> its rate or rates; of Meta-Curvature, path and axis -> a matrix.
    """

    params: PyTree
    rates: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm(abc.ABC):
    """A meta-learning algorithm: small, immutable, hashable.

    Attributes:
      steps: inner steps.
      learning_rate: of the inner steps; where rates are learned, their first value. None where an optimiser has its own.
    """

    steps: int
    learning_rate: float | None = None

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """Modes of :mod:`dsaml_jax.meta.memory` that make a difference here."""
        return ()

    def init(self, params: PyTree) -> PyTree:
        """What is learned across tasks, at its first value: `params`, unless an algorithm learns more."""
        return params

    def params(self, learned: PyTree) -> PyTree:
        """The model's parameters in what is learned."""
        return learned

    def adapting(self, name: str) -> bool:
        """Whether the parameter of this path can differ between tasks."""
        del name
        return True

    @abc.abstractmethod
    def adapt(
        self,
        loss_fn: LossFn,
        learned: PyTree,
        support: PyTree,
        key: chex.PRNGKey | None = None,
        state: PyTree = None,
    ) -> PyTree:
        """The model's parameters, adapted to one task (no task axis); with a state of the loss `(parameters, state)`."""

    def task_loss(
        self,
        loss_fn: LossFn,
        outer: OuterLossFn,
        learned: PyTree,
        support: PyTree,
        query: PyTree,
        keys: tuple[chex.PRNGKey | None, chex.PRNGKey | None],
        step: jax.Array | None,
        state: PyTree = None,
    ) -> tuple[jax.Array, Any]:
        """Loss of one task, and aux; its gradient by `learned` *is* the algorithm's meta-gradient.

        Args:
          loss_fn: inner loss.
          outer: judges the adapted parameters.
          learned: see :meth:`init`.
          support: what the task adapts to.
          query: what it is judged on.
          keys: for adapting and for judging.
          step: of the meta-training, for what is annealed.
          state: of the loss; None: it has none. With one aux is `(aux, state)`.
        """
        del step
        if state is None:
            return outer(self.adapt(loss_fn, learned, support, keys[0]), query, keys[1])
        adapted, after = self.adapt(loss_fn, learned, support, keys[0], state)
        loss, (aux, left) = outer(adapted, query, keys[1], self.last(after))
        return loss, (aux, self.with_last(after, left))

    def last(self, state: PyTree) -> PyTree:
        """What the query is judged with, of the state after the inner steps."""
        return state

    def with_last(self, state: PyTree, last: PyTree) -> PyTree:
        """The state after the inner steps, with what the query left."""
        del state
        return last
