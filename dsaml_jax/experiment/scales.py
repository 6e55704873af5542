"""How large experiments are: for tests, for two cores, and as published."""

from __future__ import annotations

from dsaml_jax.experiment.base import Scale

QUICK = Scale(
    "quick",
    preset="tiny",
    songs=60,
    annotators=30,
    raters=15,
    dmer=("training.steps=20", "training.validate_every=10"),
    pdmer=("training.steps=4", "training.validate_every=2", "training.log_every=2",
           "training.validation_tasks=4", "meta.tasks=2", "meta.query_songs=2"),
    supports=2,
    tasks=10,
    choices=2,
    seeds=1,
)  # fmt: skip
"""A few minutes; the numbers mean nothing."""

STANDARD = Scale(
    "standard",
    preset="tiny",
    songs=1000,
    annotators=300,
    raters=60,
    dmer=("training.steps=600", "training.validate_every=100"),
    pdmer=("training.steps=1000", "training.validate_every=100", "training.learning_rate=5e-4",
           "training.validation_tasks=96"),
    supports=6,
    tasks=300,
    seeds=3,
)  # fmt: skip
"""The synthetic corpus at a size that two cores manage."""

FULL = Scale("full", preset="default")
"""Corpora of one's own, features as published; for an accelerator."""

SCALES = {scale.name: scale for scale in (QUICK, STANDARD, FULL)}
