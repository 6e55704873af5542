"""Baselines without a network: the level of a song by ridge or support vector regression, how it moves by ridge regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from data_prep.curves import labelled_mean
from data_prep.shards import Corpus, features_of
from dsaml_jax.corpus import CONSTANT, consensus_target, held_out, song_embeddings
from dsaml_jax.evaluation import Trial
from dsaml_jax.models import FARTHEST

Regressor = Literal["ridge", "svr"]
Predict = Callable[[np.ndarray], np.ndarray]
"""Inputs `[k, x]` to predictions `[k]`."""

PENALTIES = tuple(10.0**power for power in range(7))
"""Of ridge regression on standardised inputs."""

COSTS = (0.3, 1.0, 3.0)
"""Of support vector regression: radial basis functions of 0.3 / width, and a tube of 0.05 that costs nothing."""

_SONGS_AT_ONCE = 64


def regression_curves(
    trial: Trial, validation: Trial, *, regressor: Regressor, features: Sequence[str]
) -> np.ndarray:
    """`[songs, n, 2]`: the level that a regressor says of a song's embedding, and a linear map of how its spectrum moves.

    The level of a song is the mean of its curve. How it moves, the curve less its level, is read from the mean and standard
    deviation of each mel band over the frames of each step, less their means over the song. All inputs are standardised
    over the songs of training. The penalty, or the cost, is the one with the least squared error on `validation`, in each
    dimension.

    Args:
      trial: of mean curves.
      validation: likewise, to choose by.
      regressor: of the level.
      features: the parts of the embedding that it reads, see :attr:`data_prep.features.FeatureConfig.embedding_parts`.
    """
    corpus = trial.corpus
    part = held_out(corpus, trial.judging.fold)["train"]
    target = consensus_target(corpus, part)
    truth = [_curve(corpus, target, song) for song in part.songs]
    training = _describe(corpus, part.songs, features)
    others = {name: _describe(corpus, one.song, features) for name, one in (("validation", validation), ("trial", trial))}  # fmt: skip
    levels = np.stack([labelled_mean(curve) for curve in truth])
    wanted = np.stack([labelled_mean(curve) for curve in validation.truth])
    curves = np.zeros(trial.truth.shape, np.float32)
    for dimension in range(2):
        level = _best(
            _fits(regressor), training.whole, levels[:, dimension],
            others["validation"].whole, wanted[:, dimension],
        )  # fmt: skip
        moves = np.concatenate([curve[:, dimension] for curve in truth]) - np.repeat(
            levels[:, dimension], training.steps
        )
        checked = np.concatenate(
            [curve[:steps, dimension] for curve, steps in zip(validation.truth, others["validation"].steps, strict=True)]
        ) - np.repeat(wanted[:, dimension], others["validation"].steps)  # fmt: skip
        movement = _best(_ridges, training.each, moves, others["validation"].each, checked)
        if level is None or movement is None:  # nobody drew this dimension
            continue
        asked = others["trial"]
        found = np.repeat(level(asked.whole), asked.steps) + movement(asked.each)
        inside = np.arange(trial.shape[0]) < asked.steps[:, None]
        curves[..., dimension][inside] = found
    return curves


@dataclasses.dataclass(frozen=True)
class _Described:
    """Songs as numbers.

    Attributes:
      whole: `[songs, x]` the embedding, the mean over windows.
      each: `[all steps, 2 M]` what differs in a step from the song.
      steps: `[songs]`.
    """

    whole: np.ndarray
    each: np.ndarray
    steps: np.ndarray


def _describe(corpus: Corpus, songs: np.ndarray, features: Sequence[str]) -> _Described:
    widths = corpus.features.embedding_parts
    ends = dict(zip(widths, np.cumsum(list(widths.values())), strict=True))
    kept = np.concatenate([np.arange(ends[name] - widths[name], ends[name]) for name in features])
    each = []
    for first in range(0, len(songs), _SONGS_AT_ONCE):
        some = songs[first : first + _SONGS_AT_ONCE]
        read = features_of(corpus, some)
        for song in some:
            start = read.feature_start[song]
            patches = read.log_mel[start : start + corpus.song_steps[song]].astype(np.float64)
            bands = np.concatenate([patches.mean(axis=1), patches.std(axis=1)], axis=-1)
            each.append(bands - bands.mean(axis=0))
    whole = song_embeddings(corpus, songs)[:, kept]
    return _Described(whole, np.concatenate(each), corpus.song_steps[songs])


def _curve(corpus: Corpus, target: np.ndarray, song: int) -> np.ndarray:
    start = corpus.song_start[song]
    return target[start : start + corpus.song_steps[song]].astype(np.float64)


def _best(
    fits: Callable[[np.ndarray, np.ndarray], list[Predict]],
    x: np.ndarray,
    y: np.ndarray,
    x_validation: np.ndarray,
    y_validation: np.ndarray,
) -> Predict | None:
    """Of all fits the one with the least squared error on validation; None where nothing is labelled."""
    known, checked = np.isfinite(y), np.isfinite(y_validation)
    if not (known.any() and checked.any()):
        return None
    mean, spread = x[known].mean(axis=0), x[known].std(axis=0)
    spread = np.where(spread > CONSTANT, spread, 1.0)

    def standard(inputs: np.ndarray) -> np.ndarray:
        return np.clip((inputs - mean) / spread, -FARTHEST, FARTHEST)

    def error(predict: Predict) -> float:
        predicted = predict(standard(x_validation[checked]))
        return float(np.mean((predicted - y_validation[checked]) ** 2))

    best = min(fits(standard(x[known]), y[known]), key=error)
    return lambda inputs: best(standard(inputs))


def _fits(regressor: Regressor) -> Callable[[np.ndarray, np.ndarray], list[Predict]]:
    return _ridges if regressor == "ridge" else _support_vectors


def _ridges(x: np.ndarray, y: np.ndarray) -> list[Predict]:
    from sklearn.linear_model import Ridge

    return [Ridge(penalty).fit(x, y).predict for penalty in PENALTIES]


def _support_vectors(x: np.ndarray, y: np.ndarray) -> list[Predict]:
    from sklearn.svm import SVR

    width = max(int((x.std(axis=0) > 0.0).sum()), 1)  # what is constant has no say
    return [SVR(C=cost, epsilon=0.05, gamma=0.3 / width).fit(x, y).predict for cost in COSTS]
