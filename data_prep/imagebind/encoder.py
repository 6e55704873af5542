"""ImageBind's audio tower in Flax: a vision transformer over the filter-bank clip of two seconds.

Girdhar et al. 2023, "ImageBind: One Embedding Space To Bind Them All" (arXiv 2305.05665). `N` is the
number of clips, `T` the tokens of a clip, `D` the width, `H` the heads.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from data_prep.imagebind.fbank import CLIP_FRAMES, CLIPS, MEL_BANDS
from data_prep.parallel import batch_sizes


def layer_norm(x: jax.Array, epsilon: float, name: str) -> jax.Array:
    """LayerNorm in float32, whatever `x` is; to be called inside a compact module."""
    return nn.LayerNorm(epsilon=epsilon, name=name)(x.astype(jnp.float32))


class Attention(nn.Module):
    """Multi-head self-attention in which every query also sees one learned key and value.

    Attributes:
      num_heads: `H`.
      dtype: of activations; the softmax is float32.
    """

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, T, D]` to `[N, T, D]`."""
        clips, tokens, width = x.shape
        projected = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.split(projected, 3, axis=-1)

        def with_extra(name: str, seen: jax.Array) -> jax.Array:
            extra = self.param(name, nn.initializers.normal(0.02), (width,)).astype(self.dtype)
            return jnp.concatenate([seen, jnp.broadcast_to(extra, (clips, 1, width))], axis=1)

        def heads(y: jax.Array) -> jax.Array:
            split = y.reshape(*y.shape[:2], self.num_heads, width // self.num_heads)
            return split.swapaxes(1, 2)

        query, key = heads(query), heads(with_extra("extra_key", key))
        value = heads(with_extra("extra_value", value))
        # Heads in front, and products as matmul: XLA on CPUs takes twice as long over the same einsum.
        product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
        scores = product(query, key.swapaxes(2, 3)) * np.float32(query.shape[-1] ** -0.5)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        # The softmax's division comes after the product: 64 numbers a query and head, not 230.
        mixed = product(weights.astype(self.dtype), value) / weights.sum(axis=-1, keepdims=True)
        mixed = mixed.swapaxes(1, 2).reshape(clips, tokens, width).astype(self.dtype)
        return nn.Dense(width, dtype=self.dtype, name="out")(mixed)


class Block(nn.Module):
    """Pre-norm transformer block: `x + attention(LN(x))`, then `x + FFN(LN(x))`, exact GELU.

    Attributes:
      num_heads: `H`.
      ffn_width: of the hidden layer.
      dtype: of activations; the norms are float32.
    """

    num_heads: int
    ffn_width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, T, D]` to `[N, T, D]`."""
        attention = Attention(self.num_heads, self.dtype, name="attention")
        x = x + attention(layer_norm(x, 1e-6, "norm1"))
        hidden = layer_norm(x, 1e-6, "norm2")
        hidden = nn.Dense(self.ffn_width, dtype=self.dtype, name="ffn_in")(hidden)
        hidden = nn.gelu(hidden, approximate=False)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="ffn_out")(hidden)


class AudioEncoder(nn.Module):
    """The audio tower, with the sizes of ImageBind-huge unless told otherwise (86,235,648 parameters).

    Patches of 16 x 16 every 10 bands and frames become tokens, frequency outermost; a class token in
    front of them collects what the embedding is made of. All parameters are float32, and those of the
    blocks are stacked on a leading axis: one block is compiled, and run `num_layers` times.

    Attributes:
      width: `D`.
      num_heads: `H`.
      num_layers: how many blocks.
      ffn_width: hidden units of each block's feed-forward half.
      embedding_width: `E`.
      patch: height and width of a patch, in bands and frames.
      stride: between patches.
      mel_shape: bands and frames of a clip.
      dtype: of activations, float32 or bfloat16. Norms, softmax and the result are float32.
    """

    width: int = 768
    num_heads: int = 12
    num_layers: int = 12
    ffn_width: int = 3072
    embedding_width: int = 1024
    patch: int = 16
    stride: int = 10
    mel_shape: tuple[int, int] = (MEL_BANDS, CLIP_FRAMES)
    dtype: DTypeLike = jnp.float32

    @property
    def tokens(self) -> int:
        """`T`: the patches and the class token."""
        rows, columns = ((size - self.patch) // self.stride + 1 for size in self.mel_shape)
        return rows * columns + 1

    def __call__(self, mel: jax.Array) -> jax.Array:
        """Embeds clips.

        Args:
          mel: `[N, 1, 128, 204]`, see :func:`data_prep.imagebind.fbank.mel_clips`.

        Returns:
          `[N, E]` float32, of norm `exp(log_scale)`: 20 in the published weights.
        """
        chex.assert_shape(mel, (None, 1, *self.mel_shape))
        # Accelerators round the factors of float32 products otherwise; bfloat16 ones are as they are.
        with jax.default_matmul_precision("highest"):
            return self._embed(mel)

    @nn.compact
    def _embed(self, mel: jax.Array) -> jax.Array:
        x = jnp.moveaxis(mel, 1, -1).astype(self.dtype)
        stem = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=self.stride,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="stem",
        )
        x = stem(x).reshape(len(mel), self.tokens - 1, self.width)
        x = layer_norm(x, 1e-5, "stem_norm").astype(self.dtype)
        init = nn.initializers.normal(0.02)
        first = self.param("class_token", init, (self.width,)).astype(self.dtype)
        position = self.param("position", init, (self.tokens, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (len(mel), 1, self.width)), x], axis=1)
        x = x + position[None]

        blocks = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=self.num_layers,
        )
        x, _ = blocks(Block(self.num_heads, self.ffn_width, self.dtype, name="blocks"), x, None)

        x = layer_norm(x[:, 0], 1e-6, "head_norm")
        x = nn.Dense(self.embedding_width, use_bias=False, dtype=self.dtype, name="head")(x)
        x = x.astype(jnp.float32)
        scale = self.param("log_scale", nn.initializers.constant(np.log(20.0)), ())
        return x * (jnp.exp(scale) / jnp.linalg.norm(x, axis=-1, keepdims=True))


class Embedder:
    """An encoder with its weights, compiled once for each of a few batch sizes.

    Attributes:
      encoder: what :func:`embed` runs.
    """

    def __init__(
        self,
        variables: Mapping[str, Any],
        encoder: AudioEncoder = AudioEncoder(),
        *,
        max_windows: int = 8,
    ):
        """Places the weights on the device.

        Args:
          variables: of the encoder, see :mod:`data_prep.imagebind.weights`.
          encoder: ImageBind-huge's in float32 by default.
          max_windows: largest batch; a power of two. Bounds the memory of activations.
        """
        if max_windows < 1 or max_windows & (max_windows - 1):
            raise ValueError(f"max_windows {max_windows} must be a power of two")
        self.encoder = encoder
        self._max_windows = max_windows
        self._variables = jax.device_put(dict(variables))
        self._embed = jax.jit(self._embed_windows)

    def embed(self, clips: np.ndarray) -> np.ndarray:
        """Embeds windows of sound.

        Args:
          clips: `[w, 3, 1, 128, 204]`, see :func:`data_prep.imagebind.fbank.stretch_clips`.

        Returns:
          `[w, E]` float32, the mean over a window's clips: its norm is 20 at most.
        """
        chex.assert_shape(clips, (None, CLIPS, 1, *self.encoder.mel_shape))
        parts = [np.zeros((0, self.encoder.embedding_width), np.float32)]
        first = 0
        for size in batch_sizes(len(clips), self._max_windows):
            parts.append(self._embed(self._variables, clips[first : first + size]))
            first += size
        return np.concatenate(jax.device_get(parts))

    def _embed_windows(self, variables: Mapping[str, Any], clips: jax.Array) -> jax.Array:
        per_clip: Any = self.encoder.apply(variables, clips.reshape(-1, *clips.shape[2:]))
        return per_clip.reshape(*clips.shape[:2], -1).mean(axis=1)
