"""Where values live on a mesh: what adapts is put beside what it adapts to.

Inside `jax.shard_map` a value is the same on all devices or varies over some axes of the mesh. The gradient of a loss that
varies by parameters that do not is summed over devices, which is right for data that is split, and wrong for tasks: each device
has tasks of its own, and each adapts alone. So what adapts is made to vary as its loss does. Where a mesh is explicit, arrays
carry it in their type, and a loop's carry has to have it from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

PyTree = Any


def varying_axes(tree: PyTree) -> frozenset[str]:
    """Axes of the mesh that any leaf varies over; leaves may be `jax.ShapeDtypeStruct`."""
    typed = filter(_is_typed, jax.tree.leaves(tree))
    return frozenset().union(*(_varying(_type_of(leaf)) for leaf in typed))


def is_placed(tree: PyTree) -> bool:
    """Whether this is inside of `jax.shard_map`, or any leaf is on an explicit mesh."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes) or _mesh(tree) is not None


def place_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` varying over the axes that `like` varies over, and on its mesh.

    Args:
      tree: of arrays; what is no array stays as it is.
      like: of arrays or `jax.ShapeDtypeStruct`.
    """
    axes, mesh = varying_axes(like), _mesh(like)

    def place(leaf: Any) -> Any:
        if not _is_typed(leaf):
            return leaf
        if mesh is not None and _mesh(leaf) is None:
            spec = PartitionSpec(*[None] * jnp.ndim(leaf))
            leaf = jax.sharding.reshard(leaf, NamedSharding(mesh, spec))
        new = tuple(sorted(axes - varying_axes(leaf)))
        return jax.lax.pcast(leaf, new, to="varying") if new else leaf

    return jax.tree.map(place, tree)


def place_by(fn: Callable[..., Any], tree: PyTree, *inputs: PyTree) -> PyTree:
    """`tree` placed as `fn(tree)` is, where anything is; `inputs` are what `fn` reads besides.

    So a loss that varies over an axis makes vary what it is differentiated by, and one that sums over it (data that is split)
    does not.
    """
    if not is_placed((tree, inputs)):
        return tree
    return place_like(tree, jax.eval_shape(fn, tree))


def zeros(shapes: PyTree) -> PyTree:
    """Zeros of these `jax.ShapeDtypeStruct`, placed as they are."""
    return jax.tree.map(lambda x: place_like(jnp.zeros(x.shape, x.dtype), x), shapes)


def shards(tree: PyTree) -> int:
    """Over how many devices of an explicit mesh the leading axis is dealt."""
    counts = [1]
    for leaf in filter(_is_typed, jax.tree.leaves(tree)):
        mesh, spec = _mesh(leaf), getattr(getattr(_type_of(leaf), "sharding", None), "spec", ())
        if mesh is not None and spec and spec[0] is not None:
            names = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
            counts.append(math.prod(mesh.shape[name] for name in names))
    return max(counts)


def _is_typed(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def _varying(kind: Any) -> frozenset[str]:
    manual = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", None) or frozenset() if manual is None else manual.varying


def _type_of(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)


def _mesh(tree: PyTree) -> Any:
    """The explicit mesh of the first leaf that has one; else None."""
    for leaf in filter(_is_typed, jax.tree.leaves(tree)):
        mesh = getattr(getattr(_type_of(leaf), "sharding", None), "mesh", None)
        if mesh is not None and any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types):  # fmt: skip
            return mesh
    return None
