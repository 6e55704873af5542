"""What is to be predicted of a held-out part of a corpus, and what is true."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from data_prep.curves import labelled_mean
from data_prep.shards import Corpus
from dsaml_jax.base import WINDOW_STEPS
from dsaml_jax.corpus import (
    DeviceCorpus,
    consensus_target,
    held_out,
    pool_of,
    require_annotators,
    to_device,
)
from dsaml_jax.errors import UsageError
from dsaml_jax.evaluation.scores import labelled
from dsaml_jax.tasks import TaskBatch, evaluation_tasks, same_song_tasks

Protocol = Literal["clean", "reference"]
PartName = Literal["validation", "test"]

SUPPORTS_PER_ANNOTATOR = 16


@dataclasses.dataclass(frozen=True)
class Trial:
    """Curves to predict. `...` is `[songs]` of DMER, `[tasks, Q]` of PDMER; `n` the steps of the longest song.

    Attributes:
      corpus: where they are from.
      device: its features on the device.
      song: `[...]` which song, 0 where padded.
      truth: `[..., n, 2]`, NaN beyond the song, where nothing was drawn, and where padded.
      constant: `[2]` mean of the labels of training.
      shape: static sizes that hold every song here: steps, windows.
      tasks: of PDMER; else None.
      excluded: annotators that have too few songs.
    """

    corpus: Corpus
    device: DeviceCorpus
    song: np.ndarray
    truth: np.ndarray
    constant: np.ndarray
    shape: tuple[int, int]
    tasks: TaskBatch | None = None
    excluded: int = 0

    @property
    def listeners(self) -> TaskBatch:
        """The tasks of a trial that has them."""
        assert self.tasks is not None
        return self.tasks

    @property
    def asked(self) -> np.ndarray:
        """Every song that is asked about, each once, sorted; what pads is no song."""
        return np.unique(self.song if self.tasks is None else self.song[self.tasks.query >= 0])

    @property
    def songs(self) -> np.ndarray:
        """Every song that is asked about or adapted to, each once, sorted."""
        if self.tasks is None:
            return self.asked
        return np.union1d(self.asked, self.support_songs)

    @property
    def support_songs(self) -> np.ndarray:
        """`[tasks, S]` the distinct support songs of each task, in order."""
        songs, ratings = self.listeners.support_song, self.listeners.support
        rows = [
            list(dict.fromkeys(song[rating >= 0].tolist()))
            for song, rating in zip(songs, ratings, strict=True)
        ]
        return np.array(rows, np.int32)

    @property
    def support_truth(self) -> np.ndarray:
        """What adaptation sees of each support song: `[tasks, S, n, 2]`, NaN outside its windows."""
        tasks, corpus, songs = self.listeners, self.corpus, self.support_songs
        target = np.full((*songs.shape, self.shape[0], 2), np.nan, np.float32)
        for task, places in enumerate(songs):
            for rating, song, window in zip(
                tasks.support[task], tasks.support_song[task], tasks.support_window[task],
                strict=True,
            ):  # fmt: skip
                if rating < 0:
                    continue
                start = corpus.window_start[corpus.window_first[song] + window]
                end = min(start + WINDOW_STEPS, corpus.song_steps[song])
                first = corpus.rating_first[rating]
                place = int(np.flatnonzero(places == song)[0])
                target[task, place, start:end] = corpus.ratings[first + start : first + end]
        return target

    def with_shots(self, shots: int) -> Trial:
        """The same queries, with only the first `shots` support songs of each task."""
        tasks = self.listeners
        there = tasks.support.shape[1] * shots // self.support_songs.shape[1]
        fewer = {
            name: getattr(tasks, name)[:, :there]
            for name in ("support", "support_song", "support_window")
        }
        return dataclasses.replace(self, tasks=dataclasses.replace(tasks, **fewer))

    def labels(self) -> list[dict[str, str]]:
        """Whose curve of what song each labelled one is, and what was adapted to."""
        corpus, kept = self.corpus, labelled(self.truth)
        if self.tasks is None:
            return [
                {"annotator": "", "support": "", "song": corpus.song_ids[song]}
                for song in self.song[kept]
            ]
        supports = ["+".join(corpus.song_ids[song] for song in row) for row in self.support_songs]
        return [
            {
                "annotator": corpus.annotator_ids[self.tasks.annotator[task]],
                "support": supports[task],
                "song": corpus.song_ids[self.song[task, place]],
            }
            for task, place in np.argwhere(kept)
        ]


def agreed_trial(corpus: Corpus, part: PartName, device: DeviceCorpus | None = None) -> Trial:
    """DMER: the mean curve of each song of a part.

    Args:
      corpus: where from.
      part: its songs. The curve of a validation song leaves out who is held out for the test.
      device: features that are there already.

    Raises:
      UsageError: the part has no songs.
    """
    parts = held_out(corpus)
    songs = parts[part].songs
    _require_songs(songs, part)
    target = corpus.mean if part == "test" else consensus_target(corpus, parts[part])
    shape = _padded_shape(corpus, songs)
    training = np.isin(_rows(corpus.song_steps), parts["train"].songs)
    return Trial(
        corpus=corpus,
        device=device or to_device(corpus, corpus.mean, songs),
        song=songs.astype(np.int32),
        truth=_targets(corpus, corpus.song_start[songs], songs, target, shape[0]),
        constant=labelled_mean(corpus.mean[training]),
        shape=shape,
    )


def listener_trial(
    corpus: Corpus,
    part: PartName,
    *,
    protocol: Protocol = "clean",
    shots: int = 1,
    supports: int = SUPPORTS_PER_ANNOTATOR,
    most: int | None = None,
    device: DeviceCorpus | None = None,
) -> Trial:
    """PDMER: what each annotator of a part drew, after seeing `shots` of their songs.

    Args:
      corpus: where from.
      part: whose.
      protocol: see :mod:`dsaml_jax.evaluation`.
      shots: support songs; the protocol `reference` has one.
      supports: tasks of each annotator, as far as they have songs.
      most: cap on all tasks.
      device: features that are there already.

    Raises:
      UsageError: the part has no songs, or no annotators, or none with enough songs.
    """
    parts = held_out(corpus)
    part_here = parts[part]
    _require_songs(part_here.songs, part)
    require_annotators(part_here, part)
    if protocol == "clean":
        pool = pool_of(corpus, part_here.ratings, min_songs=shots + 1)
        tasks = evaluation_tasks(pool, supports=supports, support_songs=shots, most=most)
    else:
        pool = pool_of(corpus, part_here.all_ratings, min_songs=1)
        tasks = same_song_tasks(pool, most=most)
    shape = _padded_shape(corpus, np.union1d(tasks.query_song, tasks.support_song))
    training = np.isin(_rows(corpus.song_steps[corpus.rating_song]), parts["train"].ratings)
    return Trial(
        corpus=corpus,
        device=device or to_device(corpus, corpus.mean, part_here.songs),
        song=tasks.query_song,
        truth=_query_targets(corpus, tasks, shape[0]),
        constant=labelled_mean(corpus.ratings[training]),
        shape=shape,
        tasks=tasks,
        excluded=len(pool.excluded),
    )


def _require_songs(songs: np.ndarray, part: str) -> None:
    if not len(songs):
        raise UsageError(f"the corpus has no {part} songs; prepare more songs (at least 3)")


def _rows(lengths: np.ndarray) -> np.ndarray:
    """Which of the pieces of these lengths each row belongs to."""
    return np.repeat(np.arange(len(lengths)), lengths)


def _padded_shape(corpus: Corpus, songs: np.ndarray) -> tuple[int, int]:
    return int(corpus.song_steps[songs].max()), int(corpus.window_count[songs].max())


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
    known = np.maximum(flat, 0)
    target = _targets(
        corpus, corpus.rating_first[known], corpus.rating_song[known], corpus.ratings, length
    )
    target[flat < 0] = np.nan
    return target.reshape(*tasks.query.shape, length, 2)
