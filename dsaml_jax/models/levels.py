"""What the published model lacks for learning how high a song's curves lie: standardised inputs, and a path of their own."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

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

    `bias + sum_i weights[i] exp(-gamma |x - centres[i]|^2)`. Gradient descent on a network of as many numbers does worse:
    a thousand songs are few. Centres (the songs of training), weights and gamma are in the collection `batch_stats`, where
    :func:`dsaml_jax.training.levels.fit_levels` puts them before training, and stay; the bias is a parameter. A new model's
    weights are 0.

    Attributes:
      centres: `N`, how many songs there is room for.
    """

    centres: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        """`[B, 1 or T, E]` to `[B, 1 or T, 2]`, in float32."""
        width = embedding.shape[-1]
        # float16: half of the space, and a thousandth of a standard deviation is exact enough.
        centres = self.variable(
            "batch_stats", "centres", jnp.zeros, (self.centres, width), jnp.float16
        )
        weights = self.variable("batch_stats", "weights", jnp.zeros, (self.centres, 2))
        gamma = self.variable("batch_stats", "gamma", jnp.zeros, ())
        bias = self.param("bias", nn.initializers.zeros, (2,))
        x = widened(embedding)
        c = centres.value.astype(x.dtype)
        # Squares nearly cancel: TF32 or bfloat16, which accelerators may take for this product, would show.
        products = jnp.einsum("bte,ne->btn", x, c, precision=jax.lax.Precision.HIGHEST)
        squares = jnp.square(x).sum(-1, keepdims=True) - 2.0 * products + jnp.square(c).sum(-1)[None, None]  # fmt: skip
        likeness = jnp.exp(-gamma.value * jnp.maximum(squares, 0.0))
        level = jnp.einsum("btn,nd->btd", likeness, weights.value, precision=jax.lax.Precision.HIGHEST)  # fmt: skip
        return level + bias[None, None]


def centred(curves: jax.Array, present: jax.Array | None) -> jax.Array:
    """`[B, T, 2]` less each curve's mean over the steps that are present: how it moves, without its level."""
    if present is None:
        return curves - curves.mean(axis=1, keepdims=True)
    weights = present[..., None].astype(curves.dtype)
    total = jnp.sum(curves * weights, axis=1, keepdims=True)
    return curves - total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
