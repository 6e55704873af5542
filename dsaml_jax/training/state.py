"""The state of a run: where it begins, the last one that is whole, and the one it was asked to stop in."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsaml_jax.adaptation import to_learned, to_variables
from dsaml_jax.config import differences
from dsaml_jax.corpus import (
    fold_of,
    held_out,
    identity,
    input_statistics,
    require_unseen,
)
from dsaml_jax.devices import is_first, largest, wait_for_others
from dsaml_jax.errors import UsageError
from dsaml_jax.progress import Console
from dsaml_jax.runs import (
    CHECKPOINTS,
    CheckpointStore,
    DamagedCheckpoint,
    RunInfo,
    initial_variables,
    load_model,
    only_here,
    variables_like,
    write_run_info,
)
from dsaml_jax.training.levels import fit_levels
from dsaml_jax.training.start import Setup, require_ours
from dsaml_jax.training.steps import (
    TrainState,
)

INTERRUPTED = "interrupted"
"""Folder of the state a run was in when it was asked to stop; gone with the next checkpoint."""

Rows = dict[str, np.ndarray]
"""Terms of the steps since the last line of the metrics file, each `[n]`."""


def occupy(workdir: Path, info: RunInfo, stack: contextlib.ExitStack) -> None:
    """Takes the folder, as long as `stack` is open, and writes what the run is."""
    stack.enter_context(only_here(workdir))
    require_ours(workdir, info)  # again: nobody else can have begun since
    write_run_info(workdir, info)


def initial_state(setup: Setup) -> TrainState:
    """Freshly drawn, or the model of the run that this one begins from.

    Raises:
      UsageError: that run's model or features are others, or it has seen who is held out here.
    """
    model, config, corpus = setup.model, setup.config, setup.corpus
    key = jax.random.fold_in(jax.random.key(config.training.seed), 0)
    if config.training.init_from:
        source = load_model(Path(config.training.init_from))
        wanted = jax.eval_shape(
            lambda: initial_variables(model, corpus.features, jax.random.key(0))
        )
        variables = {name: source.variables[name] for name in wanted}
        shapes = [jax.tree.map(np.shape, found) for found in (variables, wanted)]
        if shapes[0] != shapes[1]:
            other = dataclasses.replace(config, model=source.info.config.model)
            raise UsageError(
                f"{config.training.init_from}: another model than this run's "
                f"({'; '.join(differences(other, config))})"
            )
        if source.info.features != corpus.features:
            raise UsageError(
                f"{config.training.init_from}: trained on {source.info.features.name}, "
                f"the data has {corpus.features.name}"
            )
        theirs, ours = fold_of(source.info.config.training), fold_of(config.training)
        if source.info.data == identity(corpus) and theirs != ours:
            raise UsageError(
                f"{config.training.init_from} was trained by {theirs}, this run is {ours}: "
                "who is held out here may have been seen there"
            )
        require_unseen(
            source.info.data, source.info.seen, theirs, corpus, ours, config.training.init_from
        )
    else:
        variables = jax.jit(lambda key: initial_variables(model, corpus.features, key))(key)
        if config.model.standardize:
            part = held_out(corpus, fold_of(config.training))["train"]
            statistics = input_statistics(corpus, part.songs)
            for name, (mean, spread) in statistics.items():
                place = variables["batch_stats"].get(f"{name}_input")
                if place is not None:  # a network of the user's own may have none
                    place |= {"mean": mean, "spread": spread}
            if "level" in variables["batch_stats"]:
                room = config.model.level_centres, config.model.listener_centres
                inputs = statistics["embedding"]
                fitted = fit_levels(corpus, part, setup.target, inputs, *room, config.training.corpora)  # fmt: skip
                variables["params"]["level"]["bias"] = fitted.pop("bias")
                variables["batch_stats"]["level"] = fitted
    learned = variables["params"]
    if config.training.task == "pdmer":  # rates that another run learned belonged to its algorithm
        learned = to_learned(config.meta, {"params": learned})
    return TrainState(learned, variables["batch_stats"], setup.optimizer.init(learned), np.True_)


def last_state(setup: Setup, console: Console) -> tuple[int, TrainState | None, Rows]:
    """Step, state and unlogged terms to go on from; 0 and None where nothing was saved.

    All checkpoints are read, and those that are damaged put aside. What one process finds damaged is so for all.
    """
    newest: tuple[int, TrainState | None, Rows] = (0, None, {})
    at_checkpoint = 0
    for folder in (CHECKPOINTS, INTERRUPTED):
        store = CheckpointStore(setup.workdir, setup.devices.everywhere, folder=folder)
        steps = [step for step in store.steps() if step > at_checkpoint]
        wait_for_others("all have looked")
        # First all scores: Orbax stumbles over any that it cannot read.
        whole = [step for step, _ in _readable(store, steps, partial(_look, store), console)]
        for step, (state, rows) in _readable(
            store, whole, partial(_restore, store, setup), console
        ):
            newest = step, state, rows
        store.close()
        at_checkpoint = at_checkpoint or newest[0]
    wait_for_others("all have read")
    if newest[0] == at_checkpoint:
        forget_interruption(setup.workdir)
    return newest


def _readable(
    store: CheckpointStore, steps: list[int], read: Callable[[int], Any], console: Console
) -> Iterator[tuple[int, Any]]:
    """The steps that all processes can read, and what this one reads; the others are put aside."""
    for step in steps:
        value, error = None, None
        try:
            value = read(step)
        except DamagedCheckpoint as damage:
            error = damage
        if not largest(int(error is not None)):
            yield step, value
            continue
        if is_first():
            why = error or f"checkpoint {step}: another process finds it damaged"
            console.say(f"{why}; moved to {store.put_aside(step)}; if it was the best, another is")
        wait_for_others(f"{step} is put aside")
        store.reload()


def _look(store: CheckpointStore, step: int) -> None:
    store.score(step)
    store.manifest(step)


def _restore(store: CheckpointStore, setup: Setup, step: int) -> tuple[TrainState, Rows]:
    config = setup.config
    variables = store.restore_model(
        step, variables_like(config, setup.corpus.features, setup.model)
    )
    learned = variables["params"]
    if config.training.task == "pdmer":
        learned = to_learned(config.meta, variables)
    like = jax.eval_shape(setup.optimizer.init, learned)
    restored = store.restore_optimizer(step, {"optimizer": like})
    rows = {name: np.asarray(x, np.float64) for name, x in store.restore_extra(step).items()}
    state = TrainState(learned, variables["batch_stats"], restored["optimizer"], np.True_)
    return state, rows


def save_interrupted(setup: Setup, step: int, state: TrainState, rows: Rows) -> None:
    """Writes the state between two validations, with the terms that no line of the metrics has yet."""
    store = CheckpointStore(setup.workdir, setup.devices.everywhere, folder=INTERRUPTED)
    terms = {name: values.tolist() for name, values in rows.items()}  # exact in float64
    store.save(
        step, to_variables(state.learned, state.batch_stats), 0.0, {"optimizer": state.optimizer}, terms
    )  # fmt: skip
    store.close()


def forget_interruption(workdir: Path) -> None:
    """Removes it, once a checkpoint is newer."""
    if is_first() and (workdir / INTERRUPTED).is_dir():
        old = workdir / f".{INTERRUPTED}"  # by renaming first: a kill leaves no half of it
        shutil.rmtree(old, ignore_errors=True)
        os.replace(workdir / INTERRUPTED, old)
        shutil.rmtree(old, ignore_errors=True)
