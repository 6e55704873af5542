"""The outer gradient: adapt on each task's support, differentiate the loss on its query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dsaml_jax.meta.base import Algorithm, LossFn, PyTree
from dsaml_jax.meta.placing import place_by, shards, zeros


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
    step: jax.Array | None = None,
    tasks_at_once: int | None = None,
) -> tuple[Any, PyTree]:
    """Mean over tasks of the query loss at the adapted parameters, and its gradient by `params`.

    Args:
      loss_fn: inner loss, `loss_fn(params, batch)`; with `key`, `loss_fn(params, batch, key)`.
      params: what `algorithm.init` makes of the model's parameters: a pytree of float arrays, shared by all tasks.
        Most algorithms learn nothing else, and take the parameters as they are.
      support: pytree with a leading task axis.
      query: pytree with the same leading task axis.
      algorithm: how parameters adapt, e.g. `algorithm("maml", steps=4, learning_rate=0.01)`.
      query_loss_fn: outer loss where it differs from the inner one.
      has_aux: the outer loss returns `(loss, aux)`.
      key: PRNG key, consumed; each task and its query get their own.
      step: of the meta-training, scalar int, for algorithms that anneal; None: after all annealing.
      tasks_at_once: so many tasks are computed side by side, and these groups one after the other, which divides the
        memory; None: all side by side. It divides the number of tasks.

    Inside `jax.shard_map` value and gradient are those of this device's tasks: take `jax.lax.pmean` of both.

    Returns:
      `(value, gradient)`; with `has_aux`, `((value, aux), gradient)` and `aux` keeps the task axis.

    Raises:
      ValueError: `tasks_at_once` does not divide the tasks, or is no multiple of the devices of an explicit mesh.
    """
    tasks = jax.tree.leaves(support)[0].shape[0]
    chex.assert_tree_shape_prefix((support, query), (tasks,))
    together = tasks if tasks_at_once is None else tasks_at_once
    if together < 1 or tasks % together:
        raise ValueError(f"tasks_at_once {together} does not divide {tasks} tasks")
    if together % (devices := shards((support, query))):
        raise ValueError(
            f"tasks_at_once {together} is no multiple of the {devices} devices that the tasks are on"
        )
    keys = None if key is None else jax.random.split(key, (tasks, 2))
    judge = query_loss_fn or loss_fn

    def outer(params: PyTree, query: PyTree, key: chex.PRNGKey | None) -> tuple[jax.Array, Any]:
        result: Any = judge(params, query, *(() if key is None else (key,)))
        loss, aux = result if has_aux else (result, None)
        return loss, aux

    def task_loss(
        params: PyTree, support: PyTree, query: PyTree, keys: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        pair = (None, None) if keys is None else (keys[0], keys[1])
        return algorithm.task_loss(loss_fn, outer, params, support, query, pair, step)

    def mean_loss(params: PyTree, group: tuple[PyTree, ...]) -> tuple[jax.Array, Any]:
        if together == 1:  # a batch axis of 1 would make every product a batched one
            loss, aux = task_loss(params, *jax.tree.map(lambda x: x[0], group))
            return loss, jax.tree.map(lambda x: x[None], aux)
        losses, aux = jax.vmap(lambda one: task_loss(params, *one))(group)
        return jnp.mean(losses), aux

    gradient_of = jax.value_and_grad(mean_loss, has_aux=True)
    everything = (support, query, keys)
    # Each device has its own tasks: value and gradient are both of those alone.
    params = place_by(lambda params: mean_loss(params, everything)[0], params, everything)
    if together == tasks:
        (value, aux), gradient = gradient_of(params, everything)
        return ((value, aux) if has_aux else value), gradient

    # Task i * groups + g is in group g, so that tasks that are sharded over devices stay where they are.
    groups = tasks // together
    folded = jax.tree.map(
        lambda x: x.reshape(together, groups, *x.shape[1:]).swapaxes(0, 1), everything
    )

    def add(total: PyTree, group: tuple[PyTree, ...]) -> tuple[PyTree, Any]:
        (value, aux), gradient = gradient_of(params, group)
        return jax.tree.map(jnp.add, total, (value, gradient)), aux

    shape = jax.eval_shape(gradient_of, params, jax.tree.map(lambda x: x[0], folded))
    total, aux = jax.lax.scan(add, zeros((shape[0][0], shape[1])), folded)
    value, gradient = jax.tree.map(lambda x: x / groups, total)
    aux = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(tasks, *x.shape[2:]), aux)
    return ((value, aux) if has_aux else value), gradient
