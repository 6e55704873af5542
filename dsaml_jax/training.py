"""One trainer for DMER and PDMER.

`train` is the whole story, read from top to bottom: set up or resume, step, log, validate, save. What a step
does is in :func:`make_dmer_step` and :func:`make_pdmer_step`; both are pure, jitted once, and touch the host
only where the metrics file is written.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_prep.base import replacing
from data_prep.shards import Corpus
from dsaml_jax import checkpoints, meta
from dsaml_jax.adaptation import (
    inner_algorithm,
    query_loss,
    support_loss,
    to_learned,
    to_variables,
)
from dsaml_jax.base import PyTree
from dsaml_jax.batches import TaskArrays, WindowArrays, batches, drawing
from dsaml_jax.checkpoints import CheckpointStore, RunInfo
from dsaml_jax.config import RunConfig, differences
from dsaml_jax.corpus import (
    DeviceCorpus,
    Part,
    consensus_target,
    gather_windows,
    held_out,
    identity,
    pool_of,
    require_annotators,
    require_same_corpus,
    to_device,
)
from dsaml_jax.devices import Devices, is_first, wait_for_others
from dsaml_jax.errors import UsageError
from dsaml_jax.evaluation import adapted_scores, song_scores
from dsaml_jax.models.dsaml import DSAML
from dsaml_jax.progress import Console
from dsaml_jax.tasks import TaskPool, evaluation_tasks

METRICS_FILE = "metrics.jsonl"


@flax.struct.dataclass
class TrainState:
    """What training changes.

    Attributes:
      learned: what the optimiser trains: the model's parameters, and inner rates where those are learned.
      batch_stats: running statistics of BatchNorm.
      optimizer: optax's state.
    """

    learned: PyTree
    batch_stats: PyTree
    optimizer: PyTree


Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
"""`(state, corpus, drawn, first, seed) -> (state, terms)`: steps `first`, `first + 1`, ..., one for each entry of `drawn`.

`terms` have a leading axis of steps. Jitted; the state is donated.
"""


def make_dmer_step(
    model: DSAML,
    optimizer: optax.GradientTransformation,
    sharding: jax.sharding.Sharding | None = None,
) -> Step:
    """Steps of DMER; `drawn` is :class:`~dsaml_jax.batches.WindowArrays`. Results go to `sharding`."""
    dropout = model.config.dropout > 0.0

    def step(
        corpus: DeviceCorpus,
        state: TrainState,
        windows: WindowArrays,
        index: jax.Array,
        key: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = gather_windows(corpus, windows.song, windows.window)
        loss = query_loss(model, state.batch_stats, batch_norm=True)
        (_, (terms, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.learned, batch, key if dropout else None
        )
        return _update(optimizer, state, gradient, stats), terms

    return _several(step, sharding)


def make_pdmer_step(
    model: DSAML,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    sharding: jax.sharding.Sharding | None = None,
    devices: int = 1,
) -> Step:
    """Meta-steps; `drawn` is :class:`~dsaml_jax.batches.TaskArrays`. Results go to `sharding`."""
    dropout = model.config.dropout > 0.0
    algorithm = inner_algorithm(config.meta)
    by_batch = config.meta.batch_norm == "batch"
    # On a CPU nothing is gained by computing tasks side by side, and each one's arrays leave the cache.
    together = config.meta.tasks if jax.default_backend() != "cpu" else devices
    together = config.meta.tasks_at_once or together

    def step(
        corpus: DeviceCorpus, state: TrainState, tasks: TaskArrays, index: jax.Array, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def gathering(loss: Callable[..., Any]) -> Callable[..., Any]:
            """The loss of windows by their indices, so that only the tasks at work are in memory."""
            return lambda params, places, *key: loss(params, gather_windows(corpus, *places), *key)

        (_, (terms, stats)), gradient = meta.meta_gradient(
            gathering(support_loss(model, config.meta, state.batch_stats)),
            state.learned,
            (tasks.support_song, tasks.support_window, tasks.support),
            (tasks.query_song, tasks.query_window, tasks.query),
            algorithm=algorithm,
            query_loss_fn=gathering(query_loss(model, state.batch_stats, batch_norm=by_batch)),
            has_aux=True,
            key=key if dropout else None,
            step=index,
            tasks_at_once=together,
        )
        stats, terms = jax.tree.map(lambda x: jnp.mean(x, axis=0), (stats, terms))
        return _update(optimizer, state, gradient, stats), terms

    return _several(step, sharding)


def _several(step: Callable[..., Any], sharding: jax.sharding.Sharding | None) -> Step:
    """Steps one after the other in one program, without a word to the host in between."""

    def run(
        state: TrainState, corpus: DeviceCorpus, drawn: Any, first: jax.Array, seed: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.key(seed)

        def one(state: TrainState, inputs: tuple[jax.Array, Any]) -> tuple[TrainState, Any]:
            index, now = inputs
            return step(corpus, state, now, index, jax.random.fold_in(key, index))

        steps = jax.tree.leaves(drawn)[0].shape[0]
        return jax.lax.scan(one, state, (first + jnp.arange(steps), drawn))

    return jax.jit(run, donate_argnums=0, out_shardings=sharding)


def _update(
    optimizer: optax.GradientTransformation, state: TrainState, gradient: PyTree, stats: PyTree
) -> TrainState:
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is float ** int
        updates, new_optimizer = optimizer.update(gradient, state.optimizer, state.learned)
    return TrainState(
        learned=optax.apply_updates(state.learned, updates),
        batch_stats=stats,
        optimizer=new_optimizer,
    )


def train(
    config: RunConfig, corpus: Corpus, workdir: Path, console: Console | None = None
) -> dict[str, float]:
    """Trains, or goes on with, the run in `workdir`.

    The run is a function of (config, corpus): a run that was killed and started again writes the same
    metrics file and the same checkpoints as one that was not.

    Args:
      config: of the run.
      corpus: prepared features and labels.
      workdir: made if missing. Holds `run.json`, `metrics.jsonl`, `checkpoints/`.
      console: where progress goes.

    Returns:
      `best_step`, `best_score`.

    Raises:
      UsageError: `workdir` belongs to another configuration; a part of the corpus is too small; the loss
        is not finite (the last good checkpoint stays).
    """
    console = console or Console(quiet=True)

    # ---- Who and what: parts of the corpus, the model, the step function.
    config = fit_config(config, corpus)
    info = RunInfo(config, corpus.features, identity(corpus))
    _require_ours(workdir, info)
    parts = held_out(corpus)
    _require_songs(parts)
    target = consensus_target(corpus, parts["train"])
    model = DSAML(config.model)
    optimizer = optax.adam(config.training.learning_rate)
    meta_task = config.training.task == "pdmer"
    pool = _pool(corpus, parts["train"], config, console) if meta_task else None
    devices = Devices(config.meta.tasks if meta_task else config.training.batch_songs)
    step_fn = (
        make_pdmer_step(model, config, optimizer, devices.everywhere, devices.count)
        if meta_task
        else make_dmer_step(model, optimizer, devices.everywhere)
    )
    device = devices.replicate(to_device(corpus, target, parts["validation"].songs))
    validate = _make_validation(model, config, corpus, device, parts)

    # ---- Fresh, or from the last checkpoint. Nothing has been written so far.
    fresh = not (workdir / "checkpoints").is_dir()
    state = _initial_state(model, config, corpus, optimizer) if fresh else None
    wait_for_others("everybody has looked")
    if is_first():
        checkpoints.write_run_info(workdir, info)
    wait_for_others("the run is there")
    store = CheckpointStore(workdir, devices.everywhere)
    start = store.latest_step() or 0
    if start:
        state = _restore(store, start, config, corpus, optimizer)
        console.say(f"resuming {workdir} at step {start}")
    elif state is None:  # killed before its first checkpoint
        state = _initial_state(model, config, corpus, optimizer)
    state = devices.replicate(state)
    metrics = MetricsFile(workdir / METRICS_FILE, start)

    # ---- The loop.
    total, together = config.training.steps, config.training.steps_per_dispatch
    draw = drawing(config, pool, corpus, parts["train"], target)
    coming = batches(corpus, target, device, draw, start + 1, total + 1, together)
    pending: list[dict[str, jax.Array]] = []
    seed = np.uint32(config.training.seed)
    bar = console.bar(total, config.training.task, "step", done=start)
    try:
        for here, drawn in coming:
            if here is not device:
                here = devices.replicate(here)
            state, terms = step_fn(state, here, devices.split(drawn), np.int32(start + 1), seed)
            pending.append(terms)
            advanced = len(jax.tree.leaves(drawn)[0])
            start += advanced
            bar.update(advanced)
            last = start == total
            if start % config.training.log_every == 0 or last:
                line = _collect(pending, start)
                pending = []
                metrics.append(line)
                bar.set_postfix(
                    loss=f"{line['total_loss']:.3f}", score=f"{line['score']:.3f}", refresh=False
                )
            if start % config.training.validate_every == 0 or last:
                variables = to_variables(state.learned, state.batch_stats)
                scores = validate(variables)
                if not math.isfinite(scores["score"]):
                    raise UsageError(f"the validation score is not finite after step {start}")
                metrics.append({"step": start, "kind": "validation"} | scores)
                store.save(start, variables, scores["score"], {"optimizer": state.optimizer})
    finally:
        bar.close()
        best = store.best_step()
        store.close()
    wait_for_others("the last checkpoint is there")
    best_score = next(
        line["score"]
        for line in read_metrics(workdir)
        if line["kind"] == "validation" and line["step"] == best
    )
    console.say(f"best validation score {best_score:.3f} at step {best}")
    return {"best_step": float(best or 0), "best_score": best_score}


def fit_config(config: RunConfig, corpus: Corpus) -> RunConfig:
    """Sets what follows from the data and the place: embedding width, absolute path of `init_from`."""
    model = dataclasses.replace(config.model, embedding_width=corpus.features.embedding_width)
    source = config.training.init_from
    training = dataclasses.replace(
        config.training, init_from=str(Path(source).resolve()) if source else ""
    )
    return dataclasses.replace(config, model=model, training=training)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file.

    `kind` is `train` (means since the line before) or `validation`.
    """
    path = workdir / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _require_ours(workdir: Path, info: RunInfo) -> None:
    """Refuses a work directory that belongs to something else."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"{workdir} is a file; --workdir is a folder")
    if (workdir / checkpoints.RUN_FILE).is_file():
        old = checkpoints.read_run_info(workdir)
        changed = differences(old.config, info.config)
        if old.data != info.data:
            changed.append(f"data: {old.data} -> {info.data}")
        if changed:
            raise UsageError(
                f"{workdir} belongs to a run with other settings ({'; '.join(changed)}); "
                "choose another --workdir, or the same settings to go on"
            )
        return
    if workdir.is_dir() and any(workdir.iterdir()):
        raise UsageError(f"{workdir} is not empty and not a run; choose another --workdir")


def _require_songs(parts: dict[str, Part]) -> None:
    for name in ("train", "validation"):
        if not len(parts[name].songs):
            raise UsageError(f"the corpus has no {name} songs; prepare more songs (at least 3)")


def _pool(corpus: Corpus, part: Part, config: RunConfig, console: Console) -> TaskPool:
    require_annotators(part, "training")
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
        shapes = [jax.tree.map(jnp.shape, variables) for variables in (source.variables, wanted)]
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
        require_same_corpus(source.info.data, corpus, config.training.init_from)
        variables = source.variables
    else:
        variables = jax.jit(lambda key: checkpoints.initial_variables(model, corpus.features, key))(
            key
        )
    learned = variables["params"]
    if config.training.task == "pdmer":  # rates of another run belonged to its algorithm
        learned = to_learned(config.meta, {"params": learned})
    return TrainState(learned, variables["batch_stats"], optimizer.init(learned))


def _restore(
    store: CheckpointStore,
    step: int,
    config: RunConfig,
    corpus: Corpus,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    variables = store.restore_model(step, checkpoints.variables_like(config, corpus.features))
    learned = variables["params"]
    if config.training.task == "pdmer":
        learned = to_learned(config.meta, variables)
    like = jax.eval_shape(optimizer.init, learned)
    restored = store.restore_optimizer(step, {"optimizer": like})
    return TrainState(learned, variables["batch_stats"], restored["optimizer"])


def _make_validation(
    model: DSAML,
    config: RunConfig,
    corpus: Corpus,
    device: DeviceCorpus,
    parts: dict[str, Part],
) -> Callable[[dict[str, Any]], dict[str, float]]:
    """A function from variables to mean scores on the validation part, in eval mode."""
    part = parts["validation"]
    if config.training.task == "dmer":
        target = consensus_target(corpus, part)
        return lambda variables: song_scores(model, variables, corpus, device, part.songs, target)
    require_annotators(part, "validation")
    pool = pool_of(corpus, part.ratings, min_songs=config.meta.support_songs + 1)
    tasks = evaluation_tasks(
        pool,
        supports=4,
        support_songs=config.meta.support_songs,
        most=config.training.validation_tasks,
    )
    return lambda variables: adapted_scores(model, config.meta, variables, corpus, device, tasks)


def _collect(pending: list[dict[str, jax.Array]], step: int) -> dict[str, Any]:
    """Means over the steps since the last line; refuses a loss that is not finite."""
    dispatches = jax.device_get(pending)
    rows = {
        name: np.concatenate([terms[name] for terms in dispatches], dtype=np.float64)
        for name in dispatches[0]
    }
    losses = rows["total_loss"]
    wrong = np.flatnonzero(~np.isfinite(losses))
    if len(wrong):
        number = step - len(losses) + 1 + int(wrong[0])
        raise UsageError(
            f"the loss is {losses[wrong[0]]} at step {number}; the last good checkpoint is "
            "kept. Lower training.learning_rate or meta.learning_rate"
        )
    means = {name: float(np.mean(values)) for name, values in rows.items()}
    return {"step": step, "kind": "train"} | means


class MetricsFile:
    """The metrics of a run, a JSON object a line; written by the first of several processes."""

    def __init__(self, path: Path, step: int) -> None:
        """Drops lines after the checkpoint that the run resumes from, and a torn last line."""
        self._path = path
        if not is_first() or not path.is_file():
            return
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:
                break
        with replacing(path) as temporary:
            temporary.write_text("".join(kept))

    def append(self, line: dict[str, Any]) -> None:
        """Adds a line, on the disk when this returns."""
        if not is_first():
            return
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
