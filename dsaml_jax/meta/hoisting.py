"""Partial evaluation: what does not depend on the adapting parameters leaves the inner loop.

An inner step evaluates the loss at new values of a few parameters; everything that only the frozen
parameters and the data decide is the same in every step. With the front end frozen that is nearly all
of the work. :func:`hoist` finds it in the loss's own jaxpr, so no model has to be cut by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

_INLINED = ("jit", "pjit")
"""Calls that are looked into. Others (scans, custom rules) are known or unknown as a whole."""

_CHEAP = ("broadcast_in_dim", "iota")
"""Made again where they are used: keeping a broadcast would cost more memory than time saved."""


@dataclasses.dataclass(frozen=True)
class _Later:
    """A value that depends on the arguments: number of its slot when the rest runs."""

    slot: int


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A value computed now and passed to the rest: its place among the kept ones."""

    place: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Cheap:
    """A known value that is made where it is used."""

    equation: jex.JaxprEqn
    inputs: list[Any]


@dataclasses.dataclass(frozen=True)
class _Operation:
    """An equation of the rest: where its inputs come from, and the slots of its outputs."""

    equation: jex.JaxprEqn
    inputs: list[Any]
    outputs: list[int]


def hoist(fn: Callable[..., Any], *varying: Any) -> tuple[Callable[..., Any], list[jax.Array]]:
    """Splits `fn(*varying)` into what can be computed now and the rest.

    Both parts can be differentiated, vmapped and compiled. What `fn` closes over is known.

    Args:
      fn: a pure function.
      varying: examples of its arguments; only shapes and dtypes are read.

    Returns:
      `(rest, known)` with `rest(known, *varying) == fn(*varying)` for arguments of these shapes.
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*varying)
    structure = jax.tree.structure(shape)
    recorder = _Recorder()
    arguments = [recorder.new_slot() for _ in closed.jaxpr.invars]
    outputs = [recorder.use(x) for x in recorder.walk(closed.jaxpr, closed.consts, arguments)]

    def rest(known: list[jax.Array], *varying: Any) -> Any:
        slots: list[Any] = list(jax.tree.leaves(varying))
        slots += [None] * (recorder.slots - len(slots))

        def read(source: Any) -> Any:
            if isinstance(source, _Later):
                return slots[source.slot]
            return known[source.place] if isinstance(source, _Kept) else source

        for operation in recorder.operations:
            results = _bind(operation.equation, [read(source) for source in operation.inputs])
            for slot, result in zip(operation.outputs, results, strict=True):
                slots[slot] = result
        return jax.tree.unflatten(structure, [read(source) for source in outputs])

    return rest, recorder.kept


class _Recorder:
    """Walks a jaxpr: evaluates what is known, records what is not."""

    def __init__(self) -> None:
        self.operations: list[_Operation] = []
        self.kept: list[jax.Array] = []
        self.slots = 0
        self._place_of: dict[int, int] = {}

    def new_slot(self) -> _Later:
        self.slots += 1
        return _Later(self.slots - 1)

    def walk(self, jaxpr: jex.Jaxpr, consts: list[Any], arguments: list[Any]) -> list[Any]:
        values: dict[jex.Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= zip(jaxpr.invars, arguments, strict=True)

        def read(atom: jex.Var | jex.Literal) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else values[atom]

        for equation in jaxpr.eqns:
            results = self._apply(equation, [read(atom) for atom in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _apply(self, equation: jex.JaxprEqn, inputs: list[Any]) -> list[Any]:
        name = equation.primitive.name
        if not any(isinstance(value, _Later) for value in inputs):
            if name in _CHEAP:
                return [_Cheap(equation, inputs)]
            return _bind(equation, [_make(value) for value in inputs])
        if name in _INLINED:
            inner = equation.params["jaxpr"]
            return self.walk(inner.jaxpr, inner.consts, inputs)
        sources = [self.use(value) for value in inputs]
        outputs = [self.new_slot() for _ in equation.outvars]
        self.operations.append(_Operation(equation, sources, [output.slot for output in outputs]))
        return outputs

    def use(self, value: Any) -> Any:
        """Where the rest finds a value."""
        if isinstance(value, _Later) or np.isscalar(value):
            return value
        if isinstance(value, _Cheap):
            output = self.new_slot()
            sources = [self.use(source) for source in value.inputs]
            self.operations.append(_Operation(value.equation, sources, [output.slot]))
            return output
        if id(value) not in self._place_of:
            self._place_of[id(value)] = len(self.kept)
            self.kept.append(value)
        return _Kept(self._place_of[id(value)])


def _make(value: Any) -> Any:
    if not isinstance(value, _Cheap):
        return value
    return _bind(value.equation, [_make(source) for source in value.inputs])[0]


def _bind(equation: jex.JaxprEqn, inputs: list[Any]) -> list[Any]:
    """The equation's outputs; None for those that nothing reads."""
    values = {
        atom: value
        for atom, value in zip(equation.invars, inputs, strict=True)
        if not isinstance(atom, jex.Literal)
    }
    read = [atom for atom in equation.outvars if not isinstance(atom, jex.DropVar)]
    names = (tuple(map(str, values)), tuple(map(str, read)))
    debug_info = jex.DebugInfo("hoist", equation.primitive.name, *names)
    single = jex.Jaxpr((), list(values), read, [equation], equation.effects, debug_info)
    results = iter(jex.jaxpr_as_fun(jex.ClosedJaxpr(single, ()))(*values.values()))
    return [None if isinstance(atom, jex.DropVar) else next(results) for atom in equation.outvars]
