"""What a model was trained on, so that nobody judges it by that."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from data_prep.shards import Corpus
from dsaml_jax.corpus.folds import AND, Fold, Part, held_out, identities, identity
from dsaml_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Seen:
    """Songs and people of the training and validation parts; all empty where it was not written down.

    Of ids only digests are kept: a model may be given to others, who is in it need not be.

    Attributes:
      songs: of ids.
      sounds: of sound files.
      people: of the ids of the annotators whose ratings were used.
    """

    songs: tuple[str, ...] = ()
    sounds: tuple[str, ...] = ()
    people: tuple[str, ...] = ()

    def __or__(self, other: Seen) -> Seen:
        """What either has seen."""
        both = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Seen(*(tuple(sorted({*mine, *theirs})) for mine, theirs in both))


def seen_in(corpus: Corpus, parts: dict[str, Part]) -> Seen:
    """What a run on these parts sees before its test."""
    used = [parts[name] for name in ("train", "validation")]
    songs = np.concatenate([part.songs for part in used])
    ratings = np.concatenate([np.union1d(part.ratings, part.support) for part in used])
    people = np.unique(corpus.rating_annotator[ratings])
    return Seen() | Seen(
        tuple(_digest(corpus.song_ids[song]) for song in songs),
        tuple(corpus.sounds[song] for song in songs if corpus.sounds[song]),
        tuple(_digest(corpus.annotator_ids[person]) for person in people),
    )


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Of what is held out here, how much a model has seen; None where nobody wrote it down."""

    songs: int | None = 0
    people: int | None = 0

    def line(self) -> str:
        """For people; empty where nothing was seen."""
        if self.songs is None:
            return "what the model was trained on is not known: songs and people here may have been seen"
        if not self.songs and not self.people:
            return ""
        return f"judged also by what was trained on: {self.songs} of the test songs, {self.people} of the test people"


def require_unseen(
    trained_on: str,
    seen: Seen,
    own: Fold,
    corpus: Corpus,
    fold: Fold,
    whose: str,
    *,
    allow: bool = False,
) -> Overlap:
    """Refuses a model that has seen what is held out here, under this name or another.

    Args:
      trained_on: :func:`dsaml_jax.corpus.identity` of what the model was trained on.
      seen: of it.
      own: who was held out there. On the same state of the corpus and the same fold nothing has been seen.
      corpus: what it is to be used on.
      fold: who is held out here.
      whose: the model, for the message.
      allow: count, and refuse nothing.

    Raises:
      UsageError: test songs, by their sound or, in a corpus of the same name, by their id; or there also test people.
    """
    trained = identities(trained_on)
    counts = [
        _overlap(trained, seen, own, one, fold, whose, allow)
        for one in corpus.each
        if own != fold or identity(one) not in trained.values()
    ]
    if any(one.songs is None for one in counts):
        return Overlap(None, None)
    return Overlap(sum(one.songs or 0 for one in counts), sum(one.people or 0 for one in counts))


def _overlap(
    trained: dict[str, str],
    seen: Seen,
    own: Fold,
    corpus: Corpus,
    fold: Fold,
    whose: str,
    allow: bool,
) -> Overlap:
    """:func:`require_unseen` of one corpus, by a model that was trained on these."""
    related, trained_on = corpus.name in trained, AND.join(trained.values())
    if seen == Seen():
        if related and not allow:
            raise UsageError(
                f"{whose} was trained on another {corpus.name} ({trained_on}; {own}) than this ({identity(corpus)}; {fold}); "
                "what is held out here may have been seen in training"
            )
        return Overlap(None, None)
    test = held_out(corpus, fold)["test"]
    heard, known, met = set(seen.sounds), set(seen.songs), set(seen.people)

    def is_in(digests: set[str], name: str) -> bool:
        """By its id, or by that which it had beside other corpora."""
        return _digest(name) in digests or _digest(f"{corpus.name}/{name}") in digests

    songs = [
        corpus.song_ids[song]
        for song in test.songs
        if corpus.sounds[song] in heard or (related and is_in(known, corpus.song_ids[song]))
    ]
    people = {corpus.annotator_ids[person] for person in corpus.rating_annotator[test.ratings]}
    strangers = fold.everyone or not related
    friends = [] if strangers else [who for who in people if is_in(met, who)]
    if (songs or friends) and not allow:
        what = f"{len(songs)} of the {len(test.songs)} test songs here (one is {songs[0]})" if songs else f"{len(friends)} of the {len(people)} test people here"  # fmt: skip
        raise UsageError(
            f"{whose}, trained on {trained_on} ({own}), has seen {what}; --seen-songs judges it all the same"
        )
    return Overlap(len(songs), len(friends))
