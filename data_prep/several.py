"""Several prepared corpora as one, so that nobody who trains on them has to count them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.base import DataError, Provenance
from data_prep.parallel import Progress
from data_prep.shards import (
    STREAM_ABOVE_GB,
    Corpus,
    FeatureStore,
    read_labels,
    starts_of,
    with_features,
)


def read_corpora(
    *data: Path | str,
    stream_above_gb: float = STREAM_ABOVE_GB,
    progress: Progress | None = None,
) -> Corpus:
    """Reads one prepared dataset, or several as one.

    Args:
      data: folders of the datasets, or above them; their order makes no difference.
      stream_above_gb: features of more GB than this, of all together, are left on disk.
      progress: called with songs read and songs in all.

    Raises:
      DataError: a dataset is missing or damaged, or they do not go together; see :func:`join`.
    """
    return with_features(join([read_labels(one) for one in data]), stream_above_gb, progress)


def join(corpora: Sequence[Corpus]) -> Corpus:
    """Corpora as one, without features in memory; of one, it as it is.

    Songs and people are called `corpus/id`, so that none of different corpora have the same name. They stand in the order of
    the corpora's names.

    Args:
      corpora: with features of one kind.

    Raises:
      DataError: two have the same name, or features differ.
    """
    if len(corpora) == 1:
        return corpora[0]
    members = tuple(
        dataclasses.replace(corpus, log_mel=None, embedding=None)
        for corpus in sorted(corpora, key=lambda corpus: corpus.name)
    )
    _require_together(members)
    sizes = {
        "song": [len(corpus.song_ids) for corpus in members],
        "window": [len(corpus.window_start) for corpus in members],
        "person": [len(corpus.annotator_ids) for corpus in members],
        "step": [len(corpus.mean) for corpus in members],
        "row": [len(corpus.ratings) for corpus in members],
        "embedding": [int(corpus.embedding_counts.sum()) for corpus in members],
    }

    def end_to_end(name: str, of: str = "") -> np.ndarray:
        """The arrays of all; numbers of songs, people, rows are moved by how many `of` the corpora before have."""
        arrays = [getattr(corpus, name) for corpus in members]
        firsts = starts_of(np.array(sizes[of])) if of else np.zeros(len(members), np.int32)
        moved = [
            array + first if of else array for array, first in zip(arrays, firsts, strict=True)
        ]
        return np.concatenate(moved)

    first = members[0]
    return Corpus(
        name="+".join(corpus.name for corpus in members),
        features=first.features,
        fingerprint="+".join(corpus.fingerprint for corpus in members),
        provenance=_provenance(members),
        song_ids=tuple(f"{one.name}/{song}" for one in members for song in one.song_ids),
        split=end_to_end("split"),
        sounds=tuple(sound for one in members for sound in one.sounds),
        raters=end_to_end("raters"),
        song_start=end_to_end("song_start", "step"),
        song_steps=end_to_end("song_steps"),
        mean=end_to_end("mean"),
        window_first=end_to_end("window_first", "window"),
        window_count=end_to_end("window_count"),
        window_start=end_to_end("window_start"),
        embedding_first=end_to_end("embedding_first", "embedding"),
        annotator_ids=tuple(f"{one.name}/{who}" for one in members for who in one.annotator_ids),
        rating_song=end_to_end("rating_song", "song"),
        rating_annotator=end_to_end("rating_annotator", "person"),
        rating_first=end_to_end("rating_first", "row"),
        ratings=end_to_end("ratings"),
        log_mel=None,
        embedding=None,
        store=FeatureStore([path for one in members for path in one.store.paths], first.features),
        members=members,
    )


def _require_together(members: Sequence[Corpus]) -> None:
    for name, count in Counter(corpus.name for corpus in members).items():
        if count > 1:
            raise DataError(
                f"--data: {count} of the corpora are called {name}; each is given once, and others have other names "
                "('dsaml prepare folder --name')"
            )
    first = members[0]
    for other in members[1:]:
        if other.features != first.features:
            raise DataError(
                f"--data: {first.name} has {first.features.name}, {other.name} has {other.features.name}; prepare them "
                "with the same --features and --embedding"
            )


def _provenance(members: Sequence[Corpus]) -> Provenance:
    """Of all."""
    fields = [field.name for field in dataclasses.fields(Provenance)]
    return Provenance(
        **{
            name: "; ".join(
                dict.fromkeys(f"{one.name}: {getattr(one.provenance, name)}" for one in members)
            )
            for name in fields
        }
    )
