"""RMSE, Pearson's and the concordance correlation coefficient of two curves, masked and differentiable.

With means m, population variances v and covariance c over the unmasked steps of a curve:

* `ccc  = 2 c / (v_p + v_t + (m_p - m_t)^2)` (Lin 1989), without an epsilon;
* `pcc  = sum(a b) / (|a| |b| + 1e-8)` with a, b the centred curves (the epsilon is the reference's
  and shows only on signals of size 1e-5);
* `rmse = sqrt(mean((p - t)^2))`.

All three are finite in value and gradient for every curve of sane size (up to 1e15). Where the formula is 0/0 or its
gradient is not defined, this is what they give:

| case | value | gradient |
|---|---|---|
| a constant prediction or target | pcc exactly 0, ccc exactly 0 | pcc 0; ccc 0 if both are constant and equal |
| a perfect fit | rmse 0 | rmse 0 |
| one step | pcc 0, ccc 0 | pcc 0 |
| nothing unmasked | 0 | 0 |

A pcc near a constant prediction still has a large gradient: it is the slope of a scale-free
measure, and no choice of ours can make it small.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

PCC_EPSILON = 1e-8
MIN_SPREAD = 1e-16
"""Below this, curves of size 1e-8, the CCC is taken for that of equal constants."""


def ccc(prediction: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Concordance correlation coefficient along the last axis.

    Args:
      prediction: `[..., T]`.
      target: `[..., T]`.
      mask: `[..., T]` bool; only true steps count. None counts all.

    Returns:
      `[...]` in [-1, 1].
    """
    a, b, weights, distance = _centred(prediction, target, mask)
    count = jnp.maximum(jnp.sum(weights, -1), 1.0)
    covariance = jnp.sum(a * b, -1) / count
    spread = (jnp.sum(a * a, -1) + jnp.sum(b * b, -1)) / count + jnp.square(distance)
    enough = spread > MIN_SPREAD
    return jnp.where(enough, 2.0 * covariance / jnp.where(enough, spread, 1.0), 0.0)


def pcc(prediction: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Pearson's correlation along the last axis; arguments and result as :func:`ccc`."""
    a, b, _, _ = _centred(prediction, target, mask)
    norm_a, norm_b = _safe_sqrt(jnp.sum(a * a, -1)), _safe_sqrt(jnp.sum(b * b, -1))
    constant = (norm_a == 0.0) | (norm_b == 0.0)
    norms = jnp.where(constant, 1.0, norm_a * norm_b + PCC_EPSILON)
    return jnp.where(constant, 0.0, jnp.sum(a * b, -1) / norms)


def rmse(prediction: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Root mean squared error along the last axis; arguments as :func:`ccc`, result `[...]` >= 0."""
    prediction, target, weights = _checked(prediction, target, mask)
    count = jnp.maximum(jnp.sum(weights, -1), 1.0)
    return _safe_sqrt(jnp.sum(jnp.square(prediction - target), -1) / count)


def _checked(
    prediction: jax.Array, target: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Refuses mismatched shapes; zeroes masked steps (NaN labels included), returns 0/1 weights."""
    prediction, target = jnp.asarray(prediction), jnp.asarray(target)
    chex.assert_equal_shape([prediction, target])
    if mask is None:
        return prediction, target, jnp.ones_like(prediction)
    chex.assert_equal_shape([prediction, mask])
    mask = jnp.asarray(mask, bool)
    return (
        jnp.where(mask, prediction, 0.0),
        jnp.where(mask, target, 0.0),
        mask.astype(prediction.dtype),
    )


def _centred(
    prediction: jax.Array, target: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Centred curves (0 where masked), weights, and the difference of the means.

    The first unmasked value is subtracted before the mean is taken. That changes nothing in exact
    arithmetic; in floating point it makes a constant curve exactly 0 after centring.
    """
    prediction, target, weights = _checked(prediction, target, mask)
    count = jnp.maximum(jnp.sum(weights, -1, keepdims=True), 1.0)
    first = jnp.argmax(weights, -1, keepdims=True)

    def centre(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        origin = jax.lax.stop_gradient(jnp.take_along_axis(x, first, -1))
        moved = (x - origin) * weights
        mean = jnp.sum(moved, -1, keepdims=True) / count
        return (moved - mean) * weights, origin + mean

    (a, mean_a), (b, mean_b) = centre(prediction), centre(target)
    return a, b, weights, (mean_a - mean_b)[..., 0]


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root whose gradient at 0 is 0."""
    positive = x > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
