"""How high the curves of songs lie, by kernel ridge regression: what :class:`dsaml_jax.models.levels.LevelHead` holds."""

from __future__ import annotations

import numpy as np

from data_prep.curves import labelled_mean
from data_prep.shards import Corpus
from dsaml_jax.config import Balance
from dsaml_jax.corpus import Part, song_embeddings, song_weights
from dsaml_jax.models import FARTHEST, squared_distances

GAMMA = 0.1
"""Of the kernel, for inputs that are that far apart in the mean square. 0.3 and 0.6 were no better on songs of DEAM."""

LISTENER_GAMMA = 0.3
"""The same of what a person's songs say of each other: the likeliest of five for DEAM's raters (`experiments/suggesting.py`)."""

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Tried, in each dimension."""


def fit_levels(
    corpus: Corpus,
    part: Part,
    target: np.ndarray,
    inputs: tuple[np.ndarray, np.ndarray],
    most: int,
    listener_most: int = 0,
    balance: Balance = "proportional",
) -> dict[str, np.ndarray]:
    """Fits the level of a song, the mean of its curve, on its embedding, the mean over its windows.

    A song whose mean curve few raters made counts less (:func:`dsaml_jax.corpus.song_weights`). The penalty is the one with
    the least squared error on songs left out one at a time, which needs no songs of its own (Rifkin and Lippert 2007). Of
    more than `most` songs, as many, evenly spread, are fitted on.

    Args:
      corpus: whose features and curves.
      part: training: its songs, and whose curves count.
      target: the mean curves that are learned, see :func:`dsaml_jax.corpus.consensus_target`.
      inputs: mean and spread of each number of the embedding, `[E]` each.
      most: `N`.
      listener_most: `M`.
      balance: of several corpora, see `training.corpora`.

    Returns:
      `centres` `[N, E]` float16, the embeddings standardised; `weights` `[N, 2]`, 0 where there is no song; `gamma`; `bias`
      `[2]`; 0 in a dimension that no song is labelled in. The same with `listener_` before it, of `M` songs that are not known yet.
    """
    songs = part.songs
    if len(songs) > most:
        songs = songs[np.linspace(0, len(songs) - 1, most).astype(int)]
    mean, spread = inputs
    embeddings = np.clip((song_embeddings(corpus, songs) - mean) / spread, -FARTHEST, FARTHEST)
    centres = embeddings.astype(np.float16)
    x = centres.astype(np.float64)
    varying = max(int((x.std(axis=0) > 0.0).sum()), 1)  # what is constant has no say
    gamma = GAMMA / varying
    kernel = np.exp(-gamma * squared_distances(x, x))
    starts = corpus.song_start[songs]
    curves = [target[a : a + n] for a, n in zip(starts, corpus.song_steps[songs], strict=True)]
    levels = np.stack([labelled_mean(curve.astype(np.float64)) for curve in curves])
    counted = song_weights(corpus, part, songs, balance)

    weights, bias = np.zeros((most, 2), np.float32), np.zeros(2, np.float32)
    for dimension in range(2):
        (known,) = np.nonzero(np.isfinite(levels[:, dimension]))
        if len(known):
            y, share = levels[known, dimension], counted[known]
            bias[dimension] = np.average(y, weights=share)
            fitted = kernel_ridge(kernel[np.ix_(known, known)], y - bias[dimension], share)
            weights[known, dimension] = fitted
    room = np.zeros((most - len(songs), x.shape[1]), np.float16)
    return {
        "centres": np.concatenate([centres, room]),
        "weights": weights,
        "gamma": np.asarray(gamma, np.float32),
        "bias": bias,
        "listener_centres": np.zeros((listener_most, x.shape[1]), np.float16),
        "listener_weights": np.zeros((listener_most, 2), np.float32),
        "listener_gamma": np.asarray(LISTENER_GAMMA / varying, np.float32),
    }


def kernel_ridge(kernel: np.ndarray, y: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Weights `[n]` of kernel ridge regression, the penalty chosen by leaving out one.

    Args:
      kernel: `[n, n]`.
      y: `[n]`, without its mean.
      counted: `[n]` above 0: what the squared error of each counts.
    """
    root = np.sqrt(counted)
    values, vectors = np.linalg.eigh(root[:, None] * kernel * root)
    rotated = vectors.T @ (root * y)
    best, least = np.zeros_like(y), np.inf
    for penalty in PENALTIES:
        shrunk = 1.0 / (np.maximum(values, 0.0) + penalty)
        weights = root * (vectors @ (shrunk * rotated))
        diagonal = counted * (np.square(vectors) @ shrunk)
        error = float(np.average(np.square(weights / diagonal), weights=counted))
        if error < least:
            best, least = weights, error
    return best
