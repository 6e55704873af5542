"""Flax modules of the DSAML model. None of them knows of meta-learning."""

from dsaml_jax.models.adapter import ImageBindAdapter
from dsaml_jax.models.attention import DualScaleEncoder
from dsaml_jax.models.building import Network, build_model, is_split, knows_batch_norm
from dsaml_jax.models.dsaml import DSAML
from dsaml_jax.models.levels import (
    FARTHEST,
    SongSpace,
    listener_places,
    listener_weights,
    song_space,
    squared_distances,
    with_listener,
)
from dsaml_jax.models.predictor import SequencePredictor
from dsaml_jax.models.spectrogram import SpectrogramBranch, output_size

__all__ = [
    "DSAML",
    "FARTHEST",
    "DualScaleEncoder",
    "ImageBindAdapter",
    "Network",
    "SequencePredictor",
    "SongSpace",
    "SpectrogramBranch",
    "build_model",
    "is_split",
    "knows_batch_norm",
    "listener_places",
    "listener_weights",
    "output_size",
    "song_space",
    "squared_distances",
    "with_listener",
]
