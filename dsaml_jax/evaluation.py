"""Scores of a model on held-out songs and listeners, and the simple baselines it has to beat.

Every prediction is made in eval mode (running statistics, no dropout). Protocols:

* `clean`: songs and annotators unseen in training; adapt on one song of the annotator, be judged on their
  other songs. Each annotator is tried with several support songs.
* `reference`: as published: adapt on the first 30 s of a test song, be judged on that same song; annotators may
  have been seen in training. Only for comparison with published numbers.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_prep.base import replacing
from data_prep.shards import Corpus
from dsaml_jax import metrics
from dsaml_jax.adaptation import adapt_to_listener
from dsaml_jax.base import WINDOW_STEPS
from dsaml_jax.checkpoints import LoadedModel
from dsaml_jax.config import MetaConfig
from dsaml_jax.corpus import (
    DeviceCorpus,
    Part,
    gather_windows,
    held_out,
    pool_of,
    require_annotators,
    require_same_corpus,
    to_device,
)
from dsaml_jax.errors import UsageError
from dsaml_jax.inference import Variables, song_curve
from dsaml_jax.models.dsaml import DSAML
from dsaml_jax.progress import Console
from dsaml_jax.tasks import TaskBatch, evaluation_tasks, same_song_tasks

METRICS = ("rmse", "pcc", "ccc")
DIMENSIONS = ("arousal", "valence")
COLUMNS = tuple(f"{dimension}_{metric}" for dimension in DIMENSIONS for metric in METRICS)
SUPPORTS_PER_ANNOTATOR = 16
TASKS_PER_BLOCK = 16

Protocol = Literal["clean", "reference"]


# ---- Curves of many songs, on the device.


def _padded_shape(corpus: Corpus, songs: np.ndarray) -> tuple[int, int]:
    """Static sizes that hold every one of these songs: steps, windows."""
    return int(corpus.song_steps[songs].max()), int(corpus.window_count[songs].max())


def _curve(
    model: DSAML,
    variables: Variables,
    device: DeviceCorpus,
    song: jax.Array,
    shape: tuple[int, int],
) -> jax.Array:
    """`[n, 2]` of one song of the corpus, by index."""
    length, slots = shape
    steps, windows = device.song_steps[song], device.window_count[song]
    offset = jnp.minimum(jnp.arange(length), steps - 1)
    slot = jnp.minimum(jnp.arange(slots), windows - 1)
    return song_curve(
        model,
        variables,
        device.log_mel[device.feature_start[song] + offset].astype(jnp.float32),
        device.embedding[device.embedding_first[song] + (offset if device.per_step else slot)],
        device.window_start[device.window_first[song] + slot],
        steps=steps,
        windows=windows,
        per_step=device.per_step,
    )


@partial(jax.jit, static_argnames=("model", "shape"))
def _curves(
    model: DSAML,
    variables: Variables,
    device: DeviceCorpus,
    songs: jax.Array,
    shape: tuple[int, int],
) -> jax.Array:
    return jax.lax.map(lambda song: _curve(model, variables, device, song, shape), songs)


@partial(jax.jit, static_argnames=("model", "config", "shape"))
def _adapted_curves(
    model: DSAML,
    config: MetaConfig,
    variables: Variables,
    device: DeviceCorpus,
    tasks: dict[str, chex.Array],
    shape: tuple[int, int],
) -> jax.Array:
    """`[tasks, Q, n, 2]`: each task adapts, then predicts its query songs."""

    def one_task(task: dict[str, chex.Array]) -> jax.Array:
        support = gather_windows(
            device, task["support_song"], task["support_window"], task["support"]
        )
        adapted = adapt_to_listener(model, config, variables, support)
        return jax.lax.map(
            lambda song: _curve(model, adapted, device, song, shape), task["query_song"]
        )

    return jax.lax.map(one_task, tasks)


def adapted_curves(
    model: DSAML,
    config: MetaConfig,
    variables: Variables,
    device: DeviceCorpus,
    tasks: TaskBatch,
    shape: tuple[int, int],
    bar: tqdm | None = None,
) -> np.ndarray:
    """`[tasks, Q, n, 2]`: curves of each task's query songs after adapting to its support.

    Tasks go to the device in blocks of one shape, so there is one compilation and `bar` can move.
    """
    names = ("support", "support_song", "support_window", "query_song")
    count = len(tasks.annotator)
    block = min(TASKS_PER_BLOCK, count)
    blocks = []
    for first in range(0, count, block):
        rows = np.minimum(np.arange(first, first + block), count - 1)
        part = {name: getattr(tasks, name)[rows] for name in names}
        blocks.append(np.asarray(_adapted_curves(model, config, variables, device, part, shape)))
        if bar is not None:
            bar.update(min(block, count - first))
    return np.concatenate(blocks)[:count]


@jax.jit
def _scores(prediction: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
    """Each metric of curves `[..., n, 2]`, NaN targets masked, as `[..., 2]`."""
    mask = jnp.isfinite(target)
    p, t, m = (jnp.moveaxis(x, -1, -2) for x in (prediction, target, mask))
    return {name: getattr(metrics, name)(p, t, m) for name in METRICS}


def _score(scores: dict[str, jax.Array], kept: np.ndarray) -> dict[str, float]:
    """Mean of each column over the kept songs, and the score of the loss."""
    means = {
        f"{dimension}_{name}": float(
            np.mean(np.asarray(scores[name])[kept][:, i], dtype=np.float64)
        )
        for i, dimension in enumerate(DIMENSIONS)
        for name in METRICS
    }
    parts = [means[f"{d}_ccc"] + means[f"{d}_pcc"] + 1.0 - means[f"{d}_rmse"] for d in DIMENSIONS]
    return {"score": sum(parts) / 6.0} | means


def _targets(
    corpus: Corpus, first: np.ndarray, songs: np.ndarray, values: np.ndarray, length: int
) -> np.ndarray:
    """Curves of `values` that begin at `first`, as long as their songs: `[k, length, 2]`, NaN beyond."""
    target = np.full((len(songs), length, 2), np.nan, np.float32)
    for row, (start, song) in enumerate(zip(first, songs, strict=True)):
        steps = corpus.song_steps[song]
        target[row, :steps] = values[start : start + steps]
    return target


def _query_targets(corpus: Corpus, tasks: TaskBatch, length: int) -> np.ndarray:
    """What the annotators drew: `[tasks, Q, length, 2]`, all NaN where padded."""
    flat = tasks.query.reshape(-1)
    target = _targets(
        corpus,
        corpus.rating_first[np.maximum(flat, 0)],
        corpus.rating_song[np.maximum(flat, 0)],
        corpus.ratings,
        length,
    )
    target[flat < 0] = np.nan
    return target.reshape(*tasks.query.shape, length, 2)


def _labelled(truth: np.ndarray) -> np.ndarray:
    """Which curves `[..., n, 2]` have labels: padding and wholly unlabelled ones are no zero errors."""
    return np.isfinite(truth).any(axis=-2).all(axis=-1)


def song_scores(
    model: DSAML,
    variables: Variables,
    corpus: Corpus,
    device: DeviceCorpus,
    songs: np.ndarray,
    target: np.ndarray,
) -> dict[str, float]:
    """Mean scores of these songs' curves against `target` `[n, 2]` (validation of DMER)."""
    shape = _padded_shape(corpus, songs)
    predicted = _curves(model, variables, device, jnp.asarray(songs), shape)
    truth = _targets(corpus, corpus.song_start[songs], songs, target, shape[0])
    return _score(_scores(predicted, truth), _labelled(truth))


def adapted_scores(
    model: DSAML,
    config: MetaConfig,
    variables: Variables,
    corpus: Corpus,
    device: DeviceCorpus,
    tasks: TaskBatch,
) -> dict[str, float]:
    """Mean scores over query songs after adapting (validation of PDMER)."""
    shape = _padded_shape(corpus, np.unique(tasks.query_song))
    predicted = adapted_curves(model, config, variables, device, tasks, shape)
    truth = _query_targets(corpus, tasks, shape[0])
    return _score(_scores(predicted, truth), _labelled(truth))


# ---- The whole evaluation of a run.


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of several methods on the same songs.

    Attributes:
      protocol: `clean` or `reference`.
      task: `dmer` or `pdmer`.
      rows: one dict per method and song: `method`, `annotator`, `support`, `song`, and the columns.
      summary: method -> column -> `{"mean", "sd"}` over songs.
      facts: what was evaluated on what.
    """

    protocol: str
    task: str
    rows: list[dict[str, Any]]
    summary: dict[str, dict[str, dict[str, float]]]
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ListenerCurves:
    """Curves of several listeners for one song, to draw.

    Attributes:
      song: its id.
      annotators: who.
      truth, unadapted, adapted: `[A, n, 2]` each.
    """

    song: str
    annotators: tuple[str, ...]
    truth: np.ndarray
    unadapted: np.ndarray
    adapted: np.ndarray


def evaluate(
    run: LoadedModel,
    corpus: Corpus,
    *,
    protocol: Protocol = "clean",
    dmer: LoadedModel | None = None,
    console: Console | None = None,
) -> tuple[Evaluation, ListenerCurves | None]:
    """Evaluates a run on the test part, with every baseline that needs no further training.

    Args:
      run: the model, by the best checkpoint on validation.
      corpus: with the features the run was trained on.
      protocol: see the module's docstring; DMER has only one.
      dmer: a DMER run, for the baselines that start from it.
      console: where progress goes.

    Returns:
      the evaluation, and for PDMER the curves of the song most test annotators share.

    Raises:
      UsageError: no test songs or annotators, or features that do not fit.
    """
    for model in (run, dmer):
        if model is not None:
            _require_fitting_data(model, corpus)
    parts = held_out(corpus)
    if not len(parts["test"].songs):
        raise UsageError("the corpus has no test songs; prepare more songs (at least 3)")
    device = to_device(corpus, corpus.mean, parts["test"].songs)
    if run.info.config.training.task == "dmer":
        if protocol != "clean":
            raise UsageError("a DMER run adapts to nobody; it has the protocol clean alone")
        return _evaluate_dmer(run, corpus, parts, device), None
    return _evaluate_pdmer(
        run, corpus, parts, device, protocol, dmer, console or Console(quiet=True)
    )


def _require_fitting_data(model: LoadedModel, corpus: Corpus) -> None:
    """Other features cannot be read; other songs under the same name were perhaps trained on."""
    if model.info.features != corpus.features:
        raise UsageError(
            f"the model reads {model.info.features.name}; the data has {corpus.features.name}"
        )
    require_same_corpus(model.info.data, corpus, "the model")


def _evaluate_dmer(
    run: LoadedModel, corpus: Corpus, parts: dict[str, Part], device: DeviceCorpus
) -> Evaluation:
    songs = parts["test"].songs
    shape = _padded_shape(corpus, songs)
    target = _targets(corpus, corpus.song_start[songs], songs, corpus.mean, shape[0])
    training = np.isin(
        np.repeat(np.arange(len(corpus.song_ids)), corpus.song_steps), parts["train"].songs
    )
    constant = np.nanmean(corpus.mean[training], axis=0)
    predicted = {
        "constant": np.broadcast_to(constant, target.shape),
        "DMER": _curves(run.model, run.variables, device, jnp.asarray(songs), shape),
    }
    labels = [{"annotator": "", "support": "", "song": corpus.song_ids[song]} for song in songs]
    facts = {"songs": len(songs), "checkpoint_step": run.step}
    return _tabulate("clean", "dmer", predicted, target, _labelled(target), labels, facts, corpus)


def _evaluate_pdmer(
    run: LoadedModel,
    corpus: Corpus,
    parts: dict[str, Part],
    device: DeviceCorpus,
    protocol: Protocol,
    dmer: LoadedModel | None,
    console: Console,
) -> tuple[Evaluation, ListenerCurves]:
    config = run.info.config
    part = parts["test"]
    require_annotators(part, "test")
    shots = config.meta.support_songs
    pool = pool_of(
        corpus,
        part.ratings if protocol == "clean" else part.all_ratings,
        min_songs=shots + 1 if protocol == "clean" else 1,
    )
    if protocol == "clean":
        tasks = evaluation_tasks(pool, supports=SUPPORTS_PER_ANNOTATOR, support_songs=shots)
    else:
        tasks = same_song_tasks(pool)

    songs = np.unique(tasks.query_song)
    shape = _padded_shape(corpus, np.union1d(songs, tasks.support_song))
    truth = _query_targets(corpus, tasks, shape[0])
    training = parts["train"].ratings
    steps_of_rating = np.repeat(
        np.arange(len(corpus.rating_song)), corpus.song_steps[corpus.rating_song]
    )
    constant = np.nanmean(corpus.ratings[np.isin(steps_of_rating, training)], axis=0)

    support_songs = _support_songs(corpus, tasks, shots if protocol == "clean" else 1)
    support_truth = _support_targets(corpus, tasks, support_songs, shape[0])
    support_truth = support_truth.reshape(len(support_truth), -1, 2)  # all support steps in a row
    support_mean = np.nanmean(support_truth, axis=1)  # [tasks, 2]
    predicted: dict[str, Any] = {
        "constant": np.broadcast_to(constant, truth.shape),
        "support mean": np.broadcast_to(support_mean[:, None, None], truth.shape),
    }

    def curves_by_song(loaded: LoadedModel, wanted: np.ndarray) -> np.ndarray:
        every = np.unique(np.concatenate([songs, tasks.support_song.reshape(-1)]))
        curves = np.asarray(
            _curves(loaded.model, loaded.variables, device, jnp.asarray(every), shape)
        )
        return curves[np.searchsorted(every, wanted)]

    def adapted(loaded: LoadedModel) -> np.ndarray:
        with console.bar(len(tasks.annotator), "adapting", "task") as bar:
            return adapted_curves(
                loaded.model, config.meta, loaded.variables, device, tasks, shape, bar
            )

    if dmer:
        unadapted = curves_by_song(dmer, tasks.query_song)
        on_support = curves_by_song(dmer, support_songs).reshape(support_truth.shape)
        predicted["DMER"] = unadapted
        predicted["DMER + affine"] = _calibrate(unadapted, on_support, support_truth)
        predicted["DMER fine-tuned"] = adapted(dmer)
    predicted["MAML unadapted"] = curves_by_song(run, tasks.query_song)
    predicted["MAML adapted"] = adapted(run)

    labels = [
        {
            "annotator": corpus.annotator_ids[person],
            "support": "+".join(corpus.song_ids[song] for song in support),
            "song": corpus.song_ids[song],
        }
        for person, support, row in zip(
            tasks.annotator, support_songs, tasks.query_song, strict=True
        )
        for song in row
    ]
    facts = {
        "annotators": len(pool.annotators),
        "songs": len(songs),
        "tasks": len(tasks.annotator),
        "inner_steps": config.meta.steps,
        "checkpoint_step": run.step,
        "annotators_left_out": len(pool.excluded),
    }
    kept = _labelled(truth)
    evaluation = _tabulate(protocol, "pdmer", predicted, truth, kept, labels, facts, corpus)
    shown = _most_shared_song(corpus, tasks, truth, predicted)
    return evaluation, shown


def _support_songs(corpus: Corpus, tasks: TaskBatch, shots: int) -> np.ndarray:
    """`[tasks, shots]` the distinct support songs of each task, in order."""
    rows = []
    for songs, ratings in zip(tasks.support_song, tasks.support, strict=True):
        rows.append(list(dict.fromkeys(songs[ratings >= 0].tolist())))
    return np.array(rows, np.int32).reshape(len(rows), shots)


def _support_targets(
    corpus: Corpus, tasks: TaskBatch, songs: np.ndarray, length: int
) -> np.ndarray:
    """What adaptation sees of each support song: `[tasks, shots, length, 2]`, NaN outside its windows."""
    target = np.full((*songs.shape, length, 2), np.nan, np.float32)
    for task, places in enumerate(songs):
        for rating, song, window in zip(
            tasks.support[task], tasks.support_song[task], tasks.support_window[task], strict=True
        ):
            if rating < 0:
                continue
            start = corpus.window_start[corpus.window_first[song] + window]
            end = min(start + WINDOW_STEPS, corpus.song_steps[song])
            first = corpus.rating_first[rating]
            place = int(np.flatnonzero(places == song)[0])
            target[task, place, start:end] = corpus.ratings[first + start : first + end]
    return target


def _calibrate(query: np.ndarray, support: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Least squares `truth = gain * support + offset` per task and dimension, applied to the query.

    Args:
      query: `[tasks, Q, n, 2]`.
      support: `[tasks, n, 2]` predictions for the support songs.
      truth: `[tasks, n, 2]`, NaN where unknown or not shown to adaptation either.
    """
    known = np.isfinite(truth)
    x = np.where(known, support, np.nan)
    mean_x, mean_y = np.nanmean(x, axis=1), np.nanmean(truth, axis=1)
    covariance = np.nanmean((x - mean_x[:, None]) * (truth - mean_y[:, None]), axis=1)
    variance = np.nanmean(np.square(x - mean_x[:, None]), axis=1)
    gain = np.divide(covariance, variance, out=np.zeros_like(variance), where=variance > 1e-12)
    return gain[:, None, None] * (query - mean_x[:, None, None]) + mean_y[:, None, None]


def _tabulate(
    protocol: str,
    task: str,
    predicted: dict[str, Any],
    truth: np.ndarray,
    kept: np.ndarray,
    labels: list[dict[str, str]],
    facts: dict[str, Any],
    corpus: Corpus,
) -> Evaluation:
    rows: list[dict[str, Any]] = []
    summary: dict[str, dict[str, dict[str, float]]] = {}
    flat = kept.reshape(-1)
    for method, curves in predicted.items():
        assert np.isfinite(curves[kept][np.isfinite(truth[kept])]).all(), (
            method
        )  # a score of NaN is 0
        scores = {k: np.asarray(v).reshape(-1, 2) for k, v in _scores(curves, truth).items()}
        columns = {
            f"{dimension}_{name}": scores[name][:, i]
            for i, dimension in enumerate(DIMENSIONS)
            for name in METRICS
        }
        summary[method] = {
            name: {
                "mean": float(values[flat].mean(dtype=np.float64)),
                "sd": float(values[flat].std(dtype=np.float64)),
            }
            for name, values in columns.items()
        }
        for index in np.flatnonzero(flat):
            values = {name: float(columns[name][index]) for name in COLUMNS}
            rows.append({"method": method} | labels[index] | values)
    facts = {
        "corpus": corpus.name,
        "features": corpus.features.name,
        "embedding": corpus.features.embedding,
        "rows_per_method": int(flat.sum()),
    } | facts
    return Evaluation(protocol, task, rows, summary, facts)


def _most_shared_song(
    corpus: Corpus, tasks: TaskBatch, truth: np.ndarray, predicted: dict[str, Any]
) -> ListenerCurves:
    """The song with most test annotators, each by their first task that has it in its query."""
    first: dict[tuple[int, int], tuple[int, int]] = {}
    for task, row in enumerate(tasks.query):
        for place, rating in enumerate(row):
            if rating >= 0:
                key = (int(tasks.query_song[task, place]), int(tasks.annotator[task]))
                first.setdefault(key, (task, place))
    counts: dict[int, int] = {}
    for song, _ in first:
        counts[song] = counts.get(song, 0) + 1
    best = max(counts, key=lambda song: (counts[song], -song))
    chosen = [(person, place) for (song, person), place in first.items() if song == best][:6]
    steps = corpus.song_steps[best]

    def picked(curves: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(curves)[place][:steps] for _, place in chosen])

    return ListenerCurves(
        song=corpus.song_ids[best],
        annotators=tuple(corpus.annotator_ids[person] for person, _ in chosen),
        truth=picked(truth),
        unadapted=picked(predicted["MAML unadapted"]),
        adapted=picked(predicted["MAML adapted"]),
    )


# ---- Files and the screen.


def table(evaluation: Evaluation) -> str:
    """The summary as an aligned table: mean and standard deviation over songs."""
    titles = [f"{d[0].upper()} {m.upper()}" for d in DIMENSIONS for m in METRICS]
    width = max(len(method) for method in evaluation.summary) + 2
    lines = ["".ljust(width) + "".join(title.rjust(15) for title in titles)]
    for method, columns in evaluation.summary.items():
        cells = [f"{columns[c]['mean']:.3f} ± {columns[c]['sd']:.3f}" for c in COLUMNS]
        lines.append(method.ljust(width) + "".join(cell.rjust(15) for cell in cells))
    return "\n".join(lines)


def _plain_cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula: such ones get an apostrophe in front."""
    return f"'{name}" if name.startswith(_FORMULA) else name


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # noqa: RUF001


def write_evaluation(evaluation: Evaluation, directory: Path) -> None:
    """Writes `results.json` and `per_song.csv`, each whole or not at all.

    In the table a name that a spreadsheet would take for a formula begins with an apostrophe.
    """
    with replacing(directory / "per_song.csv") as temporary:
        text = io.StringIO()
        writer = csv.DictWriter(
            text, ["method", "annotator", "support", "song", *COLUMNS], lineterminator="\n"
        )
        writer.writeheader()
        names = ("annotator", "support", "song")
        writer.writerows(
            row | {name: _plain_cell(row[name]) for name in names} for row in evaluation.rows
        )
        temporary.write_text(text.getvalue(), encoding="utf-8")
    with replacing(directory / "results.json") as temporary:
        values = {
            "protocol": evaluation.protocol,
            "task": evaluation.task,
            "facts": evaluation.facts,
            "summary": evaluation.summary,
        }
        temporary.write_text(json.dumps(values, indent=1) + "\n")
