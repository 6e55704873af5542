"""From what was recorded while a song played to the curve that was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsaml_jax.errors import UsageError

PASSES = ("both", "arousal", "valence")
"""What a take draws: both at once, or one as DEAM's raters did."""

RUN_GAP = 1.0
"""Seconds of the song without a sample that end a run: it was paused there, or another place was sought."""

LATEST_SECONDS = 3600.0
"""No entry lies later in a song."""

Entry = tuple[float, float | None, float | None, float | None]
"""Position in the song in seconds, arousal, valence, None; or position, None, None, end: what lies from here to before
the end is erased, with None for the end of the song. Erasing nothing says that another place was sought."""


def check_entries(entries: Any) -> list[Entry]:
    """Entries as a browser sends them, see :data:`Entry`, with times in milliseconds.

    Args:
      entries: what came.

    Raises:
      UsageError: anything else.
    """
    if not isinstance(entries, list) or len(entries) > 20_000:
        raise UsageError("entries must be a list of at most 20,000")
    checked = []
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 4:
            raise UsageError("an entry is [milliseconds, arousal, valence, end of what is erased]")
        at, arousal, valence, end = entry
        latest = 1000 * LATEST_SECONDS
        if not _is_number(at, 0, latest) or not (end is None or _is_number(end, at, latest)):
            raise UsageError(f"an entry's times must be in order, and within {LATEST_SECONDS:g} s")
        if not all(value is None or _is_number(value, -1, 1) for value in (arousal, valence)):
            raise UsageError("arousal and valence must be in [-1, 1]")
        checked.append((at / 1000, arousal, valence, None if end is None else end / 1000))
    return checked


def _is_number(value: Any, least: float, most: float) -> bool:
    # Comparing works for integers of any size, which math.isfinite does not.
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def drawn_curve(entries: Sequence[Entry]) -> np.ndarray:
    """`[n, 3]` time (increasing), arousal, valence: of every place what was drawn there last.

    Sampling goes along with the song, so samples between a jump and the next are a run; a later run replaces
    what earlier ones drew where it went, and erasing replaces what it names. A dimension that the take does not
    draw is NaN.
    """
    points = np.array(entries, dtype=float).reshape(-1, 4)  # None becomes NaN
    ends, points = points[:, 3], points[:, :3]
    erases = np.isnan(points[:, 1:]).all(axis=1)
    steps = np.diff(points[:, 0])
    breaks = (steps < 0) | (steps > RUN_GAP) | erases[1:] | erases[:-1]
    kept = np.ones(len(points), bool)
    for run in np.split(np.arange(len(points)), np.flatnonzero(breaks) + 1):
        if not len(run):
            continue
        first, last = run[0], run[-1]
        before = points[:first, 0]
        if erases[first]:
            gone = before < (np.inf if np.isnan(ends[first]) else ends[first])
        else:
            gone = before <= points[last, 0]
        kept[:first] &= (before < points[first, 0]) | ~gone
    points = points[kept & ~erases][::-1]  # of equal times the last
    _, unique = np.unique(points[:, 0], return_index=True)
    return points[unique]
