"""The inner loop of MAML: a few steps of gradient descent on one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from dsaml_jax.meta.base import LossFn, ParameterFilter, PyTree, parameter_names
from dsaml_jax.meta.hoisting import hoist
from dsaml_jax.meta.memory import MEMORY_MODES, MemoryMode, inner_gradient, scan_steps
from dsaml_jax.meta.placing import place_by, place_like

Rates = float | jax.Array | Mapping[str, jax.Array]


def adapt(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    *,
    steps: int,
    learning_rate: Rates,
    order: int = 1,
    adapts: ParameterFilter | None = None,
    transform: optax.GradientTransformation | None = None,
    memory: MemoryMode = "mixed",
    key: chex.PRNGKey | None = None,
) -> PyTree:
    """Takes `steps` steps of `params <- params - learning_rate * transform(grad(loss_fn)(params, batch))`.

    Unbatched: one task. Use `jax.vmap` over tasks. What the adapting parameters do not reach, such as a frozen
    front end, is computed once and not in every step; see :func:`dsaml_jax.meta.hoisting.hoist`.

    Args:
      loss_fn: see :data:`~dsaml_jax.meta.base.LossFn`.
      params: pytree of float arrays.
      batch: the support set, passed to the loss as it is.
      steps: inner steps; 0 returns `params`.
      learning_rate: of the inner steps, a number or an array that may be differentiated; or one for each adapting
        parameter by its path, a scalar, of the parameter's own shape, or with a leading axis: see
        :func:`adapt_and_visit`.
      order: what differentiating the *result* means. 2: the exact derivative through every step. 1: inner
        gradients count as constants (FOMAML; Finn et al. 2017, section 5.2), so the derivative of the result
        by `params` is the identity.
      adapts: which parameters the steps change; None for all. Gradients of the others are never
        computed in the inner loop.
      transform: what the gradient goes through before the rate, for example `optax.trace(0.9)` for momentum or
        `optax.scale_by_adam(eps_root=1e-8)`; `eps_root` must not be 0 where the steps are differentiated. None: plain
        SGD. A transformation that holds a rate and a sign of its own, such as `optax.sgd(0.1)`, is not meant.
      memory: how the backward pass of second order is paid for; see :mod:`dsaml_jax.meta.memory`. The mixed modes need a
        loss that can be differentiated forwards (one with a `jax.custom_vjp` cannot).
      key: PRNG key, consumed; step k gets `fold_in(key, k)`. None for a loss without a key argument.

    Returns:
      the adapted parameters, structured as `params`.

    Raises:
      ValueError: a bad order, mode or number of steps, a filter that lets nothing adapt, or rates that do not
        belong to the parameters that adapt.
    """
    adapted, _ = adapt_and_visit(
        loss_fn, params, batch, steps=steps, learning_rate=learning_rate, order=order, adapts=adapts,
        transform=transform, memory=memory, key=key,
    )  # fmt: skip
    return adapted


def adapt_and_visit(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    *,
    steps: int,
    learning_rate: Rates,
    order: int,
    adapts: ParameterFilter | None,
    transform: optax.GradientTransformation | None,
    memory: MemoryMode,
    key: chex.PRNGKey | None,
    rates_per_step: bool = False,
    visit: Callable[[PyTree], PyTree] | None = None,
) -> tuple[PyTree, PyTree]:
    """:func:`adapt`, which also looks at the parameters after every step.

    Two arguments are its own. With `rates_per_step` every rate has a leading axis of length `steps`. `visit` is called
    with the parameters after each step; what it returns can be differentiated.

    Returns:
      the adapted parameters, and what `visit` returned with a leading axis of length `steps` (None without it).
    """
    if order not in (1, 2):
        raise ValueError(f"order is 1 or 2, not {order}")
    if memory not in MEMORY_MODES:
        raise ValueError(f"memory is one of {', '.join(MEMORY_MODES)}, not {memory!r}")
    if steps < 0:
        raise ValueError(f"steps is 0 or more, not {steps}")
    parts = Adapting(params, adapts)
    rates = _rates(learning_rate, parts.names)
    if rates_per_step:
        chex.assert_tree_shape_prefix(rates, (steps,))

    loss_of = _step_loss(loss_fn, parts, batch)
    parts.chosen = place_by(lambda chosen: loss_of(chosen, key), parts.chosen, batch)
    parts.chosen = place_like(parts.chosen, rates)
    loss, known = hoist(loss_of, parts.chosen, key)
    if order == 1:
        # The gradient is stopped on the way in, so that no inner graph is ever linearised.
        known = jax.lax.stop_gradient(known)
        gradient = jax.grad(lambda chosen, key: loss(known, chosen, key))
    else:
        exact = inner_gradient(lambda known, chosen, key: loss(known, chosen, key), memory)
        gradient = lambda chosen, key: exact(known, chosen, key)  # noqa: E731
    look = None
    if visit is not None:
        look, seen = hoist(lambda chosen: visit(parts.merge(chosen)), parts.chosen)
        look = jax.checkpoint(look, prevent_cse=False)

    def step(carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        chosen, state = carry
        index, rates_now = inputs
        at = jax.lax.stop_gradient(chosen) if order == 1 else chosen
        slope = gradient(at, None if key is None else jax.random.fold_in(key, index))
        if transform is not None:
            with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is float ** int
                slope, state = transform.update(slope, state, at)
        rate = rates_now if rates_per_step else rates
        chosen = [
            p - (jnp.asarray(r) * g).astype(p.dtype)
            for p, r, g in zip(chosen, rate, slope, strict=True)
        ]
        return (chosen, state), None if look is None else look(seen, chosen)

    state = None if transform is None else transform.init(parts.chosen)
    inputs = (jnp.arange(steps), rates if rates_per_step else None)
    start = (parts.chosen, state)
    if steps == 0:
        return params, None
    (chosen, _), visited = (
        jax.lax.scan(step, start, inputs)
        if order == 1
        else scan_steps(step, start, inputs, steps=steps, memory=memory)
    )
    return parts.merge(chosen), visited


class Adapting:
    """Parameters, split into those that adapt and those that do not.

    Attributes:
      names: paths of those that adapt.
      chosen: them, in the order of the tree's leaves.
    """

    def __init__(self, params: PyTree, adapts: ParameterFilter | None) -> None:
        """Splits.

        Raises:
          ValueError: the filter lets nothing adapt.
        """
        self._leaves, self._structure = jax.tree.flatten(params)
        names = parameter_names(params)
        self._moving = [adapts is None or adapts(name) for name in names]
        if not any(self._moving):
            raise ValueError("the filter lets no parameter adapt")
        self.names = [name for name, moves in zip(names, self._moving, strict=True) if moves]
        self.chosen = [
            leaf for leaf, moves in zip(self._leaves, self._moving, strict=True) if moves
        ]

    def merge(self, chosen: list[jax.Array]) -> PyTree:
        """The whole tree, with other values for those that adapt."""
        new = iter(chosen)
        leaves = [
            next(new) if moves else leaf
            for moves, leaf in zip(self._moving, self._leaves, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)


def _step_loss(
    loss_fn: LossFn, parts: Adapting, batch: PyTree
) -> Callable[[list[jax.Array], chex.PRNGKey | None], jax.Array]:
    def loss(chosen: list[jax.Array], key: chex.PRNGKey | None) -> jax.Array:
        keys = () if key is None else (key,)
        return loss_fn(parts.merge(chosen), batch, *keys)

    return loss


def _rates(learning_rate: Rates, names: list[str]) -> list[Any]:
    """One rate, or array of rates, for each adapting parameter."""
    if not isinstance(learning_rate, Mapping):
        return [learning_rate] * len(names)
    if set(learning_rate) != set(names):
        wrong = ", ".join(sorted(set(learning_rate) ^ set(names)))
        raise ValueError(f"rates and adapting parameters differ in {wrong}")
    return [learning_rate[name] for name in names]
