"""The outer gradient: adapt on each task's support, differentiate the loss on its query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dsaml_jax.meta.adapt import LossFn
from dsaml_jax.meta.algorithms import Algorithm

PyTree = Any


def meta_gradient(
    loss_fn: LossFn,
    params: PyTree,
    support: PyTree,
    query: PyTree,
    *,
    algorithm: Algorithm,
    query_loss_fn: Callable[..., Any] | None = None,
    has_aux: bool = False,
    key: chex.PRNGKey | None = None,
) -> tuple[Any, PyTree]:
    """Mean over tasks of the query loss at the adapted parameters, and its gradient by `params`.

    Args:
      loss_fn: inner loss, `loss_fn(params, batch)`; with `key`, `loss_fn(params, batch, key)`.
      params: pytree of float arrays, shared by all tasks.
      support: pytree with a leading task axis.
      query: pytree with the same leading task axis.
      algorithm: how parameters adapt, e.g. `algorithm("maml", steps=4, learning_rate=0.01)`.
      query_loss_fn: outer loss where it differs from the inner one.
      has_aux: the outer loss returns `(loss, aux)`.
      key: PRNG key, consumed; each task and its query get their own.

    Returns:
      `(value, gradient)`; with `has_aux`, `((value, aux), gradient)` and `aux` keeps the task axis.
    """
    outer = query_loss_fn or loss_fn
    tasks = jax.tree.leaves(support)[0].shape[0]
    chex.assert_tree_shape_prefix((support, query), (tasks,))
    keys = None if key is None else jax.random.split(key, (tasks, 2))

    def task_loss(
        params: PyTree, support: PyTree, query: PyTree, keys: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        inner_key, outer_key = (None, ()) if keys is None else (keys[0], (keys[1],))
        adapted = algorithm.adapt(loss_fn, params, support, inner_key)
        result: Any = outer(adapted, query, *outer_key)
        loss, aux = result if has_aux else (result, None)
        return loss, aux

    def mean_loss(params: PyTree) -> tuple[jax.Array, Any]:
        axes = (None, 0, 0, None if keys is None else 0)
        losses, aux = jax.vmap(task_loss, in_axes=axes)(params, support, query, keys)
        return jnp.mean(losses), aux

    (value, aux), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
    return ((value, aux) if has_aux else value), gradient
