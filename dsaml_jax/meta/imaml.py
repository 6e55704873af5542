"""Implicit MAML: Rajeswaran, Finn, Kakade, Levine 2019 (arXiv 1909.04630)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from dsaml_jax.meta.adapt import Adapting
from dsaml_jax.meta.base import Algorithm, LossFn, ParameterFilter, PyTree
from dsaml_jax.meta.hoisting import hoist
from dsaml_jax.meta.memory import inner_gradient
from dsaml_jax.meta.placing import place_by
from dsaml_jax.meta.solvers import conjugate_gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class IMAML(Algorithm):
    """Adapts to the minimum of `loss + proximal / 2 |adapted - params|^2`, whose derivative needs no steps.

    With `H` the Hessian of the loss at the minimum, the derivative of the minimum by `params` is
    `(I + H / proximal)^-1` (lemma 1), applied by conjugate gradients; derivatives by the batch and by what is
    frozen follow from the same equation. Memory does not depend on the number of steps. The gradient is as good as
    the minimum: take enough steps, and a `proximal` above the Hessian's most negative eigenvalue. One key serves
    all steps, because the minimum is that of one function.

    Attributes:
      proximal: strength of the pull to `params` (lambda in the paper).
      cg_steps: most steps of conjugate gradients.
      adapts: which parameters adapt; None for all.
      transform: what the gradient goes through before the rate; None: plain gradient descent.
    """

    proximal: float = 2.0
    cg_steps: int = 5
    adapts: ParameterFilter | None = None
    transform: optax.GradientTransformation | None = None

    def adapting(self, name: str) -> bool:
        """See :meth:`Algorithm.adapting`."""
        return self.adapts is None or self.adapts(name)

    def adapt(
        self, loss_fn: LossFn, learned: PyTree, support: PyTree, key: chex.PRNGKey | None = None
    ) -> PyTree:
        """See :meth:`Algorithm.adapt`."""
        parts = Adapting(learned, self.adapting)
        keys = () if key is None else (key,)
        loss_of = lambda chosen: loss_fn(parts.merge(chosen), support, *keys)  # noqa: E731
        parts.chosen = place_by(loss_of, parts.chosen, support)
        loss, known = hoist(loss_of, parts.chosen)

        gradient = inner_gradient(lambda known, chosen, _: loss(known, chosen), "mixed")

        # Not `jax.lax.custom_root`: with conjugate gradients it has no reverse mode (jax issue 33872).
        @jax.custom_vjp
        def minimum(known: list[jax.Array], start: list[jax.Array]) -> list[jax.Array]:
            def slope(chosen: list[jax.Array]) -> list[jax.Array]:
                pull = [self.proximal * (p - first) for p, first in zip(chosen, start, strict=True)]
                return jax.tree.map(jnp.add, gradient(known, chosen, None), pull)

            return self._descend(slope, start)

        def forward(known: list[jax.Array], start: list[jax.Array]) -> tuple[PyTree, PyTree]:
            chosen = minimum(known, start)
            return chosen, (known, chosen)

        def backward(saved: PyTree, cotangent: list[jax.Array]) -> tuple[PyTree, PyTree]:
            _, second = jax.vjp(lambda known, chosen: gradient(known, chosen, None), *saved)

            def hessian(v: list[jax.Array]) -> list[jax.Array]:
                return jax.tree.map(lambda h, x: h + self.proximal * x, second(v)[1], v)

            solution, _, _ = conjugate_gradients(
                hessian, cotangent, steps=self.cg_steps, tolerance=1e-5
            )
            by_known, _ = second([-x for x in solution])
            return by_known, [self.proximal * x for x in solution]

        minimum.defvjp(forward, backward)
        return parts.merge(minimum(known, parts.chosen))

    def _descend(
        self, slope: Callable[[list[jax.Array]], list[jax.Array]], start: list[jax.Array]
    ) -> list[jax.Array]:
        """`steps` steps down a slope."""

        def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
            chosen, state = carry
            direction = slope(chosen)
            if self.transform is not None:
                with jax.numpy_dtype_promotion("standard"):  # as in `adapt`
                    direction, state = self.transform.update(direction, state, chosen)
            moved = [
                (p - self.learning_rate * d).astype(p.dtype)
                for p, d in zip(chosen, direction, strict=True)
            ]
            return (moved, state), None

        state = None if self.transform is None else self.transform.init(start)
        (chosen, _), _ = jax.lax.scan(step, (start, state), None, length=self.steps)
        return chosen
