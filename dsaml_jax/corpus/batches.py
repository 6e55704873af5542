"""What each step learns from: drawn by a pure function of the step, from memory or from disk.

Features in memory go to the device once, and a step receives small integers. Features that are too large for
that stay in the shards: grain reads the coming steps' windows in threads, in order, into small corpora of
their own. A run that goes on at step k asks for step k, so no shuffle buffer has to be saved, and a streamed
run sees the same numbers as one in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import chex
import flax.struct
import jax
import numpy as np

from data_prep.shards import Corpus
from dsaml_jax.config import RunConfig
from dsaml_jax.corpus.device import DeviceCorpus, window_steps
from dsaml_jax.corpus.folds import Part, balanced, corpus_of_people, song_weights
from dsaml_jax.corpus.tasks import TaskBatch, TaskPool, in_front, sample_tasks, uniform_stream
from dsaml_jax.corpus.windows import labelled_windows

AHEAD = 2
"""Steps whose features wait in host memory."""


@flax.struct.dataclass
class WindowArrays:
    """Windows of `n` DMER steps: `[n, B]` indices of songs, and which window of each."""

    song: chex.Array
    window: chex.Array


@flax.struct.dataclass
class TaskArrays:
    """Indices of the :class:`~dsaml_jax.corpus.TaskBatch` of `n` steps, `[n, tasks, S]` and `[n, tasks, Q]`."""

    support: chex.Array
    support_song: chex.Array
    support_window: chex.Array
    query: chex.Array
    query_song: chex.Array
    query_window: chex.Array


Drawn = WindowArrays | TaskArrays
Draw = Callable[[int], Drawn]


def task_arrays(tasks: TaskBatch) -> TaskArrays:
    """What a jitted step needs of a batch of tasks."""
    names = [field.name for field in dataclasses.fields(TaskArrays)]
    return TaskArrays(**{name: getattr(tasks, name) for name in names})


def drawing(
    config: RunConfig, pool: TaskPool | None, corpus: Corpus, part: Part, target: np.ndarray
) -> Draw:
    """What a step learns from, as a pure function of the step: tasks of annotators, or songs.

    Args:
      config: of the run.
      pool: of annotators; None for DMER.
      corpus: whose songs.
      part: of the corpus.
      target: `[n, 2]`, the curve of DMER.
    """
    if pool is None:
        drawable = labelled_windows(corpus, part.songs, corpus.song_start[part.songs], target)
        windows, counts = in_front(drawable)
        some = counts > 0
        weights = song_weights(corpus, part, part.songs[some], config.training.corpora)
        until = np.cumsum(weights) / weights.sum()
        return partial(_draw_songs, part.songs[some], windows[some], counts[some], until, config)

    rates = balanced(
        pool.counts**config.meta.people_weight,
        corpus_of_people(corpus)[pool.annotators],
        config.training.corpora,
    )

    def draw_tasks(step: int) -> TaskArrays:
        return task_arrays(
            sample_tasks(
                pool,
                seed=config.training.seed,
                step=step,
                tasks=config.meta.tasks,
                support_songs=config.meta.support_songs,
                query_songs=config.meta.query_songs,
                kind=config.meta.task_kind,
                rates=rates,
            )
        )

    return draw_tasks


def _draw_songs(
    songs: np.ndarray,
    windows: np.ndarray,
    counts: np.ndarray,
    until: np.ndarray,
    config: RunConfig,
    step: int,
) -> WindowArrays:
    """Epochs of shuffled songs, and one of each one's windows `[songs, W]`, of which it has `counts`.

    `until` `[songs]` are the songs' weights, added up and scaled to end at 1. In an epoch a song comes as often as its weight is
    to the mean weight, rounded up or down: once, where all are alike.
    """
    batch = config.training.batch_songs
    places = np.arange((step - 1) * batch, step * batch)
    drawn = np.empty(batch, np.int32)
    for epoch in np.unique(places // len(songs)):
        keys = uniform_stream(config.training.seed, 1, int(epoch))
        order = np.argsort(keys.random(len(songs)), kind="stable")
        lot = (np.arange(len(songs)) + keys.random()) / len(songs)  # systematic sampling
        epoch_songs = np.minimum(np.searchsorted(until, lot, side="right"), len(songs) - 1)
        here = places // len(songs) == epoch
        drawn[here] = epoch_songs[order[places[here] % len(songs)]]
    share = uniform_stream(config.training.seed, 2, step).random(batch)
    place = (share * counts[drawn]).astype(np.int32)
    return WindowArrays(songs[drawn].astype(np.int32), windows[drawn, place])


def batches(
    corpus: Corpus,
    target: np.ndarray,
    device: DeviceCorpus,
    draw: Draw,
    start: int,
    stop: int,
    together: int = 1,
) -> Iterator[tuple[DeviceCorpus, Drawn]]:
    """What the steps from `start` on receive, `together` steps an item (the last may have fewer).

    Args:
      corpus: where from.
      target: `[n, 2]`, the curve of DMER.
      device: the whole corpus on the device; used where its features are in memory.
      draw: see :func:`drawing`.
      start: first step.
      stop: one past the last.
      together: steps in one item.
    """

    def several(first: int) -> Drawn:
        drawn = [draw(step) for step in range(first, min(first + together, stop))]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *drawn)

    if corpus.log_mel is not None:
        return ((device, several(first)) for first in range(start, stop, together))
    import grain

    options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
    firsts = grain.MapDataset.range(start, stop, together)
    excerpts = firsts.map(lambda first: _excerpt_of(corpus, target, several(int(first))))
    return iter(excerpts.to_iter_dataset(options))


def _excerpt_of(corpus: Corpus, target: np.ndarray, drawn: Drawn) -> tuple[DeviceCorpus, Drawn]:
    """Only the windows of these steps, and where in them each step's are."""
    if isinstance(drawn, WindowArrays):
        here = excerpt(corpus, target, drawn.song.reshape(-1), drawn.window.reshape(-1))
        places = here.rating_song.reshape(drawn.song.shape)
        return here, WindowArrays(places, np.zeros_like(drawn.window))

    def flat(name: str) -> np.ndarray:
        both = (getattr(drawn, f"support{name}"), getattr(drawn, f"query{name}"))
        return np.concatenate([indices.reshape(-1) for indices in both])

    here = excerpt(corpus, target, flat("_song"), flat("_window"), flat(""))
    index = np.split(np.arange(len(here.song_steps), dtype=np.int32), [drawn.support.size])
    places = {}
    for name, entries in zip(("support", "query"), index, strict=True):
        old = getattr(drawn, name)
        entries = entries.reshape(old.shape)
        places[name] = np.where(old >= 0, entries, -1)
        places[f"{name}_song"] = entries
        places[f"{name}_window"] = np.zeros_like(entries)
    return here, TaskArrays(**places)


def excerpt(
    corpus: Corpus,
    target: np.ndarray,
    song: np.ndarray,
    window: np.ndarray,
    rating: np.ndarray | None = None,
) -> DeviceCorpus:
    """Windows as a corpus of their own: entry `i` is song `i`, its only window and rating.

    Args:
      corpus: where from; features are read from its shards.
      target: `[n, 2]`, the curve of DMER.
      song: `[k]`.
      window: `[k]`, which window of the song.
      rating: `[k]`, whose curve is the label; below 0 marks padding. None: `target` is.

    Returns:
      `k` songs of :func:`~dsaml_jax.corpus.window_steps` rows each, in numpy arrays of one shape for every step.
    """
    count, length = len(song), window_steps(corpus)
    config = corpus.features
    per_step = config.embedding_per == "step"
    rows_each = length if per_step else 1
    log_mel = np.zeros((count, length, config.frames, config.mel_bands), config.dtype)
    embedding = np.zeros((count, rows_each, config.embedding_width), np.float32)
    targets = np.full((count, length, 2), np.nan, np.float32)
    ratings = np.full((count, length, 2), np.nan, np.float32)
    steps = np.zeros(count, np.int32)
    used = np.unique(song)
    features = dict(zip(used.tolist(), corpus.store.read(used.tolist()), strict=True))
    for i in range(count):
        patches, embeddings = features[int(song[i])]
        first = int(corpus.window_start[corpus.window_first[song[i]] + window[i]])
        last = min(first + length, len(patches))
        steps[i] = last - first
        log_mel[i, : steps[i]] = patches[first:last]
        rows = embeddings[first:last] if per_step else embeddings[window[i]][None]
        embedding[i, : len(rows)] = rows
        start = corpus.song_start[song[i]]
        targets[i, : steps[i]] = target[start + first : start + last]
        if rating is not None and rating[i] >= 0:
            start = corpus.rating_first[rating[i]]
            ratings[i, : steps[i]] = corpus.ratings[start + first : start + last]
    index = np.arange(count, dtype=np.int32)
    return DeviceCorpus(
        log_mel=log_mel.reshape(-1, config.frames, config.mel_bands),
        embedding=embedding.reshape(-1, config.embedding_width),
        target=targets.reshape(-1, 2),
        ratings=ratings.reshape(-1, 2),
        feature_start=index * length,
        song_start=index * length,
        song_steps=steps,
        window_first=index,
        window_count=np.ones(count, np.int32),
        window_start=np.zeros(count, np.int32),
        embedding_first=index * rows_each,
        rating_song=index,
        rating_first=index * length,
        per_step=per_step,
        window_steps=length,
    )
