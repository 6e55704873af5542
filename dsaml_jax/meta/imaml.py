"""Implicit MAML: Rajeswaran, Finn, Kakade, Levine 2019 (arXiv 1909.04630)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dsaml_jax.errors import UsageError
from dsaml_jax.meta.base import Algorithm, LossFn, OuterLossFn, ParameterFilter, PyTree
from dsaml_jax.meta.hoisting import hoist
from dsaml_jax.meta.memory import MemoryMode, define_backward, inner_gradient
from dsaml_jax.meta.parts import Adapting
from dsaml_jax.meta.placing import place_by
from dsaml_jax.meta.rules import StepRule, one_of_two, whole_number
from dsaml_jax.meta.solvers import Solution, conjugate_gradients, neumann

Chosen = list[jax.Array]


class ImplicitReport(NamedTuple):
    """How far a task's implicit gradient can be trusted; with `report`, part of aux.

    Attributes:
      slope: `|gradient| / |gradient before the first step|` of what the inner steps descend: 0 at the minimum.
      residual: of the linear system, relative; see :class:`~dsaml_jax.meta.solvers.Solution`.
      curvature: the smallest of `H + proximal` that the solver met; not positive: the point that was reached is no minimum.
    """

    slope: jax.Array
    residual: jax.Array
    curvature: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class IMAML(Algorithm):
    """Adapts to the minimum of `loss + proximal / 2 |adapted - params|^2`, whose derivative needs no steps.

    With `H` the Hessian of the loss at the minimum, the derivative of the minimum by `params` is
    `(I + H / proximal)^-1` (lemma 1), applied by a solver; derivatives by the batch and by what is
    frozen follow from the same equation. Memory does not depend on the number of steps. The gradient is as good as
    the minimum: take enough steps. One key serves all steps, because the minimum is that of one function.

    Negative curvature: where `H` has an eigenvalue below `-proximal` the point that was reached is a saddle, the minimum is
    somewhere else, and its derivative is not what this computes. Conjugate gradients stop at the first direction that
    shows it and keep what they have, which is the first-order gradient if that is the very first; the Neumann series grows
    without limit. `report` says so. The cure is a larger `proximal`; `damping` only makes the solution harmless.

    Attributes:
      proximal: strength of the pull to `params` (lambda in the paper).
      cg_steps: most steps of conjugate gradients, or terms of the Neumann series.
      tolerance: relative residual at which conjugate gradients stop.
      damping: added to the diagonal of `H + proximal` where the system is solved: smaller steps along what is hardly curved,
        at the price of a biased gradient.
      solver: `cg`, or `neumann`: the series `rate * sum (I - rate (H + proximal))^k` with the rate of the inner steps, whose
        K terms are the last K inner steps differentiated at the minimum.
      memory: how a product with `H` is made: the mixed modes forward, the others in reverse.
      report: whether aux becomes `(aux, ImplicitReport)`; costs one more solution. For a `has_aux` loss.
      adapts: which parameters adapt; None for all.
      transform: what the gradient goes through before the rate; None: plain gradient descent.
      optimizer: an optax optimiser with a rate of its own, instead of rate and transform.
    """

    proximal: float = 2.0
    cg_steps: int = 5
    tolerance: float = 1e-5
    damping: float = 0.0
    solver: Literal["cg", "neumann"] = "cg"
    memory: MemoryMode = "mixed"
    report: bool = False
    adapts: ParameterFilter | None = None
    transform: optax.GradientTransformation | None = None
    optimizer: optax.GradientTransformation | None = None

    def __post_init__(self) -> None:
        try:
            one_of_two(self.learning_rate, self.optimizer, self.transform)
        except ValueError as error:
            raise UsageError(f"IMAML: {error}") from None
        if self.solver not in ("cg", "neumann"):
            raise UsageError(f"solver is cg or neumann, not {self.solver!r}")
        if self.solver == "neumann" and self.learning_rate is None:
            raise UsageError("solver neumann needs learning_rate, the rate of its series")
        if self.proximal <= 0.0:
            raise UsageError("proximal is above 0: without a pull the minimum forgets `params`")
        if not 0.0 <= self.tolerance < 1.0:
            raise UsageError(f"tolerance is 0 or more and below 1, not {self.tolerance}")
        if not 0.0 <= self.damping < math.inf:
            raise UsageError(f"damping is 0 or more, not {self.damping}")

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """See :attr:`Algorithm.memory_modes`."""
        return ("mixed", "remat")

    def adapting(self, name: str) -> bool:
        """See :meth:`Algorithm.adapting`."""
        return self.adapts is None or self.adapts(name)

    def adapt(
        self,
        loss_fn: LossFn,
        learned: PyTree,
        support: PyTree,
        key: chex.PRNGKey | None = None,
        state: PyTree = None,
    ) -> PyTree:
        """See :meth:`Algorithm.adapt`.

        Raises:
          UsageError: the loss has a state: the minimum is that of one function.
        """
        if state is not None:
            raise UsageError("imaml takes no state: its minimum is that of one function")
        return _Minimum(self, loss_fn, learned, support, key).adapted()

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
        """See :meth:`Algorithm.task_loss`."""
        loss, aux = super().task_loss(loss_fn, outer, learned, support, query, keys, step, state)
        if not self.report:
            return loss, aux
        minimum = _Minimum(self, loss_fn, learned, support, keys[0])
        return loss, (aux, minimum.report(lambda params: outer(params, query, keys[1])[0]))

    def solve(self, apply: Any, b: Chosen) -> Solution:
        """`(H + proximal + damping)^-1 b`, and the curvature of `H + proximal`."""
        if self.solver == "neumann":
            assert self.learning_rate is not None
            found = neumann(apply, b, steps=self.cg_steps, rate=self.learning_rate)
            return self._undamped(found)
        found = conjugate_gradients(apply, b, steps=self.cg_steps, tolerance=self.tolerance)
        none = optax.tree.vdot(found.x, found.x) == 0.0  # the very first direction curves down
        x = [jnp.where(none, y / (self.proximal + self.damping), x) for x, y in zip(found.x, b, strict=True)]  # fmt: skip
        return self._undamped(found._replace(x=x))

    def _undamped(self, found: Solution) -> Solution:
        """With the curvature of `H + proximal`: damping makes no saddle a minimum."""
        return found._replace(curvature=found.curvature - self.damping)


class _Minimum:
    """What one task's inner steps descend, where they end, and the derivative of that."""

    def __init__(
        self, algorithm: IMAML, loss_fn: LossFn, learned: PyTree, support: PyTree, key: Any
    ) -> None:
        self.algorithm, self.parts = algorithm, Adapting(learned, algorithm.adapting)
        parts, keys = self.parts, () if key is None else (key,)
        loss_of = lambda chosen: loss_fn(parts.merge(chosen), support, *keys)  # noqa: E731
        parts.chosen = place_by(loss_of, parts.chosen, support)
        loss, self.known = hoist(loss_of, parts.chosen)
        exact = inner_gradient(lambda known, chosen, _: (loss(known, chosen), None), algorithm.memory)  # fmt: skip
        self.gradient = lambda known, chosen: exact(known, chosen, None)[0]

    def adapted(self) -> PyTree:
        """Parameters after the steps, with the implicit derivative."""

        # Not `jax.lax.custom_root`: with conjugate gradients it has no reverse mode (jax issue 33872).
        @jax.custom_vjp
        def minimum(known: Chosen, start: Chosen) -> Chosen:
            return self.descend(known, start)

        def forward(known: Chosen, start: Chosen) -> tuple[Chosen, PyTree]:
            chosen = self.descend(known, start)
            return chosen, (known, chosen)

        def backward(saved: PyTree, cotangent: Chosen) -> tuple[PyTree, PyTree]:
            second, apply = self.second(*saved)
            solution = self.algorithm.solve(apply, cotangent).x
            by_known, _ = second([-x for x in solution])
            return by_known, [self.algorithm.proximal * x for x in solution]

        define_backward(minimum, forward, backward)
        return self.parts.merge(minimum(self.known, self.parts.chosen))

    def second(self, known: Chosen, chosen: Chosen) -> tuple[Any, Any]:
        """Second derivatives: the pullback of the gradient, and the product with `H + proximal + damping`."""
        _, second = jax.vjp(self.gradient, known, chosen)
        shift = self.algorithm.proximal + self.algorithm.damping
        return second, lambda v: jax.tree.map(lambda h, x: h + shift * x, second(v)[1], v)

    def slope(self, known: Chosen, start: Chosen, chosen: Chosen) -> Chosen:
        """Gradient of what the steps descend."""
        pull = [self.algorithm.proximal * (p - q) for p, q in zip(chosen, start, strict=True)]
        return jax.tree.map(jnp.add, self.gradient(known, chosen), pull)

    def descend(self, known: Chosen, start: Chosen) -> Chosen:
        """The inner steps."""
        algorithm = self.algorithm
        rule = StepRule(self.parts, algorithm.transform, algorithm.optimizer)
        rates = [algorithm.learning_rate] * len(start)

        def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
            chosen, moments = carry
            slope = self.slope(known, start, chosen)
            return rule(slope, moments, chosen, chosen, rates), None

        steps = whole_number("steps", algorithm.steps)
        (chosen, _), _ = jax.lax.scan(step, (start, rule.init(start)), None, length=steps)
        return chosen

    def report(self, judge: Any) -> ImplicitReport:
        """Of the task whose query `judge` takes the loss of; nothing in it is differentiated."""
        known, start = jax.lax.stop_gradient((self.known, self.parts.chosen))
        chosen = self.descend(known, start)
        cotangent = jax.grad(lambda chosen: judge(self.parts.merge(chosen)))(chosen)
        found = self.algorithm.solve(self.second(known, chosen)[1], cotangent)
        norms = [optax.tree.norm(self.slope(known, start, x)) for x in (chosen, start)]
        slope = norms[0] / jnp.where(norms[1] > 0.0, norms[1], 1.0)
        return jax.lax.stop_gradient(ImplicitReport(slope, found.residual, found.curvature))
