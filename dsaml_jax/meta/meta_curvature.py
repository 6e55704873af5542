"""Meta-Curvature: Park, Oliva 2019 (arXiv 1902.03356)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from dsaml_jax.meta.base import LearnedRates, PyTree
from dsaml_jax.meta.descent import GradientDescent
from dsaml_jax.meta.parts import Adapting, parameter_names, wide


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaCurvature(GradientDescent):
    """Inner gradients are multiplied along each axis by a learned matrix, the identity at first (section 3).

    What is learned is :class:`~dsaml_jax.meta.base.LearnedRates`, whose `rates` hold the matrices: `w/0` and `w/1` of a
    matrix `w` `[in, out]`, the former `[in, in]`. More than two axes, as those of a convolution `[height, width, in, out]`,
    count as three: the leading ones are one. A scalar has a factor. A step is `learning_rate` times the product, after which
    comes the transformation.

    The matrices need the square of each axis: of a layer with 1024 inputs and outputs twice as much as the layer has.
    """

    optimizer: None = dataclasses.field(default=None, init=False)

    def init(self, params: PyTree) -> LearnedRates:
        """Parameters, and matrices that change nothing, in float32 at least."""
        parts = Adapting(params, self.adapting)
        types = {name: leaf.dtype for name, leaf in zip(parts.names, parts.chosen, strict=True)}
        return LearnedRates(
            params,
            {
                path: jnp.eye(size, dtype=wide(types[path.rpartition("/")[0]]))
                for path, size in self._sizes(params).items()
            },
        )

    def _sizes(self, params: PyTree) -> dict[str, int]:
        """Path and axis -> size of the matrix."""
        parts = Adapting(params, self.adapting)
        return {
            f"{name}/{axis}": size
            for name, leaf in zip(parts.names, parts.chosen, strict=True)
            for axis, size in enumerate(_folded(leaf.shape))
        }

    def params(self, learned: LearnedRates) -> PyTree:
        """See :meth:`Algorithm.params`."""
        return learned.params

    def transformation(self, learned: LearnedRates) -> optax.GradientTransformation:
        """See :meth:`GradientDescent.transformation`.

        Raises:
          ValueError: matrices that do not belong to the parameters that adapt.
        """
        wanted = self._sizes(learned.params)
        if wanted != {name: len(matrix) for name, matrix in learned.rates.items()}:
            wrong = ", ".join(sorted(set(wanted) ^ set(learned.rates))) or "their sizes"
            raise ValueError(f"matrices and adapting parameters differ in {wrong}")

        def curve(gradient: PyTree, params: PyTree | None = None) -> PyTree:
            del params
            leaves, structure = jax.tree.flatten(gradient)
            names = parameter_names(gradient)
            curved = [_curved(x, name, learned.rates) for x, name in zip(leaves, names, strict=True)]  # fmt: skip
            return jax.tree.unflatten(structure, curved)

        curvature = optax.stateless(curve)
        return curvature if self.transform is None else optax.chain(curvature, self.transform)


def _curved(gradient: jax.Array, name: str, matrices: dict[str, jax.Array]) -> jax.Array:
    """The product along each axis, in the gradient's own shape and dtype."""
    folded = _folded(gradient.shape)
    result = gradient.reshape(folded)
    for axis in range(len(folded)):
        matrix = matrices[f"{name}/{axis}"].astype(gradient.dtype)
        result = jnp.moveaxis(jnp.tensordot(matrix, result, axes=(1, axis)), 0, axis)
    return result.reshape(gradient.shape)


def _folded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """At most three axes, and at least one."""
    if len(shape) > 3:
        return (math.prod(shape[:-2]), *shape[-2:])
    return shape or (1,)
