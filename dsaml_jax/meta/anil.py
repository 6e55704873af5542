"""Almost no inner loop: Raghu, Raghu, Bengio, Vinyals 2020 (arXiv 1909.09157)."""

from __future__ import annotations

import dataclasses

from dsaml_jax.errors import UsageError
from dsaml_jax.meta.base import ParameterFilter
from dsaml_jax.meta.descent import GradientDescent


@dataclasses.dataclass(frozen=True, kw_only=True)
class ANIL(GradientDescent):
    """Only the head adapts; the body in front of it is learned across tasks and computed once per task.

    Attributes:
      adapts: the head; it must be given.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require_head(self.adapts, "anil")


def require_head(adapts: ParameterFilter | None, name: str, part: str = "the head") -> None:
    """Raises UsageError where the filter that names the head is missing."""
    if adapts is None:
        raise UsageError(f"{name} needs `adapts`, the filter that says which parameters are {part}")
