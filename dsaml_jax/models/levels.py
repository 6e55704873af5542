"""What the published model lacks for learning how high a song's curves lie: standardised inputs, and a path of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsaml_jax.models.layers import widened

FARTHEST = 5.0
"""Standard deviations beyond which an input says no more: one odd song does not decide."""


class Standardizer(nn.Module):
    """`(x - mean) / spread` of each number on the last axis, by what they are in the songs of training.

    Both are in the collection `batch_stats`, where they are put once, before training
    (:func:`dsaml_jax.corpus.input_statistics`), and stay. Nothing else is known of a new model's inputs: 0 and 1.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., n]` to the same."""
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        spread = self.variable("batch_stats", "spread", jnp.ones, x.shape[-1:])
        standard = (widened(x) - mean.value.reshape(shape)) / spread.value.reshape(shape)
        return jnp.clip(standard, -FARTHEST, FARTHEST).astype(x.dtype)


class LevelHead(nn.Module):
    """The level of both curves by kernel ridge regression on the global embedding (Saunders et al. 1998), and a bias.

    `bias + sum_i weights[i] exp(-gamma |x - centres[i]|^2)`, the centres being songs. Gradient descent on a network of as
    many numbers does worse: a thousand songs are few. All but the bias is in the collection `batch_stats` and stays as it
    was put there: the songs of training by :func:`dsaml_jax.training.levels.fit_levels`, before training, and in a personal
    model the songs of its listener, with a gamma of their own, by :func:`with_listener`. The bias is a parameter. Where
    there is no song, weights are 0.

    Attributes:
      centres: `N`, for how many songs of training there is room.
      listener_centres: `M`, for how many songs of a listener.
    """

    centres: int
    listener_centres: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        """`[B, 1 or T, E]` to `[B, 1 or T, 2]`, in float32."""
        bias = self.param("bias", nn.initializers.zeros, (2,))
        x = widened(embedding)
        return bias[None, None] + self._by_songs("", self.centres, x) + self._by_songs(LISTENER, self.listener_centres, x)  # fmt: skip

    def _by_songs(self, prefix: str, room: int, x: jax.Array) -> jax.Array:
        # float16: half of the space, and a thousandth of a standard deviation is exact enough.
        shape = (room, x.shape[-1])
        centres = self.variable("batch_stats", f"{prefix}centres", jnp.zeros, shape, jnp.float16)
        weights = self.variable("batch_stats", f"{prefix}weights", jnp.zeros, (room, 2))
        gamma = self.variable("batch_stats", f"{prefix}gamma", jnp.zeros, ())
        c = centres.value.astype(x.dtype)
        # Squares nearly cancel: TF32 or bfloat16, which accelerators may take for this product, would show.
        products = jnp.einsum("bte,ne->btn", x, c, precision=jax.lax.Precision.HIGHEST)
        squares = jnp.square(x).sum(-1, keepdims=True) - 2.0 * products + jnp.square(c).sum(-1)[None, None]  # fmt: skip
        alike = jnp.exp(-gamma.value * jnp.maximum(squares, 0.0))
        return jnp.einsum("btn,nd->btd", alike, weights.value, precision=jax.lax.Precision.HIGHEST)


LISTENER = "listener_"
"""Before the names of what a :class:`LevelHead` knows of one listener's songs."""


@dataclasses.dataclass(frozen=True)
class SongSpace:
    """Where songs lie for a :class:`LevelHead`, and how alike they are to a listener. On the host, in float64.

    Attributes:
      mean, spread: `[E]` of the embedding's numbers, see :class:`Standardizer`.
      gamma: of a listener's songs.
    """

    mean: np.ndarray
    spread: np.ndarray
    gamma: float

    def place(self, embeddings: np.ndarray) -> np.ndarray:
        """`[..., E]` of embeddings `[..., E]`; as float16 they are a head's centres."""
        standard = (np.asarray(embeddings, np.float64) - self.mean) / self.spread
        return np.asarray(standard.clip(-FARTHEST, FARTHEST))

    def likeness(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """`[m, n]` in (0, 1] of places `[m, E]` and `[n, E]`: `exp(-gamma |x - y|^2)`."""
        return np.asarray(np.exp(-self.gamma * squared_distances(x, y)))


def song_space(variables: Mapping[str, Any]) -> SongSpace | None:
    """Of a model with a :class:`LevelHead`; None of another."""
    statistics = variables["batch_stats"]
    if f"{LISTENER}gamma" not in statistics.get("level", {}):
        return None
    mean, spread = (np.asarray(statistics["embedding_input"][x], np.float64) for x in ("mean", "spread"))  # fmt: skip
    return SongSpace(mean, spread, float(statistics["level"][f"{LISTENER}gamma"]))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`[m, n]` float64 between rows of `[m, k]` and of `[n, k]`."""
    chex.assert_rank([x, y], 2)
    x, y = x.astype(np.float64), y.astype(np.float64)
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None]
    return np.asarray(np.maximum(squares - 2.0 * x @ y.T, 0.0))


def listener_places(variables: Mapping[str, Any]) -> np.ndarray:
    """`[M, E]` float16, :meth:`SongSpace.place` of the songs of a personal model's listener, and 0 where there is none."""
    return np.asarray(variables["batch_stats"]["level"][f"{LISTENER}centres"])


def listener_weights(variables: Mapping[str, Any]) -> np.ndarray:
    """`[M, 2]` what likeness to each of these songs adds to the level; 0 where there is none."""
    return np.asarray(variables["batch_stats"]["level"][f"{LISTENER}weights"])


def with_listener(variables: Mapping[str, Any], places: np.ndarray, weights: np.ndarray) -> dict[str, Any]:  # fmt: skip
    """The same variables, knowing these songs of a listener.

    Args:
      variables: of a model with a :class:`LevelHead`.
      places: `[K, E]`, see :meth:`SongSpace.place`.
      weights: `[K, 2]` of their likeness to another song.

    Returns:
      with room for `M` songs as before, or for twice as many until K have room.
    """
    statistics = variables["batch_stats"]
    level = statistics["level"]
    room = len(level[f"{LISTENER}weights"])
    while room < len(places):
        room *= 2
    rows = [(0, room - len(places)), (0, 0)]
    known = {
        f"{LISTENER}centres": jnp.asarray(np.pad(places, rows), jnp.float16),
        f"{LISTENER}weights": jnp.asarray(np.pad(weights, rows), jnp.float32),
    }
    return {**variables, "batch_stats": {**statistics, "level": {**level, **known}}}


def centred(curves: jax.Array, present: jax.Array | None) -> jax.Array:
    """`[B, T, 2]` less each curve's mean over the steps that are present: how it moves, without its level."""
    if present is None:
        return curves - curves.mean(axis=1, keepdims=True)
    weights = present[..., None].astype(curves.dtype)
    total = jnp.sum(curves * weights, axis=1, keepdims=True)
    return curves - total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
