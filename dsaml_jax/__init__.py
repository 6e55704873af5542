"""Personalised dynamic music emotion recognition in JAX (DSAML, arXiv 2412.19200).

The public names load on first use, so that the command line answers before JAX is there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.several import read_corpora as load_corpus
    from dsaml_jax import convert, losses, meta, metrics
    from dsaml_jax.base import ModelConfig, ModelOutput, SongBatch
    from dsaml_jax.errors import UsageError
    from dsaml_jax.evaluation import evaluate
    from dsaml_jax.listener import predict_file
    from dsaml_jax.models import DSAML
    from dsaml_jax.runs import load_model

__version__ = "0.2.0"

__all__ = [
    "DSAML",
    "ModelConfig",
    "ModelOutput",
    "SongBatch",
    "UsageError",
    "convert",
    "evaluate",
    "load_corpus",
    "load_model",
    "losses",
    "meta",
    "metrics",
    "predict_file",
]

_HOMES = {
    "DSAML": ("dsaml_jax.models", "DSAML"),
    "ModelConfig": ("dsaml_jax.base", "ModelConfig"),
    "ModelOutput": ("dsaml_jax.base", "ModelOutput"),
    "SongBatch": ("dsaml_jax.base", "SongBatch"),
    "UsageError": ("dsaml_jax.errors", "UsageError"),
    "evaluate": ("dsaml_jax.evaluation", "evaluate"),
    "load_corpus": ("data_prep.several", "read_corpora"),
    "load_model": ("dsaml_jax.runs", "load_model"),
    "predict_file": ("dsaml_jax.listener", "predict_file"),
}
"""Public names that are no modules of this package, where they are, and what they are called there."""


def __getattr__(name: str) -> Any:
    """Loads a public name, or the module of that name, when it is first asked for.

    Raises:
      ModuleNotFoundError: it needs what is not installed, as beside `dsaml_jax.meta` alone (`dsaml_jax_meta`).
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inside = _HOMES.get(name, (f"{__name__}.{name}", ""))
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs {error.name}: pip install dsaml_jax; where dsaml_jax_meta is, uninstall that first",
            name=error.name,
        ) from None
    return getattr(home, inside) if inside else home


def __dir__() -> list[str]:
    return [*globals(), *__all__]
