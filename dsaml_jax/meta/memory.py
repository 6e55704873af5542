"""How second order pays for its backward pass: the same meta-gradient at different memory.

Differentiating K inner steps needs each step's parameters and, of each step, what its gradient was made of.

| mode | kept per step | done again in the backward pass |
|---|---|---|
| `plain` | parameters and everything in between | nothing |
| `remat` | parameters | the step's gradient, which is then differentiated in reverse |
| `mixed` | parameters | the step's gradient, differentiated forward: a Hessian-vector product holds no graph |
| `remat-sqrt`, `mixed-sqrt` | parameters at every sqrt(K)-th step | the same, and the inner steps once more |

Rematerialisation: Chen et al. 2016 (arXiv 1604.06174), whose section 4 has the sqrt(K). Mixed mode: Kemaev et al. 2025,
MixFlow-MG (arXiv 2505.00793). Both are exact.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from dsaml_jax.meta.parts import combine, partition

PyTree = Any
MemoryMode = Literal["mixed", "remat", "mixed-sqrt", "remat-sqrt", "plain"]
MEMORY_MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)
"""The fastest first, as measured (`experiments/results/meta_memory.md`); last `plain`, which needs far more memory and is
not faster than `mixed`."""

StepLoss = Callable[..., tuple[jax.Array, PyTree]]
"""`(known, chosen, extra) -> (scalar, state)`: the loss of a step and what it leaves behind."""

InnerGradient = Callable[..., tuple[list[jax.Array], PyTree]]
"""`(known, chosen, extra) -> (gradient by chosen, state)`: `known` and `chosen` are lists of arrays, the others any tree."""


def inner_gradient(loss: StepLoss, memory: MemoryMode) -> InnerGradient:
    """Gradient of `loss(known, chosen, extra)` by `chosen`, prepared for being differentiated again.

    In the mixed modes, the derivative of `g(known, chosen)` in the direction `v` backwards is taken forwards: the
    cotangents of `chosen` and of all that is known are both the change of *their own* gradient when `chosen` moves by `v`,
    because second derivatives commute. Where the loss has a part that has no forward derivative (a `jax.custom_vjp` whose
    forward pass calls itself), that step is differentiated in reverse, as `remat` does.
    """
    gradient = jax.grad(loss, argnums=1, has_aux=True)
    if not memory.startswith("mixed"):
        return gradient
    mixed = jax.custom_vjp(gradient)

    def forward(known: PyTree, chosen: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
        return gradient(known, chosen, extra), (known, chosen, extra)

    def backward(saved: PyTree, cotangents: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        known, chosen, extra = saved
        by_chosen, by_state = cotangents
        floats, rest = partition((known, extra))

        def at(floats: PyTree, chosen: PyTree) -> tuple[jax.Array, PyTree]:
            known, extra = combine(floats, rest)
            return loss(known, chosen, extra)

        def both_gradients(chosen: PyTree) -> tuple[PyTree, PyTree]:
            return jax.grad(lambda *x: at(*x)[0], argnums=(0, 1))(floats, chosen)

        changes = _change(both_gradients, chosen, by_chosen)
        if changes is None:
            slope = jax.grad(lambda *x: at(*x)[0], argnums=1)
            changes = jax.vjp(slope, floats, chosen)[1](by_chosen)
        if jax.tree.leaves(by_state):
            through_state = jax.vjp(lambda *x: at(*x)[1], floats, chosen)[1](by_state)
            changes = jax.tree.map(jnp.add, changes, through_state)
        (by_known, by_extra), by_chosen = changes
        return by_known, by_chosen, by_extra

    define_backward(mixed, forward, backward)
    return mixed


def define_backward(
    function: Any, forward: Callable[..., Any], backward: Callable[..., Any]
) -> None:
    """`function.defvjp(forward, backward)`, for rules that are right under `vmap` as they stand.

    Where an output is the same for all tasks and its cotangent is not zero, JAX from 0.12.0.1 on wants to be told so.
    """
    told = "generic_batching" in inspect.signature(function.defvjp).parameters
    options: dict[str, Any] = {"generic_batching": True} if told else {}
    function.defvjp(forward, backward, **options)


def scan_steps(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    start: PyTree,
    inputs: PyTree,
    *,
    steps: int,
    memory: MemoryMode,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan(step, start, inputs)` that keeps for the backward pass what `memory` says.

    Args:
      step: `(carry, input) -> (carry, output)`.
      start: first carry.
      inputs: leading axis `steps`.
      steps: how many.
      memory: see the module's docstring.
    """
    if memory == "plain":
        return jax.lax.scan(step, start, inputs)
    # The loop keeps the compiler from merging what is done again with what was done before.
    step = jax.checkpoint(step, prevent_cse=False)
    segment = max(1, round(math.sqrt(steps)))
    if not memory.endswith("sqrt") or segment == 1:
        return jax.lax.scan(step, start, inputs)

    def run(carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(step, carry, inputs)

    whole = steps // segment * segment
    folded = jax.tree.map(lambda x: x[:whole].reshape(-1, segment, *x.shape[1:]), inputs)
    carry, outputs = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), start, folded)
    outputs = jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), outputs)
    if whole < steps:
        carry, more = run(carry, jax.tree.map(lambda x: x[whole:], inputs))
        outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, more)
    return carry, outputs


_REVERSE_ONLY = frozenset({"custom_lin", "call_hi_primitive_linearized"})
"""What JAX writes down for the change of a `custom_vjp`: it can be differentiated in reverse, and not be computed. The
second name is that of rules with `generic_batching` (JAX from 0.12.0.1 on)."""


def _change(fn: Callable[[PyTree], PyTree], point: PyTree, direction: PyTree) -> PyTree | None:
    """Forward derivative of `fn`; None where a part of it has none.

    JAX says so at once, or writes down an operation that ends in an error when it is compiled or batched.
    """

    def change(point: PyTree, direction: PyTree) -> PyTree:
        return jax.jvp(fn, (point,), (direction,))[1]

    try:
        closed, shape = jax.make_jaxpr(change, return_shape=True)(point, direction)
    except TypeError as error:
        if "forward-mode" in str(error):
            return None
        raise
    if _holds(closed.jaxpr, _REVERSE_ONLY):
        return None
    leaves = jex.jaxpr_as_fun(closed)(*jax.tree.leaves((point, direction)))
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)


def _holds(jaxpr: jex.Jaxpr, names: frozenset[str]) -> bool:
    """Whether an operation of these names is in a jaxpr, or in one within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in names:
            return True
        for value in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, jex.Jaxpr) and _holds(inner, names):
                return True
    return False
