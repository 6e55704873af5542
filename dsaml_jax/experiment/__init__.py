"""Experiments: models to train, methods to compare, statistics, tables and figures.

The experiments themselves are functions in the folder `experiments/`, one a file; this package runs them.
"""

from dsaml_jax.experiment.base import Experiment, Judged, Method, Scale, Training, pooled
from dsaml_jax.experiment.comparing import compare
from dsaml_jax.experiment.reporting import write_outcomes
from dsaml_jax.experiment.running import Runner
from dsaml_jax.experiment.scales import FULL, QUICK, STANDARD
from dsaml_jax.experiment.statistics import paired_difference
from dsaml_jax.experiment.tables import difference_of, unit_scores

__all__ = [
    "FULL",
    "QUICK",
    "STANDARD",
    "Experiment",
    "Judged",
    "Method",
    "Runner",
    "Scale",
    "Training",
    "compare",
    "difference_of",
    "paired_difference",
    "pooled",
    "unit_scores",
    "write_outcomes",
]
