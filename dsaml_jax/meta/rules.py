"""How an inner gradient becomes a step: its rate, and what it goes through before."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dsaml_jax.meta.parts import Adapting

PyTree = Any
Rates = float | jax.Array | Mapping[str, jax.Array]


class StepRule:
    """`chosen <- chosen - rate * transform(gradient)`, or what an optimiser makes of the gradient.

    A transformation and an optimiser see the parameters that adapt by their names: the whole tree, with None in the place of
    the others. So `optax.masked` and `optax.multi_transform` find what they are about.
    """

    def __init__(
        self,
        parts: Adapting,
        transform: optax.GradientTransformation | None,
        optimizer: optax.GradientTransformation | None,
    ) -> None:
        self._parts, self._optax, self._complete = parts, optimizer or transform, optimizer is not None  # fmt: skip

    def init(self, chosen: list[jax.Array]) -> PyTree:
        """First state; None without a transformation."""
        return None if self._optax is None else self._optax.init(self._parts.tree(chosen))

    def __call__(
        self, slope: list[jax.Array], state: PyTree, at: list[jax.Array], chosen: list[jax.Array], rates: list[Any]
    ) -> tuple[list[jax.Array], PyTree]:  # fmt: skip
        """The parameters after a step, and the state.

        Args:
          slope: gradient.
          state: of the transformation.
          at: the parameters, as the transformation sees them.
          chosen: the parameters.
          rates: one for each; not read where an optimiser has its own.
        """
        if self._optax is not None:
            tree = self._parts.tree
            with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is float ** int
                moved, state = self._optax.update(tree(slope), state, tree(at))
            slope = jax.tree.leaves(moved)
        if self._complete:
            return [p + u.astype(p.dtype) for p, u in zip(chosen, slope, strict=True)], state
        with jax.numpy_dtype_promotion("standard"):  # rates of bfloat16 parameters are float32
            return [
                p - (jnp.asarray(r) * g).astype(p.dtype)
                for p, r, g in zip(chosen, rates, slope, strict=True)
            ], state


def one_of_two(learning_rate: Any, optimizer: Any, transform: Any) -> None:
    """Raises ValueError unless it is said once, and only once, how far a step goes."""
    if optimizer is None and learning_rate is None:
        raise ValueError("give learning_rate, or an optimizer that has its own")
    if optimizer is not None and learning_rate is not None:
        raise ValueError("an optimizer has its own rate: leave learning_rate out, or give transform")  # fmt: skip
    if optimizer is not None and transform is not None:
        raise ValueError("give transform or optimizer, not both; optax.chain joins them")


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """The value as an int.

    Raises:
      ValueError: it is no whole number, or less than `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is a whole number, not {value!r}") from None
    if number < least:
        raise ValueError(f"{name} is {least} or more, not {number}")
    return number


def rates_of(
    learning_rate: Rates | None, parts: Adapting, steps: int, *, per_step: bool
) -> list[Any]:
    """One rate for each parameter that adapts.

    Args:
      learning_rate: a number or array for all, or by path; None where an optimiser has its own.
      parts: what adapts.
      steps: inner steps.
      per_step: whether every rate has a leading axis of that length.

    Raises:
      ValueError: rates that do not belong to the parameters, or whose shape is none of theirs.
    """
    if learning_rate is None:
        return [None] * len(parts.names)
    rates: list[Any] = [learning_rate] * len(parts.names)
    if isinstance(learning_rate, Mapping):
        if set(learning_rate) != set(parts.names):
            wrong = ", ".join(sorted(set(learning_rate) ^ set(parts.names)))
            raise ValueError(f"rates and adapting parameters differ in {wrong}")
        rates = [learning_rate[name] for name in parts.names]
    lead = (steps,) if per_step else ()
    for name, rate, leaf in zip(parts.names, rates, parts.chosen, strict=True):
        shape = jnp.shape(rate)
        if shape not in (lead, (*lead, *leaf.shape)):
            mend = f"has no leading axis of {steps} steps" if per_step else "a rate for each step needs rates_per_step=True"  # fmt: skip
            raise ValueError(
                f"the rate of {name} has shape {shape} and the parameter {leaf.shape}: {mend}"
            )
    return rates
