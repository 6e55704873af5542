"""Algorithms by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from dsaml_jax.errors import UsageError
from dsaml_jax.meta.anil import ANIL
from dsaml_jax.meta.base import Algorithm
from dsaml_jax.meta.boil import BOIL
from dsaml_jax.meta.cavia import CAVIA
from dsaml_jax.meta.fomaml import FOMAML
from dsaml_jax.meta.imaml import IMAML
from dsaml_jax.meta.maml import MAML
from dsaml_jax.meta.maml_plus_plus import MAMLPlusPlus
from dsaml_jax.meta.meta_curvature import MetaCurvature
from dsaml_jax.meta.meta_sgd import MetaSGD
from dsaml_jax.meta.reptile import Reptile

_ALGORITHMS: dict[str, type[Algorithm]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "anil": ANIL,
    "boil": BOIL,
    "reptile": Reptile,
    "meta-sgd": MetaSGD,
    "maml++": MAMLPlusPlus,
    "meta-curvature": MetaCurvature,
    "cavia": CAVIA,
    "imaml": IMAML,
}


def algorithm_names() -> tuple[str, ...]:
    """Names :func:`algorithm` knows."""
    return tuple(_ALGORITHMS)


_TITLES = {
    "meta-sgd": "Meta-SGD",
    "meta-curvature": "Meta-Curvature",
    "imaml": "iMAML",
    "reptile": "Reptile",
}


def algorithm_title(name: str) -> str:
    """How papers write an algorithm's name."""
    return _TITLES.get(name, name.upper())


def algorithm_options(name: str) -> tuple[str, ...]:
    """What can be set of an algorithm, `steps` and `learning_rate` included.

    Raises:
      UsageError: an unknown name.
    """
    if name not in _ALGORITHMS:
        raise UsageError(f"unknown algorithm {name!r}; there are {', '.join(_ALGORITHMS)}")
    return tuple(field.name for field in dataclasses.fields(_ALGORITHMS[name]) if field.init)


def algorithm(
    name: str, *, steps: int, learning_rate: float | None = None, **options: Any
) -> Algorithm:
    """An algorithm from its name.

    Args:
      name: see :func:`algorithm_names`.
      steps: inner steps.
      learning_rate: of the inner steps; None with an `optimizer`, which has its own.
      options: what else the algorithm's class has, such as `adapts`, `transform` or `memory`.

    Raises:
      UsageError: an unknown name, an option that this algorithm has not, or options that do not go together.
    """
    known = algorithm_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"{name} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return _ALGORITHMS[name](steps=steps, learning_rate=learning_rate, **options)
