"""Personalised dynamic music emotion recognition in JAX (DSAML, arXiv 2412.19200).

The public names load on first use, so that the command line answers before JAX is there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsaml_jax import convert, losses, meta, metrics
    from dsaml_jax.base import ModelConfig, ModelOutput, SongBatch
    from dsaml_jax.errors import UsageError
    from dsaml_jax.models import DSAML

__version__ = "0.2.0"

__all__ = [
    "DSAML",
    "ModelConfig",
    "ModelOutput",
    "SongBatch",
    "UsageError",
    "convert",
    "losses",
    "meta",
    "metrics",
]

_HOMES = {
    "DSAML": "models.dsaml",
    "ModelConfig": "base",
    "ModelOutput": "base",
    "SongBatch": "base",
    "UsageError": "errors",
}


def __getattr__(name: str) -> Any:
    """Loads a public name, or the module of that name, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return [*globals(), *__all__]
