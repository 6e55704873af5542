"""First-order MAML: Finn, Abbeel, Levine 2017 (arXiv 1703.03400), section 5.2."""

from __future__ import annotations

import dataclasses

from dsaml_jax.meta.descent import GradientDescent


@dataclasses.dataclass(frozen=True, kw_only=True)
class FOMAML(GradientDescent):
    """Inner gradients count as constants: the meta-gradient is the query's at the adapted parameters."""

    order: int = dataclasses.field(default=1, init=False)
