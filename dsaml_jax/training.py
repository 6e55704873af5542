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
from dsaml_jax.adaptation import inner_algorithm, query_loss, support_loss
from dsaml_jax.base import PyTree
from dsaml_jax.batches import TaskArrays, WindowArrays, batches, drawing
from dsaml_jax.checkpoints import CheckpointStore, RunInfo
from dsaml_jax.config import RunConfig, differences
from dsaml_jax.corpus import (
    DeviceCorpus,
    Part,
    consensus_target,
    drawable_of_ratings,
    gather_windows,
    held_out,
    identity,
    require_annotators,
    require_same_corpus,
    to_device,
)
from dsaml_jax.errors import UsageError
from dsaml_jax.evaluation import adapted_scores, song_scores
from dsaml_jax.models.dsaml import DSAML
from dsaml_jax.progress import Console
from dsaml_jax.tasks import (
    TaskPool,
    evaluation_tasks,
    make_pool,
)

METRICS_FILE = "metrics.jsonl"


@flax.struct.dataclass
class TrainState:
    """What training changes.

    Attributes:
      params: trained by the optimiser.
      batch_stats: running statistics of BatchNorm.
      optimizer: optax's state.
    """

    params: PyTree
    batch_stats: PyTree
    optimizer: PyTree


Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_dmer_step(model: DSAML, optimizer: optax.GradientTransformation) -> Step:
    """`(state, corpus, windows, key) -> (state, terms)`, jitted; the state is donated."""
    dropout = model.config.dropout > 0.0

    def step(
        state: TrainState, corpus: DeviceCorpus, windows: WindowArrays, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = gather_windows(corpus, windows.song, windows.window)
        loss = query_loss(model, state.batch_stats, batch_norm=True)
        (_, (terms, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, batch, key if dropout else None
        )
        return _update(optimizer, state, gradient, stats), terms

    return jax.jit(step, donate_argnums=0)


def make_pdmer_step(
    model: DSAML, config: RunConfig, optimizer: optax.GradientTransformation
) -> Step:
    """`(state, corpus, tasks, key) -> (state, terms)`, jitted; the state is donated."""
    dropout = model.config.dropout > 0.0
    algorithm = inner_algorithm(config.meta)
    by_batch = config.meta.batch_norm == "batch"

    def step(
        state: TrainState, corpus: DeviceCorpus, tasks: TaskArrays, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        gather = jax.vmap(gather_windows, in_axes=(None, 0, 0, 0))
        support = gather(corpus, tasks.support_song, tasks.support_window, tasks.support)
        query = gather(corpus, tasks.query_song, tasks.query_window, tasks.query)
        (_, (terms, stats)), gradient = meta.meta_gradient(
            support_loss(model, config.meta, state.batch_stats),
            state.params,
            support,
            query,
            algorithm=algorithm,
            query_loss_fn=query_loss(model, state.batch_stats, batch_norm=by_batch),
            has_aux=True,
            key=key if dropout else None,
        )
        stats, terms = jax.tree.map(lambda x: jnp.mean(x, axis=0), (stats, terms))
        return _update(optimizer, state, gradient, stats), terms

    return jax.jit(step, donate_argnums=0)


def _update(
    optimizer: optax.GradientTransformation, state: TrainState, gradient: PyTree, stats: PyTree
) -> TrainState:
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is float ** int
        updates, new_optimizer = optimizer.update(gradient, state.optimizer, state.params)
    return TrainState(
        params=optax.apply_updates(state.params, updates),
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
    seed = config.training.seed
    parts = held_out(corpus)
    _require_songs(parts)
    target = consensus_target(corpus, parts["train"])
    model = DSAML(config.model)
    optimizer = optax.adam(config.training.learning_rate)
    meta_task = config.training.task == "pdmer"
    pool = _pool(corpus, parts["train"], config, console) if meta_task else None
    step_fn = (
        make_pdmer_step(model, config, optimizer) if meta_task else make_dmer_step(model, optimizer)
    )
    in_memory = corpus.log_mel is not None
    device = to_device(corpus, target, None if in_memory else parts["validation"].songs)
    validate = _make_validation(model, config, corpus, device, parts)

    # ---- Fresh, or from the last checkpoint. Nothing has been written so far.
    fresh = not (workdir / "checkpoints").is_dir()
    state = _initial_state(model, config, corpus, optimizer) if fresh else None
    checkpoints.write_run_info(workdir, info)
    store = CheckpointStore(workdir)
    start = store.latest_step() or 0
    if start:
        state = _restore(store, start, model, corpus, optimizer)
        console.say(f"resuming {workdir} at step {start}")
    elif state is None:  # killed before its first checkpoint
        state = _initial_state(model, config, corpus, optimizer)
    _truncate_metrics(workdir / METRICS_FILE, start)

    # ---- The loop.
    total = config.training.steps
    draw = drawing(config, pool, corpus, parts["train"], target)
    coming = batches(corpus, target, device, draw, start + 1, total + 1)
    pending: list[dict[str, jax.Array]] = []
    root_key = jax.random.key(seed)
    bar = console.bar(total, config.training.task, "step", done=start)
    try:
        for step in range(start + 1, total + 1):
            key = jax.random.fold_in(root_key, step)
            state, terms = step_fn(state, *next(coming), key)
            pending.append(terms)
            bar.update()
            last = step == total
            if step % config.training.log_every == 0 or last:
                line = _collect(pending, step)
                pending = []
                _append(workdir / METRICS_FILE, line)
                bar.set_postfix(
                    loss=f"{line['total_loss']:.3f}", score=f"{line['score']:.3f}", refresh=False
                )
            if step % config.training.validate_every == 0 or last:
                scores = validate({"params": state.params, "batch_stats": state.batch_stats})
                if not math.isfinite(scores["score"]):
                    raise UsageError(f"the validation score is not finite after step {step}")
                _append(workdir / METRICS_FILE, {"step": step, "kind": "validation"} | scores)
                variables = {"params": state.params, "batch_stats": state.batch_stats}
                store.save(step, variables, scores["score"], {"optimizer": state.optimizer})
    finally:
        bar.close()
        best = store.best_step()
        store.close()
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
    pool = make_pool(
        part.ratings,
        corpus.rating_annotator,
        corpus.rating_song,
        drawable_of_ratings(corpus),
        min_songs=config.meta.min_songs,
    )
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
    return TrainState(
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        optimizer=optimizer.init(variables["params"]),
    )


def _restore(
    store: CheckpointStore,
    step: int,
    model: DSAML,
    corpus: Corpus,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    like = jax.eval_shape(
        lambda: checkpoints.initial_variables(model, corpus.features, jax.random.key(0))
    )
    variables = store.restore_model(step, like)
    like_optimizer = jax.eval_shape(optimizer.init, like["params"])
    restored = store.restore_optimizer(step, {"optimizer": like_optimizer})
    return TrainState(
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        optimizer=restored["optimizer"],
    )


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
    pool = make_pool(
        part.ratings,
        corpus.rating_annotator,
        corpus.rating_song,
        drawable_of_ratings(corpus),
        min_songs=config.meta.support_songs + 1,
    )
    tasks = evaluation_tasks(
        pool,
        supports=4,
        support_songs=config.meta.support_songs,
        most=config.training.validation_tasks,
    )
    return lambda variables: adapted_scores(model, config.meta, variables, corpus, device, tasks)


def _collect(pending: list[dict[str, jax.Array]], step: int) -> dict[str, Any]:
    """Means over the steps since the last line; refuses a loss that is not finite."""
    rows = jax.device_get(pending)
    first = step - len(rows) + 1
    for number, row in enumerate(rows, start=first):
        if not math.isfinite(float(row["total_loss"])):
            raise UsageError(
                f"the loss is {float(row['total_loss'])} at step {number}; the last good checkpoint is "
                "kept. Lower training.learning_rate or meta.learning_rate"
            )
    means = {
        name: float(np.mean([row[name] for row in rows], dtype=np.float64)) for name in rows[0]
    }
    return {"step": step, "kind": "train"} | means


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _truncate_metrics(path: Path, step: int) -> None:
    """Drops lines after the checkpoint we resume from, and a torn last line."""
    if not path.is_file():
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
