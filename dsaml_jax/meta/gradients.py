"""The outer loss and its gradient: adapt on each task's support, judge on its query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dsaml_jax.meta.base import Algorithm, LossFn, ParameterFilter, PyTree
from dsaml_jax.meta.parts import combine, partition, wide
from dsaml_jax.meta.placing import place_by, zeros
from dsaml_jax.meta.tasks import (
    check_groups,
    counts_of,
    folded,
    number_of_tasks,
    unfolded,
    with_stand_ins,
)


def meta_loss(
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
    state: PyTree = None,
    weights: jax.Array | None = None,
    tasks_at_once: int | None = None,
) -> Any:
    """Mean over tasks of the query loss at the adapted parameters; its derivative by `params` is the meta-gradient.

    It can be differentiated by anything: what is learned, the data and what made it, what the losses close over, the weights.
    For what is learned alone :func:`meta_gradient` needs less memory where tasks are computed in groups.

    Args:
      loss_fn: inner loss, see :data:`~dsaml_jax.meta.base.LossFn`.
      params: what `algorithm.init` makes of the model's parameters, shared by all tasks. Most algorithms learn nothing
        else, and take the parameters as they are.
      support: pytree with a leading task axis.
      query: pytree with the same leading task axis.
      algorithm: how parameters adapt, e.g. `algorithm("maml", steps=4, learning_rate=0.01)`.
      query_loss_fn: outer loss where it differs from the inner one.
      has_aux: the outer loss returns `(loss, aux)`.
      key: PRNG key, consumed; each task and its query get their own.
      step: of the meta-training, scalar int, for algorithms that anneal.
      state: of the loss, the same for all tasks before their first step. Both losses take it after the batch and return
        what becomes of it: `(loss, state)`, or with `has_aux` the outer one `(loss, (aux, state))`.
      weights: `[tasks]`, what each task counts, or a mask; the mean is divided by their sum, and is 0 where that is 0. A task
        of weight 0 (or below) is masked: its data is not read, whatever is in it. None: all count the same.
      tasks_at_once: so many tasks are computed side by side, and these groups one after the other, which divides the
        memory (the groups' losses are computed again in the backward pass); None: all side by side. It divides the number of
        tasks.

    Returns:
      the value; with `has_aux`, `(value, aux)` and `aux` keeps the task axis; with `state`, `(value, (aux, state))`, where
      `aux` is None without `has_aux`, and the states keep the task axis.

    Raises:
      ValueError: a batch without arrays or with a leaf that has no task axis, other tasks in support and query, another
        number of weights, or `tasks_at_once` that does not divide the tasks, or is no multiple of the devices of an explicit mesh.
    """
    problem = _Problem(
        loss_fn, support, query, algorithm, query_loss_fn, has_aux, key, step, state, weights, tasks_at_once
    )  # fmt: skip
    if problem.groups == 1:
        value, aux = problem.group_loss(params, problem.everything)
    else:
        one = jax.checkpoint(lambda group: problem.group_loss(params, group))
        values, aux = jax.lax.map(one, folded(problem.everything, problem.groups))
        value, aux = jnp.mean(values), unfolded(aux)
    return problem.result(value, aux)


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
    state: PyTree = None,
    weights: jax.Array | None = None,
    tasks_at_once: int | None = None,
    learns: ParameterFilter | None = None,
) -> tuple[Any, PyTree]:
    """:func:`meta_loss` and its gradient by what is learned.

    The gradient is summed over tasks in float32 also where parameters are bfloat16. Inside `jax.shard_map` value and gradient
    are those of this device's tasks: take `jax.lax.pmean` of both, and with `weights`, whose sums differ,
    `psum(x * weights.sum()) / psum(weights.sum())`.

    Args:
      loss_fn: this and all that is not explained here is as for :func:`meta_loss`.
      params: what is learned, and whatever else is in the tree.
      support: with a leading task axis.
      query: with the same.
      algorithm: how parameters adapt.
      query_loss_fn: outer loss.
      has_aux: whether it returns more than a loss.
      key: PRNG key, consumed.
      step: of the meta-training.
      state: of the loss.
      weights: of the tasks.
      tasks_at_once: tasks side by side; gradients of groups are added up, so that memory is divided and nothing is computed
        twice.
      learns: which paths of `params` are learned, see :func:`~dsaml_jax.meta.parts.partition`; None for all float arrays.
        It says nothing about what adapts.

    Returns:
      `(value, gradient)`, the value as of :func:`meta_loss`. The gradient is structured as
      `partition(params, learns)[0]`: None in the place of what is not learned.

    Raises:
      ValueError: see :func:`meta_loss`; nothing is learned.
    """
    problem = _Problem(
        loss_fn, support, query, algorithm, query_loss_fn, has_aux, key, step, state, weights, tasks_at_once
    )  # fmt: skip
    learned, rest = partition(params, learns)
    if not jax.tree.leaves(learned):
        raise ValueError("nothing is learned: `learns` names no float array of the parameters")
    types = jax.tree.map(lambda leaf: leaf.dtype, learned)

    def whole(learned: PyTree) -> PyTree:
        return combine(jax.tree.map(lambda x, kind: x.astype(kind), learned, types), rest)

    def loss(learned: PyTree, group: PyTree) -> tuple[jax.Array, Any]:
        return problem.group_loss(learned, group, whole)

    learned = jax.tree.map(lambda leaf: jnp.asarray(leaf, wide(leaf.dtype)), learned)
    # Each device has its own tasks: value and gradient are both of those alone.
    learned = place_by(lambda x: loss(x, problem.everything)[0], learned, problem.everything)
    gradient_of = jax.value_and_grad(loss, has_aux=True)
    if problem.groups == 1:
        (value, aux), gradient = gradient_of(learned, problem.everything)
        return problem.result(value, aux), problem.of_tasks_that_count(gradient)

    def add(total: PyTree, group: PyTree) -> tuple[PyTree, Any]:
        (value, aux), gradient = gradient_of(learned, group)
        return jax.tree.map(jnp.add, total, (value, gradient)), aux

    groups = folded(problem.everything, problem.groups)
    shape = jax.eval_shape(gradient_of, learned, jax.tree.map(lambda x: x[0], groups))
    total, aux = jax.lax.scan(add, zeros((shape[0][0], shape[1])), groups)
    value, gradient = jax.tree.map(lambda x: x / problem.groups, total)
    return problem.result(value, unfolded(aux)), problem.of_tasks_that_count(gradient)


class _Problem:
    """The mean loss of a group of tasks, and the groups."""

    def __init__(
        self, loss_fn: LossFn, support: PyTree, query: PyTree, algorithm: Algorithm,
        query_loss_fn: Callable[..., Any] | None, has_aux: bool, key: Any, step: Any, state: PyTree, weights: Any,
        tasks_at_once: int | None,
    ) -> None:  # fmt: skip
        self._loss_fn, self._judge, self._algorithm = loss_fn, query_loss_fn or loss_fn, algorithm
        self._has_aux, self._step, self._state = has_aux, step, state
        tasks = number_of_tasks(support, query)
        self._together = check_groups(tasks, tasks_at_once, (support, query))
        self.groups = tasks // self._together
        keys = None if key is None else jax.random.split(key, (tasks, 2))
        if weights is not None:
            weights = counts_of(weights, tasks)
            support, query = with_stand_ins((support, query), weights > 0.0)
        self.everything = (support, query, keys, weights)

    def group_loss(
        self, params: PyTree, group: PyTree, whole: Callable[[PyTree], PyTree] = lambda x: x
    ) -> tuple[jax.Array, Any]:
        """Mean loss of a group and its aux; `whole` makes the parameters of a task."""

        def one(task: PyTree) -> tuple[jax.Array, Any]:
            loss, aux = self._task_loss(whole(params), *task[:3])
            if task[3] is None:
                return loss, aux
            weighted = task[3].astype(loss.dtype) * loss
            return jnp.where(task[3] > 0, weighted, jnp.zeros_like(loss)), aux

        if self._together == 1:  # a batch axis of 1 would make every product a batched one
            loss, aux = one(jax.tree.map(lambda x: x[0], group))
            return loss, jax.tree.map(lambda x: x[None], aux)
        losses, aux = jax.vmap(one)(group)
        return jnp.mean(losses), aux

    def result(self, value: jax.Array, aux: Any) -> Any:
        """What the user asked for."""
        return (value, aux) if self._has_aux or self._state is not None else value

    def of_tasks_that_count(self, gradient: PyTree) -> PyTree:
        """The gradient, or zeros where no task counts: that of what stands in for them may be NaN."""
        weights = self.everything[3]
        if weights is None:
            return gradient
        counted = jnp.any(weights > 0.0)
        return jax.tree.map(lambda x: jnp.where(counted, x, jnp.zeros_like(x)), gradient)

    def _task_loss(self, params: PyTree, support: PyTree, query: PyTree, keys: Any) -> Any:
        pair = (None, None) if keys is None else (keys[0], keys[1])
        state = {} if self._state is None else {"state": self._state}
        return self._algorithm.task_loss(
            self._loss_fn, self._outer, params, support, query, pair, self._step, **state
        )

    def _outer(
        self, params: PyTree, query: PyTree, key: chex.PRNGKey | None, state: PyTree = None
    ) -> tuple[jax.Array, Any]:
        result: Any = self._judge(params, query, *[x for x in (state, key) if x is not None])
        if self._has_aux:
            return result
        if state is None:
            return result, None
        loss, left = result
        return loss, (None, left)
