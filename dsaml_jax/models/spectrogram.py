"""Spectrogram branch: one log-mel patch (half a second) to one feature vector (DSAML, section 3.1).

Two blocks of convolution, BatchNorm, ReLU and 2 x 2 max-pooling, and a 1 x 1 convolution. Most of the model's time at
small widths, and most of its memory, are here, so it is not written layer by layer:

* A pooling window and all the inputs it sees are one row of a matrix product: a convolution's four outputs there, side
  by side. Pooling is then a maximum of four neighbours in memory, and under `vmap` over annotators, each with a kernel
  of their own, the product becomes a batched product, where XLA makes a grouped convolution of a convolution.
* The first block has one input channel, so the mean and variance of its output follow from those of the input
  (:func:`moments_after`): its output, the largest array of the model, is normalised while it is made.
* On a CPU patches go through in blocks that stay in the cache, made again in the backward pass. So moments are taken of
  each patch, in its block, and then combined.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsaml_jax.base import PyTree
from dsaml_jax.models.layers import BatchNorm, Moments, product, uniform_fan_in, widened

CPU_BLOCK = 60
"""Patches at once on a CPU: 30 s of music, whose largest array (13 MB) fits a last-level cache.

10, which fit a second-level cache, are a tenth faster for many songs; for one they cost as much as they give.
"""


class Convolution(nn.Module):
    """Parameters of a convolution.

    Attributes:
      channels: of the input.
      features: of the output.
      kernel_size: height, width.
    """

    channels: int
    features: int
    kernel_size: tuple[int, int]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Kernel `[kernel height, kernel width, channels, features]` and bias `[features]`."""
        shape = (*self.kernel_size, self.channels, self.features)
        init = uniform_fan_in(self.kernel_size[0] * self.kernel_size[1] * self.channels)
        return self.param("kernel", init, shape), self.param("bias", init, (self.features,))


class SpectrogramBranch(nn.Module):
    """Frames are the height and mel bands the width. A 51 x 128 patch becomes 14 x 34 = 476 numbers."""

    @nn.compact
    def __call__(
        self, patches: jax.Array, *, use_batch_statistics: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """Encodes patches.

        Args:
          patches: `[N, F, M]` log-mel.
          use_batch_statistics: see :class:`BatchNorm`.
          mask: `[N]` bool, the patches that exist; others do not enter the statistics.

        Returns:
          `[N, features]`, the last map flattened row by row, in the dtype of `patches`.
        """
        chex.assert_rank(patches, 3)
        weights = jnp.ones(len(patches), bool) if mask is None else mask
        weights = weights.astype(widened(patches).dtype)
        (kernel0, bias0), padding0 = Convolution(1, 8, (3, 1), name="conv0")(), (2, 1)
        (kernel1, bias1), padding1 = Convolution(8, 16, (3, 3), name="conv1")(), (1, 1)
        kernel_out, bias_out = Convolution(16, 1, (1, 1), name="conv_out")()

        def moments0() -> Moments:
            mean, covariance = in_blocks(lambda x: tap_moments(x, (3, 1), padding0), patches)
            mean, variance = moments_after(mean, covariance, kernel0, bias0)
            places = math.prod(output_size(patches.shape[1:], (3, 1), padding0))
            return combined(mean, variance, places, weights)

        factor0, shift0 = BatchNorm(8, name="norm0")(
            moments0, use_batch_statistics=use_batch_statistics
        )
        exists0 = outputs_in_windows(patches.shape[1:], (3, 1), padding0)
        exists1 = outputs_in_windows(exists0.shape[:2], (3, 3), padding1)

        def two_convolutions(seen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            kernel = kernel0 * factor0[None, None, None]
            x = pool(convolve_windows(seen, kernel, bias0 * factor0 + shift0), exists0)
            x = convolve_windows(seen_by_windows(x, (3, 3), padding1), kernel1)
            return x, *masked_moments(x, exists1)

        # Outside the blocks, because it has no parameters: inner steps can share it.
        seen = seen_by_windows(patches[..., None], (3, 1), padding0)
        seen = jnp.concatenate([seen, jnp.ones((*seen.shape[:3], 1), seen.dtype)], axis=-1)
        x, mean1, variance1 = in_blocks(two_convolutions, seen)
        # The second bias is added with the normalisation, and moves the mean alone.
        factor1, shift1 = BatchNorm(16, name="norm1")(
            lambda: combined(mean1 + bias1[None], variance1, int(exists1.sum()), weights),
            use_batch_statistics=use_batch_statistics,
        )

        def normalise_and_project(x: jax.Array) -> jax.Array:
            shift = bias1 * factor1 + shift1
            normalised = widened(x) * factor1[None, None, None, None]
            normalised = (normalised + shift[None, None, None, None]).astype(x.dtype)
            out = product("...c,co->...o", pool(normalised, exists1), kernel_out[0, 0])
            return (out + bias_out[None, None, None]).astype(x.dtype)

        return in_blocks(normalise_and_project, x).reshape(len(patches), -1)


def seen_by_windows(
    x: jax.Array, kernel_size: tuple[int, int], padding: tuple[int, int]
) -> jax.Array:
    """All that the outputs in each 2 x 2 pooling window (stride 2, padding 1) of a convolution see.

    Args:
      x: `[N, h, w, C]`.
      kernel_size: height, width.
      padding: zeros on each side of height and width.

    Returns:
      `[N, H, W, (kernel height + 1) * (kernel width + 1) * C]` for the `H x W` windows.
    """
    kernel_h, kernel_w = kernel_size
    rows, columns = _windows(x.shape[1:3], kernel_size, padding)
    # Columns are read in pairs: the windows' stride is then a reshape, and what is copied is contiguous.
    pairs = (kernel_w + 1) // 2
    need = (2 * (rows - 1) + kernel_h + 1, 2 * (columns - 1 + pairs))
    edges = [
        (pad + 1, max(0, n - pad - 1 - size))
        for pad, n, size in zip(padding, need, x.shape[1:3], strict=True)
    ]
    padded = jnp.pad(x, ((0, 0), *edges, (0, 0)))[:, :, : need[1]]
    paired = padded.reshape(len(x), -1, need[1] // 2, 2 * x.shape[-1])
    seen = [
        paired[:, i : i + 2 * rows - 1 : 2, j : j + columns]
        for i in range(kernel_h + 1)
        for j in range(pairs)
    ]
    return jnp.concatenate(seen, axis=-1)


def convolve_windows(
    seen: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Convolution with its outputs in groups of four, the pooling windows.

    Args:
      seen: `[N, H, W, ...]` of :func:`seen_by_windows`; with a bias, ones as one more column.
      kernel: `[kernel height, kernel width, C, O]`.
      bias: `[O]`.

    Returns:
      `[N, H, W, 4, O]`; see :func:`outputs_in_windows` for which of the four exist.
    """
    kernel_h, kernel_w, channels, features = kernel.shape
    matrix = jnp.zeros((kernel_h + 1, kernel_w + 1, channels, 4, features), kernel.dtype)
    for i, j in np.ndindex(2, 2):
        matrix = matrix.at[i : i + kernel_h, j : j + kernel_w, :, 2 * i + j].set(kernel)
    matrix = matrix.reshape(-1, 4 * features)
    if bias is not None:  # as one more row: a sum over all windows is slower than a longer product
        matrix = jnp.concatenate([matrix, jnp.tile(bias, 4)[None]])
    # Two axes, because a gradient that contracts three is slow.
    products = product("wi,io->wo", seen.reshape(-1, len(matrix)), matrix)
    return products.astype(seen.dtype).reshape(*seen.shape[:3], 4, features)


def outputs_in_windows(
    size: tuple[int, ...], kernel_size: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    """`[H, W, 4]` bool: which outputs of a convolution each pooling window really has (at the edges, not all)."""
    inside = []
    for length, windows in zip(
        output_size(size, kernel_size, padding), _windows(size, kernel_size, padding), strict=True
    ):
        place = 2 * np.arange(windows)[:, None] - 1 + np.arange(2)[None]
        inside.append((place >= 0) & (place < length))
    both = inside[0][:, None, :, None] & inside[1][None, :, None, :]
    return both.reshape(*both.shape[:2], 4)


def output_size(
    size: tuple[int, ...], kernel_size: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    height, width = (
        length + 2 * pad - kernel + 1
        for length, kernel, pad in zip(size, kernel_size, padding, strict=True)
    )
    return height, width


def _windows(
    size: tuple[int, ...], kernel_size: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    """How many pooling windows there are, down and across."""
    down, across = (length // 2 + 1 for length in output_size(size, kernel_size, padding))
    return down, across


def pool(x: jax.Array, exists: np.ndarray) -> jax.Array:
    """ReLU and maximum of each window: `[N, H, W, 4, C]` to `[N, H, W, C]`.

    The maximum is a choice by comparison, and the gradient of equals goes to one of them: to share it, as `maximum` does,
    costs more than the rest of pooling. (`jnp.max` over an axis finds its winner by comparing for equality with a value
    that the compiler may have made again with other rounding: then nobody wins, and the gradient is 0 / 0.)

    A NaN below or to the right wins, one above loses: kernels are three high, so that a NaN of the input is below in some
    window.
    """
    a, b, c, d = (jnp.where(exists[None, ..., i, None], x[..., i, :], 0.0) for i in range(4))
    left, right = jnp.where(a > c, a, c), jnp.where(b > d, b, d)
    return nn.relu(jnp.where((left > right) | jnp.isnan(left), left, right))


def tap_moments(
    x: jax.Array, kernel_size: tuple[int, int], padding: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """What each tap of a kernel sees of each example: mean `[N, taps]` and covariance `[N, taps, taps]`.

    Args:
      x: `[N, h, w]`, one channel.
      kernel_size: height, width.
      padding: zeros on each side of height and width.
    """
    height, width = output_size(x.shape[1:], kernel_size, padding)
    padded = jnp.pad(widened(x), ((0, 0), *((pad, pad) for pad in padding)))
    taps = jnp.stack(
        [padded[:, i : i + height, j : j + width] for i, j in np.ndindex(*kernel_size)], axis=1
    )  # [N, taps, height, width]
    places = height * width
    # The second pass takes out what rounding left of the first one's mean.
    mean = _sum_of_maps(taps) / places
    centred = taps - mean[..., None, None]
    left = _sum_of_maps(centred) / places
    products = _sum_of_maps(centred[:, :, None] * centred[:, None])
    return mean + left, products / places - left[:, :, None] * left[:, None]


def moments_after(
    mean: jax.Array, covariance: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Moments of a convolution's output from those of its input, without making the output.

    With `m` the mean of what each tap of the kernel sees and `S` the covariance, the output of the kernel `k` has mean
    `m k + bias` and variance `k S k`.

    Args:
      mean: `[N, taps]`, see :func:`tap_moments`.
      covariance: `[N, taps, taps]`.
      kernel: `[kernel height, kernel width, 1, O]`.
      bias: `[O]`.

    Returns:
      mean and variance, `[N, O]`.
    """
    by_tap = kernel.reshape(-1, kernel.shape[-1])
    exactly = jax.lax.Precision.HIGHEST
    variance = jnp.einsum("ao,nab,bo->no", by_tap, covariance, by_tap, precision=exactly)
    return jnp.matmul(mean, by_tap, precision=exactly) + bias[None], variance


def masked_moments(x: jax.Array, exists: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Mean and variance `[N, C]` of each example and channel of `[N, H, W, 4, C]`; `exists` `[H, W, 4]` says what counts."""
    x, places, axes = widened(x), int(exists.sum()), (1, 2, 3)
    there = exists[None, ..., None]
    mean = jnp.sum(jnp.where(there, x, 0.0), axes) / places
    centred = jnp.where(there, x - mean[:, None, None, None], 0.0)
    return mean, jnp.sum(jnp.square(centred), axes) / places


def combined(mean: jax.Array, variance: jax.Array, places: int, weights: jax.Array) -> Moments:
    """Moments of all examples from those of each: the law of total variance.

    Args:
      mean: `[N, C]`.
      variance: `[N, C]`.
      places: how many numbers each is of.
      weights: `[N]`, 0 for examples that do not count and 1 for the others.
    """
    examples = jnp.maximum(jnp.sum(weights), 1.0)

    def average(x: jax.Array) -> jax.Array:
        return jnp.matmul(weights, x, precision=jax.lax.Precision.HIGHEST) / examples

    total = average(mean)
    return total, average(variance + jnp.square(mean - total[None])), examples * places


def _sum_of_maps(x: jax.Array) -> jax.Array:
    """Sum over the last two axes, rows first: thousands of numbers in one go would lose a digit.

    The barrier keeps the compiler from making one sum of the two.
    """
    return jnp.sum(jax.lax.optimization_barrier(jnp.sum(x, axis=-1)), axis=-1)


def in_blocks(fn: Callable[[jax.Array], PyTree], x: jax.Array) -> PyTree:
    """`fn(x)` for an `fn` that treats examples by themselves; on a CPU in blocks, made again in the backward pass."""
    examples = len(x)
    if jax.default_backend() != "cpu" or examples <= CPU_BLOCK:
        return fn(x)
    short = -examples % CPU_BLOCK
    padded = jnp.pad(x, ((0, short), *((0, 0),) * (x.ndim - 1)))
    blocks = padded.reshape(-1, CPU_BLOCK, *x.shape[1:])
    done = jax.lax.map(jax.checkpoint(fn), blocks)
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:examples], done)
