"""Curves on the 2 Hz grid of the model: getting annotations there, and judging and joining them."""

from __future__ import annotations

import numpy as np

from data_prep.base import STEPS_PER_SECOND

MAX_GAP_SECONDS = 1.0
"""Annotated points further apart than this leave the steps between them unlabelled."""

_ROUNDING = 1e-6
"""Seconds; 2.2 - 1.2 is a little more than 1."""

FLAT_LEVEL = 0.01
FLAT_STEPS = 60
FLAT_REASON = (
    f"ratings hardly move (mean absolute deviation under {FLAT_LEVEL} over 30 s); left out"
)


def on_grid(annotations: np.ndarray, steps: int, start: float = 0.0) -> np.ndarray:
    """Annotations at any rate to the 2 Hz grid.

    Args:
      annotations: `[n, 3]` time in seconds (increasing), arousal, valence.
      steps: of the song.
      start: seconds of step 0.

    Returns:
      `[steps, 2]`, linear between points, NaN outside them and in gaps of more than a second.
    """
    times = start + np.arange(steps) / STEPS_PER_SECOND
    at = annotations[:, 0]
    curves = np.stack([np.interp(times, at, annotations[:, i]) for i in (1, 2)], axis=-1)
    right = np.clip(np.searchsorted(at, times), 0, len(at) - 1)
    left = np.clip(np.searchsorted(at, times, side="right") - 1, 0, len(at) - 1)
    inside = (times >= at[0]) & (times <= at[-1])
    curves[~inside | (at[right] - at[left] > MAX_GAP_SECONDS + _ROUNDING)] = np.nan
    return curves.astype(np.float32)


def fit(curve: np.ndarray, steps: int) -> np.ndarray:
    """Cuts `[n, ...]`, or fills it with NaN, to `[steps, ...]`."""
    fitted = np.full((steps, *curve.shape[1:]), np.nan, np.float32)
    fitted[: len(curve)] = curve[:steps]
    return fitted


def is_flat(curve: np.ndarray) -> bool:
    """Whether `[n]` hardly moves in its first 30 s of labelled steps, or has none."""
    labelled = curve[np.isfinite(curve)][:FLAT_STEPS]
    return not len(labelled) or float(np.abs(labelled - labelled.mean()).mean()) < FLAT_LEVEL


def stack_curves(arousal: np.ndarray, valence: np.ndarray, steps: int) -> np.ndarray:
    """Two curves `[n]`, cut to at most `steps`, side by side: `[min(n, steps), 2]` float32."""
    return np.stack([arousal[:steps], valence[:steps]], axis=-1).astype(np.float32)


def mean_curve(curves: np.ndarray) -> np.ndarray:
    """Mean of `[k, ...]` over those of the k that are labelled at each place; NaN where none is."""
    labelled = np.isfinite(curves)
    count = labelled.sum(axis=0)
    total = np.where(labelled, curves, 0).sum(axis=0)
    return np.where(count, total / np.maximum(count, 1), np.nan).astype(np.float32)
