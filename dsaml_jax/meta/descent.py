"""Gradient descent in the inner loop: what MAML and most of its relatives share."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import optax

from dsaml_jax.meta.adapt import Rates, adapt_and_visit
from dsaml_jax.meta.base import Algorithm, LossFn, ParameterFilter, PyTree
from dsaml_jax.meta.memory import MemoryMode


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientDescent(Algorithm):
    """Inner steps of gradient descent.

    Attributes:
      adapts: which parameters the steps change; None for all.
      transform: what the gradient goes through before the rate, e.g. `optax.trace(0.9)`; None: plain SGD.
      order: 1 or 2; see :func:`~dsaml_jax.meta.adapt.adapt`.
      memory: how the backward pass of second order is paid for; see :mod:`dsaml_jax.meta.memory`.
    """

    adapts: ParameterFilter | None = None
    transform: optax.GradientTransformation | None = None
    order: int = 2
    memory: MemoryMode = "mixed"

    def adapting(self, name: str) -> bool:
        """See :meth:`Algorithm.adapting`."""
        return self.adapts is None or self.adapts(name)

    def adapt(
        self, loss_fn: LossFn, learned: PyTree, support: PyTree, key: chex.PRNGKey | None = None
    ) -> PyTree:
        """See :meth:`Algorithm.adapt`."""
        adapted, _ = self._descend(loss_fn, self.params(learned), support, self.learning_rate, key)
        return adapted

    def _descend(
        self,
        loss_fn: LossFn,
        params: PyTree,
        support: PyTree,
        rates: Rates,
        key: jax.Array | None,
        **more: Any,
    ) -> tuple[PyTree, PyTree]:
        """:func:`adapt_and_visit` with what this algorithm is made of."""
        settings: dict[str, Any] = {
            "steps": self.steps,
            "learning_rate": rates,
            "order": self.order,
            "adapts": self.adapting,
            "transform": self.transform,
            "memory": self.memory,
            "key": key,
        }
        return adapt_and_visit(loss_fn, params, support, **(settings | more))
