"""What the published model lacks for learning how high a song's curves lie: standardised inputs, and a path of their own."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsaml_jax.models.layers import Linear, widened

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
    """Two dense layers from the global embedding to the level of both curves.

    Attributes:
      width: of the hidden layer.
      dropout: rate on the embedding, and on the hidden layer.
    """

    width: int
    dropout: float

    @nn.compact
    def __call__(self, embedding: jax.Array, *, deterministic: bool) -> jax.Array:
        """`[B, 1 or T, E]` to `[B, 1 or T, 2]`, in float32."""
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        hidden = nn.relu(Linear(self.width, name="hidden")(drop(embedding)))
        return Linear(2, jax.lax.Precision.HIGHEST, name="out")(widened(drop(hidden)))


def centred(curves: jax.Array, present: jax.Array | None) -> jax.Array:
    """`[B, T, 2]` less each curve's mean over the steps that are present: how it moves, without its level."""
    if present is None:
        return curves - curves.mean(axis=1, keepdims=True)
    weights = present[..., None].astype(curves.dtype)
    total = jnp.sum(curves * weights, axis=1, keepdims=True)
    return curves - total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
