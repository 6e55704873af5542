"""The inner loop of MAML: a few steps of gradient descent on one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax

PyTree = Any
ParameterFilter = Callable[[str], bool]
"""Takes a parameter's path, such as `predictor/out/bias`, and says whether it adapts."""

LossFn = Callable[..., jax.Array]
"""`loss_fn(params, batch) -> scalar`, or `loss_fn(params, batch, key) -> scalar` where keys are given.

*BatchNorm*: the function is pure, so it decides. To normalise by the batch, apply the model with
`batch_norm=True` and drop the updated statistics; to stay on running statistics, close over them.
Either way `adapt` carries no hidden state from step to step.

*Dropout*: a loss with dropout takes a third argument, a key. `adapt(..., key=key)` gives step k the
key `fold_in(key, k)`; the same key always gives the same adapted parameters.
"""


def adapt(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    *,
    steps: int,
    learning_rate: float | jax.Array,
    order: int = 1,
    adapts: ParameterFilter | None = None,
    key: chex.PRNGKey | None = None,
) -> PyTree:
    """Takes `steps` steps of `params <- params - learning_rate * grad(loss_fn)(params, batch)`.

    Unbatched: one task. Use `jax.vmap` over tasks.

    Args:
      loss_fn: see :data:`LossFn`.
      params: pytree of float arrays.
      batch: the support set, passed to the loss as it is.
      steps: inner steps; 0 returns `params`.
      learning_rate: of the inner steps, a float or a scalar array (which may be differentiated).
      order: what differentiating the *result* means. 2: the exact derivative through every step.
        Each step is rematerialised in the backward pass, so memory grows with the parameters per
        step and not with the inner graph. 1: inner gradients count as constants (FOMAML; Finn et
        al. 2017, section 5.2), so the derivative of the result by `params` is the identity.
      adapts: which parameters the steps change; None for all. Gradients of the others are never
        computed in the inner loop.
      key: PRNG key, consumed; None for a loss without a key argument.

    Returns:
      the adapted parameters, structured as `params`.

    Raises:
      ValueError: a bad order or number of steps, or a filter that lets nothing adapt.
    """
    if order not in (1, 2):
        raise ValueError(f"order is 1 or 2, not {order}")
    if steps < 0:
        raise ValueError(f"steps is 0 or more, not {steps}")

    leaves, structure = jax.tree.flatten(params)
    moving = [adapts is None or adapts(name) for name in parameter_names(params)]
    if not any(moving):
        raise ValueError("the filter lets no parameter adapt")

    def merge(chosen: list[jax.Array], everything: list[jax.Array]) -> PyTree:
        chosen_leaves = iter(chosen)
        merged = [
            next(chosen_leaves) if moves else leaf
            for moves, leaf in zip(moving, everything, strict=True)
        ]
        return jax.tree.unflatten(structure, merged)

    def step(current: list[jax.Array], index: jax.Array) -> tuple[list[jax.Array], None]:
        # First order stops the gradient on the way in, so that no inner graph is ever linearised.
        inputs = (current, leaves, batch)
        at, everything, data = jax.lax.stop_gradient(inputs) if order == 1 else inputs
        keys = () if key is None else (jax.random.fold_in(key, index),)
        gradient = jax.grad(lambda chosen: loss_fn(merge(chosen, everything), data, *keys))(at)
        return [p - learning_rate * g for p, g in zip(current, gradient, strict=True)], None

    body = jax.checkpoint(step, prevent_cse=False) if order == 2 else step
    chosen = [leaf for moves, leaf in zip(moving, leaves, strict=True) if moves]
    adapted, _ = jax.lax.scan(body, chosen, jax.numpy.arange(steps))
    return merge(adapted, leaves)


def parameter_names(params: PyTree) -> list[str]:
    """Path of each leaf, in the order of the leaves: `predictor/out/bias`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(params)
    ]
