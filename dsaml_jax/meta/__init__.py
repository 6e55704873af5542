"""Functional meta-learning: any `loss_fn(params, batch)`, any pytree of parameters.

:func:`adapt` takes the inner steps of one task, :func:`unroll` the same in full; an :class:`Algorithm` says what is learned and
what the gradient of adapting is; :func:`meta_loss` and :func:`meta_gradient` average it over tasks; :func:`plan` says what that
costs in memory; :func:`evolution_gradient` does without derivatives. None of them knows of music.
"""

from dsaml_jax.meta.adapt import adapt
from dsaml_jax.meta.algorithms import algorithm, algorithm_names, algorithm_options, algorithm_title
from dsaml_jax.meta.anil import ANIL
from dsaml_jax.meta.base import Algorithm, LearnedRates, LossFn
from dsaml_jax.meta.boil import BOIL
from dsaml_jax.meta.cavia import CAVIA
from dsaml_jax.meta.evolution import Particles, evolution_gradient, particles, persistent_gradient
from dsaml_jax.meta.fomaml import FOMAML
from dsaml_jax.meta.gradients import meta_gradient, meta_loss
from dsaml_jax.meta.hoisting import hoist
from dsaml_jax.meta.imaml import IMAML, ImplicitReport
from dsaml_jax.meta.maml import MAML
from dsaml_jax.meta.maml_plus_plus import MAMLPlusPlus
from dsaml_jax.meta.memory import MEMORY_MODES, MemoryMode
from dsaml_jax.meta.meta_curvature import MetaCurvature
from dsaml_jax.meta.meta_sgd import MetaSGD
from dsaml_jax.meta.parts import Adapting, combine, parameter_names, partition
from dsaml_jax.meta.planning import Cost, Plan, cost_of, halves, plan, shapes
from dsaml_jax.meta.reptile import Reptile
from dsaml_jax.meta.unrolling import InnerState, unroll

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "FOMAML",
    "IMAML",
    "MAML",
    "MEMORY_MODES",
    "Adapting",
    "Algorithm",
    "Cost",
    "ImplicitReport",
    "InnerState",
    "LearnedRates",
    "LossFn",
    "MAMLPlusPlus",
    "MemoryMode",
    "MetaCurvature",
    "MetaSGD",
    "Particles",
    "Plan",
    "Reptile",
    "adapt",
    "algorithm",
    "algorithm_names",
    "algorithm_options",
    "algorithm_title",
    "combine",
    "cost_of",
    "evolution_gradient",
    "halves",
    "hoist",
    "meta_gradient",
    "meta_loss",
    "parameter_names",
    "particles",
    "partition",
    "persistent_gradient",
    "plan",
    "shapes",
    "unroll",
]
