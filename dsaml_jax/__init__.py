"""Personalised dynamic music emotion recognition in JAX (DSAML, arXiv 2412.19200)."""

from dsaml_jax import convert, losses, meta, metrics
from dsaml_jax.base import ModelConfig, ModelOutput, SongBatch, UsageError
from dsaml_jax.models.dsaml import DSAML

__version__ = "0.1.0"

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
