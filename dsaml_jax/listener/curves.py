"""Curves of whole songs: the front end once per half-second step, the rest once per window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data_prep.base import WINDOW_STEPS
from dsaml_jax.models import is_split

Variables = Mapping[str, Any]

ENCODE_BLOCK = 240
"""Steps whose patches go through the front end at once: two minutes."""


def song_curve(
    model: nn.Module,
    variables: Variables,
    log_mel: jax.Array,
    embedding: jax.Array,
    window_start: jax.Array,
    *,
    steps: jax.Array,
    windows: jax.Array,
    per_step: bool,
) -> jax.Array:
    """Arousal and valence of one song, padded to static shapes.

    Where windows overlap their curves are blended, each by :func:`blending_weights`, so that there are no seams. (The
    reference slides a window by one step, runs the front end for every window, and is off by one step from the
    sixtieth on.)

    Args:
      model: the network.
      variables: its `params` and `batch_stats`.
      log_mel: `[n, F, M]`, n >= steps.
      embedding: `[w, E]` per window or `[n, E]` per step.
      window_start: `[w]` first step of each window.
      steps: scalar, how many steps are real.
      windows: scalar, how many windows are real.
      per_step: which of the two kinds of embedding it is.

    Returns:
      `[n, 2]`; what lies beyond `steps` means nothing.
    """
    chex.assert_rank([log_mel, embedding, window_start], [3, 2, 1])
    length = log_mel.shape[0]
    window = min(WINDOW_STEPS, length)

    inside = window_start[:, None] + jnp.arange(window)[None]  # [w, T]
    present = inside < steps
    rows = jnp.minimum(inside, length - 1)
    embeddings = embedding[rows] if per_step else embedding[:, None]
    out: Any
    if is_split(model):
        # In eval mode every patch is encoded by itself; blocks bound the memory of an hour of music.
        def encode(patch: jax.Array) -> jax.Array:
            encoded: Any = model.apply(variables, patch[None, None], method="encode")
            return encoded[0, 0]

        features = jax.lax.map(encode, log_mel, batch_size=ENCODE_BLOCK)
        out = model.apply(variables, features[rows], embeddings, present=present, method="predict")
    else:
        out = model.apply(variables, log_mel[rows], embeddings, present=present)
    curves = jnp.stack([out.arousal, out.valence], axis=-1)  # [w, T, 2]

    real = present & (jnp.arange(len(window_start)) < windows)[:, None]
    weights = jnp.where(real, blending_weights(window)[None], 0.0)[..., None]  # [w, T, 1]
    total = jnp.zeros((length, 2)).at[rows].add(weights * jnp.where(real[..., None], curves, 0.0))
    return total / jnp.maximum(jnp.zeros((length, 1)).at[rows].add(weights), TINY)


TINY = 1e-9
"""Less than any weight of :func:`blending_weights`: no step that is real is divided by it."""


def blending_weights(window: int) -> jax.Array:
    """`[window]` how much a window says about each of its steps: a squared sine, next to nothing at its ends.

    Windows half of their length apart (:func:`data_prep.features.window_starts`) have weights that add up to 1.
    """
    return jnp.square(jnp.sin(jnp.pi * (jnp.arange(window, dtype=jnp.float32) + 0.5) / window))


def blended(values: np.ndarray, window_start: np.ndarray, steps: int) -> np.ndarray:
    """`[steps, k]` of one row `[k]` per window: as :func:`song_curve` blends, where a window says the same of all its steps.

    Args:
      values: `[w, k]`.
      window_start: `[w]`.
      steps: of the song.
    """
    chex.assert_rank([values, window_start], [2, 1])
    window = min(WINDOW_STEPS, steps)
    rows = (window_start[:, None] + np.arange(window)[None]).astype(int)
    weights = np.zeros((steps, len(values)))
    every, step = np.nonzero(rows < steps)
    weights[rows[every, step], every] = np.asarray(blending_weights(window), np.float64)[step]
    return np.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), TINY) @ values)


_jitted_song_curve = jax.jit(song_curve, static_argnames=("model", "per_step"))


def predict_song(
    model: nn.Module,
    variables: Variables,
    log_mel: np.ndarray,
    embedding: np.ndarray,
    window_start: np.ndarray,
    *,
    per_step: bool,
) -> np.ndarray:
    """`[n, 2]` arousal and valence of a song from its features, on the host.

    Lengths are padded to powers of two (and no less than a window), so that a folder of songs compiles
    a handful of programs.

    Args:
      model: the network.
      variables: its variables.
      log_mel: `[n, F, M]`.
      embedding: `[w, E]` or `[n, E]`.
      window_start: `[w]`.
      per_step: whether there is one embedding per step.
    """
    steps, windows = len(log_mel), len(window_start)
    length = max(WINDOW_STEPS, 1 << (steps - 1).bit_length())
    slots = max(1, 1 << (windows - 1).bit_length())
    curve = _jitted_song_curve(
        model,
        variables,
        _pad(np.asarray(log_mel, np.float32), length),
        _pad(embedding, length if per_step else slots),
        _pad(window_start, slots),
        steps=steps,
        windows=windows,
        per_step=per_step,
    )
    return np.asarray(curve)[:steps]


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([array, np.repeat(array[-1:], length - len(array), axis=0)])
