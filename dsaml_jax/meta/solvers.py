"""Solving `A x = b` for a symmetric `A` that is known by its products: what implicit derivatives need.

Loops of a fixed length with masks, so that they may be batched, sharded and differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class Solution(NamedTuple):
    """What a solver found.

    Attributes:
      x: the solution, structured as `b`.
      residual: scalar, `|A x - b| / |b|`.
      curvature: scalar, the smallest `p' A p / p' p` of the directions `p` that were tried: above the smallest eigenvalue of
        `A`, and negative only where `A` is not positive definite.
    """

    x: PyTree
    residual: jax.Array
    curvature: jax.Array


def conjugate_gradients(
    apply: Callable[[PyTree], PyTree], b: PyTree, *, steps: int, tolerance: float
) -> Solution:
    """Conjugate gradients (Hestenes and Stiefel 1952) for a positive definite `A`.

    They stop where the residual is below `tolerance`, and at the first direction of negative curvature, with what they have:
    from there on they would climb. Where that is the very first direction, `b` itself, the solution is 0.

    Args:
      apply: `x -> A x`.
      b: right-hand side.
      steps: at most so many.
      tolerance: of `|A x - b| / |b|`.
    """
    size = optax.tree.vdot(b, b)

    def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
        x, rest, direction, squared, curvature = carry
        image = apply(direction)
        along, length = optax.tree.vdot(direction, image), optax.tree.vdot(direction, direction)
        going = squared > tolerance**2 * size
        curvature = jnp.where(
            going, jnp.minimum(curvature, along / jnp.where(going, length, 1.0)), curvature
        )
        going &= along > 0.0
        share = jnp.where(going, squared / jnp.where(going, along, 1.0), 0.0)
        x, rest = _add(x, share, direction), _add(rest, -share, image)
        new = optax.tree.vdot(rest, rest)
        turned = _add(rest, jnp.where(going, new / jnp.where(going, squared, 1.0), 0.0), direction)
        direction = jax.tree.map(lambda a, b: jnp.where(going, a, b), turned, direction)
        return (x, rest, direction, jnp.where(going, new, squared), curvature), None

    nothing = jax.tree.map(lambda leaf: leaf * 0, b)  # where `b` is on a mesh, so is this
    start = (nothing, b, b, size, size * 0 + jnp.inf)
    (x, _, _, squared, curvature), _ = jax.lax.scan(step, start, None, length=steps)
    return Solution(x, _ratio(squared, size), curvature)


def neumann(
    apply: Callable[[PyTree], PyTree], b: PyTree, *, steps: int, rate: float
) -> Solution:  # fmt: skip
    """The first `steps + 1` terms of `rate * sum (I - rate A)^k b` (Lorraine et al. 2020, arXiv 1911.02590).

    It converges for any `A` whose eigenvalues are between 0 and `2 / rate`, and grows without limit for others.

    Args:
      apply: `x -> A x`.
      b: right-hand side.
      steps: products with `A`.
      rate: see above.
    """

    def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
        total, term, curvature = carry
        image = apply(term)
        length = optax.tree.vdot(term, term)
        bent = optax.tree.vdot(term, image) / jnp.where(length > 0.0, length, 1.0)
        curvature = jnp.minimum(curvature, jnp.where(length > 0.0, bent, jnp.inf))
        term = _add(term, jnp.asarray(-rate, length.dtype), image)
        return (jax.tree.map(jnp.add, total, term), term, curvature), None

    size = optax.tree.vdot(b, b)
    (total, _, curvature), _ = jax.lax.scan(step, (b, b, size * 0 + jnp.inf), None, length=steps)
    x = jax.tree.map(lambda leaf: (rate * leaf).astype(leaf.dtype), total)
    rest = jax.tree.map(jnp.subtract, apply(x), b)
    return Solution(x, _ratio(optax.tree.vdot(rest, rest), size), curvature)


def _add(x: PyTree, share: jax.Array, y: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + (share * b).astype(a.dtype), x, y)


def _ratio(squared: jax.Array, size: jax.Array) -> jax.Array:
    return jnp.sqrt(squared / jnp.where(size > 0.0, size, 1.0))
