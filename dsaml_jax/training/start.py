"""What is trained on what: put together and checked before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from data_prep.features import TINY
from data_prep.shards import Corpus
from dsaml_jax.config import RunConfig, differences
from dsaml_jax.corpus import (
    DeviceCorpus,
    Drawn,
    Part,
    Seen,
    TaskPool,
    consensus_target,
    dimensions,
    drawing,
    fold_of,
    held_out,
    identity,
    pool_of,
    seen_in,
    to_device,
)
from dsaml_jax.devices import Devices
from dsaml_jax.errors import UsageError
from dsaml_jax.models import build_model
from dsaml_jax.progress import Console
from dsaml_jax.runs import (
    RUN_FILE,
    RunInfo,
    initial_variables,
    read_run_info,
)
from dsaml_jax.training.steps import (
    Step,
    make_dmer_step,
    make_optimizer,
    make_pdmer_step,
)
from dsaml_jax.training.validating import judging_lines, make_validation, validated_songs


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything about a run that does not change while it trains.

    Attributes:
      config: of the run, fitted to the corpus.
      corpus: prepared features and labels.
      workdir: of the run.
      info: what `run.json` says of it.
      target: `[n, 2]` the curve of DMER.
      model: the network.
      optimizer: of what is learned.
      devices: that share a step.
      device: features and labels there; of a streamed corpus those of the validation.
      step: one dispatch.
      draw: what a step is about, by its number.
      validate: mean scores of variables on the validation part, in eval mode; none where nothing is held out.
    """

    config: RunConfig
    corpus: Corpus
    workdir: Path
    info: RunInfo
    target: np.ndarray
    model: nn.Module
    optimizer: optax.GradientTransformation
    devices: Devices
    device: DeviceCorpus
    step: Step
    draw: Callable[[int], Drawn]
    validate: Callable[[dict[str, Any]], dict[str, float]]


def set_up(config: RunConfig, corpus: Corpus, workdir: Path, console: Console) -> Setup:
    """Puts a run together; nothing is written.

    Raises:
      UsageError: `workdir` belongs to something else, or a part of the corpus is too small.
    """
    config = fit_config(config, corpus)
    parts = held_out(corpus, fold_of(config.training))
    info = RunInfo(
        config,
        corpus.features,
        identity(corpus),
        dimensions=dimensions(corpus),
        seen=seen_in(corpus, parts) | _seen_before(workdir, config),
    )
    require_ours(workdir, info)
    _require_songs(
        parts, ("train", "validation") if fold_of(config.training).holds_out else ("train",)
    )
    for said in judging_lines(corpus, config):
        console.say(said)
    target = consensus_target(corpus, parts["train"])
    model = build_model(config.model, trusted=config.model.class_)  # the user named it
    for said in _size_lines(model, corpus):
        console.say(said)
    optimizer = make_optimizer(config.training)
    pdmer = config.training.task == "pdmer"
    pool = _pool(corpus, parts["train"], config, console) if pdmer else None
    devices = Devices(config.meta.tasks if pdmer else config.training.batch_songs)
    device = devices.replicate(to_device(corpus, target, validated_songs(corpus, config)))
    return Setup(
        config=config,
        corpus=corpus,
        workdir=workdir,
        info=info,
        target=target,
        model=model,
        optimizer=optimizer,
        devices=devices,
        device=device,
        step=make_pdmer_step(model, config, optimizer, devices.everywhere, devices.count)
        if pdmer
        else make_dmer_step(model, config, optimizer, devices.everywhere),
        draw=drawing(config, pool, corpus, parts["train"], target),
        validate=make_validation(model, config, corpus, device, devices),
    )


def fit_config(config: RunConfig, corpus: Corpus) -> RunConfig:
    """Sets what follows from the data and the place: embedding width, absolute path of `init_from`."""
    model = dataclasses.replace(config.model, embedding_width=corpus.features.embedding_width)
    source = config.training.init_from
    training = dataclasses.replace(
        config.training, init_from=str(Path(source).resolve()) if source else ""
    )
    return dataclasses.replace(config, model=model, training=training)


def _size_lines(model: nn.Module, corpus: Corpus) -> list[str]:
    """How large a model is, and whether it is one for these features."""
    variables = jax.eval_shape(lambda: initial_variables(model, corpus.features, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    lines = [f"model: {count:,} parameters, on {corpus.features.name}"]
    if corpus.features.mel_bands == TINY.mel_bands and count > LARGE:
        lines.append(
            "these features are tiny, and made for --preset tiny, which a CPU trains in minutes"
        )
    return lines


LARGE = 3_000_000
"""Parameters of a model that is no longer one for a CPU."""


def _require_songs(parts: dict[str, Part], names: tuple[str, ...]) -> None:
    for name in names:
        if not len(parts[name].songs):
            raise UsageError(f"the corpus has no {name} songs; prepare more songs (at least 3)")


def _pool(corpus: Corpus, part: Part, config: RunConfig, console: Console) -> TaskPool:
    pool = pool_of(corpus, part.ratings, min_songs=config.meta.min_songs)
    if len(pool.excluded):
        console.say(
            f"{len(pool.excluded)} annotators have fewer than {config.meta.min_songs} training songs "
            f"and make no tasks; {len(pool.annotators)} do"
        )
    return pool


def _seen_before(workdir: Path, config: RunConfig) -> Seen:
    """What the run that this one begins from has seen; this run's own file says it too, once there is one."""
    begun = workdir if (workdir / RUN_FILE).is_file() else config.training.init_from
    return read_run_info(Path(begun)).seen if begun else Seen()


def _as_long_as(old: RunConfig, new: RunConfig) -> RunConfig:
    """The old settings with the new number of steps, where a run may go on to it.

    Raises:
      UsageError: it is larger, and cannot: what was trained depended on the total.
    """
    before, after = old.training, new.training
    if after.steps <= before.steps or dataclasses.replace(before, steps=after.steps) != after:
        return old
    if before.schedule != "constant":
        raise UsageError(
            f"a run of {before.steps} steps cannot go on to {after.steps}: its learning rate falls to nothing at the last "
            "step (training.schedule); start another with --set training.init_from=, or train with "
            "--set training.schedule=constant from the beginning"
        )
    if before.steps % before.log_every:
        raise UsageError(
            f"a run of {before.steps} steps cannot go on: it did not end with a line of its metrics (training.log_every "
            f"{before.log_every})"
        )
    return dataclasses.replace(old, training=dataclasses.replace(before, steps=after.steps))


def require_ours(workdir: Path, info: RunInfo) -> None:
    """Refuses a work directory that belongs to something else."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"{workdir} is a file; --workdir is a folder")
    if (workdir / RUN_FILE).is_file():
        old = read_run_info(workdir)
        if old.note:
            raise UsageError(
                f"{workdir} is a finished model ({old.note}); choose another --workdir, and "
                f"--set training.init_from={workdir} to start from it"
            )
        changed = differences(_as_long_as(old.config, info.config), info.config)
        if old.data != info.data:
            changed.append(f"data: {old.data} -> {info.data}")
        if changed:
            raise UsageError(
                f"{workdir} belongs to a run with other settings ({'; '.join(changed)}); "
                "choose another --workdir, or the same settings to go on"
            )
        return
    # Hidden files: the lock, and what a kill has left of the first file.
    if workdir.is_dir() and any(not path.name.startswith(".") for path in workdir.iterdir()):
        raise UsageError(f"{workdir} is not empty and not a run; choose another --workdir")
