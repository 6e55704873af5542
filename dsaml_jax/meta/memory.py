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

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

PyTree = Any
MemoryMode = Literal["plain", "remat", "mixed", "remat-sqrt", "mixed-sqrt"]
MEMORY_MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)
"""From the fastest to the most frugal, as measured; see `experiments/results/meta_memory.md`."""

InnerGradient = Callable[..., list[jax.Array]]
"""`(known, chosen, key) -> gradient by chosen`, all lists of arrays."""


def inner_gradient(loss: Callable[..., jax.Array], memory: MemoryMode) -> InnerGradient:
    """Gradient of `loss(known, chosen, key)` by `chosen`, prepared for being differentiated again.

    In the mixed modes, the derivative of `g(known, chosen)` in the direction `v` backwards is taken forwards: the
    cotangents of `chosen` and of `known` are both the change of *their own* gradient when `chosen` moves by `v`,
    because second derivatives commute.
    """
    gradient = jax.grad(loss, argnums=1)
    if not memory.startswith("mixed"):
        return gradient
    mixed = jax.custom_vjp(gradient)

    def forward(known: PyTree, chosen: PyTree, key: PyTree) -> tuple[PyTree, PyTree]:
        return gradient(known, chosen, key), (known, chosen, key)

    def backward(saved: PyTree, cotangent: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        known, chosen, key = saved
        continuous, rest = _split(known)

        def both_gradients(chosen: PyTree) -> tuple[PyTree, PyTree]:
            return jax.grad(lambda c, p: loss(_merge(c, rest), p, key), argnums=(0, 1))(
                continuous, chosen
            )

        _, (by_known, by_chosen) = jax.jvp(both_gradients, (chosen,), (cotangent,))
        return _merge(by_known, [None] * len(rest)), by_chosen, None

    mixed.defvjp(forward, backward)
    return mixed


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


def _split(values: list[jax.Array]) -> tuple[list[Any], list[Any]]:
    """Those a derivative can be taken by, and the others, each with None in the other's places."""
    continuous = [jnp.issubdtype(value.dtype, jnp.inexact) for value in values]
    return (
        [value if yes else None for value, yes in zip(values, continuous, strict=True)],
        [None if yes else value for value, yes in zip(values, continuous, strict=True)],
    )


def _merge(first: list[Any], second: list[Any]) -> list[Any]:
    return [a if b is None else b for a, b in zip(first, second, strict=True)]
