"""Experiments: models to train, methods to compare, statistics, tables and figures.

The experiments themselves are functions in the folder `experiments/`, one a file; this package runs them.
"""

from dsaml_jax.experiment.base import Experiment, Judged, Method, Outcome, Scale, Training
from dsaml_jax.experiment.reporting import write_outcomes
from dsaml_jax.experiment.running import Runner

__all__ = [
    "Experiment",
    "Judged",
    "Method",
    "Outcome",
    "Runner",
    "Scale",
    "Training",
    "write_outcomes",
]
