"""Metrics of many curves at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.base import DIMENSIONS
from data_prep.curves import labelled_mean
from dsaml_jax import metrics

METRICS = ("rmse", "pcc", "ccc")
COLUMNS = tuple(f"{dimension}_{metric}" for dimension in DIMENSIONS for metric in METRICS)

LEVELS = tuple(f"{dimension}_level" for dimension in DIMENSIONS)

Scores = dict[str, np.ndarray]
"""Column -> the metric of each labelled curve of a trial, `[k]` float64: NaN where the curve is not labelled in the
column's dimension. A dimension that nothing is labelled in has no columns. Of mean curves also :data:`LEVELS`."""


Unit = tuple[str, str]
"""Whose a curve is, and of what song; of a mean curve the song, and nothing."""


@jax.jit
def _all_scores(prediction: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
    """Each metric of curves `[..., n, 2]`, NaN targets masked, as `[..., 2]`."""
    mask = jnp.isfinite(target)
    p, t, m = (jnp.moveaxis(x, -1, -2) for x in (prediction, target, mask))
    return {name: getattr(metrics, name)(p, t, m) for name in METRICS}


def labelled(truth: np.ndarray) -> np.ndarray:
    """Which curves `[..., n, 2]` have labels: padding and wholly unlabelled ones are no zero errors."""
    return np.isfinite(truth).any(axis=(-2, -1))


def score_curves(predicted: np.ndarray, truth: np.ndarray) -> Scores:
    """Every column of the labelled dimensions, of the labelled curves.

    Args:
      predicted: `[..., n, 2]`; judged as it is written for people, clipped to the scale [-1, 1].
      truth: `[..., n, 2]`, NaN where unlabelled.

    Raises:
      ValueError: a prediction that counts is not finite; its score would be 0, like that of a perfect fit.
    """
    kept = labelled(truth)
    if not np.isfinite(predicted[kept][np.isfinite(truth[kept])]).all():
        raise ValueError("a prediction is not finite")
    known = np.isfinite(truth[kept]).any(axis=-2)  # [k, 2]
    values = {
        name: np.where(known, np.asarray(x)[kept], np.nan).astype(np.float64)
        for name, x in _all_scores(np.clip(predicted, -1.0, 1.0), truth).items()
    }
    return {
        f"{dimension}_{name}": values[name][:, i]
        for i, dimension in enumerate(DIMENSIONS)
        if known[:, i].any()
        for name in METRICS
    }


def level_errors(predicted: np.ndarray, truth: np.ndarray) -> Scores:
    """How much too high each labelled curve lies: the mean of prediction minus truth over its labelled steps.

    Args:
      predicted: `[..., n, 2]`, clipped as in :func:`score_curves`.
      truth: `[..., n, 2]`, NaN where unlabelled.

    Returns:
      the columns :data:`LEVELS` of the labelled dimensions.
    """
    kept = labelled(truth)
    errors = labelled_mean(np.clip(predicted, -1.0, 1.0)[kept] - truth[kept], axis=-2)  # [k, 2]
    return {name: errors[:, i].astype(np.float64) for i, name in enumerate(LEVELS) if np.isfinite(errors[:, i]).any()}  # fmt: skip


def level_agreement(
    predicted: np.ndarray, truth: np.ndarray, constant: np.ndarray
) -> dict[str, dict[str, float]]:
    """How well the levels of songs, the means of their labelled steps, are predicted.

    Args:
      predicted: `[songs, n, 2]`, clipped as in :func:`score_curves`.
      truth: `[songs, n, 2]`, NaN where unlabelled.
      constant: `[2]` what somebody says who has heard nothing.

    Returns:
      of each labelled dimension `correlation` (Pearson's, 0 where the prediction is constant), and `r2`: 1 minus the
      squared error over that of the constant.
    """
    here = np.where(np.isfinite(truth), np.clip(predicted, -1.0, 1.0), np.nan)
    guess, level = (labelled_mean(x.astype(np.float64), axis=-2) for x in (here, truth))
    agreement = {}
    for i, dimension in enumerate(DIMENSIONS):
        known = np.isfinite(level[:, i])
        if not known.any():
            continue
        p, t = guess[known, i], level[known, i]
        spread = np.std(p) * np.std(t)
        constant_error = float(np.mean((constant[i] - t) ** 2))
        agreement[dimension] = {
            "correlation": float(np.mean((p - p.mean()) * (t - t.mean())) / spread) if spread > _STILL else 0.0,
            "r2": 1.0 - float(np.mean((p - t) ** 2)) / constant_error if constant_error else 0.0,
        }  # fmt: skip
    return agreement


_STILL = 1e-9
"""Product of two standard deviations below which one of them is that of a constant; rounding leaves 1e-17."""


def unit_means(units: Sequence[Unit], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Mean of the values of each unit, those of the same song averaged first.

    Args:
      units: `[k]` whose each value is, and of what song.
      values: `[k]`, NaN where there is none.

    Returns:
      the units that have a value, sorted, and their means.
    """
    there = np.isfinite(values)
    pairs, pair = np.unique(np.asarray(units)[there], axis=0, return_inverse=True)
    pair = pair.reshape(-1)  # numpy 2.0 gives it two axes
    of_song = np.bincount(pair, values[there]) / np.bincount(pair)
    names, place = np.unique(pairs[:, 0], return_inverse=True)
    return names.tolist(), np.bincount(place, of_song) / np.bincount(place)


def mean_scores(
    predicted: np.ndarray, truth: np.ndarray, units: Sequence[Unit] | None = None
) -> dict[str, float]:
    """Mean of each column, and `score`: the mean of CCC, PCC and 1 - RMSE.

    Args:
      predicted: `[..., n, 2]`.
      truth: `[..., n, 2]`, NaN where unlabelled.
      units: whose each labelled curve is: each unit counts the same. None: each curve does.
    """
    means = {
        name: float(np.nanmean(values if units is None else unit_means(units, values)[1]))
        for name, values in score_curves(predicted, truth).items()
    }
    return {"score": float(np.mean([good(means, d) for d in dimensions_of(means)]))} | means


def dimensions_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The dimensions that there are columns of."""
    there = {column.partition("_")[0] for column in columns}
    return tuple(dimension for dimension in DIMENSIONS if dimension in there)


def good(columns: dict[str, float], dimension: str) -> float:
    """Mean of CCC, PCC and 1 - RMSE of a dimension, as in the loss."""
    ccc, pcc, rmse = (columns[f"{dimension}_{name}"] for name in ("ccc", "pcc", "rmse"))
    return (ccc + pcc + 1.0 - rmse) / 3.0


def better_when(column: str) -> Literal["lower", "higher"]:
    """Which way a column improves."""
    return "lower" if column.endswith("rmse") else "higher"
