"""A run's configuration: presets, `--set key=value`, and the JSON in the work directory."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from data_prep.base import WINDOW_STEPS
from data_prep.plain import from_plain
from dsaml_jax.base import ModelConfig, check_choice, check_choices, check_positive, check_rate
from dsaml_jax.errors import UsageError
from dsaml_jax.meta import MemoryMode, algorithm_names

FORMAT_VERSION = 1
"""Of the JSON written into work directories and checkpoints."""

Balance = Literal["proportional", "equal"]
"""How several corpora count, see :class:`TrainingConfig`."""


@dataclasses.dataclass(frozen=True)
class MetaConfig:
    """Meta-learning settings of PDMER.

    Attributes:
      algorithm: name for :func:`dsaml_jax.meta.algorithm`.
      steps: inner steps.
      learning_rate: of the inner steps; where rates are learned, what they begin at.
      strength: share of the way from the initialisation to the adapted parameters that is gone when the model is used
        (Wortsman et al. 2022, arXiv 2109.01903); meta-training goes all of it. Less gains less in the mean, for more
        listeners.
      tasks: annotators per meta-step.
      support_songs: songs to adapt on.
      adapts: parameters that adapt: `all`, or the beginning of their path, such as `predictor` or
        `predictor/out`. For `anil` and `boil` it names the head, which is `predictor/out` where it says `all`; for `cavia` the
        context, which is `predictor/out/bias`.
      inner_optimizer: what inner gradients go through before the rate: nothing (`sgd`), `momentum` (0.9), `adam`.
      memory: how second order pays for its backward pass, see :mod:`dsaml_jax.meta.memory`; the result is the same.
      tasks_at_once: tasks computed side by side; fewer need less memory. 0: on a CPU one for each device, on an
        accelerator the most whose program fits into the memory that is free when training begins.
      multi_step_until, first_order_until: meta-steps of the annealing of `maml++`.
      proximal, cg_steps, tolerance, damping, solver: of `imaml`, see :class:`dsaml_jax.meta.IMAML`: pull to the
        initialisation, most steps of the solver, the residual at which it stops, what is added to its diagonal, and which.
      query_songs: songs to be judged on, at most; annotators with fewer are padded and masked.
      min_songs: annotators with fewer songs make no tasks; at least `support_songs + 1`.
      inner_loss: `dsaml`, the loss of the paper, or `squared_error`, which is bounded where the
        paper's grows without limit (see `dsaml_jax.losses.squared_error`).
      squared_error_weight: of the mean squared error in the *outer* loss; 0 in the paper. Where listeners cannot be
        predicted, CCC and PCC would rather see large movements, which costs RMSE.
      batch_norm: statistics that normalise while adapting and in the meta-step: `batch`, as in the
        reference, or `running`, the ones that are also used for prediction. Running statistics follow
        the query batches in both cases.
      people_weight: an annotator is drawn by their number of songs to this power: 0, everybody alike; 1, in proportion.
      task_kind: `annotator`, or `random`: tasks that mix annotators, the contrast of the paper.
    """

    algorithm: str = "fomaml"
    steps: int = 16
    learning_rate: float = 5e-3
    strength: float = 1.0
    adapts: str = "all"
    inner_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    memory: MemoryMode = "mixed"
    tasks_at_once: int = 0
    multi_step_until: int = 0
    first_order_until: int = 0
    proximal: float = 2.0
    cg_steps: int = 5
    tolerance: float = 1e-5
    damping: float = 0.0
    solver: Literal["cg", "neumann"] = "cg"
    tasks: int = 16
    support_songs: int = 1
    query_songs: int = 15
    min_songs: int = 16
    inner_loss: Literal["dsaml", "squared_error"] = "dsaml"
    squared_error_weight: float = 0.0
    batch_norm: Literal["batch", "running"] = "batch"
    task_kind: Literal["annotator", "random"] = "annotator"
    people_weight: float = 0.0

    def __post_init__(self) -> None:
        check_choice("meta.algorithm", self.algorithm, algorithm_names())
        check_choices(self, "meta")
        check_positive(self, "meta", ("tasks", "support_songs", "query_songs", "cg_steps"))
        for field in ("steps", "tasks_at_once", "multi_step_until", "first_order_until"):
            if getattr(self, field) < 0:
                raise UsageError(f"meta.{field} must be 0 or more")
        if self.tasks_at_once and self.tasks % self.tasks_at_once:
            raise UsageError(
                f"meta.tasks_at_once {self.tasks_at_once} must divide meta.tasks {self.tasks}"
            )
        if self.algorithm == "maml++" and not self.steps:
            raise UsageError("maml++ needs meta.steps of 1 or more")
        check_rate("meta.learning_rate", self.learning_rate)
        check_rate("meta.proximal", self.proximal)
        if not 0.0 <= self.tolerance < 1.0:
            raise UsageError(f"meta.tolerance {self.tolerance} must be 0 or more and below 1")
        if not 0.0 <= self.damping < math.inf:
            raise UsageError(f"meta.damping {self.damping} must be 0 or more")
        if not 0.0 <= self.people_weight <= 2.0:
            raise UsageError(f"meta.people_weight {self.people_weight} must be from 0 to 2")
        if not 0.0 <= self.strength <= 1.0:
            raise UsageError("meta.strength must be in [0, 1]")
        if not 0.0 <= self.squared_error_weight < math.inf:
            raise UsageError("meta.squared_error_weight must be 0 or more")
        if self.min_songs <= self.support_songs:
            raise UsageError("meta.min_songs must be more than meta.support_songs")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What is trained and for how long.

    Attributes:
      task: `dmer`, the curve listeners agree on, or `pdmer`, meta-learning over annotators.
      steps: optimiser steps.
      seed: of the initialisation, the sampler and dropout; who is held out does not depend on it.
      learning_rate: of Adam.
      schedule: what becomes of it: `constant`, as published, or `cosine`: falls to 0 at the last step.
      clip_norm: gradients of a larger global norm are scaled down to it; 0 lets them be.
      batch_songs: songs per step of DMER.
      squared_error_weight, batch_ccc_weight: what is added to DMER's loss, see :func:`dsaml_jax.losses.dsaml_loss`; 0 in
        the paper, whose loss hardly sees how high a curve lies.
      steps_per_dispatch: steps that run on the device as one program; a divisor of `log_every`. More of them spare an
        accelerator the wait for the host, and the progress bar moves in larger steps.
      log_every: steps per line of the metrics file.
      validate_every: steps between validations, each with a checkpoint; a multiple of `log_every`.
      choose_by: what a validation's score is, by which the best checkpoint is chosen: `score`, as in the loss of the paper,
        or `rmse`: 1 - RMSE, the mean of both dimensions, for models that learn levels: the other two are noise beside it.
      validation_tasks: at most so many tasks in a validation of PDMER, of each corpus.
      corpora: of several, what counts in drawing songs and people, in fitting levels, and in the score of a validation:
        `proportional`: every song and every person alike, wherever they are from; `equal`: every corpus.
      init_from: work directory of a run to start from (its best checkpoint); empty for none.
      protocol: `clean`: people and songs are held out; `reference`, as published: songs alone. So DMER learns the mean of
        the people who are not held out, or the corpus's own mean curve; PDMER begins from a DMER run of the first kind.
      folds, song_folds, fold: who is held out, see :class:`dsaml_jax.corpus.Fold`; 0 folds: the corpus's own split; 1:
        nothing and nobody, for a model to pass on: the last checkpoint is kept.
    """

    task: Literal["dmer", "pdmer"] = "pdmer"
    steps: int = 2000
    seed: int = 0
    learning_rate: float = 5e-5
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float = 0.0
    batch_songs: int = 15
    squared_error_weight: float = 0.0
    batch_ccc_weight: float = 0.0
    steps_per_dispatch: int = 1
    log_every: int = 10
    validate_every: int = 100
    choose_by: Literal["score", "rmse"] = "score"
    validation_tasks: int = 32
    corpora: Balance = "proportional"
    init_from: str = ""
    protocol: Literal["clean", "reference"] = "clean"
    folds: int = 0
    song_folds: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        check_choices(self, "training")
        check_positive(
            self,
            "training",
            (
                "steps",
                "batch_songs",
                "steps_per_dispatch",
                "log_every",
                "validate_every",
                "validation_tasks",
            ),
        )
        if self.log_every % self.steps_per_dispatch:
            raise UsageError("training.log_every must be a multiple of training.steps_per_dispatch")
        if self.validate_every % self.log_every:
            raise UsageError("training.validate_every must be a multiple of training.log_every")
        check_rate("training.learning_rate", self.learning_rate)
        for field in ("squared_error_weight", "batch_ccc_weight"):
            if not 0.0 <= getattr(self, field) < math.inf:
                raise UsageError(f"training.{field} must be 0 or more")
        if self.clip_norm:
            check_rate("training.clip_norm", self.clip_norm)
        if min(self.folds, self.song_folds, self.fold) < 0 or (
            self.fold and self.fold >= self.folds
        ):
            raise UsageError(
                f"training.fold {self.fold} does not exist: {self.folds} folds are 0 to {self.folds - 1}"
                if self.folds
                else "training.fold needs training.folds, the number of folds"
            )
        if self.folds == 1 and self.song_folds > 1:
            raise UsageError("training.folds=1 holds nothing out: training.song_folds is for more")
        if self.song_folds and not self.folds:
            raise UsageError(
                "training.song_folds needs training.folds, the number of folds of people"
            )
        if self.protocol == "reference" and self.folds and self.task == "pdmer":
            raise UsageError(
                "the published protocol of pdmer has no folds: training.folds is for clean"
            )
        if not 0 <= self.seed < 2**32:
            raise UsageError("training.seed must be in [0, 2^32)")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run, apart from the data.

    Attributes:
      model: the network and its loss.
      meta: adaptation, in training and afterwards.
      training: task, steps, optimiser.
    """

    model: ModelConfig = ModelConfig()
    meta: MetaConfig = MetaConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        if self.model.position != "absolute" and self.model.max_position < WINDOW_STEPS:
            raise UsageError(
                f"model.max_position must be {WINDOW_STEPS} or more, the steps of a window"
            )


_OURS = MetaConfig(
    algorithm="meta-sgd",
    steps=3,
    learning_rate=0.017,
    strength=0.4,
    adapts="predictor/out/bias",
    min_songs=4,
    inner_loss="squared_error",
    squared_error_weight=0.5,
    batch_norm="running",
)

PRESETS: dict[str, RunConfig] = {
    "reference": RunConfig(),
    "default": RunConfig(
        model=ModelConfig(dropout=0.1),
        meta=_OURS,
        training=TrainingConfig(learning_rate=1e-4, schedule="cosine"),
    ),
    "tiny": RunConfig(
        model=ModelConfig(width=64, num_heads=4, num_layers=1, ffn_width=128, dropout=0.0),
        meta=dataclasses.replace(_OURS, tasks=8, query_songs=4),
        training=TrainingConfig(
            steps=400, learning_rate=1e-3, schedule="cosine", validate_every=50
        ),
    ),
}
PRESETS["levels"] = dataclasses.replace(
    PRESETS["tiny"],
    model=dataclasses.replace(PRESETS["tiny"].model, standardize=True, level_centres=2048),
    # One step that takes the mean error away, gone a share of the way: what one song of a person tells of another.
    meta=dataclasses.replace(
        PRESETS["tiny"].meta,
        algorithm="fomaml",
        steps=1,
        learning_rate=0.5,
        strength=0.3,
        adapts="level/bias",
    ),
    training=dataclasses.replace(
        PRESETS["tiny"].training, batch_songs=64, squared_error_weight=8.0, choose_by="rmse"
    ),
)
"""`reference`: the published settings. `default`: the same network with what we found to adapt better.
`tiny`: a small network for a CPU and for the demo. `levels`: it, and a head that learns how high songs lie, for real music."""


def preset(name: str) -> RunConfig:
    """A preset by name.

    Raises:
      UsageError: no such preset.
    """
    check_choice("preset", name, tuple(PRESETS))
    return PRESETS[name]


def with_settings(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """Applies `key=value` settings such as `meta.steps=4`.

    Raises:
      UsageError: an unknown key (with the nearest known one) or a value of another type.
    """
    values: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting!r}: write key=value, for example meta.steps=4")
        known = flatten(config)
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise UsageError(f"unknown setting {key!r}{hint}")
        section, _, field = key.partition(".")
        kinds = typing.get_type_hints(type(getattr(config, section)))
        field = (
            field if field in kinds else f"{field}_"
        )  # a word of Python's own, as in model.class
        kind = kinds[field]
        values.setdefault(section, {})[field] = _parse(key, text, kind)
    return dataclasses.replace(
        config,
        **{name: dataclasses.replace(getattr(config, name), **new) for name, new in values.items()},
    )


def flatten(config: Any) -> dict[str, Any]:
    """`{"meta.steps": 16, ...}` of a dataclass of dataclasses."""
    return {
        f"{section}.{field.rstrip('_')}": value
        for section, fields in dataclasses.asdict(config).items()
        for field, value in fields.items()
    }


def to_json(config: RunConfig) -> dict[str, Any]:
    """Plain values for a JSON file."""
    return dataclasses.asdict(config)


def from_json(values: dict[str, Any], where: str) -> RunConfig:
    """Inverse of :func:`to_json`.

    Raises:
      UsageError: keys this version does not know, or values it refuses.
    """
    try:
        return RunConfig(
            model=from_plain(ModelConfig, values["model"]),
            meta=from_plain(MetaConfig, values["meta"]),
            training=from_plain(TrainingConfig, values["training"]),
        )
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{where}: not a configuration this version can read ({error})") from None


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`key: old -> new` for each setting that differs."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {json.dumps(before[key])} -> {json.dumps(after[key])}"
        for key in before
        if before[key] != after[key]
    ]


def _parse(key: str, text: str, kind: Any) -> Any:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and text.lower() in ("none", "null"):
        return None
    base = next(option for option in options if option is not type(None))
    if typing.get_origin(base) is Literal or base is str:
        return text
    if base is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{key} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return base(text)
    except ValueError:
        raise UsageError(
            f"{key} is {'a whole' if base is int else 'a'} number, not {text!r}"
        ) from None
