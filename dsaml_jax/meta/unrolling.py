"""The inner loop in full: where it begins and ends, a batch and a state of the loss for every step, what is seen on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from dsaml_jax.meta.base import LossFn, ParameterFilter, PyTree
from dsaml_jax.meta.hoisting import hoist
from dsaml_jax.meta.memory import MEMORY_MODES, MemoryMode, inner_gradient, scan_steps
from dsaml_jax.meta.parts import Adapting
from dsaml_jax.meta.placing import is_placed, place_like
from dsaml_jax.meta.rules import Rates, StepRule, one_of_two, rates_of, whole_number

Visit = Callable[..., PyTree]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InnerState:
    """Where inner steps are. `InnerState(params)` is the beginning.

    Attributes:
      params: the model's parameters.
      optimizer: state of the transformation or optimiser; None: not begun.
      state: of the loss; None: it has none.
      step: how many steps there have been, which decides their keys.
    """

    params: PyTree
    optimizer: PyTree = None
    state: PyTree = None
    step: chex.Numeric = 0


def unroll(
    loss_fn: LossFn,
    inner: InnerState,
    batch: PyTree,
    *,
    steps: int,
    learning_rate: Rates | None = None,
    rates_per_step: bool = False,
    order: int = 1,
    first_order_steps: int = 0,
    adapts: ParameterFilter | None = None,
    transform: optax.GradientTransformation | None = None,
    optimizer: optax.GradientTransformation | None = None,
    memory: MemoryMode = "mixed",
    batch_per_step: bool = False,
    state_per_step: bool = False,
    key: chex.PRNGKey | None = None,
    visit: Visit | None = None,
) -> tuple[InnerState, PyTree]:
    """Takes inner steps from where they are, as :func:`~dsaml_jax.meta.adapt.adapt` does from the beginning.

    What it returns goes on: with the same arguments, `unroll(unroll(x, steps=2), steps=3)` is `unroll(x, steps=5)`.
    `jax.lax.stop_gradient` of the state in between cuts all derivatives there (truncated backpropagation); the first part with
    `order=1` cuts those through its gradients alone, which is what `first_order_steps` does.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`; with a state of the loss `loss_fn(params, batch, state) -> (scalar, state)`;
        a key comes last.
      inner: parameters, and what else steps carry along.
      batch: what a step's loss reads.
      steps: see :func:`~dsaml_jax.meta.adapt.adapt`, as everything that is not explained here.
      learning_rate: of the steps.
      rates_per_step: whether rates have a leading axis `steps`.
      order: 1 or 2.
      first_order_steps: of second order, so many steps at the beginning whose gradients count as constants.
      adapts: which parameters change.
      transform: before the rate.
      optimizer: instead of rate and transform.
      memory: of second order.
      batch_per_step: whether `batch` has a leading axis `steps`, and every step reads its own.
      state_per_step: whether the loss's state has a leading axis `steps`: each step has its own, which no other sees, as
        MAML++ keeps the running statistics of BatchNorm (Antoniou et al. 2019, section 4). Otherwise one goes from step to
        step. Either way its derivatives are exact in second order; `jax.lax.stop_gradient` in the loss spares them.
      key: step k gets `fold_in(key, inner.step + k)`.
      visit: called with the parameters after each step (and with the state that the step left); what it returns can be
        differentiated.

    Returns:
      the state after the steps, and what `visit` returned with a leading axis `steps` (None without it, or without steps).

    Raises:
      ValueError: see :func:`~dsaml_jax.meta.adapt.adapt`; a batch or state without the axis of steps that it should have.
    """
    steps, first = _checked(steps, order, first_order_steps, memory)
    one_of_two(learning_rate, optimizer, transform)
    parts = Adapting(inner.params, adapts)
    rates = rates_of(learning_rate, parts, steps, per_step=rates_per_step)
    _require_axis(batch if batch_per_step else None, steps, "batch")
    _require_axis(inner.state if state_per_step else None, steps, "state")
    if steps == 0:
        return inner, None
    loss = _Loss(loss_fn, parts, inner, batch, key, (batch_per_step, state_per_step))
    loss.place(rates)
    rule = StepRule(parts, transform, optimizer)
    moments = rule.init(parts.chosen) if inner.optimizer is None else inner.optimizer
    steps_of = _Steps(loss, rule, None if rates_per_step else rates, _looking(visit, loss), memory)
    inputs = (
        inner.step + jnp.arange(steps),
        rates if rates_per_step else None,
        batch if batch_per_step else None,
        loss.state if state_per_step else None,
    )
    carry = (
        parts.chosen,
        place_like(moments, parts.chosen),
        None if state_per_step else loss.state,
    )
    outputs = []
    if first:
        carry, output = steps_of(1, carry, jax.tree.map(lambda x: x[:first], inputs), first)
        outputs.append(output)
    if first < steps:
        rest = jax.tree.map(lambda x: x[first:], inputs) if first else inputs
        carry, output = steps_of(2, carry, rest, steps - first)
        outputs.append(output)
    visited, states = jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x), *outputs)
    chosen, moments, state = carry
    after = InnerState(
        parts.merge(chosen), moments, states if state_per_step else state, inner.step + steps
    )
    return after, visited


class _Steps:
    """Steps of one order, one after the other."""

    def __init__(
        self, loss: _Loss, rule: StepRule, rates: list[Any] | None, look: Visit | None, memory: MemoryMode
    ) -> None:  # fmt: skip
        """`rates` are those of every step; None where each step has its own."""
        self._loss, self._rule, self._rates, self._look, self._memory = loss, rule, rates, look, memory  # fmt: skip

    def __call__(
        self, order: int, carry: PyTree, inputs: PyTree, steps: int
    ) -> tuple[PyTree, PyTree]:
        """The last carry; and for each step what was seen, and its state where it has its own.

        Args:
          order: 1 or 2.
          carry: parameters that adapt, moments, and the loss's state where it goes from step to step.
          inputs: leading axis `steps`: number, rates, batch, state; None for what is the same in all.
          steps: how many.

        Raises:
          TypeError: a forward derivative is taken in a mode that has none.
        """
        step = self._step(order)
        if order == 1:
            return jax.lax.scan(step, carry, inputs)
        try:
            return scan_steps(step, carry, inputs, steps=steps, memory=self._memory)
        except TypeError as error:
            if "forward-mode" not in str(error) or not self._memory.startswith("mixed"):
                raise
            raise TypeError(
                f"memory={self._memory} has no forward derivative (jax.jvp, jax.jacfwd, jax.hessian): set memory='remat'"
            ) from error

    def _step(self, order: int) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
        gradient = self._loss.gradient(order, self._memory)
        key, own_state = self._loss.key, self._loss.per_step[1]

        def step(carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
            chosen, moments, state = carry
            index, rates, batch, state_now = inputs
            at = jax.lax.stop_gradient(chosen) if order == 1 else chosen
            step_key = None if key is None else jax.random.fold_in(key, index)
            slope, left = gradient(at, (batch, state_now if own_state else state, step_key))
            rates = rates if self._rates is None else self._rates
            chosen, moments = self._rule(slope, moments, at, chosen, rates)
            seen = None if self._look is None else self._look(chosen, left)
            return (chosen, moments, None if own_state else left), (seen, left if own_state else None)  # fmt: skip

        return step


class _Loss:
    """The loss of a step as a function of what adapts and of what differs from step to step; the rest is computed once."""

    def __init__(
        self, loss_fn: LossFn, parts: Adapting, inner: InnerState, batch: PyTree, key: Any, per_step: tuple[bool, bool]
    ) -> None:  # fmt: skip
        """`per_step` says whether batch and state have an axis of steps."""
        self._loss_fn, self._batch = loss_fn, batch
        self.parts, self.state, self.key, self.per_step = parts, inner.state, key, per_step

    def __call__(self, chosen: list[jax.Array], extra: PyTree) -> tuple[jax.Array, PyTree]:
        """`(scalar, state)`; `extra` is the step's batch, state and key."""
        batch, state, key = extra
        batch = batch if self.per_step[0] else self._batch
        arguments = [x for x in (state, key) if x is not None]
        result: Any = self._loss_fn(self.parts.merge(chosen), batch, *arguments)
        if self.state is None:
            return result, None
        chex.assert_trees_all_equal_structs(result[1], state)
        return result

    def example(self) -> PyTree:
        """Of `extra`."""
        batch, state = (
            jax.tree.map(lambda x: x[0], tree) if per_step else tree
            for tree, per_step in zip((self._batch, self.state), self.per_step, strict=True)
        )
        return (batch if self.per_step[0] else None, state, self.key)

    def place(self, rates: list[Any]) -> None:
        """Puts what adapts, and the state, where the loss will have them."""
        parts = self.parts
        if not is_placed((parts.chosen, self._batch, self.state, rates)):
            return
        for _ in range(2):  # a state that moves may move the loss
            parts.chosen = place_like(parts.chosen, rates)
            value, left = jax.eval_shape(self, parts.chosen, self.example())
            parts.chosen = place_like(parts.chosen, value)
            self.state = jax.tree.map(place_like, self.state, left)

    def gradient(self, order: int, memory: MemoryMode) -> Callable[..., Any]:
        """`(chosen, extra) -> (gradient, state)` of an order."""
        loss, known = hoist(self.__call__, self.parts.chosen, self.example())
        if order == 1:
            # The gradient is stopped on the way in, so that no inner graph is ever linearised.
            known = jax.lax.stop_gradient(known)
            plain = jax.grad(lambda chosen, extra: loss(known, chosen, extra), has_aux=True)
            return lambda chosen, extra: plain(chosen, jax.lax.stop_gradient(extra))
        exact = inner_gradient(loss, memory)
        return lambda chosen, extra: exact(known, chosen, extra)


def _looking(visit: Visit | None, loss: _Loss) -> Callable[..., PyTree] | None:
    if visit is None:
        return None
    state = loss.example()[1]
    arguments = (loss.parts.chosen,) if state is None else (loss.parts.chosen, state)
    look, seen = hoist(lambda chosen, *state: visit(loss.parts.merge(chosen), *state), *arguments)
    look = jax.checkpoint(look, prevent_cse=False)
    return lambda chosen, left: look(seen, chosen, *([] if left is None else [left]))


def _checked(steps: Any, order: int, first_order_steps: Any, memory: str) -> tuple[int, int]:
    """`(steps, how many of them are of first order)`."""
    if order not in (1, 2):
        raise ValueError(f"order is 1 or 2, not {order}")
    if memory not in MEMORY_MODES:
        raise ValueError(f"memory is one of {', '.join(MEMORY_MODES)}, not {memory!r}")
    steps = whole_number("steps", steps)
    first = whole_number("first_order_steps", first_order_steps)
    return steps, steps if order == 1 else min(first, steps)


def _require_axis(tree: PyTree, steps: int, what: str) -> None:
    for leaf in jax.tree.leaves(tree):
        if jnp.shape(leaf)[:1] != (steps,):
            raise ValueError(
                f"{what}_per_step: an array of shape {jnp.shape(leaf)} has no leading axis of {steps} steps"
            )
