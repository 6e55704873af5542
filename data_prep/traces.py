"""Songs from the points that single listeners drew: brought to the half-second grid, and averaged."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np

from data_prep.base import STEPS_PER_SECOND, Song
from data_prep.curves import FLAT_REASON, FlatRule, mean_curve, on_grid

Traces = dict[str, np.ndarray]
"""Annotator to `[n, 3]`: time in seconds (increasing), arousal, valence; NaN where one of them is missing."""

_UNLABELLED_RATING = (
    "ratings reach no half second (points over {:g} s apart are not joined: --max-gap); left out"
)
_UNLABELLED_SONG = "songs have no rating that reaches a half second; left out"


def song_of_traces(
    song_id: str,
    audio: Path | None,
    traces: Traces,
    rule: FlatRule,
    dropped: Counter[str],
    max_gap: float,
) -> Song | None:
    """A song with everybody's curves. Its own curve is their mean, also over those that are left out as flat.

    Args:
      song_id: its name.
      audio: its sound file, where there is one.
      traces: at least one, each of at least one point.
      rule: what becomes of flat ones.
      dropped: gets what is left out, and why.
      max_gap: seconds; points up to so far apart are joined.

    Returns:
      the song, or None where no point reaches the grid.
    """
    earliest = min(trace[0, 0] for trace in traces.values())
    latest = max(trace[-1, 0] for trace in traces.values())
    start = math.floor(earliest * STEPS_PER_SECOND) / STEPS_PER_SECOND
    steps = math.floor((latest - start) * STEPS_PER_SECOND) + 1
    curves = {who: on_grid(trace, steps, start, max_gap) for who, trace in sorted(traces.items())}
    ratings = []
    for annotator, curve in curves.items():
        if not np.isfinite(curve).any():
            dropped[_UNLABELLED_RATING.format(max_gap)] += 1
            continue
        rating = rule.rating(annotator, *curve.T)
        if rating:
            ratings.append(rating)
        else:
            dropped[FLAT_REASON] += 1
    everyone = np.stack(list(curves.values()))
    if not np.isfinite(everyone).any():
        dropped[_UNLABELLED_SONG] += 1
        return None
    return Song(
        song_id=song_id,
        audio=audio,
        start=start,
        arousal=mean_curve(everyone[..., 0]),
        valence=mean_curve(everyone[..., 1]),
        ratings=tuple(ratings),
        raters=tuple(curves),
    )
