"""From what was recorded while a song played to the curve that was drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsaml_jax.errors import UsageError

Dimension = str
DIMENSIONS: tuple[Dimension, ...] = ("both", "arousal", "valence")
"""What a take draws: both at once, or one as DEAM's raters did."""

RUN_GAP = 1.0
"""Seconds of the song without a sample that end a run: it was paused there, or another place was sought."""

Entry = tuple[float, float | None, float | None]
"""Position in the song in seconds, arousal, valence; both None: what lies from here on is erased."""


def check_entries(entries: Any, seconds: float) -> list[Entry]:
    """Entries as a browser sends them: `[milliseconds, arousal, valence]`, the last two None to erase.

    Args:
      entries: what came.
      seconds: of the song.

    Raises:
      UsageError: anything else.
    """
    if not isinstance(entries, list) or len(entries) > 20_000:
        raise UsageError("entries must be a list of at most 20,000")
    checked = []
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 3:
            raise UsageError("an entry is [milliseconds, arousal, valence]")
        at, *values = entry
        if not _is_number(at) or not 0 <= at <= 1000 * (seconds + 5.0):
            raise UsageError("an entry's time lies outside the song")
        if any(value is not None and (not _is_number(value) or abs(value) > 1) for value in values):
            raise UsageError("arousal and valence must be in [-1, 1]")
        checked.append((at / 1000, *(None if v is None else float(v) for v in values)))
    return checked


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def drawn_curve(entries: Sequence[Entry]) -> np.ndarray:
    """`[n, 3]` time (increasing), arousal, valence: of every place what was drawn there last.

    Sampling goes along with the song, so samples between a jump and the next are a run; a later run replaces
    what earlier ones drew where it went, and erasing replaces all from a place on. A dimension that the take
    does not draw is NaN.
    """
    points = np.array(
        [[at, np.nan if a is None else a, np.nan if v is None else v] for at, a, v in entries]
    ).reshape(-1, 3)
    erases = np.isnan(points[:, 1:]).all(axis=1)
    steps = np.diff(points[:, 0])
    breaks = (steps < 0) | (steps > RUN_GAP) | erases[1:] | erases[:-1]
    kept = np.ones(len(points), bool)
    for run in np.split(np.arange(len(points)), np.flatnonzero(breaks) + 1):
        if not len(run):
            continue
        first, last = run[0], run[-1]
        end = np.inf if erases[first] else points[last, 0]
        before = points[:first, 0]
        kept[:first] &= (before < points[first, 0]) | (before > end)
    points = points[kept & ~erases]
    _, unique = np.unique(points[:, 0], return_index=True)
    return points[unique]
