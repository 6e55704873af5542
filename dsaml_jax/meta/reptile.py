"""Reptile: Nichol, Achiam, Schulman 2018 (arXiv 1803.02999)."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dsaml_jax.meta.base import LossFn, OuterLossFn, PyTree
from dsaml_jax.meta.descent import GradientDescent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reptile(GradientDescent):
    """The meta-gradient is the way the inner steps went, `(params - adapted) / learning_rate` (section 2.1).

    Training makes no difference between support and query: every step descends the mean of the inner losses of
    both. The value reported in training is the query's loss after steps that have seen it. Adapting to somebody
    new reads the support alone, as everywhere.
    """

    order: int = dataclasses.field(default=1, init=False)

    def task_loss(
        self,
        loss_fn: LossFn,
        outer: OuterLossFn,
        learned: PyTree,
        support: PyTree,
        query: PyTree,
        keys: tuple[chex.PRNGKey | None, chex.PRNGKey | None],
        step: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        """See :meth:`Algorithm.task_loss`."""
        del step

        def both(params: PyTree, data: tuple[PyTree, PyTree], *key: chex.PRNGKey) -> jax.Array:
            return 0.5 * (loss_fn(params, data[0], *key) + loss_fn(params, data[1], *key))

        start = jax.lax.stop_gradient(learned)
        adapted = jax.lax.stop_gradient(self.adapt(both, start, (support, query), keys[0]))
        value, aux = outer(adapted, query, keys[1])
        # A term that is zero and whose gradient is the one above.
        ways = jax.tree.map(
            lambda here, first, last: jnp.vdot((first - last) / self.learning_rate, here - first),
            learned, start, adapted,
        )  # fmt: skip
        return jax.lax.stop_gradient(value) + sum(jax.tree.leaves(ways)), aux
