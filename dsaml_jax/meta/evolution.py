"""Gradients without derivatives: evolution strategies, and those that persist over truncated unrolls.

What is learned is moved at random, both ways, and how the loss changes says where to go. No derivative goes through the inner
steps, so they may be many, chaotic, or have none. The price is noise: its variance grows with the number of parameters, and
falls with the number of pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from dsaml_jax.meta.base import PyTree
from dsaml_jax.meta.parts import combine, partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Particles:
    """Inner problems of `pairs` pairs, and how far each pair's parameters have been moved so far.

    Attributes:
      inner: `[pairs, 2, ...]`, of the one moved there and the one moved back.
      drift: `[pairs, ...]`, structured as what is learned: the sum of the moves.
    """

    inner: PyTree
    drift: PyTree


def evolution_gradient(
    loss: Callable[[PyTree], jax.Array],
    learned: PyTree,
    key: chex.PRNGKey,
    *,
    pairs: int,
    scale: float,
) -> tuple[jax.Array, PyTree]:
    """Gradient of the loss smoothed by a Gaussian: `mean (loss(x + e) - loss(x - e)) e / (2 scale^2)`.

    Antithetic evolution strategies (Salimans et al. 2017, arXiv 1703.03864). With `meta_loss` as the loss it is the
    meta-gradient of ES-MAML (Song et al. 2020, arXiv 1910.01215).

    Args:
      loss: of what is learned, a scalar.
      learned: pytree; what is no float array is not moved, and its gradient is None.
      key: PRNG key, consumed.
      pairs: of moves.
      scale: standard deviation of a move; the gradient is that of the loss smoothed by as much.

    Returns:
      the mean loss of the moved, and the gradient.
    """
    nothing = Particles(jnp.zeros((pairs, 2)), _zeros(learned, pairs))
    value, gradient, _ = persistent_gradient(
        lambda learned, inner: (inner, loss(learned)), learned, nothing, key, scale=scale
    )
    return value, gradient


def particles(inner: PyTree, learned: PyTree, *, pairs: int) -> Particles:
    """All pairs at the beginning of the same inner problem."""
    repeated = jax.tree.map(
        lambda x: jnp.broadcast_to(jnp.asarray(x), (pairs, 2, *jnp.shape(x))), inner
    )
    return Particles(repeated, _zeros(learned, pairs))


def persistent_gradient(
    unroll_fn: Callable[[PyTree, PyTree], tuple[PyTree, jax.Array]],
    learned: PyTree,
    state: Particles,
    key: chex.PRNGKey,
    *,
    scale: float,
) -> tuple[jax.Array, PyTree, Particles]:
    """One truncated window of a long inner problem, without the bias of truncation.

    Persistent evolution strategies (Vicol, Metz, Sohl-Dickstein 2021, arXiv 2112.13835): the change of a window's loss is
    put down to all moves since the inner problem began, not to the last alone. The expectation of the sum over windows is the
    gradient of the sum of their losses, smoothed, where what is learned stays the same; in practice it takes a step after
    every window. Begin again with :func:`particles` when the inner problem ends.

    Args:
      unroll_fn: `(learned, inner) -> (inner, loss)`: a window; the loss is a scalar. Such as
        :func:`~dsaml_jax.meta.unrolling.unroll` with a learned rate, and a loss of what it returns.
      learned: see :func:`evolution_gradient`.
      state: from :func:`particles`, or the last window.
      key: PRNG key, consumed.
      scale: standard deviation of a move.

    Returns:
      the mean loss of the window, the gradient, and the particles after the window.
    """
    moving, rest = partition(learned)
    pairs = jax.tree.leaves(state.inner)[0].shape[0]
    moves = jax.tree.map(
        lambda x: scale * x,
        optax.tree.random_like(key, _zeros(learned, pairs), sampler=jax.random.normal),
    )

    def moved(move: PyTree, sign: jax.Array, inner: PyTree) -> tuple[PyTree, jax.Array]:
        here = jax.tree.map(lambda x, e: x + (sign * e).astype(x.dtype), moving, move)
        return unroll_fn(combine(here, rest), inner)

    both = jax.vmap(jax.vmap(moved, in_axes=(None, 0, 0)), in_axes=(0, None, 0))
    inner, losses = both(moves, jnp.asarray([1.0, -1.0]), state.inner)
    chex.assert_shape(losses, (pairs, 2))
    drift = jax.tree.map(jnp.add, state.drift, moves)
    change = (losses[:, 0] - losses[:, 1]) / (2.0 * scale**2 * pairs)
    gradient = jax.tree.map(lambda x: jnp.tensordot(change.astype(x.dtype), x, axes=1), drift)
    return jnp.mean(losses), gradient, Particles(inner, drift)


def _zeros(learned: PyTree, pairs: int) -> Any:
    return jax.tree.map(lambda x: jnp.zeros((pairs, *x.shape), x.dtype), partition(learned)[0])
