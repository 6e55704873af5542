"""What a corpus's annotations are like: how many, how spread, how far listeners agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.base import DIMENSIONS, STEPS_PER_SECOND, Song
from data_prep.curves import FLAT_STEPS

FLAT_CURVE_SD = 0.01
"""A mean curve with a smaller standard deviation over its first 30 s says nothing of movement."""


MIN_COMMON_STEPS = 20
"""Steps that raters must share for their agreement to mean anything: 10 s."""

MOVES_SD = 1e-6
"""Standard deviation above which a trace moves."""


def cronbach_alpha(traces: np.ndarray) -> float:
    """Internal consistency of raters: `k / (k - 1) (1 - sum of their variances / variance of the sum)`.

    Raters are the items, time steps the cases (Cronbach 1951). Where somebody has gaps it is written by the mean variance `v`
    and the mean covariance `c` of pairs, each over the steps that both have, `k c / (v + (k - 1) c)`: the same
    number where there are none, and a gap of one rater costs the others nothing.

    Args:
      traces: `[k, n]` of one song, NaN where missing.

    Returns:
      at most 1 (with gaps a little more can come out); NaN for fewer than two raters that share :data:`MIN_COMMON_STEPS` with another, or where nothing moves.
    """
    count, covariance, _ = _pairs(traces)
    shares = (count >= MIN_COMMON_STEPS) & ~np.eye(len(traces), dtype=bool)
    there = shares.any(axis=1)
    raters = int(there.sum())
    if raters < 2:
        return math.nan
    variance, common = np.diag(covariance)[there].mean(), covariance[shares].mean()
    whole = variance + (raters - 1) * common
    return float(raters * common / whole) if whole > 1e-12 else math.nan


def pairwise_correlation(traces: np.ndarray) -> float:
    """Mean of Pearson's r over pairs of raters of one song, each over the steps that both have.

    Args:
      traces: `[k, n]`, NaN where missing.

    Returns:
      in [-1, 1]; NaN where no two raters that move share :data:`MIN_COMMON_STEPS`.
    """
    count, covariance, variance = _pairs(traces)
    moves = variance > np.square(MOVES_SD)
    pair = np.triu(moves & moves.T & (count >= MIN_COMMON_STEPS), 1)
    if not pair.any():
        return math.nan
    return float(np.mean(covariance[pair] / np.sqrt(variance[pair] * variance.T[pair])))


def _pairs(traces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all pairs at once, `[k, k]` each, over the steps that both have.

    Returns:
      how many steps those are, the covariance (n - 1), and the variance of the first.
    """
    # Of n raters there are n^2 / 2 pairs, and a corpus has thousands of songs.
    known = np.isfinite(traces)
    x = np.where(known, traces, 0.0).astype(np.float64)
    mean = x.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    x = np.where(known, x - mean, 0.0)
    shared = known.astype(np.float64)
    count = shared @ shared.T
    total = x @ shared.T
    products = x @ x.T - total * total.T / np.maximum(count, 1.0)
    squares = np.square(x) @ shared.T - np.square(total) / np.maximum(count, 1.0)
    free = np.maximum(count - 1.0, 1.0)
    return count, products / free, squares / free


def rater_spread(traces: np.ndarray) -> float:
    """Standard deviation between raters of one song, mean over the steps that two or more rated."""
    count = np.isfinite(traces).sum(axis=0)
    rated = traces[:, count >= 2]
    return float(np.nanstd(rated, axis=0, ddof=1).mean()) if rated.size else math.nan


def describe_songs(songs: Sequence[Song]) -> dict[str, Any]:
    """Statistics of annotated songs, as numbers that JSON can hold (None where there is nothing).

    Args:
      songs: of one corpus, any number of them.

    Returns:
      counts, and under `arousal` and `valence` what is said of each.
    """
    read = Counter(who for song in songs for who in song.raters)
    of_annotator = Counter(rating.annotator_id for song in songs for rating in song.ratings)
    per_song = [len(song.ratings) for song in songs]
    lengths = [len(song.arousal) for song in songs]
    return {
        "songs": len(songs),
        "hours": sum(lengths) / STEPS_PER_SECOND / 3600,
        "steps_per_song": _range(lengths),
        "annotators_read": len(read),
        "ratings_read": sum(read.values()),
        "annotators": len(of_annotator),
        "annotators_over_15_songs": sum(count > 15 for count in of_annotator.values()),
        "ratings": sum(per_song),
        "ratings_per_song": _range(per_song),
        "songs_per_annotator": _range(list(of_annotator.values())),
    } | {name: _describe_dimension(songs, name) for name in DIMENSIONS}


def _describe_dimension(songs: Sequence[Song], name: str) -> dict[str, Any]:
    curves = [getattr(song, name)[np.isfinite(getattr(song, name))] for song in songs]
    curves = [curve for curve in curves if len(curve)]
    levels = np.array([curve.mean() for curve in curves])
    rated = [
        np.stack([getattr(rating, name) for rating in song.ratings])
        for song in songs
        if len(song.ratings) >= 2
    ]
    static = [
        (curve.mean(), song.static[DIMENSIONS.index(name)])
        for song in songs
        if song.static is not None
        for curve in [getattr(song, name)[np.isfinite(getattr(song, name))]]
        if len(curve)
    ]
    steps = sum(len(getattr(song, name)) for song in songs)
    traced = [np.isfinite(traces) for traces in rated]
    flat = [curve[:FLAT_STEPS].std() < FLAT_CURVE_SD for curve in curves]
    return {
        "points": sum(map(len, curves)),
        "labelled": sum(map(len, curves)) / steps if steps else None,
        "labelled_by_raters": _number(np.mean(np.concatenate([known.ravel() for known in traced])))
        if traced
        else None,
        "mean": _number(levels.mean()) if len(levels) else None,
        "sd_between_songs": _number(levels.std(ddof=1)) if len(levels) > 1 else None,
        "sd_within_songs": _mean([float(curve.std()) for curve in curves])["mean"],
        "flat_curves": int(sum(flat)),
        "sd_between_raters": _mean([rater_spread(traces) for traces in rated])["mean"],
        "cronbach_alpha": _mean([cronbach_alpha(traces) for traces in rated]),
        "pairwise_correlation": _mean([pairwise_correlation(traces) for traces in rated]),
        "correlation_with_static": _number(np.corrcoef(np.array(static).T)[0, 1])
        if len(static) > 2
        else None,
    }


def _range(counts: Sequence[int]) -> dict[str, float | int | None]:
    if not counts:
        return {"mean": None, "min": None, "max": None}
    return {"mean": sum(counts) / len(counts), "min": min(counts), "max": max(counts)}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return {"mean": None, "sd": None, "songs": 0, "quartiles": None}
    return {
        "mean": _number(finite.mean()),
        "sd": _number(finite.std(ddof=1)) if len(finite) > 1 else None,
        "songs": len(finite),
        "quartiles": np.quantile(finite, [0.25, 0.5, 0.75]).tolist(),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
