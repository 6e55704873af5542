"""Meta-SGD: Li, Zhou, Chen, Li 2017 (arXiv 1707.09835)."""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp

from dsaml_jax.meta.adapt import Adapting
from dsaml_jax.meta.base import LearnedRates, LossFn, PyTree
from dsaml_jax.meta.descent import GradientDescent


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaSGD(GradientDescent):
    """Every number that adapts has a learned rate of its own, which may become negative.

    What is learned is :class:`~dsaml_jax.meta.base.LearnedRates`; rates have the shapes of their parameters. With
    `order=1` rates still get their gradient, through the last step's gradients taken as constants.
    """

    def init(self, params: PyTree) -> LearnedRates:
        """Parameters, and rates that are all `learning_rate`."""
        parts = Adapting(params, self.adapting)
        return LearnedRates(
            params,
            {
                name: jnp.full_like(leaf, self.learning_rate)
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
        adapted, _ = self._descend(loss_fn, learned.params, support, learned.rates, key)
        return adapted
