"""What a run is judged by while it trains: each of its corpora by itself, and all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from data_prep.shards import Corpus
from dsaml_jax.config import Balance, RunConfig
from dsaml_jax.corpus import DeviceCorpus, fold_of, held_out
from dsaml_jax.devices import Devices
from dsaml_jax.evaluation import (
    Trial,
    adapted,
    agreed_judging,
    agreed_trial,
    curves_of_songs,
    judged_corpora,
    listener_judging,
    listener_trial,
    mean_scores,
)

Scores = dict[str, float]


def judging_lines(corpus: Corpus, config: RunConfig) -> list[str]:
    """What will be judged of a run, in validation and afterwards: said before the work.

    Raises:
      UsageError: nothing can be judged, and the mend.
    """
    fold, shots = fold_of(config.training), config.meta.support_songs
    if not fold.holds_out:
        return [
            "nothing and nobody is held out: the last checkpoint is kept, and nothing is judged"
        ]
    lines = []
    for one in judged_corpora(corpus, config.training.task):
        of = f"{one.name}, " if corpus.members else ""
        for part in ("validation", "test"):
            if config.training.task == "dmer":
                judging = agreed_judging(one, part, fold=fold)
            elif part == "validation":
                judging, _ = listener_judging(one, part, **_validation_tasks(config), fold=fold)
            else:
                judging, _ = listener_judging(
                    one, part, protocol=config.training.protocol, shots=shots, fold=fold
                )
            lines += [f"{of}{line}" for line in judging.lines()]
    return lines


def _validation_tasks(config: RunConfig) -> dict[str, Any]:
    """What a validation of PDMER asks."""
    return {
        "protocol": config.training.protocol,
        "shots": config.meta.support_songs,
        "supports": 4,
        "most": config.training.validation_tasks,
    }


def validated_songs(corpus: Corpus, config: RunConfig) -> np.ndarray:
    """Whose features a validation needs of those that training has: of PDMER also those that are adapted to.

    None of several corpora, each of which is read by itself.
    """
    fold = fold_of(config.training)
    songs = held_out(corpus, fold)["validation"].songs
    if corpus.members:
        return songs[:0]
    if config.training.task == "dmer" or not len(songs):
        return songs
    _, asked = listener_judging(corpus, "validation", **_validation_tasks(config), fold=fold)
    return np.union1d(songs, np.union1d(asked.query_song, asked.support_song))


def make_validation(
    model: nn.Module, config: RunConfig, corpus: Corpus, device: DeviceCorpus, devices: Devices
) -> Callable[[dict[str, Any]], Scores]:
    """A function from variables to mean scores on the validation part, in eval mode; to none where nothing is held out.

    Of several corpora also `corpus/column` for each.
    """
    if not fold_of(config.training).holds_out:
        return lambda variables: {}
    trials = {
        one.name: _trial(one, config, device if one is corpus else None, devices)
        for one in judged_corpora(corpus, config.training.task)
    }
    units = {name: trial.units() for name, trial in trials.items()}

    def score(name: str, variables: dict[str, Any]) -> Scores:
        trial = trials[name]
        if config.training.task == "dmer":
            predicted = curves_of_songs(trial, model, variables).of(trial.song)
            scores = mean_scores(predicted, trial.truth)
        else:
            predicted = adapted(trial, model, config.meta, variables)
            scores = mean_scores(predicted, trial.truth, units[name])
        if config.training.choose_by == "rmse":
            errors = [value for name, value in scores.items() if name.endswith("_rmse")]
            scores["score"] = 1.0 - sum(errors) / len(errors)
        return scores

    def validate(variables: dict[str, Any]) -> Scores:
        found = {name: score(name, variables) for name in trials}
        if not corpus.members:
            return found[corpus.name]
        counts = {name: len({unit for unit, _ in of}) for name, of in units.items()}
        return together(found, counts, config.training.corpora)

    return validate


def together(found: dict[str, Scores], counts: dict[str, int], balance: Balance) -> Scores:
    """The mean over corpora, and theirs as `corpus/column`.

    Args:
      found: corpus -> its scores; a dimension that it is not labelled in has none.
      counts: corpus -> people, or songs, that they are the mean over.
      balance: see `training.corpora`.
    """
    columns = dict.fromkeys(column for scores in found.values() for column in scores)
    mean = {}
    for column in columns:
        there = [name for name, scores in found.items() if column in scores]
        weights = [1 if balance == "equal" else counts[name] for name in there]
        mean[column] = float(np.average([found[name][column] for name in there], weights=weights))
    return mean | {f"{name}/{column}": x for name, scores in found.items() for column, x in scores.items()}  # fmt: skip


def _trial(
    corpus: Corpus, config: RunConfig, device: DeviceCorpus | None, devices: Devices
) -> Trial:
    fold = fold_of(config.training)
    if config.training.task == "dmer":
        trial = agreed_trial(corpus, "validation", device, fold=fold)
    else:
        trial = listener_trial(
            corpus, "validation", **_validation_tasks(config), device=device, fold=fold
        )
    return on_all(devices, trial)


def on_all(devices: Devices, trial: Trial) -> Trial:
    """The same trial, with its features on every device."""
    return dataclasses.replace(trial, device=devices.replicate(trial.device))
