"""What is to be predicted of a held-out part of a corpus, and what is true."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from data_prep.base import WINDOW_STEPS
from data_prep.curves import labelled_mean
from data_prep.shards import Corpus
from dsaml_jax.corpus import (
    OWN_SPLIT,
    DeviceCorpus,
    Fold,
    Part,
    TaskBatch,
    TaskPool,
    consensus_target,
    evaluation_tasks,
    held_out,
    labelled_windows,
    pool_of,
    recordings,
    same_song_tasks,
    to_device,
    uniform_stream,
)
from dsaml_jax.errors import UsageError
from dsaml_jax.evaluation.scores import Unit, labelled

Protocol = Literal["clean", "reference"]
PartName = Literal["validation", "test"]

SUPPORTS_PER_ANNOTATOR = 16


@dataclasses.dataclass(frozen=True)
class Judging:
    """What a trial will judge, known before any training.

    Attributes:
      part: of the corpus.
      fold: who is held out.
      songs: how many are asked about.
      people: how many are judged; 0 for DMER.
      songs_of_person: how many each of them is asked about.
      tasks: adaptations.
      curves: predictions that are scored.
      left_out: reason -> how many people.
      notes: what else is to be said, one line each.
    """

    part: str
    fold: Fold
    songs: int
    people: int = 0
    songs_of_person: tuple[int, ...] = ()
    tasks: int = 0
    curves: int = 0
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def largest_share(self) -> float:
        """Of all songs, summed over people, those of the person with most."""
        return max(self.songs_of_person, default=0) / max(sum(self.songs_of_person), 1)

    def lines(self) -> list[str]:
        """For people."""
        if not self.people:
            return [f"{self.part} ({self.fold}): the mean curves of {self.songs} songs"]
        counts = np.array(self.songs_of_person)
        left = [f"{count} people left out: {why}" for why, count in self.left_out.items() if count]
        return [
            f"{self.part} ({self.fold}): {self.people} people, {counts.min()} to {counts.max()} songs each (median "
            f"{np.median(counts):g}), {self.songs} songs, {self.tasks} adaptations, {self.curves} curves; one person has "
            f"{self.largest_share:.0%} of the songs, and counts as one",
            *(f"{self.part}: {line}" for line in [*left, *self.notes]),
        ]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Curves to predict. `...` is `[songs]` of DMER, `[tasks, Q]` of PDMER; `n` the steps of the longest song.

    Attributes:
      corpus: where they are from.
      device: its features on the device.
      song: `[...]` which song, 0 where padded.
      truth: `[..., n, 2]`, NaN beyond the song, where nothing was drawn, and where padded.
      constant: `[2]` mean of the labels of training; where the model is of another corpus, of the labels here.
      shape: static sizes that hold every song here: steps, windows.
      judging: what is judged, in numbers.
      tasks: of PDMER; else None.
    """

    corpus: Corpus
    device: DeviceCorpus
    song: np.ndarray
    truth: np.ndarray
    constant: np.ndarray
    shape: tuple[int, int]
    judging: Judging
    tasks: TaskBatch | None = None

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
    def support_ratings(self) -> np.ndarray:
        """`[tasks, S]` the ratings that each task adapts to, one for each of its songs, in order."""
        rows = [list(dict.fromkeys(row[row >= 0].tolist())) for row in self.listeners.support]
        return np.array(rows, np.int32)

    @property
    def support_songs(self) -> np.ndarray:
        """`[tasks, S]` the songs of those ratings."""
        return self.corpus.rating_song[self.support_ratings].astype(np.int32)

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

    def units(self) -> list[Unit]:
        """Whose each labelled curve is and of what song, or of DMER which song's: what means are over."""
        return [
            (label["annotator"], label["song"]) if label["annotator"] else (label["song"], "")
            for label in self.labels()
        ]

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


def judged_corpora(corpus: Corpus, task: str) -> tuple[Corpus, ...]:
    """The corpora that are judged, each by itself: of `pdmer` those with ratings by single people, where any have them."""
    rated = tuple(one for one in corpus.each if one.annotator_ids)
    return rated if rated and task == "pdmer" else corpus.each


def agreed_trial(
    corpus: Corpus, part: PartName, device: DeviceCorpus | None = None, *, fold: Fold = OWN_SPLIT
) -> Trial:
    """DMER: the mean curve of each song of a part.

    Args:
      corpus: where from.
      part: its songs. The curve of a validation song leaves out who is held out for the test.
      device: features that are there already.
      fold: who is held out.

    Raises:
      UsageError: the part has no songs with labels.
    """
    parts = held_out(corpus, fold)
    songs = parts[part].songs
    judging = agreed_judging(corpus, part, fold=fold)
    target = corpus.mean if part == "test" else consensus_target(corpus, parts[part])
    shape = _padded_shape(corpus, songs)
    known = parts["test" if fold.whole else "train"]
    training = np.isin(_rows(corpus.song_steps), known.songs)
    return Trial(
        corpus=corpus,
        device=device or to_device(corpus, corpus.mean, songs),
        song=songs.astype(np.int32),
        truth=_targets(corpus, corpus.song_start[songs], songs, target, shape[0]),
        constant=labelled_mean(consensus_target(corpus, known)[training]),
        shape=shape,
        judging=judging,
    )


def agreed_judging(corpus: Corpus, part: PartName, *, fold: Fold = OWN_SPLIT) -> Judging:
    """What :func:`agreed_trial` judges, or the error it ends with."""
    here = held_out(corpus, fold)[part]
    _require_songs(here.songs, part)
    target = corpus.mean if part == "test" else consensus_target(corpus, here)
    known = _rows(corpus.song_steps)[np.isfinite(target).any(axis=-1)]
    count = len(np.intersect1d(here.songs, known))
    if not count:
        raise UsageError(
            f"no song of the {part} part ({fold}) has a mean curve of people who are not held out later"
        )
    return Judging(part, fold, songs=count, curves=count)


def listener_trial(
    corpus: Corpus,
    part: PartName,
    *,
    protocol: Protocol = "clean",
    shots: int = 1,
    supports: int = SUPPORTS_PER_ANNOTATOR,
    most: int | None = None,
    device: DeviceCorpus | None = None,
    fold: Fold = OWN_SPLIT,
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
      fold: who is held out.

    Raises:
      UsageError: nobody can be judged, and why.
    """
    judging, tasks = listener_judging(
        corpus, part, protocol=protocol, shots=shots, supports=supports, most=most, fold=fold
    )
    parts = held_out(corpus, fold)
    used = np.union1d(tasks.query_song, tasks.support_song)
    shape = _padded_shape(corpus, used)
    known = parts["test" if fold.whole else "train"]
    training = np.isin(_rows(corpus.song_steps[corpus.rating_song]), known.ratings)
    trial = Trial(
        corpus=corpus,
        device=device or to_device(corpus, corpus.mean, used),
        song=tasks.query_song,
        truth=_query_targets(corpus, tasks, shape[0]),
        constant=labelled_mean(corpus.ratings[training]),
        shape=shape,
        tasks=tasks,
        judging=judging,
    )
    if protocol == "reference":  # what adaptation saw is not judged, where something else is left
        long = _is_long(corpus, tasks.query_song)[..., None]
        trial.truth[:, 0][np.isfinite(trial.support_truth[:, 0]) & long] = np.nan
    return trial


def listener_judging(
    corpus: Corpus,
    part: PartName,
    *,
    protocol: Protocol = "clean",
    shots: int = 1,
    supports: int = SUPPORTS_PER_ANNOTATOR,
    most: int | None = None,
    fold: Fold = OWN_SPLIT,
) -> tuple[Judging, TaskBatch]:
    """Who is judged in :func:`listener_trial`, and by what tasks; arguments and errors as there."""
    here = held_out(corpus, fold)[part]
    _require_songs(here.songs, part)
    ratings = here.ratings if protocol == "clean" else _with_a_rest(corpus, here.all_ratings)
    if not len(ratings):
        raise UsageError(_nobody(corpus, part, protocol, fold))
    pool = pool_of(corpus, ratings, min_songs=1)
    notes: list[str] = []
    if protocol == "clean":
        others = _others(pool, corpus, here)
        enough = np.array(
            [
                count + len(others[who]) > shots
                for who, count in zip(pool.annotators.tolist(), pool.counts, strict=True)
            ]
        )
        if not enough.any():
            raise UsageError(
                f"nobody of the {part} part ({fold}) has {shots + 1} songs, one to be judged and {shots} to adapt to"
            )
        there = np.unique(corpus.rating_annotator[here.support])
        left_out = {
            "none of their songs is in this part": len(np.setdiff1d(there, pool.annotators)),
            f"fewer than {shots + 1} songs, {shots} to adapt to and one to be judged": int(
                (~enough).sum()
            ),
        }
        pool = pool.only(enough)
        tasks = evaluation_tasks(
            pool, supports=supports, support_songs=shots, most=most, others=others,
            recording=recordings(corpus),
        )  # fmt: skip
    else:
        left_out = {}
        tasks = same_song_tasks(pool, most=most)
        songs = np.unique(tasks.query_song)
        short = int((~_is_long(corpus, songs)).sum())
        if short:
            notes.append(
                f"{short} of {len(songs)} songs are no longer than the 30 s that are adapted to: judged on them"
            )
    kept = tasks.query >= 0
    who = np.repeat(tasks.annotator, kept.sum(axis=1))
    asked = np.unique(np.stack([who, tasks.query[kept]]), axis=1)
    people, counts = np.unique(asked[0], return_counts=True)
    judging = Judging(
        part,
        fold,
        songs=len(np.unique(tasks.query_song[kept])),
        people=len(people),
        songs_of_person=tuple(counts.tolist()),
        tasks=len(tasks.annotator),
        curves=int(kept.sum()),
        left_out=left_out,
        notes=tuple(notes),
    )
    return judging, tasks


def _nobody(corpus: Corpus, part: str, protocol: Protocol, fold: Fold) -> str:
    if not len(corpus.rating_song):
        return (
            f"{corpus.name} has no ratings by single annotators, which PDMER needs; train with --task dmer, or "
            "prepare a corpus with annotations per rater"
        )
    whose = "its annotators for its songs" if protocol == "clean" else "anybody for its songs"
    mend = (
        "another --folds"
        if fold.folds
        else "--folds 5 --fold 0, which deals people and songs together"
    )
    return f"the {part} part ({fold}) has no ratings by {whose}: nothing to judge; try {mend}"


def _others(pool: TaskPool, corpus: Corpus, part: Part) -> dict[int, np.ndarray]:
    """Annotator -> their ratings that may be adapted to and are not in the pool, in a fixed order."""
    rest = np.setdiff1d(part.support, part.ratings)
    rest = rest[pool.window_counts[rest] > 0].astype(np.int32)
    rest = rest[np.argsort(uniform_stream(1, 2**31).random(len(corpus.rating_song))[rest])]
    who = corpus.rating_annotator[rest]
    return {person: rest[who == person] for person in pool.annotators.tolist()}


def _with_a_rest(corpus: Corpus, ratings: np.ndarray) -> np.ndarray:
    """Without the ratings of long songs that say nothing outside the window that is adapted to."""
    drawable = labelled_windows(corpus, corpus.rating_song, corpus.rating_first, corpus.ratings)
    kept = []
    for rating in ratings[drawable[ratings].any(axis=1)].tolist():
        song, first = corpus.rating_song[rating], corpus.rating_first[rating]
        window = corpus.window_first[song] + int(np.argmax(drawable[rating]))
        begin = int(corpus.window_start[window])
        known = np.isfinite(corpus.ratings[first : first + corpus.song_steps[song]]).any(axis=-1)
        known[begin : begin + WINDOW_STEPS] = False
        if known.any() or not _is_long(corpus, song):
            kept.append(rating)
    return np.array(kept, ratings.dtype)


def _is_long(corpus: Corpus, song: np.ndarray) -> np.ndarray:
    """Whether something of a song is left after the window that the protocol `reference` adapts to."""
    return corpus.song_steps[song] > WINDOW_STEPS


def _require_songs(songs: np.ndarray, part: str) -> None:
    if not len(songs):
        raise UsageError(
            f"the corpus has no {part} songs; prepare more songs (at least 3), or, where a run held "
            "nothing out (training.folds=1), judge it on another corpus"
        )


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
