"""Fast context adaptation: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2019, CAVIA (arXiv 1810.03642)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from dsaml_jax.meta.anil import require_head
from dsaml_jax.meta.base import PyTree
from dsaml_jax.meta.descent import GradientDescent
from dsaml_jax.meta.parts import Adapting


@dataclasses.dataclass(frozen=True, kw_only=True)
class CAVIA(GradientDescent):
    """Only context parameters adapt, from zero for every task; the network that reads them is shared and learned.

    The context is a part of the parameters, which the loss hands to the network as a further input. Its values in what is
    learned are zero, and so is their meta-gradient.

    Attributes:
      adapts: the context; it must be given.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require_head(self.adapts, "cavia", "the context")

    def init(self, params: PyTree) -> PyTree:
        """Parameters, with a context of zeros."""
        return self.start(params)

    def start(self, learned: PyTree) -> PyTree:
        """See :meth:`GradientDescent.start`."""
        parts = Adapting(learned, self.adapting)
        return parts.merge([jnp.zeros_like(leaf) for leaf in parts.chosen])
