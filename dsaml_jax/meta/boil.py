"""Body only update in the inner loop: Oh, Yoo, Kim, Yun 2021 (arXiv 2008.08882)."""

from __future__ import annotations

import dataclasses

from dsaml_jax.meta.anil import require_head
from dsaml_jax.meta.descent import GradientDescent


@dataclasses.dataclass(frozen=True, kw_only=True)
class BOIL(GradientDescent):
    """Everything but the head adapts.

    Attributes:
      adapts: the head, as for ANIL, which is what does *not* adapt here; it must be given.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require_head(self.adapts, "boil")

    def adapting(self, name: str) -> bool:
        """See :meth:`Algorithm.adapting`."""
        return not super().adapting(name)
