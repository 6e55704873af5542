"""Baselines that have something to choose are given the best of it, by what the validation part says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dsaml_jax.adaptation import adapting_names
from dsaml_jax.config import MetaConfig
from dsaml_jax.evaluation.scores import mean_scores
from dsaml_jax.evaluation.trials import Trial

Settings = tuple[str, ...]
"""`key=value`, as for `dsaml train --set`."""

_SHARE = "share="
OFFSETS: tuple[Settings, ...] = tuple((f"{_SHARE}{tenths / 10:g}",) for tenths in range(11))
"""Of a listener's mean error on the support songs, how much is added to a model's curves."""

_RATES = {
    "predictor/out/bias": (0.017, 0.05, 0.08),
    "predictor/out": (0.003, 0.01, 0.03),
    "all": (0.003,),
}
FINE_TUNING: tuple[Settings, ...] = tuple(
    (
        "meta.algorithm=meta-sgd",
        "meta.strength=1",
        f"meta.adapts={adapts}",
        f"meta.learning_rate={rate}",
    )
    for adapts, rates in _RATES.items()
    for rate in rates
)
"""What a DMER model that is merely fine-tuned may adapt, and how fast, by as many steps as the other models. It has no learned
rates, so that Meta-SGD's steps are those of gradient descent, with a rate that costs no compilation."""

STRENGTHS: tuple[Settings, ...] = tuple(
    (f"meta.strength={tenths / 10:g}",) for tenths in (0, 2, 4, 6, 8, 10)
)
"""How much of the way a model that adapts goes."""

VALIDATION_SUPPORTS = 2
"""Tasks of each validation annotator that a choice is made by."""


def share_of(chosen: Settings) -> float:
    """The number in one of :data:`OFFSETS`."""
    (share,) = chosen
    return float(share.removeprefix(_SHARE))


def fitting(
    choices: Sequence[Settings],
    config: Callable[[Settings], MetaConfig],
    variables: Mapping[str, Any],
) -> list[Settings]:
    """Those by which something of a model adapts; names of parameters are a network's own."""
    return [one for one in choices if adapting_names(config(one), variables)]


def best_of(
    choices: Sequence[Settings], trial: Trial, predict: Callable[[Settings], np.ndarray]
) -> Settings:
    """The choice with the best score of the loss; people count the same. One that diverges is not chosen.

    Args:
      choices: to choose from; of equal ones the first.
      trial: of the validation part.
      predict: curves `[..., n, 2]` of the trial by a choice.
    """
    units = trial.units()

    def score(one: Settings) -> float:
        predicted = predict(one)
        if not np.isfinite(predicted[np.isfinite(trial.truth)]).all():
            return -np.inf
        return mean_scores(predicted, trial.truth, units)["score"]

    return max(choices, key=score)
