"""One trainer for DMER and PDMER.

`train` is the whole story, read from top to bottom: set up or resume, step, log, validate, save. What a step
does is in `dsaml_jax.steps`; the host is touched only where the metrics file is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from data_prep.shards import Corpus
from dsaml_jax import checkpoints, failures
from dsaml_jax.adaptation import to_learned, to_variables
from dsaml_jax.base import DIMENSIONS
from dsaml_jax.batches import Drawn, batches, drawing
from dsaml_jax.checkpoints import CHECKPOINTS, CheckpointStore, DamagedCheckpoint, RunInfo
from dsaml_jax.config import RunConfig, differences
from dsaml_jax.corpus import (
    DeviceCorpus,
    Part,
    consensus_target,
    dimensions,
    fold_of,
    held_out,
    identity,
    pool_of,
    to_device,
)
from dsaml_jax.devices import Devices, is_first, largest, on_first, wait_for_others
from dsaml_jax.errors import Interrupted, UsageError
from dsaml_jax.evaluation import (
    agreed_judging,
    agreed_trial,
    listener_judging,
    listener_trial,
    mean_scores,
)
from dsaml_jax.evaluation.methods import adapted, curves_of_songs
from dsaml_jax.models.dsaml import DSAML
from dsaml_jax.progress import Console
from dsaml_jax.run_report import write_run_report
from dsaml_jax.runs import RUN_FILE, RunLog, State, only_here
from dsaml_jax.seen import Seen, require_unseen, seen_in
from dsaml_jax.steps import TrainState, make_dmer_step, make_optimizer, make_pdmer_step, step_key
from dsaml_jax.stopping import StopRequest
from dsaml_jax.tasks import TaskPool

INTERRUPTED = "interrupted"
"""Folder of the state a run was in when it was asked to stop; gone with the next checkpoint."""

Rows = dict[str, np.ndarray]
"""Terms of the steps since the last line of the metrics file, each `[n]`."""


def train(
    config: RunConfig, corpus: Corpus, workdir: Path, console: Console | None = None
) -> dict[str, float]:
    """Trains, or goes on with, the run in `workdir`.

    The run is a function of (config, corpus): a run that was killed and started again writes the same
    metrics file and the same checkpoints as one that was not.

    Args:
      config: of the run.
      corpus: prepared features and labels.
      workdir: made if missing. Holds `run.json`, `metrics.jsonl`, `checkpoints/`, and for people
        `status.json`, `report.html`, `tensorboard/`.
      console: where progress goes.

    Returns:
      `best_step`, `best_score`.

    Raises:
      UsageError: `workdir` belongs to another configuration, or another process trains it; a part of the
        corpus is too small; a loss or gradient is not finite (the last good checkpoint stays).
      Interrupted: SIGINT or SIGTERM asked to stop; the state is saved.
    """
    console = console or Console(quiet=True)

    # ---- Who and what: parts of the corpus, the model, the step function.
    config = fit_config(config, corpus)
    fold = fold_of(config.training)
    parts = held_out(corpus, fold)
    info = RunInfo(
        config,
        corpus.features,
        identity(corpus),
        dimensions=dimensions(corpus),
        seen=seen_in(corpus, parts) | _seen_before(workdir, config),
    )
    unlearned = tuple(f"{name}_" for name in DIMENSIONS if name not in info.dimensions)
    _require_ours(workdir, info)
    _require_songs(parts)
    for said in judging_lines(corpus, config):
        console.say(said)
    target = consensus_target(corpus, parts["train"])
    model = DSAML(config.model)
    optimizer = make_optimizer(config.training)
    meta_task = config.training.task == "pdmer"
    pool = _pool(corpus, parts["train"], config, console) if meta_task else None
    devices = Devices(config.meta.tasks if meta_task else config.training.batch_songs)
    step_fn = (
        make_pdmer_step(model, config, optimizer, devices.everywhere, devices.count)
        if meta_task
        else make_dmer_step(model, optimizer, devices.everywhere)
    )
    needed = parts["validation"].songs
    if meta_task:
        _, asked = listener_judging(corpus, "validation", **_validation_tasks(config), fold=fold)
        needed = np.union1d(needed, np.union1d(asked.query_song, asked.support_song))
    device = devices.replicate(to_device(corpus, target, needed))
    validate = _make_validation(model, config, corpus, device)
    draw = drawing(config, pool, corpus, parts["train"], target)
    fresh = not any((workdir / folder).is_dir() for folder in (CHECKPOINTS, INTERRUPTED))
    state = _initial_state(model, config, corpus, optimizer) if fresh else None
    wait_for_others("everybody has looked")  # nothing has been written so far

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        on_first(lambda: _occupy(workdir, info, stack))

        # ---- Fresh, or from the last state that is whole.
        start, restored, rows = _last_state(workdir, devices, config, corpus, optimizer, console)
        if restored is not None:
            console.say(f"resuming {workdir} at step {start}")
        elif state is None:  # killed before its first checkpoint
            state = _initial_state(model, config, corpus, optimizer)
        state = devices.replicate(restored or state)
        store = CheckpointStore(workdir, devices.everywhere)
        stack.callback(store.close)
        total, together = config.training.steps, config.training.steps_per_dispatch
        log = RunLog(workdir, start, total, silent=not is_first())
        stack.callback(log.close)
        if start == total:
            log.finished(start)
            return _result(workdir, store, console)

        def require_finite(rows: Rows, step: int) -> None:
            """Says whose data it was, with the state, which has not changed since the step that failed."""
            wrong = _first_not_finite(rows, step)
            if wrong:
                here, drawn = next(batches(corpus, target, device, draw, wrong, wrong + 1))
                assert state is not None
                raise UsageError(
                    _failure(workdir, config, corpus, here, drawn, draw(wrong), state, wrong)
                )

        # ---- The loop.
        coming = batches(corpus, target, device, draw, start + 1, total + 1, together)
        pending: list[Mapping[str, Any]] = [rows] if rows else []
        seed = np.uint32(config.training.seed)
        bar = stack.enter_context(console.bar(total, config.training.task, "step", done=start))
        try:
            for here, drawn in coming:
                if here is not device:
                    here = devices.replicate(here)
                state, terms = step_fn(state, here, devices.split(drawn), np.int32(start + 1), seed)
                pending.append(terms)
                advanced = len(jax.tree.leaves(drawn)[0])
                start += advanced
                bar.update(advanced)
                last, saved = start == total, False
                logged = start % config.training.log_every == 0 or last
                if logged:
                    rows, pending = _rows(pending), []
                    require_finite(rows, start)
                    line = {
                        name: float(np.mean(values))
                        for name, values in rows.items()
                        if not name.startswith(unlearned)
                    }
                    log.numbers("train", start, line)
                    log.state("training", start)
                    bar.set_postfix(
                        loss=f"{line['total_loss']:.3f}",
                        score=f"{line['score']:.3f}",
                        refresh=False,
                    )
                if start % config.training.validate_every == 0 or last:
                    log.state("validating", start)
                    variables = to_variables(state.learned, state.batch_stats)
                    scores = validate(variables)
                    if not math.isfinite(scores["score"]):
                        raise UsageError(f"the validation score is not finite after step {start}")
                    log.numbers("validation", start, scores)
                    store.save(start, variables, scores["score"], {"optimizer": state.optimizer})
                    _forget_interruption(workdir)
                    log.state("training", start)
                    saved = True
                # Several processes ask each other only where they wait for the device anyway.
                signal = stop.agreed() if logged or jax.process_count() == 1 else 0
                if signal and not last:
                    if not saved:
                        rows = _rows(pending)
                        require_finite(rows, start)
                        _save_interrupted(workdir, devices, start, state, rows)
                    raise Interrupted(
                        f"stopped at step {start} of {total}; everything is saved, and the same command goes on",
                        signal,
                    )
        except Exception as error:
            kind: State = "stopped" if isinstance(error, Interrupted) else "failed"
            with contextlib.suppress(OSError):  # the disk may be what failed
                log.state(kind, start, str(error))
            _report(workdir, console)
            raise
        log.finished(start)
        wait_for_others("the last checkpoint is there")
        return _result(workdir, store, console)


def _result(workdir: Path, store: CheckpointStore, console: Console) -> dict[str, float]:
    """Of a run that has taken all its steps; with the report, if that is still missing."""
    best = store.best_step()
    assert best is not None
    score = store.score(best)
    _report(workdir, console)
    console.say(f"best validation score {score:.3f} at step {best}")
    return {"best_step": float(best), "best_score": score}


def _report(workdir: Path, console: Console) -> None:
    """The page for people; a run does not fail for want of it."""
    if is_first():
        try:
            write_run_report(workdir)
        except Exception as error:  # whatever drawing comes across
            console.say(f"no report: {' '.join(str(error).split())}")


def fit_config(config: RunConfig, corpus: Corpus) -> RunConfig:
    """Sets what follows from the data and the place: embedding width, absolute path of `init_from`."""
    model = dataclasses.replace(config.model, embedding_width=corpus.features.embedding_width)
    source = config.training.init_from
    training = dataclasses.replace(
        config.training, init_from=str(Path(source).resolve()) if source else ""
    )
    return dataclasses.replace(config, model=model, training=training)


def judging_lines(corpus: Corpus, config: RunConfig) -> list[str]:
    """What will be judged of a run, in validation and afterwards: said before the work.

    Raises:
      UsageError: nothing can be judged, and the mend.
    """
    fold, shots = fold_of(config.training), config.meta.support_songs
    lines = []
    for part in ("validation", "test"):
        if config.training.task == "dmer":
            judging = agreed_judging(corpus, part, fold=fold)
        elif part == "validation":
            judging, _ = listener_judging(corpus, part, **_validation_tasks(config), fold=fold)
        else:
            judging, _ = listener_judging(
                corpus, part, protocol=config.training.protocol, shots=shots, fold=fold
            )
        lines += judging.lines()
    return lines


def _validation_tasks(config: RunConfig) -> dict[str, Any]:
    """What a validation of PDMER asks."""
    return {
        "protocol": config.training.protocol,
        "shots": config.meta.support_songs,
        "supports": 4,
        "most": config.training.validation_tasks,
    }


def _require_ours(workdir: Path, info: RunInfo) -> None:
    """Refuses a work directory that belongs to something else."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"{workdir} is a file; --workdir is a folder")
    if (workdir / RUN_FILE).is_file():
        old = checkpoints.read_run_info(workdir)
        if old.note:
            raise UsageError(
                f"{workdir} is a finished model ({old.note}); choose another --workdir, and "
                f"--set training.init_from={workdir} to start from it"
            )
        changed = differences(old.config, info.config)
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


def _occupy(workdir: Path, info: RunInfo, stack: contextlib.ExitStack) -> None:
    """Takes the folder and writes what the run is."""
    stack.enter_context(only_here(workdir))
    _require_ours(workdir, info)  # again: nobody else can have begun since
    checkpoints.write_run_info(workdir, info)


def _seen_before(workdir: Path, config: RunConfig) -> Seen:
    """What the run that this one begins from has seen; this run's own file says it too, once there is one."""
    begun = workdir if (workdir / RUN_FILE).is_file() else config.training.init_from
    return checkpoints.read_run_info(Path(begun)).seen if begun else Seen()


def _require_songs(parts: dict[str, Part]) -> None:
    for name in ("train", "validation"):
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


def _initial_state(
    model: DSAML, config: RunConfig, corpus: Corpus, optimizer: optax.GradientTransformation
) -> TrainState:
    key = jax.random.fold_in(jax.random.key(config.training.seed), 0)
    if config.training.init_from:
        source = checkpoints.load_model(Path(config.training.init_from))
        wanted = jax.eval_shape(
            lambda: checkpoints.initial_variables(model, corpus.features, jax.random.key(0))
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
        variables = jax.jit(lambda key: checkpoints.initial_variables(model, corpus.features, key))(
            key
        )
    learned = variables["params"]
    if config.training.task == "pdmer":  # rates that another run learned belonged to its algorithm
        learned = to_learned(config.meta, {"params": learned})
    return TrainState(learned, variables["batch_stats"], optimizer.init(learned), np.True_)


def _last_state(
    workdir: Path,
    devices: Devices,
    config: RunConfig,
    corpus: Corpus,
    optimizer: optax.GradientTransformation,
    console: Console,
) -> tuple[int, TrainState | None, Rows]:
    """Step, state and unlogged terms to go on from; 0 and None where nothing was saved.

    All checkpoints are read, and those that are damaged put aside. What one process finds damaged is so for all.
    """
    newest: tuple[int, TrainState | None, Rows] = (0, None, {})
    at_checkpoint = 0
    for folder in (CHECKPOINTS, INTERRUPTED):
        store = CheckpointStore(workdir, devices.everywhere, folder=folder)
        steps = [step for step in store.steps() if step > at_checkpoint]
        wait_for_others("all have looked")
        # First all scores: Orbax stumbles over any that it cannot read.
        whole = [step for step, _ in _readable(store, steps, partial(_look, store), console)]
        restore = partial(_restore, store, config, corpus, optimizer)
        for step, (state, rows) in _readable(store, whole, restore, console):
            newest = step, state, rows
        store.close()
        at_checkpoint = at_checkpoint or newest[0]
    wait_for_others("all have read")
    if newest[0] == at_checkpoint:
        _forget_interruption(workdir)
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


def _restore(
    store: CheckpointStore,
    config: RunConfig,
    corpus: Corpus,
    optimizer: optax.GradientTransformation,
    step: int,
) -> tuple[TrainState, Rows]:
    variables = store.restore_model(step, checkpoints.variables_like(config, corpus.features))
    learned = variables["params"]
    if config.training.task == "pdmer":
        learned = to_learned(config.meta, variables)
    like = jax.eval_shape(optimizer.init, learned)
    restored = store.restore_optimizer(step, {"optimizer": like})
    rows = {name: np.asarray(x, np.float64) for name, x in store.restore_extra(step).items()}
    state = TrainState(learned, variables["batch_stats"], restored["optimizer"], np.True_)
    return state, rows


def _save_interrupted(
    workdir: Path, devices: Devices, step: int, state: TrainState, rows: Rows
) -> None:
    store = CheckpointStore(workdir, devices.everywhere, folder=INTERRUPTED)
    terms = {name: values.tolist() for name, values in rows.items()}  # exact in float64
    store.save(
        step, to_variables(state.learned, state.batch_stats), 0.0, {"optimizer": state.optimizer}, terms
    )  # fmt: skip
    store.close()


def _forget_interruption(workdir: Path) -> None:
    if is_first() and (workdir / INTERRUPTED).is_dir():
        old = workdir / f".{INTERRUPTED}"  # by renaming first: a kill leaves no half of it
        shutil.rmtree(old, ignore_errors=True)
        os.replace(workdir / INTERRUPTED, old)
        shutil.rmtree(old, ignore_errors=True)


def _make_validation(
    model: DSAML, config: RunConfig, corpus: Corpus, device: DeviceCorpus
) -> Callable[[dict[str, Any]], dict[str, float]]:
    """A function from variables to mean scores on the validation part, in eval mode."""
    fold = fold_of(config.training)
    if config.training.task == "dmer":
        agreed = agreed_trial(corpus, "validation", device, fold=fold)
        return lambda variables: mean_scores(
            curves_of_songs(agreed, model, variables).of(agreed.song), agreed.truth
        )
    trial = listener_trial(
        corpus, "validation", **_validation_tasks(config), device=device, fold=fold
    )
    people = trial.units()
    return lambda variables: mean_scores(
        adapted(trial, model, config.meta, variables), trial.truth, people
    )


def _rows(pending: list[Mapping[str, Any]]) -> Rows:
    """Terms of several dispatches, on the host, one after the other."""
    if not pending:
        return {}
    dispatches = jax.device_get(pending)
    return {
        name: np.concatenate([terms[name] for terms in dispatches], dtype=np.float64)
        for name in dispatches[0]
    }


def _first_not_finite(rows: Rows, step: int) -> int | None:
    """The first step whose loss or gradient is not finite, of those that end with `step`."""
    if not rows:
        return None
    healthy = np.isfinite(rows["total_loss"]) & np.isfinite(rows["gradient_norm"])
    if healthy.all():
        return None
    return step - len(healthy) + 1 + int(np.argmin(healthy))


def _failure(
    workdir: Path,
    config: RunConfig,
    corpus: Corpus,
    here: DeviceCorpus,
    drawn: Drawn,
    names: Drawn,
    state: TrainState,
    step: int,
) -> str:
    """What went wrong in a step, whose data it was, and where the file is that replays it.

    `state` is that before the step, see :class:`~dsaml_jax.steps.TrainState`.
    """
    wrong = f"the loss or its gradient is not finite at step {step}"
    mend = (
        "The last good checkpoint is kept. Lower training.learning_rate or meta.learning_rate, or set "
        "training.clip_norm"
    )
    if jax.process_count() > 1:
        return f"{wrong}. {mend}; one process alone also says whose data it was"
    drawn = jax.tree.map(lambda x: x[0], drawn)
    variables = jax.device_get(to_variables(state.learned, state.batch_stats))
    key = step_key(np.uint32(config.training.seed), np.int32(step))
    path = workdir / failures.FAILURES_FOLDER / f"step-{step}.safetensors"
    try:
        bundles = failures.bundles_of_step(config, corpus, here, drawn, names, variables, step, key)
        what, bundle = failures.blame(bundles)
        failures.write_bundle(path, bundle)
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return f"{wrong}. {mend}. (Whose data it was could not be found out: {error})"
    return f"{wrong}: {what}. {mend}. To compute it again: dsaml runs replay {path}"
