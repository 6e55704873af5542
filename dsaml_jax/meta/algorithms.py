"""Meta-learning algorithms as small immutable objects: how one task's outer loss is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import chex

from dsaml_jax.errors import UsageError
from dsaml_jax.meta.adapt import LossFn, ParameterFilter, adapt

PyTree = Any


class Algorithm(Protocol):
    """What :func:`meta_gradient` asks of an algorithm. Instances are hashable."""

    @property
    def steps(self) -> int:
        """Inner steps."""

    @property
    def learning_rate(self) -> float:
        """Rate of the inner steps."""

    def adapt(
        self, loss_fn: LossFn, params: PyTree, support: PyTree, key: chex.PRNGKey | None = None
    ) -> PyTree:
        """Adapted parameters of one task; differentiating them is the algorithm's meta-gradient."""


@dataclasses.dataclass(frozen=True)
class _GradientDescent:
    """Plain gradient descent in the inner loop; subclasses differ in the order alone.

    Attributes:
      steps: inner steps.
      learning_rate: of them.
      adapts: which parameters they change, see :func:`adapt`.
    """

    steps: int
    learning_rate: float
    adapts: ParameterFilter | None = None
    order: ClassVar[int]

    def adapt(
        self, loss_fn: LossFn, params: PyTree, support: PyTree, key: chex.PRNGKey | None = None
    ) -> PyTree:
        """See :meth:`Algorithm.adapt`."""
        return adapt(
            loss_fn,
            params,
            support,
            steps=self.steps,
            learning_rate=self.learning_rate,
            order=self.order,
            adapts=self.adapts,
            key=key,
        )


@dataclasses.dataclass(frozen=True)
class MAML(_GradientDescent):
    """Model-agnostic meta-learning (Finn, Abbeel, Levine 2017): the exact second-order gradient."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True)
class FOMAML(_GradientDescent):
    """First-order MAML (Finn et al. 2017, section 5.2): inner gradients count as constants."""

    order: ClassVar[int] = 1


_ALGORITHMS: dict[str, Callable[..., Algorithm]] = {"maml": MAML, "fomaml": FOMAML}


def algorithm_names() -> tuple[str, ...]:
    """Names :func:`algorithm` knows."""
    return tuple(_ALGORITHMS)


def algorithm(
    name: str, *, steps: int, learning_rate: float, adapts: ParameterFilter | None = None
) -> Algorithm:
    """An algorithm from its name.

    Args:
      name: `maml` (second order) or `fomaml` (first order).
      steps: inner steps.
      learning_rate: of the inner steps.
      adapts: which parameters adapt; None for all.

    Raises:
      UsageError: an unknown name.
    """
    if name not in _ALGORITHMS:
        raise UsageError(f"unknown algorithm {name!r}; there are {', '.join(_ALGORITHMS)}")
    return _ALGORITHMS[name](steps=steps, learning_rate=learning_rate, adapts=adapts)
