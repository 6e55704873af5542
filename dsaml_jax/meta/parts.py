"""A tree of parameters in two parts: those that are meant, by path and type, and the rest.

A path is the keys, attributes and indices to a leaf with slashes between: `predictor/out/bias` of nested dictionaries,
`layers/0/weight` of a dataclass with a list in it (Equinox), `params/w` and `rates/w` of :class:`LearnedRates`. Of
`flax.nnx.state(model)` it is `linear/kernel/value`: a variable holds its array there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

ParameterFilter = Callable[[str], bool]
"""Takes a parameter's path, such as `predictor/out/bias`, and says whether it is meant."""


def parameter_names(params: PyTree) -> list[str]:
    """Path of each leaf, in the order of the leaves: `predictor/out/bias`.

    Raises:
      ValueError: two leaves have one path, as `{"a/b": x, "a": {"b": y}}` has.
    """
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(params)
    ]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two parameters have the path {', '.join(twice)}; rename one")
    return names


def is_float_array(leaf: Any) -> bool:
    """Whether a derivative can be taken by it: a real or complex array, not an integer, a key, a number or a function."""
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return False
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def wide(dtype: Any) -> Any:
    """The type that small changes of this one are summed in: float32 for bfloat16 and float16, else itself."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else jnp.dtype(dtype)


def partition(params: PyTree, chosen: ParameterFilter | None = None) -> tuple[PyTree, PyTree]:
    """`(chosen, rest)`, both structured as `params`, with None where a leaf is in the other.

    None is no leaf to JAX and optax, so the chosen part can be differentiated by and optimised as it is, whatever is in the rest:
    integers, functions, frozen arrays.

    Args:
      params: any tree.
      chosen: which paths are meant; None for all. Only float arrays are ever chosen.
    """
    leaves, structure = jax.tree.flatten(params)
    meant = _meant(params, leaves, chosen)
    first = [leaf if yes else None for leaf, yes in zip(leaves, meant, strict=True)]
    rest = [None if yes else leaf for leaf, yes in zip(leaves, meant, strict=True)]
    return jax.tree.unflatten(structure, first), jax.tree.unflatten(structure, rest)


def combine(chosen: PyTree, rest: PyTree) -> PyTree:
    """Inverse of :func:`partition`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, chosen, rest, is_leaf=lambda x: x is None
    )


class Adapting:
    """Parameters, split into those that adapt and those that do not.

    Attributes:
      names: paths of those that adapt.
      chosen: them, in the order of the tree's leaves.
    """

    def __init__(self, params: PyTree, adapts: ParameterFilter | None) -> None:
        """Splits; only float arrays adapt.

        Raises:
          ValueError: the filter lets nothing adapt, or two parameters have one path.
        """
        self._leaves, self._structure = jax.tree.flatten(params)
        self._moving = _meant(params, self._leaves, adapts)
        if not any(self._moving):
            raise ValueError("the filter lets no parameter adapt; only float arrays can")
        names = parameter_names(params)
        self.names = [name for name, moves in zip(names, self._moving, strict=True) if moves]
        self.chosen = [
            leaf for leaf, moves in zip(self._leaves, self._moving, strict=True) if moves
        ]

    def merge(self, chosen: list[jax.Array]) -> PyTree:
        """The whole tree, with other values for those that adapt."""
        return self._filled(chosen, self._leaves)

    def tree(self, chosen: list[Any]) -> PyTree:
        """Values of those that adapt, named: the tree, with None in the place of the others."""
        return self._filled(chosen, [None] * len(self._leaves))

    def _filled(self, chosen: list[Any], others: list[Any]) -> PyTree:
        new = iter(chosen)
        leaves = [
            next(new) if moves else leaf for moves, leaf in zip(self._moving, others, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)


def _meant(params: PyTree, leaves: list[Any], chosen: ParameterFilter | None) -> list[bool]:
    names = parameter_names(params)
    return [
        is_float_array(leaf) and (chosen is None or bool(chosen(name)))
        for name, leaf in zip(names, leaves, strict=True)
    ]
