"""Parameter initialisers, the two layers whose PyTorch behaviour Flax does not offer, and their arithmetic.

Every layer hands on the dtype it is given, float32 or bfloat16; the model decides once, for its inputs. Parameters
are float32 and meet activations in :func:`product`; where else many numbers are summed, they are summed in float32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dsaml_jax.base import PrecisionType

Moments = tuple[jax.Array, jax.Array, jax.Array]


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for linear, conv and LSTM tensors."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: chex.PRNGKey, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def product(
    subscripts: str, x: jax.Array, parameter: jax.Array, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """`einsum(subscripts, x, parameter)` in float32, of factors in the dtype of `x`.

    The parameter is rounded here, at each use, so that its gradient is summed over its uses in float32. bfloat16
    factors give a bfloat16 product (whose sum hardware keeps in float32) for the sake of the backward pass: its
    factors are then bfloat16 too. `precision` is of float32 factors, and of the backward pass; None: as around the call.
    """
    return widened(jnp.einsum(subscripts, x, parameter.astype(x.dtype), precision=precision))


def precisely(precision: PrecisionType) -> contextlib.AbstractContextManager[None]:
    """Products within have this precision; `default` leaves it to what is around."""
    return contextlib.nullcontext() if precision == "default" else jax.default_matmul_precision(precision)  # fmt: skip


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32 at least: what sums are taken of. float64 stays."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


class Linear(nn.Module):
    """Dense layer with PyTorch's default initialisation, weight and bias alike.

    Attributes:
      features: width of the output.
      precision: of the product; None: as around the call.
    """

    features: int
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., features]`."""
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        summed = product("...i,io->...o", x, kernel, self.precision) + bias.reshape(
            (1,) * (x.ndim - 1) + bias.shape
        )
        return summed.astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation as one multiply and one add per channel, with PyTorch's running variance.

    It differs from `flax.linen.BatchNorm` in four ways that the method needs: the running variance
    is the *unbiased* one (as in PyTorch); whoever calls says how the moments of the batch are found, so
    that masks and shortcuts are theirs; the running statistics may be updated while they are also the
    ones that normalise, which is how the inner loop of MAML can stay on fixed statistics that still
    follow the data; and it gives coefficients, which the caller may fold into what comes before.

    Running statistics live in the collection `batch_stats` and change only when it is mutable.

    Attributes:
      channels: `C`.
      momentum: share of the old running value that is kept (PyTorch's 0.1 is 0.9 here).
      epsilon: added to the variance.
    """

    channels: int
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, moments: Callable[[], Moments], *, use_batch_statistics: bool
    ) -> tuple[jax.Array, jax.Array]:
        """`factor, shift`, `[C]` each: `x * factor + shift` is the normalised `x`.

        Args:
          moments: gives mean `[C]`, biased variance `[C]` and count of the batch; called only if needed.
          use_batch_statistics: normalise by them rather than by the running statistics.
        """
        scale = self.param("scale", nn.initializers.ones, (self.channels,))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (self.channels,))

        update = self.is_mutable_collection("batch_stats") and not self.is_initializing()
        normal_mean, normal_var = running_mean.value, running_var.value
        if use_batch_statistics or update:
            mean, var, count = moments()
            chex.assert_shape([mean, var], (self.channels,))
            if use_batch_statistics:
                normal_mean, normal_var = mean, var
        if update:
            unbiased = var * count / jnp.maximum(count - 1.0, 1.0)
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
            running_var.value = keep * running_var.value + (1.0 - keep) * unbiased
        factor = scale * jax.lax.rsqrt(normal_var + self.epsilon)
        return factor, bias - normal_mean * factor
