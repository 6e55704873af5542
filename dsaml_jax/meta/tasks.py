"""Batches of tasks: how many there are, groups of them, and tasks that do not count."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dsaml_jax.meta.placing import shards

PyTree = Any


def number_of_tasks(support: PyTree, query: PyTree) -> int:
    """Length of the leading axis that all arrays of both have.

    Raises:
      ValueError: there are no arrays, one has no such axis, lengths differ, or there are no tasks.
    """
    counts: dict[int, str] = {}
    for what, batch in (("support", support), ("query", query)):
        leaves = jax.tree.leaves_with_path(batch)
        if not leaves:
            raise ValueError(f"the {what} holds no arrays; its arrays have a leading task axis")
        for path, leaf in leaves:
            if not getattr(leaf, "shape", ()):
                name = what + jax.tree_util.keystr(path)
                raise ValueError(
                    f"{name} is {leaf!r}, without a task axis; give every task its own, as jnp.full((tasks,), value)"
                )
            counts.setdefault(leaf.shape[0], what + jax.tree_util.keystr(path))
    if len(counts) > 1:
        said = ", ".join(f"{count} in {name}" for count, name in counts.items())
        raise ValueError(f"arrays differ in their number of tasks, the leading axis: {said}")
    (tasks,) = counts
    if tasks == 0:
        raise ValueError("there are no tasks: the leading axis has length 0")
    return tasks


def check_groups(tasks: int, tasks_at_once: int | None, batches: PyTree) -> int:
    """Tasks side by side.

    Raises:
      ValueError: they do not divide the tasks, or cannot be dealt over the devices of an explicit mesh.
    """
    together = tasks if tasks_at_once is None else tasks_at_once
    if together < 1 or tasks % together:
        raise ValueError(f"tasks_at_once {together} does not divide {tasks} tasks")
    if together % (devices := shards(batches)):
        raise ValueError(
            f"tasks_at_once {together} is no multiple of the {devices} devices that the tasks are on"
        )
    return together


def folded(tree: PyTree, groups: int) -> PyTree:
    """`[tasks, ...]` to `[groups, tasks / groups, ...]`.

    Task i * groups + g is in group g, so that tasks that are sharded over devices stay where they are.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // groups, groups, *x.shape[1:]).swapaxes(0, 1), tree
    )


def unfolded(tree: PyTree) -> PyTree:
    """Inverse of :func:`folded`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def counts_of(weights: Any, tasks: int) -> jax.Array:
    """`[tasks]` floats whose mean is 1; all 0 where no task counts.

    Args:
      weights: `[tasks]`, or a mask; below 0 counts as 0.
      tasks: how many there are.

    Raises:
      ValueError: there are not as many weights.
    """
    weights = jnp.asarray(weights)
    if weights.shape != (tasks,):
        raise ValueError(f"weights have the shape {weights.shape}, and there are {tasks} tasks")
    if not jnp.issubdtype(weights.dtype, jnp.floating):  # a mask
        weights = weights.astype(jnp.float32)
    weights = jnp.maximum(weights, 0.0)
    total = jnp.sum(weights)
    return weights * (tasks / jnp.where(total > 0.0, total, 1.0))


def with_stand_ins(batches: PyTree, counted: jax.Array) -> PyTree:
    """Batches in which the first task that counts stands in for those that do not; zeros, where none does.

    A loss of what is padded may be NaN, and 0 times the gradient of that is NaN.

    Args:
      batches: leading axis `tasks`.
      counted: `[tasks]` bool.
    """
    first = counted & (jnp.arange(counted.shape[0]) == jnp.argmax(counted))

    def fill(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        column = (slice(None), *[None] * (x.ndim - 1))
        # Not by an index: the axis may be dealt over devices.
        alone = jnp.where(first[column], x, jnp.zeros_like(x))
        stand_in = jnp.any(alone, 0) if x.dtype == bool else jnp.sum(alone, 0, dtype=x.dtype)
        return jnp.where(counted[column], x, stand_in[None])

    return jax.tree.map(fill, batches)
