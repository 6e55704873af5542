"""The inner loop of MAML: a few steps of gradient descent on one task."""

from __future__ import annotations

import chex
import optax

from dsaml_jax.meta.base import LossFn, ParameterFilter, PyTree
from dsaml_jax.meta.memory import MemoryMode
from dsaml_jax.meta.rules import Rates
from dsaml_jax.meta.unrolling import InnerState, unroll


def adapt(
    loss_fn: LossFn,
    params: PyTree,
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
    key: chex.PRNGKey | None = None,
) -> PyTree:
    """Takes `steps` steps of `params <- params - learning_rate * transform(grad(loss_fn)(params, batch))`.

    Unbatched: one task. Use `jax.vmap` over tasks. What the adapting parameters do not reach, such as a frozen
    front end, is computed once and not in every step; see :func:`dsaml_jax.meta.hoisting.hoist`. Inside `jax.shard_map`
    what adapts varies over the axes that the loss varies over.

    Args:
      loss_fn: see :data:`~dsaml_jax.meta.base.LossFn`.
      params: pytree; only float arrays adapt, and anything else (integers, functions) stays as it is.
      batch: the support set, passed to the loss as it is.
      steps: inner steps; 0 returns `params`.
      learning_rate: of the inner steps, a number or an array that may be differentiated; or one for each adapting
        parameter by its path. A rate is a scalar or has the parameter's own shape.
      rates_per_step: every rate has a leading axis of length `steps` before that.
      order: what differentiating the *result* means. 2: the exact derivative through every step. 1: inner
        gradients count as constants (FOMAML; Finn et al. 2017, section 5.2), so the derivative of the result
        by `params` is the identity, and that by whatever reaches the inner loss alone (the batch, what the loss closes
        over, a parameter that only it reads) is zero. All of a step but the parameters is then a constant: weight decay in a
        transformation does not shrink the derivative either.
      first_order_steps: of second order, so many steps at the beginning count as in first order: that cuts the meta-gradient
        there.
      adapts: which parameters the steps change; None for all. Gradients of the others are never
        computed in the inner loop.
      transform: what the gradient goes through before the rate, for example `optax.trace(0.9)` for momentum or
        `optax.scale_by_adam(eps_root=1e-8)`; `eps_root` must not be 0 where the steps are differentiated. None: plain
        SGD. A transformation that holds a rate and a sign of its own, such as `optax.sgd(0.1)`, would climb: that is an
        `optimizer`.
      optimizer: any optax optimiser, instead of rate and transform: `params <- params + update`. Both see the adapting
        parameters by name, see :class:`~dsaml_jax.meta.rules.StepRule`.
      memory: how the backward pass of second order is paid for; see :mod:`dsaml_jax.meta.memory`. The mixed modes have
        no forward derivative of their own (`jax.jvp`, `jax.jacfwd`, `jax.hessian` of the result): take `remat` for
        these. (Where the call is inside `jax.jit`, JAX's own message that a custom_vjp function has no forward mode means
        this.) Any loss will do that can be differentiated twice in reverse.
      batch_per_step: `batch` has a leading axis of length `steps`, and every step reads its own.
      key: PRNG key, consumed; step k gets `fold_in(key, k)`. None for a loss without a key argument.

    Returns:
      the adapted parameters, structured as `params`.

    Raises:
      ValueError: a bad order, mode or number of steps, a filter that lets nothing adapt, two parameters of one path, rates
        that do not belong to the parameters that adapt, or both or none of a rate and an optimiser.
    """
    after, _ = unroll(
        loss_fn, InnerState(params), batch, steps=steps, learning_rate=learning_rate, rates_per_step=rates_per_step,
        order=order, first_order_steps=first_order_steps, adapts=adapts, transform=transform, optimizer=optimizer,
        memory=memory, batch_per_step=batch_per_step, key=key,
    )  # fmt: skip
    return after.params
