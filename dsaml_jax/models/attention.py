"""Dual-scale attention transformer: one BERT encoder, run under a local and a global mask at once.

DSAML's section 3.3. Both scales share every weight, so they travel as one leading axis `S` through
the same matrix products. Until the first mask is applied they are also the same numbers: the first
layer projects queries, keys and values once for both.
"""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsaml_jax.base import ModelConfig
from dsaml_jax.models.layers import Linear, product, widened

MASKED_SCORE = -1e30
"""Finite, so that a step that sees nobody gets a uniform row and no NaN."""


def context_mask(steps: int, context: int) -> np.ndarray:
    """`[T, T]` bool: whether |i - j| <= context."""
    index = np.arange(steps)
    return np.abs(index[:, None] - index[None, :]) <= context


def skew(rows: jax.Array) -> jax.Array:
    """Turns `[..., T, 2T - 1]`, indexed by (step i, T - 1 - i + j), into `[..., T, T]`.

    A gather of the distance table per pair would do the same with T times the memory and a
    scatter-add in the backward pass; this is two reshapes and two slices.
    """
    *lead, steps, wide = rows.shape
    if steps == 1:
        return rows
    flat = rows.reshape(*lead, steps * wide)
    start = steps - 1
    flat = flat[..., start : start + steps * (wide - 1)]
    return flat.reshape(*lead, steps, wide - 1)[..., :steps]


class SelfAttention(nn.Module):
    """Multi-head self-attention with a learned table of relative distances.

    Score of query i for key j: `(q_i . k_j + q_i . r[i - j + P - 1]) / sqrt(D / H)`, where `r` is the
    table of `2 P - 1` rows (Shaw et al. 2018); `relative_key_query` adds `k_j . r[i - j + P - 1]`.

    Attributes:
      config: the model's configuration.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, *, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Attends.

        Args:
          x: `[S or 1, B, T, D]`.
          mask: `[S, 1 or B, 1, T, T]` bool.
          deterministic: no dropout.

        Returns:
          the heads' outputs side by side `[S, B, T, D]` and the probabilities `[S, B, H, T, T]`, float32.
        """
        config = self.config
        steps, width = x.shape[-2:]
        heads = config.num_heads
        head_width = width // heads

        def project(name: str) -> jax.Array:
            projected = Linear(width, name=name)(x)
            return projected.reshape(*x.shape[:-1], heads, head_width).swapaxes(-2, -3)

        query, key, value = project("query"), project("key"), project("value")
        scores = widened(query @ key.swapaxes(-1, -2))
        if config.position != "absolute":
            table = self.param(
                "distance",
                nn.initializers.normal(1.0),
                (2 * config.max_position - 1, head_width),
            )
            first = config.max_position - steps
            nearby = table[first : first + 2 * steps - 1]
            scores = scores + skew(product("sbhtd,rd->sbhtr", query, nearby[::-1]))
            if config.position == "relative_key_query":
                by_key = skew(product("sbhtd,rd->sbhtr", key, nearby))
                scores = scores + by_key.swapaxes(-1, -2)
        scores = scores / np.sqrt(head_width).astype(scores.dtype)
        probabilities = nn.softmax(jnp.where(mask, scores, MASKED_SCORE))
        dropped = nn.Dropout(config.dropout)(probabilities, deterministic=deterministic)
        mixed = (dropped.astype(value.dtype) @ value).swapaxes(-2, -3)
        return mixed.reshape(*mixed.shape[:-2], width), probabilities


class EncoderLayer(nn.Module):
    """BERT layer: `h = LN(x + W_o attention)`, `y = LN(h + FFN(h))`, exact GELU.

    Attributes:
      config: the model's configuration.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, *, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """`[S or 1, B, T, D]` to `[S, B, T, D]`, with the probabilities `[S, B, H, T, T]`."""
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        mixed, probabilities = SelfAttention(config, name="attention")(
            x, mask, deterministic=deterministic
        )
        mixed = drop(Linear(config.width, name="attention_out")(mixed))
        hidden = add_and_norm(x, mixed, name="attention_norm")
        expanded = nn.gelu(Linear(config.ffn_width, name="ffn_in")(hidden), approximate=False)
        contracted = drop(Linear(config.width, name="ffn_out")(expanded))
        return add_and_norm(hidden, contracted, name="ffn_norm"), probabilities


def add_and_norm(x: jax.Array, change: jax.Array, *, name: str) -> jax.Array:
    """`LN(x + change)`, added and normalised in float32; for use inside a module."""
    total = widened(x) + widened(change)
    return nn.LayerNorm(epsilon=1e-12, name=name)(total).astype(x.dtype)


class DualScaleEncoder(nn.Module):
    """The shared encoder under each scale's mask.

    Attributes:
      config: the model's configuration.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, *, deterministic: bool, present: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes.

        Args:
          x: `[B, T, D]`.
          deterministic: no dropout.
          present: `[B, T]` bool; absent steps are seen by no one.

        Returns:
          last hidden states `[S, B, T, D]` and attention `[B, S, L, H, T, T]`.
        """
        config = self.config
        batch, steps, _ = x.shape
        if steps > config.max_position:
            raise ValueError(f"{steps} steps; the distance table reaches {config.max_position}")
        masks = np.stack([context_mask(steps, context) for context in config.contexts])
        mask = jnp.asarray(masks)[:, None, None]
        if present is not None:
            chex.assert_shape(present, (batch, steps))
            mask = mask & present[None, :, None, None, :]
        hidden = x[None]
        maps = []
        for layer in range(config.num_layers):
            hidden, probabilities = EncoderLayer(config, name=f"layer{layer}")(
                hidden, mask, deterministic=deterministic
            )
            maps.append(probabilities)
        return hidden, jnp.stack(maps, axis=2).swapaxes(0, 1)
