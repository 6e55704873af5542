"""ImageBind's embedding of sound (Girdhar et al. 2023): filter banks, encoder and weights.

The weights are Meta's, under CC-BY-NC 4.0: the user's download, never part of this package. The names
below load on first use, so that processes which only make filter banks go without JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.imagebind.encoder import AudioEncoder, Embedder
    from data_prep.imagebind.weights import from_torch

__all__ = ["AudioEncoder", "Embedder", "from_torch"]

_HOMES = {"AudioEncoder": "encoder", "Embedder": "encoder", "from_torch": "weights"}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
