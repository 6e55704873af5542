"""Which song to annotate next: the one that would tell most about how a person hears the others.

How far somebody's level of a song is from everyone's is taken for a Gaussian process: what songs say of each other goes by
their likeness, and half of what one says is about itself alone. What is not known of all songs after some are drawn does
not depend on what was drawn, so the song that would leave least can be said beforehand (Krause, Singh and Guestrin 2008,
"Near-optimal sensor placements in Gaussian processes", Journal of Machine Learning Research 9).

A personal model predicts by the same (:class:`dsaml_jax.runs.Spread`), with variances that were fitted; what the choice gains
is measured by `experiments/suggesting.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import numpy as np

from data_prep.analysis import SongFeatures
from dsaml_jax.corpus import CONSTANT
from dsaml_jax.models import FARTHEST, squared_distances

GAMMA = 0.3
"""Of the likeness, for songs that are that far apart in the mean square: the likeliest of five for DEAM's raters."""

NOISE = 1.0
"""Variance of what a song says of itself alone, where that of what songs share is 1: as of DEAM's raters, about."""

EQUAL = 1e-9


def song_embedding(features: SongFeatures) -> np.ndarray:
    """`[E]` of a song: the mean over its windows, or steps."""
    return np.asarray(features.embedding.mean(axis=0, dtype=np.float64))


def suggest(embeddings: np.ndarray, known: Sequence[int], count: int) -> list[int]:
    """Songs to annotate next, the most telling first.

    Args:
      embeddings: `[n, E]`, see :func:`song_embedding`.
      known: indices of songs that were drawn.
      count: how many; fewer where there are no more songs.

    Returns:
      indices that are not in `known`.
    """
    return most_telling(likeness(embeddings), known, count) if len(embeddings) else []


def likeness(embeddings: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """`[n, n]` in (0, 1] how alike songs are: `exp(-gamma d)`, d their mean squared distance.

    Args:
      embeddings: `[n, E]`, one for each song; standardised over these songs here. What is constant has no say.
      gamma: the larger, the closer songs must be.
    """
    chex.assert_rank(embeddings, 2)
    spread = embeddings.std(axis=0, dtype=np.float64)
    varies = spread > CONSTANT
    if not varies.any():
        return np.ones((len(embeddings),) * 2)
    x = (embeddings - embeddings.mean(axis=0, dtype=np.float64))[:, varies] / spread[varies]
    x = x.clip(-FARTHEST, FARTHEST)
    return np.asarray(np.exp(-gamma * squared_distances(x, x) / x.shape[1]))


def not_known(likenesses: np.ndarray, known: Sequence[int]) -> np.ndarray:
    """`[n, n]` covariance of what is not known yet of songs after some were drawn, 1 of a song before that.

    Args:
      likenesses: `[n, n]`, see :func:`likeness`.
      known: indices of songs that were drawn.
    """
    chex.assert_shape(likenesses, (len(likenesses),) * 2)
    rows = np.asarray(known, int)
    told = likenesses[np.ix_(rows, rows)] + NOISE * np.eye(len(rows))
    return np.asarray(likenesses - likenesses[:, rows] @ np.linalg.solve(told, likenesses[rows]))


def most_telling(likenesses: np.ndarray, known: Sequence[int], count: int) -> list[int]:
    """Songs that would tell most of all songs: the first by itself, each further one with those before it.

    Args:
      likenesses: see :func:`likeness`.
      known: indices of songs that were drawn.
      count: how many; fewer where there are no more songs.

    Returns:
      indices that are not in `known`; of songs that tell the same the one that stands first.
    """
    covariance = not_known(likenesses, known).copy()
    left = np.ones(len(covariance), bool)
    left[np.asarray(known, int)] = False
    found: list[int] = []
    for _ in range(min(count, int(left.sum()))):
        told = np.square(covariance).sum(axis=0) / (np.diag(covariance) + NOISE)
        # Rounding decides nothing: of equals the first counts.
        best = int(np.flatnonzero(left & (told >= told[left].max() * (1.0 - EQUAL)))[0])
        column = covariance[:, best].copy()
        covariance -= np.outer(column, column) / (column[best] + NOISE)
        left[best] = False
        found.append(best)
    return found
