"""One trainer for DMER and PDMER.

`train` is the whole story: set up or resume, then step, log, validate and save until all steps are taken. What a step does is in
`dsaml_jax.training.steps`; the host is touched only where the metrics file is written.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_prep.base import DIMENSIONS
from data_prep.shards import Corpus
from dsaml_jax.adaptation import to_variables
from dsaml_jax.config import RunConfig
from dsaml_jax.corpus import DeviceCorpus, Drawn, batches, fold_of, held_out
from dsaml_jax.devices import is_first, on_first, wait_for_others
from dsaml_jax.errors import Interrupted, UsageError
from dsaml_jax.evaluation import agreed_trial, curves_of_songs, listeners_of
from dsaml_jax.models import song_space
from dsaml_jax.progress import Console, duration
from dsaml_jax.runs import (
    CHECKPOINTS,
    CheckpointStore,
    RunLog,
    State,
    read_listeners,
    variables_like,
    write_listeners,
)
from dsaml_jax.training.failures import FAILURES_FOLDER, blame, bundles_of_step, write_bundle
from dsaml_jax.training.start import Setup, set_up
from dsaml_jax.training.state import (
    INTERRUPTED,
    Rows,
    forget_interruption,
    initial_state,
    last_state,
    occupy,
    save_interrupted,
)
from dsaml_jax.training.steps import TrainState, step_key
from dsaml_jax.training.stopping import StopRequest
from dsaml_jax.training.validating import on_all


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
    setup = set_up(config, corpus, workdir, console)
    begun = any((workdir / folder).is_dir() for folder in (CHECKPOINTS, INTERRUPTED))
    first = None if begun else initial_state(setup)
    wait_for_others("everybody has looked")  # nothing has been written so far
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        on_first(lambda: occupy(workdir, setup.info, stack))
        step, restored, rows = last_state(setup, console)
        if restored is not None:
            console.say(f"resuming {workdir} at step {step}")
        # Begun and nothing there: killed before its first checkpoint.
        state = setup.devices.replicate(restored or first or initial_state(setup))
        del restored, first  # one copy is enough
        store = CheckpointStore(workdir, setup.devices.everywhere)
        stack.callback(store.close)
        total = setup.config.training.steps
        log = RunLog(workdir, step, total, silent=not is_first())
        stack.callback(log.close)
        if step < total:
            log.state("training", step)
            loop = _Loop(setup, state, step, rows, store, log)
            try:
                loop.run(stop, console)
            except Exception as error:
                kind: State = "stopped" if isinstance(error, Interrupted) else "failed"
                with contextlib.suppress(OSError):  # the disk may be what failed
                    log.state(kind, loop.step, str(error))
                _report(workdir, console)
                raise
        log.finished(total)
        wait_for_others("the last checkpoint is there")
        return _result(setup, store, console)


class _Loop:
    """The steps of a run from where it is to its end.

    Attributes:
      step: how many have been taken.
      state: after them, unless a loss was not finite: then that before the step that failed.
      pending: terms of the dispatches since the last line of the metrics file.
    """

    def __init__(
        self,
        setup: Setup,
        state: TrainState,
        step: int,
        rows: Rows,
        store: CheckpointStore,
        log: RunLog,
    ) -> None:
        self.setup, self.store, self.log = setup, store, log
        self.step, self.state = step, state
        self.pending: list[Mapping[str, Any]] = [rows] if rows else []
        self._unlearned = tuple(
            f"{name}_" for name in DIMENSIONS if name not in setup.info.dimensions
        )

    def run(self, stop: StopRequest, console: Console) -> None:
        """Takes all steps that are left, logs, validates and saves.

        Raises:
          UsageError: a loss, a gradient or a validation score is not finite.
          Interrupted: `stop` was asked; the state is saved.
        """
        setup, training = self.setup, self.setup.config.training
        devices, seed = setup.devices, np.uint32(training.seed)
        coming = batches(
            setup.corpus, setup.target, setup.device, setup.draw,
            self.step + 1, training.steps + 1, training.steps_per_dispatch,
        )  # fmt: skip
        ended = 0.0
        with console.bar(training.steps, training.task, "step", done=self.step) as bar:
            for dispatch, (here, drawn) in enumerate(coming):
                if here is not setup.device:
                    here = devices.replicate(here)
                next_step = np.int32(self.step + 1)
                self.state, terms = setup.step(self.state, here, devices.split(drawn), next_step, seed)  # fmt: skip
                self.pending.append(terms)
                if dispatch < 2:  # the first compiles; what the second takes, all of them do
                    jax.block_until_ready(terms)
                    began, ended = ended, time.monotonic()
                advanced = len(jax.tree.leaves(drawn)[0])
                self.step += advanced
                bar.update(advanced)
                left = training.steps - self.step
                if dispatch == 1 and (ended - began) * left / advanced > LONG:
                    console.say(_how_long((ended - began) / advanced, left))
                last, saved = self.step == training.steps, False
                logged = last or self.step % training.log_every == 0
                if logged:
                    line = self._log()
                    bar.set_postfix(
                        loss=f"{line['total_loss']:.3f}",
                        score=f"{line['score']:.3f}",
                        refresh=False,
                    )
                if last or self.step % training.validate_every == 0:
                    self._validate()
                    saved = True
                # Several processes ask each other only where they wait for the device anyway.
                signal = stop.agreed() if logged or jax.process_count() == 1 else 0
                if signal and not last:
                    if not saved:
                        save_interrupted(setup, self.step, self.state, self._rows())
                    raise Interrupted(
                        f"stopped at step {self.step} of {training.steps}; everything is saved, and the same command "
                        "goes on",
                        signal,
                    )

    def _log(self) -> dict[str, float]:
        """Writes and returns the means of the terms since the last line."""
        rows = self._rows()
        self.pending = []
        line = {
            name: float(np.mean(values))
            for name, values in rows.items()
            if not name.startswith(self._unlearned)
        }
        self.log.numbers("train", self.step, line)
        self.log.state("training", self.step)
        return line

    def _validate(self) -> None:
        """Scores the model on the validation part and saves it."""
        self.log.state("validating", self.step)
        variables = to_variables(self.state.learned, self.state.batch_stats)
        scores = self.setup.validate(variables)
        # Where nothing is held out the latest is the best.
        score = scores.get("score", float(self.step))
        if not math.isfinite(score):
            raise UsageError(f"the validation score is not finite after step {self.step}")
        if scores:
            self.log.numbers("validation", self.step, scores)
        self.store.save(self.step, variables, score, {"optimizer": self.state.optimizer})
        forget_interruption(self.setup.workdir)
        self.log.state("training", self.step)

    def _rows(self) -> Rows:
        """The pending terms on the host.

        Raises:
          UsageError: one is not finite; with whose data it was, by the state, which has not changed since the step that failed.
        """
        rows = _on_host(self.pending)
        wrong = _first_not_finite(rows, self.step)
        if wrong:
            setup = self.setup
            here, drawn = next(
                batches(setup.corpus, setup.target, setup.device, setup.draw, wrong, wrong + 1)
            )
            raise UsageError(_failure(setup, here, drawn, self.state, wrong))
        return rows


LONG = 600.0
"""Seconds from which a run says at its beginning how long it will take."""


def _how_long(seconds: float, steps: int) -> str:
    """For people: what a step takes, and all that are left."""
    return f"{seconds:.3g} s a step: the {steps:,} that are left take about {duration(seconds * steps)}"


def _result(setup: Setup, store: CheckpointStore, console: Console) -> dict[str, float]:
    """Of a run that has taken all its steps; with the report, if that is still missing."""
    best = store.best_step()
    assert best is not None
    score = store.score(best)
    _keep_listeners(setup, store, best)
    _report(setup.workdir, console)
    judged = fold_of(setup.config.training).holds_out
    console.say(f"best validation score {score:.3f} at step {best}" if judged else f"kept: step {best}")  # fmt: skip
    return {"best_step": float(best), "best_score": score}


def _keep_listeners(setup: Setup, store: CheckpointStore, step: int) -> None:
    """Looks how single listeners differ from the best model on the songs of validation; where nothing is held out, nobody knows."""
    fold = fold_of(setup.config.training)
    known = read_listeners(setup.workdir)
    if not fold.holds_out or (known is not None and known.step == step):
        return
    like = variables_like(setup.config, setup.corpus.features, setup.model)
    variables = setup.devices.replicate(store.restore_model(step, like))
    drawn = []
    for corpus in setup.corpus.each:
        ratings = held_out(corpus, fold)["validation"].consensus
        if len(ratings):
            device = setup.device if corpus is setup.corpus else None
            trial = agreed_trial(corpus, "validation", device, fold=fold)
            trial = on_all(setup.devices, trial)
            drawn.append((corpus, ratings, curves_of_songs(trial, setup.model, variables)))
    found = listeners_of(drawn, song_space(variables), step)
    if found is not None:
        on_first(lambda: write_listeners(setup.workdir, found))


def _report(workdir: Path, console: Console) -> None:
    """The page for people; a run does not fail for want of it."""
    if is_first():
        from dsaml_jax.reporting import write_run_report  # so that a start does not wait for it

        try:
            write_run_report(workdir)
        except Exception as error:  # whatever drawing comes across
            console.say(f"no report: {' '.join(str(error).split())}")


def _on_host(pending: list[Mapping[str, Any]]) -> Rows:
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


def _failure(setup: Setup, here: DeviceCorpus, drawn: Drawn, state: TrainState, step: int) -> str:
    """What went wrong in a step, whose data it was, and where the file is that replays it.

    `state` is that before the step, see :class:`~dsaml_jax.training.steps.TrainState`.
    """
    wrong = f"the loss or its gradient is not finite at step {step}"
    mend = (
        "The last good checkpoint is kept. Lower training.learning_rate or meta.learning_rate, or set "
        "training.clip_norm"
    )
    if jax.process_count() > 1:
        return f"{wrong}. {mend}; one process alone also says whose data it was"
    config = setup.config
    drawn = jax.tree.map(lambda x: x[0], drawn)
    variables = jax.device_get(to_variables(state.learned, state.batch_stats))
    key = step_key(np.uint32(config.training.seed), np.int32(step))
    path = setup.workdir / FAILURES_FOLDER / f"step-{step}.safetensors"
    try:
        bundles = bundles_of_step(
            config, setup.corpus, here, drawn, setup.draw(step), variables, step, key
        )
        what, bundle = blame(bundles)
        write_bundle(path, bundle)
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return f"{wrong}. {mend}. (Whose data it was could not be found out: {error})"
    return f"{wrong}: {what}. {mend}. To compute it again: dsaml runs replay {path}"
