"""Functional meta-learning: any `loss_fn(params, batch)`, any pytree of parameters.

The seam: a *loss* knows the task's data and the model; :func:`adapt` takes the inner steps of one
task; an *algorithm* says what the gradient of adapting is; :func:`meta_gradient` averages it over
tasks. None of them knows of music.
"""

from dsaml_jax.meta.adapt import adapt
from dsaml_jax.meta.algorithms import (
    FOMAML,
    MAML,
    Algorithm,
    algorithm,
    algorithm_names,
)
from dsaml_jax.meta.gradients import meta_gradient

__all__ = [
    "FOMAML",
    "MAML",
    "Algorithm",
    "adapt",
    "algorithm",
    "algorithm_names",
    "meta_gradient",
]
