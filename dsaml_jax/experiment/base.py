"""What an experiment is: models to train, methods to compare, and what the comparison is against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dsaml_jax.evaluation import COLUMNS, LEVELS, Protocol, Scores, Settings

Task = Literal["dmer", "pdmer"]
Kind = Literal[
    "constant", "support mean", "others", "ridge", "svr", "unadapted", "offset", "best offset", "prior", "affine",
    "adapted",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
      name: `quick`, `standard` or `full`.
      preset: configuration that all models start from.
      songs, annotators, raters: of the synthetic corpus; `raters` is per song.
      dmer, pdmer: settings of every model of that task.
      supports: tasks of each test annotator, at most.
      tasks: cap on the tasks of a trial of the protocol `reference`, which has one for every rating.
      choices: most choices of a method that are tried on the validation part.
      seeds: of training, where the command does not say.
    """

    name: str
    preset: str
    songs: int = 0
    annotators: int = 0
    raters: int = 0
    dmer: Settings = ()
    pdmer: Settings = ()
    supports: int = 16
    tasks: int | None = None
    choices: int = 100
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Training:
    """A model to train, once for every seed.

    Attributes:
      task: `dmer` or `pdmer`.
      settings: on top of the scale's.
      start: name of the training whose best checkpoint it begins from; empty: from scratch.
      share: of the steps of the scale, for trainings that would take too long.
      as_long_as: names of two earlier trainings: as many steps as the first would take in the time that the second took
        (without compiling); empty: the steps of the settings.
    """

    task: Task
    settings: Settings = ()
    start: str = ""
    share: float = 1.0
    as_long_as: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      kind: see :mod:`dsaml_jax.evaluation.methods` and :mod:`dsaml_jax.experiment.regression`.
      training: the model, for kinds that have one.
      settings: of adaptation, on top of those the model was trained with.
      choices: settings to choose from on the validation part, by the score of the loss; empty: no choice. Of the
        kinds `offset` and `others`: :data:`dsaml_jax.evaluation.choosing.OFFSETS`.
      shots: support songs.
      features: parts of the embedding that a regressor reads; where the corpus lacks one there is no such row.
    """

    kind: Kind
    training: str = ""
    settings: Settings = ()
    choices: tuple[Settings, ...] = ()
    shots: int = 1
    features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table, its figures, and how they come about.

    Attributes:
      title: of the page.
      claim: what the table is expected to show.
      task: of the trial.
      trainings: by name; one may start from an earlier one.
      methods: by name, in the order of the rows.
      against: the method that all others are compared to.
      subjects: methods that are compared to every other, one by one; figures show the first.
      protocols: a table each; DMER has `clean` alone.
      figures: names in :mod:`dsaml_jax.experiment.figures`.
    """

    title: str
    claim: str
    task: Task
    trainings: dict[str, Training]
    methods: dict[str, Method]
    against: str
    subjects: tuple[str, ...] = ()
    protocols: tuple[Protocol, ...] = ("clean",)
    figures: tuple[str, ...] = ()

    @property
    def shots(self) -> int:
        """The most support songs of any method: all are asked about the same other songs."""
        return max(method.shots for method in self.methods.values())


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a method scored with one seed.

    Attributes:
      labels: whose curve of what song, after what support; the same for every method of a protocol.
      scores: column -> `[k]`.
      chosen: the settings that the validation part chose, if it had a choice.
    """

    labels: list[dict[str, str]]
    scores: Scores
    chosen: Settings = ()


def pooled(folds: Sequence[Judged]) -> Judged:
    """The curves of all folds, one after the other; of what was chosen, that of the first fold."""
    columns = [name for name in COLUMNS + LEVELS if any(name in one.scores for one in folds)]
    together = {
        name: np.concatenate(
            [one.scores.get(name, np.full(len(one.labels), np.nan)) for one in folds]
        )
        for name in columns
    }
    return Judged([label for one in folds for label in one.labels], together, folds[0].chosen)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Everything an experiment has measured under one protocol.

    Attributes:
      experiment: which.
      protocol: of the trial.
      judged: method -> one entry for each seed (methods without a model have one in all).
      facts: what was run on what.
    """

    experiment: Experiment
    protocol: Protocol
    judged: dict[str, list[Judged]]
    facts: dict[str, str]
