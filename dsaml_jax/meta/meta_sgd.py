"""Meta-SGD: Li, Zhou, Chen, Li 2017 (arXiv 1707.09835)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dsaml_jax.meta.base import LearnedRates, PyTree
from dsaml_jax.meta.descent import GradientDescent
from dsaml_jax.meta.parts import Adapting, wide


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaSGD(GradientDescent):
    """Every number that adapts has a learned rate of its own, which may become negative.

    What is learned is :class:`~dsaml_jax.meta.base.LearnedRates`; rates have the shapes of their parameters. With
    `order=1` rates still get their gradient, through the gradients of all steps, taken as constants.
    """

    optimizer: None = dataclasses.field(default=None, init=False)

    def init(self, params: PyTree) -> LearnedRates:
        """Parameters, and rates that are all `learning_rate`, in float32 at least."""
        parts = Adapting(params, self.adapting)
        return LearnedRates(
            params,
            {
                name: jnp.full(leaf.shape, self.learning_rate or 0.0, wide(leaf.dtype))
                for name, leaf in zip(parts.names, parts.chosen, strict=True)
            },
        )

    def params(self, learned: LearnedRates) -> PyTree:
        """See :meth:`Algorithm.params`."""
        return learned.params

    def rates(self, learned: LearnedRates) -> dict[str, jax.Array]:
        """See :meth:`GradientDescent.rates`."""
        return learned.rates
