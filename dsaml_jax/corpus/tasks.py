"""Annotator tasks: which songs of whom, as a pure function of (pool, seed, step).

A task is a person: support and query are different songs that the *same* annotator rated. All randomness is
uniform doubles of a counter-seeded PCG64, ordered by `argsort`, so the order of calls, the number of devices
and the version of numpy's distributions do not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from data_prep.shards import Corpus
from dsaml_jax.corpus.windows import labelled_windows
from dsaml_jax.errors import UsageError

SUPPORT_WINDOWS = 4
"""Most windows of one support song that adaptation reads outside training: in evaluating, and for a person's own song."""


@dataclasses.dataclass(frozen=True)
class TaskPool:
    """Who can make tasks.

    Attributes:
      annotators: `[A]` indices of the people in the pool.
      ratings: `[A, K]` int32 indices of each one's ratings, -1 beyond `counts`.
      counts: `[A]`.
      songs: `[R]` song of every rating of the corpus.
      windows: `[R, W]` int32 windows of each rating that may be drawn, in order; -1 beyond `window_counts`.
      window_counts: `[R]`.
      excluded: `[X, 2]` people with too few songs, and how many they have.
    """

    annotators: np.ndarray
    ratings: np.ndarray
    counts: np.ndarray
    songs: np.ndarray
    windows: np.ndarray
    window_counts: np.ndarray
    excluded: np.ndarray

    def only(self, kept: np.ndarray) -> TaskPool:
        """The same with some of the people: `kept` is `[A]` bool."""
        return dataclasses.replace(
            self,
            annotators=self.annotators[kept],
            ratings=self.ratings[kept],
            counts=self.counts[kept],
        )


@dataclasses.dataclass(frozen=True)
class TaskBatch:
    """Tasks as indices. Padding is rating -1 (with song 0 and window 0).

    Attributes:
      annotator: `[tasks]`; -1 where a task mixes people.
      support: `[tasks, S]` rating indices; `support_song`, `support_window` likewise.
      query: `[tasks, Q]`; `query_song`, `query_window` likewise.
    """

    annotator: np.ndarray
    support: np.ndarray
    support_song: np.ndarray
    support_window: np.ndarray
    query: np.ndarray
    query_song: np.ndarray
    query_window: np.ndarray


def make_pool(
    ratings: np.ndarray,
    rating_annotator: np.ndarray,
    rating_song: np.ndarray,
    drawable: np.ndarray,
    *,
    min_songs: int,
) -> TaskPool:
    """Groups ratings by annotator; those without a window that may be drawn are left out.

    Args:
      ratings: indices of the ratings of this part of the corpus.
      rating_annotator: `[R]` annotator of every rating of the corpus.
      rating_song: `[R]` song of every rating.
      drawable: `[R, W]` which windows of every rating may be drawn; see
        :func:`dsaml_jax.corpus.labelled_windows`.
      min_songs: people with fewer ratings here go to `excluded`.

    Raises:
      UsageError: nobody has enough songs.
    """
    windows, window_counts = in_front(drawable)
    ratings = ratings[window_counts[ratings] > 0]
    people, counts = np.unique(rating_annotator[ratings], return_counts=True)
    enough = counts >= min_songs
    if not enough.any():
        most = int(counts.max()) if len(counts) else 0
        fewer = f"--set meta.min_songs={most} takes those who have, or " if most > 1 else ""
        raise UsageError(
            f"no annotator has {min_songs} songs here (the most is {most}); {fewer}prepare more songs"
        )
    kept, kept_counts = people[enough], counts[enough]
    table = np.full((len(kept), kept_counts.max()), -1, np.int32)
    for row, person in enumerate(kept):
        table[row, : kept_counts[row]] = np.sort(ratings[rating_annotator[ratings] == person])
    return TaskPool(
        annotators=kept,
        ratings=table,
        counts=kept_counts,
        songs=rating_song,
        windows=windows,
        window_counts=window_counts,
        excluded=np.stack([people[~enough], counts[~enough]], axis=-1),
    )


def in_front(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the chosen places of each row, and how many: `[R, W]` bool to `[R, W]`, `[R]` int32.

    Beyond the count stands -1.
    """
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    counts = chosen.sum(axis=1).astype(np.int32)
    return np.where(np.arange(chosen.shape[1]) < counts[:, None], order, -1), counts


def uniform_stream(seed: int, *stream: int) -> np.random.Generator:
    """An independent generator for every (seed, numbers), the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, *stream))))


def _padded(ratings: np.ndarray, width: int) -> np.ndarray:
    """Cuts or fills with -1 to `[tasks, width]`."""
    short = max(0, width - ratings.shape[1])
    return np.pad(ratings, ((0, 0), (0, short)), constant_values=-1)[:, :width]


def _batch(
    pool: TaskPool,
    annotator: np.ndarray,
    support: np.ndarray,
    query: np.ndarray,
    draw: np.random.Generator | None,
) -> TaskBatch:
    """Adds songs, and windows: drawn, or the first where `draw` is None."""

    def song_and_window(ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        songs = np.where(ratings >= 0, pool.songs[ratings], 0).astype(np.int32)
        share = draw.random(ratings.shape) if draw else np.zeros(ratings.shape)
        place = (share * pool.window_counts[ratings]).astype(np.int32)
        window = np.where(ratings >= 0, pool.windows[ratings, place], 0)
        return songs, window.astype(np.int32)

    return TaskBatch(
        annotator.astype(np.int32),
        support.astype(np.int32),
        *song_and_window(support),
        query.astype(np.int32),
        *song_and_window(query),
    )


def sample_tasks(
    pool: TaskPool,
    *,
    seed: int,
    step: int,
    tasks: int,
    support_songs: int,
    query_songs: int,
    kind: str = "annotator",
    rates: np.ndarray | None = None,
) -> TaskBatch:
    """Tasks of one meta-step.

    Args:
      pool: who.
      seed: of the run.
      step: of the run; each has its own draw.
      tasks: how many. Nobody comes twice unless there are more tasks than people.
      support_songs: `S`.
      query_songs: `Q` at most; people with fewer songs are padded.
      kind: `annotator`; or `random`: each task takes songs at random, and for each song somebody who rated
        it, so that support and query are by different people.
      rates: `[A]` above 0: how often each of the pool is drawn, one to the other; None: everybody alike.
    """
    draw = uniform_stream(seed, step)
    if kind == "random":
        return _random_tasks(pool, draw, tasks, support_songs, query_songs)
    rounds = -(-tasks // len(pool.annotators))
    # A race of exponential clocks draws without replacement; with equal rates it has the order of the uniforms.
    clocks = -np.log1p(-draw.random((rounds, len(pool.annotators))))
    order = np.argsort(clocks / (1.0 if rates is None else rates), axis=1, kind="stable")
    who = order.reshape(-1)[:tasks]
    keys = draw.random((tasks, pool.ratings.shape[1]))
    keys[pool.ratings[who] < 0] = 2.0  # padding sorts last
    shuffled = np.take_along_axis(pool.ratings[who], np.argsort(keys, axis=1, kind="stable"), 1)
    support = shuffled[:, :support_songs]
    query = _padded(shuffled[:, support_songs:], query_songs)
    return _batch(pool, pool.annotators[who], support, query, draw)


def _random_tasks(
    pool: TaskPool, draw: np.random.Generator, tasks: int, support_songs: int, query_songs: int
) -> TaskBatch:
    everything = pool.ratings[pool.ratings >= 0]
    chosen = np.full((tasks, support_songs + query_songs), -1, np.int32)
    for task in range(tasks):
        shuffled = everything[np.argsort(draw.random(len(everything)), kind="stable")]
        _, first = np.unique(pool.songs[shuffled], return_index=True)  # one rating per song
        mixed = shuffled[np.sort(first)][: chosen.shape[1]]
        chosen[task, : len(mixed)] = mixed
    support, query = chosen[:, :support_songs], chosen[:, support_songs:]
    return _batch(pool, np.full(tasks, -1), support, query, draw)


def evaluation_tasks(
    pool: TaskPool,
    *,
    supports: int,
    support_songs: int = 1,
    most: int | None = None,
    others: Mapping[int, np.ndarray] | None = None,
    recording: np.ndarray | None = None,
) -> TaskBatch:
    """For every annotator, `supports` tasks that each adapt on other songs of theirs.

    The query is all the songs of the pool whose recording is not in the support. Of a long support song up to
    :data:`SUPPORT_WINDOWS` windows are used, evenly spread.

    Args:
      pool: who; everyone has more than `support_songs` songs, with those of `others`.
      supports: tasks per annotator, as far as they have songs. Which songs those are is fixed, so
        that every run is judged on the same tasks.
      support_songs: `S`.
      most: cap on the tasks in all, evenly spread.
      others: annotator -> ratings that may be adapted to but are not asked about; they are taken first.
      recording: `[N]` a number for what each song of the corpus is a recording of; None: each of its own.
    """
    heard = pool.songs if recording is None else recording[pool.songs]  # [R]
    keys = uniform_stream(0, 2**31).random(pool.ratings.shape)
    keys[pool.ratings < 0] = 2.0
    shuffled = np.take_along_axis(pool.ratings, np.argsort(keys, axis=1, kind="stable"), 1)
    chosen: list[tuple[int, np.ndarray, np.ndarray]] = []
    for person, annotator in enumerate(pool.annotators.tolist()):
        asked = shuffled[person, : pool.counts[person]]
        first = np.zeros(0, np.int32) if others is None else others.get(annotator, asked[:0])
        line = np.concatenate([first, asked])
        for i in range(min(supports, len(line))):
            rolled = np.roll(line, -i)
            support, rest = rolled[:support_songs], rolled[support_songs:]
            query = rest[np.isin(rest, asked) & ~np.isin(heard[rest], heard[support])]
            if len(query):
                chosen.append((person, support, query))
    if most is not None and len(chosen) > most:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, most).round().astype(int)]
    width = max(len(query) for *_, query in chosen)
    who = np.array([person for person, *_ in chosen])
    support = np.stack([support for _, support, _ in chosen])
    query = np.concatenate([_padded(query[None], width) for *_, query in chosen])
    batch = _batch(pool, pool.annotators[who], support, query, draw=None)
    return _with_all_support_windows(pool, batch)


def _with_all_support_windows(pool: TaskPool, batch: TaskBatch) -> TaskBatch:
    """One support entry per window of each support song; songs with fewer windows are padded."""
    place = evenly_spread(pool.window_counts[batch.support])
    real = place >= 0
    window = pool.windows[batch.support[..., None], np.where(real, place, 0)]
    shape = (len(batch.support), -1)
    return dataclasses.replace(
        batch,
        support=np.where(real, batch.support[..., None], -1).reshape(shape),
        support_song=np.where(real, batch.support_song[..., None], 0).reshape(shape),
        support_window=np.where(real, window, 0).reshape(shape),
    )


def evenly_spread(counts: np.ndarray) -> np.ndarray:
    """Which of so many windows `[...]` a support song is read by: `[..., slots]` places, -1 beyond those there are."""
    counts = counts[..., None]
    slot = np.arange(min(SUPPORT_WINDOWS, int(counts.max())))
    used = np.minimum(counts, len(slot))
    place = np.round(slot * (counts - 1) / np.maximum(used - 1, 1)).astype(np.int32)
    return np.where(slot < used, place, -1)


def same_song_tasks(pool: TaskPool, *, most: int | None = None) -> TaskBatch:
    """Protocol `reference`: adapt on the first labelled 30 s of a song, be judged on the same song."""
    ratings = pool.ratings[pool.ratings >= 0]
    who = np.repeat(pool.annotators, pool.counts)
    if most is not None and len(ratings) > most:
        picked = np.linspace(0, len(ratings) - 1, most).round().astype(int)
        ratings, who = ratings[picked], who[picked]
    return _batch(pool, who, ratings[:, None], ratings[:, None], draw=None)


def pool_of(corpus: Corpus, ratings: np.ndarray, *, min_songs: int) -> TaskPool:
    """Who can make tasks of these ratings; see :func:`make_pool`."""
    return make_pool(
        ratings,
        corpus.rating_annotator,
        corpus.rating_song,
        labelled_windows(corpus, corpus.rating_song, corpus.rating_first, corpus.ratings),
        min_songs=min_songs,
    )
