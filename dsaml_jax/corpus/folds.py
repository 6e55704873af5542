"""Who is held out: songs and annotators are dealt to training, validation and test.

`Corpus` (numpy, from `data_prep.shards`) says what there is; :func:`held_out` deals it, by the corpus's own split or as one of several folds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_prep.base import DIMENSIONS, SPLITS, copies, deal, shuffled
from data_prep.curves import mean_curve
from data_prep.shards import Corpus
from dsaml_jax.config import Balance, TrainingConfig
from dsaml_jax.errors import UsageError

ANNOTATOR_SHARES = (0.15, 0.2)
"""Shares of the annotators held out for validation and for the test."""

FOLD_VALIDATION = 0.2
"""Share of a fold's other people, and of its other songs, that is for validation: less leaves too few of the
ratings that lie in both."""


AND = " + "
"""Between the corpora of an :func:`identity`."""


def identity(corpus: Corpus) -> str:
    """`name/features/fingerprint`, of several corpora with a plus between them: what a run was trained on."""
    return AND.join(f"{one.name}/{one.features.name}/{one.fingerprint}" for one in corpus.each)


def identities(trained_on: str) -> dict[str, str]:
    """Name -> identity of each corpus in an :func:`identity`."""
    return {one.partition("/")[0]: one for one in trained_on.split(AND)}


@dataclasses.dataclass(frozen=True)
class Fold:
    """Who is held out: by the corpus's own split, or as one of several folds over people and songs.

    Attributes:
      folds: K: annotators, and songs, are dealt into so many parts by a hash of their ids. 0: the corpus's own split.
      song_folds: where songs are dealt into another number of parts; 0: as many. Person part f meets song part
        f modulo this number.
      fold: f: which part is the test.
      everyone: as published: songs alone are held out, everybody may be trained on.
      whole: all songs and all people are the test, as they are for a model of another corpus.
    """

    folds: int = 0
    song_folds: int = 0
    fold: int = 0
    everyone: bool = False
    whole: bool = False

    @property
    def holds_out(self) -> bool:
        """Whether anything is held out: not for a model to pass on."""
        return self.folds != 1

    def __str__(self) -> str:
        if self.whole:
            return "everything, the model is of another corpus"
        if not self.folds:
            return "the corpus's own split" + (" of songs, nobody held out" * self.everyone)
        if not self.holds_out:
            return "nothing held out"
        if self.everyone:
            return (
                f"fold {self.fold} of {self.song_folds or self.folds} of the songs, nobody held out"
            )
        songs = f" (songs in {self.song_folds})" if self.song_folds else ""
        return f"fold {self.fold} of {self.folds}{songs}"


OWN_SPLIT = Fold()
WHOLE = Fold(whole=True)


def fold_of(config: TrainingConfig) -> Fold:
    """That of a run."""
    song_folds = 0 if config.song_folds == config.folds else config.song_folds
    return Fold(config.folds, song_folds, config.fold, config.protocol == "reference")


@dataclasses.dataclass(frozen=True)
class Part:
    """One of training, validation and test.

    Attributes:
      songs: indices of its songs.
      ratings: indices of the ratings *of its annotators* for its songs: the `clean` protocol.
      support: indices of the ratings of its annotators that may be adapted to.
      all_ratings: indices of everybody's ratings for its songs: the `reference` protocol.
      consensus: indices of the ratings that may decide what these songs' mean curve is: those of
        nobody who is held out for a later part.
      everyone: nobody is: the mean curve is the corpus's own.
    """

    songs: np.ndarray
    ratings: np.ndarray
    support: np.ndarray
    all_ratings: np.ndarray
    consensus: np.ndarray
    everyone: bool = False


def held_out(corpus: Corpus, fold: Fold = OWN_SPLIT) -> dict[str, Part]:
    """Deals songs and annotators to training, validation and test.

    A person is in one part only. In the test part both the songs and the annotators are unseen in
    training. Nothing but the corpus and the fold decides who is held out, so that runs of any seed can
    start from each other and be compared.

    By the corpus's own split a person adapts to songs of their part. In a fold, where few people have
    few songs, they adapt to any song but those of a later part: others' training may have seen the song,
    the person is unseen all the same.

    Several corpora are dealt each by itself, as if it were alone. A recording that is in two of them is left out of what comes
    before the part that is held out longest.

    Args:
      corpus: whose.
      fold: the corpus's own split, where annotators are dealt by a fixed shuffle of their ids; or a fold.

    Returns:
      `train`, `validation`, `test`.

    Raises:
      UsageError: a fold that does not exist, or more folds than people or songs.
    """
    song_split, person_split = _splits(corpus, fold)
    parts: dict[str, Part] = {}
    for number, split in enumerate(SPLITS):
        of_song = (song_split == split)[corpus.rating_song]
        of_person = (person_split == split)[corpus.rating_annotator] if len(of_song) else of_song
        later_person = np.isin(person_split, SPLITS[number + 1 :])[corpus.rating_annotator]
        if fold.everyone:
            of_person, later_person = np.ones_like(of_song), np.zeros_like(of_song)
        later_song = np.isin(song_split, SPLITS[number + 1 :])[corpus.rating_song]
        parts[split] = Part(
            songs=np.flatnonzero(song_split == split),
            ratings=np.flatnonzero(of_song & of_person),
            support=np.flatnonzero(of_person & (~later_song if fold.folds else of_song)),
            all_ratings=np.flatnonzero(of_song),
            consensus=np.flatnonzero(of_song & ~later_person),
            everyone=fold.everyone,
        )
    return parts


def _splits(corpus: Corpus, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    """The part of every song `[N]` and of every annotator `[A]`; empty of a song that is in none."""
    if corpus.members:
        songs, people = zip(*(_splits(one, fold) for one in corpus.members), strict=True)
        return _without_held_out(corpus, np.concatenate(songs)), np.concatenate(people)
    validation, test = ANNOTATOR_SHARES
    if fold.whole or not fold.holds_out:
        only = "test" if fold.whole else "train"
        return np.full(len(corpus.song_ids), only), np.full(len(corpus.annotator_ids), only)
    if not fold.folds:
        people = deal(corpus.annotator_ids, validation=validation, test=test)
        return corpus.split, np.array([people[x] for x in corpus.annotator_ids], dtype="<U10")
    song_folds = fold.song_folds or fold.folds
    if not 0 <= fold.fold < fold.folds:
        raise UsageError(
            f"fold {fold.fold} does not exist: {fold.folds} folds are 0 to {fold.folds - 1}"
        )
    if corpus.annotator_ids and not fold.everyone and fold.folds > len(corpus.annotator_ids):
        raise UsageError(
            f"{fold.folds} folds are more than the {len(corpus.annotator_ids)} annotators of {corpus.name}"
        )
    if song_folds > len(corpus.song_ids) or min(fold.folds, song_folds) < 2:
        raise UsageError(
            f"{fold.folds} folds of people and {song_folds} of songs: 2 to the number of either "
            f"({len(corpus.song_ids)} songs)"
        )

    def dealt(ids: Sequence[str], count: int) -> np.ndarray:
        ordered, place = shuffled(dict.fromkeys(ids)), fold.fold % count
        cut = slice(place * len(ordered) // count, (place + 1) * len(ordered) // count)
        # Validation follows the test part, so that every fold has its own.
        others = ordered[cut.stop :] + ordered[: cut.start]
        validated = others[: max(1, round(FOLD_VALIDATION * len(others)))]
        parts = dict.fromkeys(others, "train") | dict.fromkeys(validated, "validation")
        parts |= dict.fromkeys(ordered[cut], "test")
        return np.array([parts[name] for name in ids], dtype="<U10")

    first = [corpus.song_ids[number] for number in recordings(corpus)]  # copies stay together
    return dealt(first, song_folds), dealt(corpus.annotator_ids, fold.folds)


def _without_held_out(corpus: Corpus, song_split: np.ndarray) -> np.ndarray:
    """The part of every song, empty where another corpus holds the same recording out for a later part."""
    place = np.array([SPLITS.index(part) for part in song_split])
    last, recording = np.zeros(len(place), int), recordings(corpus)
    np.maximum.at(last, recording, place)
    return np.where(place == last[recording], song_split, "")


def recordings(corpus: Corpus) -> np.ndarray:
    """`[N]` for each song the index of the first one that is the same sound file."""
    copy_of = copies(dict(zip(corpus.song_ids, corpus.sounds, strict=True)))
    place = {song: number for number, song in enumerate(corpus.song_ids)}
    return np.array([place[copy_of.get(song, song)] for song in corpus.song_ids])


def dimensions(corpus: Corpus) -> tuple[str, ...]:
    """Those that anything of a corpus is labelled in."""
    known = np.isfinite(corpus.mean).any(axis=0) | np.isfinite(corpus.ratings).any(axis=0)
    return tuple(name for name, there in zip(DIMENSIONS, known, strict=True) if there)


def consensus_target(corpus: Corpus, part: Part) -> np.ndarray:
    """`[n, 2]`: what DMER learns or is validated on.

    Where nobody is held out, the corpus's own mean. Else, for songs that are known to have raters, the mean over those
    in `part.consensus` (NaN where they drew nothing, also where all were left out in reading): the corpus's own mean includes
    people who are held out. For songs whose raters nobody knows, the corpus's mean.
    """
    if part.everyone:
        return corpus.mean
    target = corpus.mean.copy()
    for song in np.flatnonzero(corpus.raters > 0):
        mine = part.consensus[corpus.rating_song[part.consensus] == song]
        start, steps = corpus.song_start[song], corpus.song_steps[song]
        curves = corpus.ratings[corpus.rating_first[mine][:, None] + np.arange(steps)]
        target[start : start + steps] = mean_curve(curves)
    return target


RATER_NOISE = 3.0
"""Variance of single raters about a song's mean level, over that between songs: 2.3 in arousal and 3.9 in valence on
DEAM (its data card). So many raters are worth half as much as all that there could be."""


def song_weights(
    corpus: Corpus, part: Part, songs: np.ndarray, balance: Balance = "proportional"
) -> np.ndarray:
    """How much each song counts in training, `[k]` above 0.

    As much as of the true mean curve is in its target: the reliability of a mean of `n` raters,
    `n / (n +` :data:`RATER_NOISE` `)`; 1 where the target is the corpus's own mean. Of several corpora as `balance` says.
    """
    return balanced(_reliability(corpus, part, songs), corpus_of_songs(corpus)[songs], balance)


def _reliability(corpus: Corpus, part: Part, songs: np.ndarray) -> np.ndarray:
    if part.everyone:
        return np.ones(len(songs))
    count = np.bincount(corpus.rating_song[part.consensus], minlength=len(corpus.song_ids))[songs]
    weight: np.ndarray = np.where(corpus.raters[songs] > 0, count / (count + RATER_NOISE), 1.0)
    return weight


def balanced(weights: np.ndarray, corpora: np.ndarray, balance: Balance) -> np.ndarray:
    """Weights `[k]` of what is from so many corpora `[k]`: as they are, or so that each corpus has the same sum."""
    if balance == "proportional" or not len(weights):
        return weights
    _, place = np.unique(corpora, return_inverse=True)
    sums = np.bincount(place, weights)
    scaled: np.ndarray = weights * (sums.mean() / sums)[place]
    return scaled


def corpus_of_songs(corpus: Corpus) -> np.ndarray:
    """`[N]` which of several corpora each song is from; 0 of one."""
    return np.repeat(np.arange(len(corpus.each)), [len(one.song_ids) for one in corpus.each])


def corpus_of_people(corpus: Corpus) -> np.ndarray:
    """`[A]` likewise of people."""
    return np.repeat(np.arange(len(corpus.each)), [len(one.annotator_ids) for one in corpus.each])
