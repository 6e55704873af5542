"""Reptile: Nichol, Achiam, Schulman 2018 (arXiv 1803.02999)."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dsaml_jax.errors import UsageError
from dsaml_jax.meta.base import LossFn, OuterLossFn, PyTree
from dsaml_jax.meta.descent import GradientDescent
from dsaml_jax.meta.parts import Adapting, wide


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reptile(GradientDescent):
    """The meta-gradient is the way the inner steps went, `(params - adapted) / learning_rate` (section 2.1).

    Training makes no difference between support and query: every step descends the mean of the inner losses of
    both. The value reported in training is the query's loss after steps that have seen it. Adapting to somebody
    new reads the support alone, as everywhere. With an `optimizer`, whose rate is its own, the way is not divided.
    """

    order: int = dataclasses.field(default=1, init=False)
    first_order_steps: int = dataclasses.field(default=0, init=False)
    batch_per_step: bool = dataclasses.field(default=False, init=False)
    state_per_step: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer is None and not self.learning_rate:
            raise UsageError("reptile divides by learning_rate, which must not be 0")

    def task_loss(
        self,
        loss_fn: LossFn,
        outer: OuterLossFn,
        learned: PyTree,
        support: PyTree,
        query: PyTree,
        keys: tuple[chex.PRNGKey | None, chex.PRNGKey | None],
        step: jax.Array | None,
        state: PyTree = None,
    ) -> tuple[jax.Array, Any]:
        """See :meth:`Algorithm.task_loss`.

        Raises:
          UsageError: the loss has a state: its steps have two losses.
        """
        del step
        if state is not None:
            raise UsageError("reptile takes no state: each of its steps has two losses")

        def both(params: PyTree, data: tuple[PyTree, PyTree], *key: chex.PRNGKey) -> jax.Array:
            return 0.5 * (loss_fn(params, data[0], *key) + loss_fn(params, data[1], *key))

        parts = Adapting(learned, None)
        here = parts.chosen
        start = parts.merge(jax.lax.stop_gradient(here))
        adapted = self.adapt(both, start, (support, query), keys[0])
        last = jax.lax.stop_gradient(Adapting(adapted, None).chosen)
        value, aux = outer(parts.merge(last), query, keys[1])
        # A term that is zero and whose gradient is the one above.
        rate = self.learning_rate or 1.0
        ways = [
            _widened_dot((first - end) / rate, now - first)
            for now, first, end in zip(here, jax.lax.stop_gradient(here), last, strict=True)
        ]
        return jax.lax.stop_gradient(value) + jnp.sum(jnp.stack(ways)).astype(value.dtype), aux


def _widened_dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.vdot(x.astype(wide(x.dtype)), y.astype(wide(y.dtype)))
