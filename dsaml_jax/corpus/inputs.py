"""What the inputs of a corpus are like: means and spreads that a model standardises by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.shards import Corpus, features_of, read_features

_SONGS_AT_ONCE = 8
CONSTANT = 1e-5
"""An input that spreads less says nothing (two in three of musicnn's pools); it is divided by 1."""


def input_statistics(corpus: Corpus, songs: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each mel band over all frames, and of each number of the embedding over all rows.

    Args:
      corpus: whose features, in memory or on disk.
      songs: indices of the songs of training.

    Returns:
      `log_mel`: two arrays `[M]`; `embedding`: two arrays `[E]`; float32.
    """
    sums: dict[str, np.ndarray] = {}
    for first in range(0, len(songs), _SONGS_AT_ONCE):
        some = read_features(corpus, np.sort(songs[first : first + _SONGS_AT_ONCE]))
        for name in ("log_mel", "embedding"):
            rows = getattr(some, name)
            rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
            squares = np.einsum("ij,ij->j", rows, rows)
            powers = np.stack([np.full_like(squares, len(rows)), rows.sum(axis=0), squares])
            sums[name] = sums.get(name, 0.0) + powers
    found = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count
        spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        spread = np.where(spread > CONSTANT, spread, 1.0)
        found[name] = mean.astype(np.float32), spread.astype(np.float32)
    return found


def embeddings_of(corpus: Corpus, songs: np.ndarray) -> Iterator[np.ndarray]:
    """Of each song `[w, E]`, a row for each window, or `[n, E]`, one for each step; as stored."""
    for first in range(0, len(songs), _SONGS_AT_ONCE):
        some = songs[first : first + _SONGS_AT_ONCE]
        read = features_of(corpus, some)
        for song in some:
            row = read.embedding_first[song]
            yield read.embedding[row : row + corpus.embedding_counts[song]]


def song_embeddings(corpus: Corpus, songs: np.ndarray) -> np.ndarray:
    """`[songs, E]` float64: of each song the mean over its windows, or steps."""
    return np.stack([x.mean(axis=0, dtype=np.float64) for x in embeddings_of(corpus, songs)])
