"""Curves on the 2 Hz grid of the model: getting annotations there, and judging and joining them."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np

from data_prep.base import DIMENSIONS, STEPS_PER_SECOND, FlatTraces, Rating

MAX_GAP_SECONDS = 1.0
"""Annotated points further apart than this leave the steps between them unlabelled, unless told otherwise."""

ROUNDING = 1e-6
"""Seconds; 2.2 - 1.2 is a little more than 1."""

FLAT_LEVEL = 0.01
FLAT_STEPS = 60
FLAT_REASON = f"ratings hardly move (mean absolute deviation under {FLAT_LEVEL} over 30 s) in all that they have; left out"

Flat = Literal["keep", "drop"]
"""What becomes of a trace that hardly moves. `drop` is the published rule, in each dimension by itself."""


def on_grid(
    annotations: np.ndarray, steps: int, start: float = 0.0, max_gap: float = MAX_GAP_SECONDS
) -> np.ndarray:
    """Annotations at any rate to the 2 Hz grid.

    Args:
      annotations: `[n, 3]` time in seconds (increasing), arousal, valence; NaN where one of them is missing.
      steps: of the song.
      start: seconds of step 0.
      max_gap: seconds; points up to so far apart are joined.

    Returns:
      `[steps, 2]`, linear between points, NaN outside them and in wider gaps.
    """
    times = start + np.arange(steps) / STEPS_PER_SECOND
    curves = [_on_times(annotations[:, [0, column]], times, max_gap) for column in (1, 2)]
    return np.stack(curves, axis=-1).astype(np.float32)


def _on_times(points: np.ndarray, times: np.ndarray, max_gap: float) -> np.ndarray:
    """Points `[n, 2]` of time and value to times `[k]`."""
    at, values = points[np.isfinite(points[:, 1])].T
    if not len(at):
        return np.full(len(times), np.nan)
    curve = np.interp(times, at, values)
    right = np.clip(np.searchsorted(at, times), 0, len(at) - 1)
    left = np.clip(np.searchsorted(at, times, side="right") - 1, 0, len(at) - 1)
    inside = (times >= at[0]) & (times <= at[-1])
    curve[~inside | (at[right] - at[left] > max_gap + ROUNDING)] = np.nan
    return curve


def fit(curve: np.ndarray, steps: int) -> np.ndarray:
    """Cuts `[n, ...]`, or fills it with NaN, to `[steps, ...]`."""
    fitted = np.full((steps, *curve.shape[1:]), np.nan, np.float32)
    fitted[: len(curve)] = curve[:steps]
    return fitted


def is_flat(curve: np.ndarray) -> bool:
    """Whether `[n]` hardly moves in its first 30 s of labelled steps, or has none."""
    labelled = curve[np.isfinite(curve)][:FLAT_STEPS]
    return not len(labelled) or float(np.abs(labelled - labelled.mean()).mean()) < FLAT_LEVEL


class FlatRule:
    """Looks at every trace of a corpus, counts the flat ones, and keeps them or not.

    Args:
      flat: `keep` or `drop`.
    """

    def __init__(self, flat: Flat) -> None:
        self._drop = flat == "drop"
        self._traces: Counter[str] = Counter()
        self._flat: dict[str, list[str]] = {}

    def rating(self, annotator: str, arousal: np.ndarray, valence: np.ndarray) -> Rating | None:
        """A rating of curves `[n]`, all NaN where a dimension is missing or dropped; None: nothing is left."""
        kept = {}
        for dimension, curve in zip(DIMENSIONS, (arousal, valence), strict=True):
            kept[dimension] = curve
            if not np.isfinite(curve).any():
                continue
            self._traces[dimension] += 1
            if is_flat(curve):
                self._flat.setdefault(dimension, []).append(annotator)
                if self._drop:
                    kept[dimension] = np.full_like(curve, np.nan)
        there = any(np.isfinite(curve).any() for curve in kept.values())
        return Rating(annotator, kept["arousal"], kept["valence"]) if there else None

    def counted(self) -> dict[str, FlatTraces]:
        """Of each dimension that there are traces of."""
        flat = {dimension: self._flat.get(dimension, []) for dimension in self._traces}
        return {
            dimension: FlatTraces(count, len(flat[dimension]), len(set(flat[dimension])))
            for dimension, count in self._traces.items()
        }


def stack_curves(arousal: np.ndarray, valence: np.ndarray, steps: int) -> np.ndarray:
    """Two curves `[n]`, cut to at most `steps`, side by side: `[min(n, steps), 2]` float32."""
    return np.stack([arousal[:steps], valence[:steps]], axis=-1).astype(np.float32)


def labelled_mean(values: np.ndarray, axis: int | tuple[int, ...] = 0) -> np.ndarray:
    """Mean along an axis over what is no NaN; NaN where there is nothing."""
    labelled = np.isfinite(values)
    count = labelled.sum(axis=axis)
    total = np.where(labelled, values, 0).sum(axis=axis)
    return np.asarray(np.where(count, total / np.maximum(count, 1), np.nan), values.dtype)


def mean_curve(curves: np.ndarray) -> np.ndarray:
    """Mean of `[k, ...]` over those of the k that are labelled at each place; NaN where none is."""
    return labelled_mean(curves).astype(np.float32)
