"""Baseline without a network: ridge regression from spectral statistics to the mean curve."""

from __future__ import annotations

import numpy as np

from data_prep.curves import labelled_mean
from data_prep.shards import Corpus, read_features
from dsaml_jax.corpus import consensus_target, held_out
from dsaml_jax.evaluation import Trial, mean_scores

PENALTIES = tuple(10.0**power for power in range(7))


def ridge_curves(trial: Trial, validation: Trial) -> np.ndarray:
    """`[songs, n, 2]`: a linear map of each step's spectrum and its song's.

    A step is described by the mean and standard deviation of each mel band over its frames, and by the mean of both
    over the song; all are standardised. The penalty is the one of :data:`PENALTIES` with the best score on
    `validation`.
    """
    corpus = trial.corpus
    part = held_out(corpus, trial.judging.fold)["train"]
    target = consensus_target(corpus, part)
    x, y = [], []
    for song in part.songs:
        start = corpus.song_start[song]
        curve = target[start : start + corpus.song_steps[song]]
        x.append(_describe(corpus, song))
        y.append(curve)
    inputs, wanted = np.concatenate(x), np.concatenate(y).astype(np.float64)
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    inputs = (inputs - mean) / scale
    level = labelled_mean(wanted)
    systems = []
    for target in (wanted - level).T:  # steps may be labelled in one dimension only
        known = np.isfinite(target)
        systems.append((inputs[known].T @ inputs[known], inputs[known].T @ target[known]))
    described = {
        of: [(_describe(corpus, song) - mean) / scale for song in which.song]
        for of, which in (("validation", validation), ("trial", trial))
    }

    def curves(of: str, shape: tuple[int, ...], penalty: float) -> np.ndarray:
        weights = np.stack(
            [np.linalg.solve(a + penalty * np.eye(len(a)), b) for a, b in systems], axis=-1
        )
        predicted = np.zeros(shape, np.float32)
        for row, steps in enumerate(described[of]):
            predicted[row, : len(steps)] = steps @ weights + level
        return predicted

    def score(penalty: float) -> float:
        predicted = curves("validation", validation.truth.shape, penalty)
        return mean_scores(predicted, validation.truth)["score"]

    return curves("trial", trial.truth.shape, max(PENALTIES, key=score))


def _describe(corpus: Corpus, song: int) -> np.ndarray:
    """`[steps, 4 M]`."""
    if corpus.log_mel is None:
        patches = read_features(corpus, np.array([song])).log_mel
    else:
        start = corpus.song_start[song]
        patches = corpus.log_mel[start : start + corpus.song_steps[song]]
    patches = patches[: corpus.song_steps[song]].astype(np.float64)
    steps = np.concatenate([patches.mean(axis=1), patches.std(axis=1)], axis=-1)
    return np.concatenate([steps, np.broadcast_to(steps.mean(axis=0), steps.shape)], axis=-1)
