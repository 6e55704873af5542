"""The inner loop of MAML: a few steps of gradient descent on one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax

PyTree = Any
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
      key: PRNG key, consumed; None for a loss without a key argument.

    Returns:
      the adapted parameters, structured as `params`.
    """
    if order not in (1, 2):
        raise ValueError(f"order is 1 or 2, not {order}")
    if steps < 0:
        raise ValueError(f"steps is 0 or more, not {steps}")

    def step(current: PyTree, index: jax.Array) -> tuple[PyTree, None]:
        # First order stops the gradient on the way in, so that no inner graph is ever linearised.
        at, data = jax.lax.stop_gradient((current, batch)) if order == 1 else (current, batch)
        keys = () if key is None else (jax.random.fold_in(key, index),)
        gradient = jax.grad(loss_fn)(at, data, *keys)
        return jax.tree.map(lambda p, g: p - learning_rate * g, current, gradient), None

    body = jax.checkpoint(step, prevent_cse=False) if order == 2 else step
    adapted, _ = jax.lax.scan(body, params, jax.numpy.arange(steps))
    return adapted
