"""Spectrogram branch: one log-mel patch (half a second) to one feature vector (DSAML, section 3.1)."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dsaml_jax.models.layers import BatchNorm, uniform_fan_in


class PatchConv(nn.Module):
    """Convolution over `[N, height, width, C]`, written as shifted copies and one matrix product.

    Under `vmap` over annotators every annotator has a kernel of their own. XLA turns a vmapped
    convolution into a grouped one, which is 3 times slower on a CPU than the batched matrix product
    this becomes; without `vmap` the two cost the same.

    Attributes:
      features: output channels.
      kernel_size: height, width.
      padding: zeros on each side of height, width.
    """

    features: int
    kernel_size: tuple[int, int]
    padding: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, h, w, C]` to `[N, h + 2 pad - kernel + 1, ..., features]`."""
        kernel_h, kernel_w = self.kernel_size
        pad_h, pad_w = self.padding
        channels = x.shape[-1]
        init = uniform_fan_in(kernel_h * kernel_w * channels)
        kernel = self.param("kernel", init, (kernel_h, kernel_w, channels, self.features))
        bias = self.param("bias", init, (self.features,))
        height = x.shape[1] + 2 * pad_h - kernel_h + 1
        width = x.shape[2] + 2 * pad_w - kernel_w + 1
        padded = jnp.pad(x, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
        shifts = [
            padded[:, i : i + height, j : j + width]
            for i in range(kernel_h)
            for j in range(kernel_w)
        ]
        columns = jnp.concatenate(shifts, axis=-1)
        return columns @ kernel.reshape(-1, self.features) + bias.reshape(1, 1, 1, -1)


def max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 max-pool, stride 2, padding 1, of values that are >= 0: `[N, h, w, C]`.

    Slices and `maximum` rather than `reduce_window`, whose backward pass is slow on a CPU. Zero
    padding equals the usual -inf because every caller has a ReLU in front.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    x = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(x[:, :, 0::2], x[:, :, 1::2])


class SpectrogramBranch(nn.Module):
    """Two conv-BatchNorm-ReLU-pool blocks and a 1 x 1 convolution (DSAML's section 3.1).

    Frames are the height and mel bands the width. A 51 x 128 patch becomes 14 x 34 = 476 numbers.
    """

    @nn.compact
    def __call__(
        self, patches: jax.Array, *, use_batch_statistics: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """Encodes patches.

        Args:
          patches: `[N, F, M]` log-mel.
          use_batch_statistics: see :class:`BatchNorm`.
          mask: `[N]` bool, the patches that exist.

        Returns:
          `[N, features]`, the last map flattened row by row.
        """
        chex.assert_rank(patches, 3)
        x = patches[..., None]
        for block, (features, kernel_size, padding) in enumerate(
            ((8, (3, 1), (2, 1)), (16, (3, 3), (1, 1)))
        ):
            x = PatchConv(features, kernel_size, padding, name=f"conv{block}")(x)
            x = BatchNorm(name=f"norm{block}")(
                x, use_batch_statistics=use_batch_statistics, mask=mask
            )
            x = max_pool(nn.relu(x))
        x = PatchConv(1, (1, 1), (0, 0), name="conv_out")(x)
        return x.reshape(x.shape[0], -1)
