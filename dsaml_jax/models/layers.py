"""Parameter initialisers and the two layers whose PyTorch behaviour Flax does not offer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for linear, conv and LSTM tensors."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: chex.PRNGKey, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(nn.Module):
    """Dense layer with PyTorch's default initialisation, weight and bias alike.

    Attributes:
      features: width of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., features]`."""
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


class BatchNorm(nn.Module):
    """Batch normalisation over every axis but the last, with PyTorch's running variance.

    It differs from `flax.linen.BatchNorm` in three ways that the method needs: the running variance
    is the *unbiased* one (as in PyTorch), whole examples can be masked out of the statistics, and
    the running statistics may be updated while they are also the ones that normalise, which is how
    the inner loop of MAML can stay on fixed statistics that still follow the data.

    Running statistics live in the collection `batch_stats` and change only when it is mutable.

    Attributes:
      momentum: share of the old running value that is kept (PyTorch's 0.1 is 0.9 here).
      epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: jax.Array, *, use_batch_statistics: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalises.

        Args:
          x: `[N, ..., C]`.
          use_batch_statistics: normalise by the statistics of `x` rather than the running ones.
          mask: `[N]` bool; false examples do not enter the statistics.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))

        update = self.is_mutable_collection("batch_stats") and not self.is_initializing()
        if use_batch_statistics or update:
            mean, var, count = masked_moments(x, mask)
        if update:
            unbiased = var * count / jnp.maximum(count - 1.0, 1.0)
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
            running_var.value = keep * running_var.value + (1.0 - keep) * unbiased
        if not use_batch_statistics:
            mean, var = running_mean.value, running_var.value
        # One multiply and one add per element; broadcasting is spelled out.
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (channels,)
        return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


def masked_moments(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, biased variance and count over all axes but the last.

    Args:
      x: `[N, ..., C]`.
      mask: `[N]` bool or None.

    Returns:
      `[C]`, `[C]` and a scalar: the number of values behind each.
    """
    per_example = math.prod(x.shape[1:-1])
    inner = tuple(range(1, x.ndim - 1))
    weights = jnp.ones(x.shape[:1], x.dtype) if mask is None else mask.astype(x.dtype)
    count = jnp.maximum(jnp.sum(weights) * per_example, 1.0)
    # Reduce each example first, so that the mask costs N and not N * height * width multiplies.
    mean = weights @ jnp.sum(x, inner) / count
    centred = x - mean.reshape((1,) * (x.ndim - 1) + mean.shape)
    var = weights @ jnp.sum(jnp.square(centred), inner) / count
    return mean, var, count
