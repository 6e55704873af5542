"""Model-agnostic meta-learning: Finn, Abbeel, Levine 2017 (arXiv 1703.03400)."""

from __future__ import annotations

import dataclasses

from dsaml_jax.meta.descent import GradientDescent


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAML(GradientDescent):
    """The exact gradient through every inner step."""

    order: int = dataclasses.field(default=2, init=False)
