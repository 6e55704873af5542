"""What the numbers of somebody's table of annotations mean: the unit of its times, its scale, how far its points reach.

Nothing is guessed in silence: what does not look like seconds and like [-1, 1] is refused by a line that names the
option to give. To give the default means that it is really so.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.audio import max_seconds
from data_prep.base import DIMENSIONS, DataError
from data_prep.curves import MAX_GAP_SECONDS, ROUNDING

TimeUnit = Literal["s", "ms"]

TIME_DIGITS = 6
"""Times are rounded to microseconds: 15.499999999 is a half second that arithmetic has blurred."""

SCALES = (
    (1, 5), (1, 7), (1, 9), (0, 4), (0, 5), (0, 10), (0, 100),
    (-2, 2), (-3, 3), (-4, 4), (-5, 5), (-10, 10), (-50, 50), (-100, 100), (-1000, 1000),
)  # fmt: skip
"""Those that are proposed, the first that fit. They are 0 to 1 nowhere: see :data:`UNIT_TRACES`."""

SLIPS = 0.2
"""Where no more of the ratings than this lie outside [-1, 1], they are slips, and no other scale is proposed."""

UNIT_TRACES = 10
"""So many traces, of several songs by several people, in both dimensions, and never below 0: it is no use to go on
with the half of [-1, 1] where it may be all of [0, 1]. One song, or one person, may well be pleasant throughout."""

MS_GAP, MS_END = 10.0, 1000.0
"""Whole numbers at least so far apart (half of them), of which one is as large as this, look like milliseconds."""

Traces = Mapping[tuple[str, str], Sequence[int]]
"""Song and person to the rows of a table that are theirs."""


@dataclasses.dataclass(frozen=True)
class Convention:
    """How a table of annotations is meant.

    Attributes:
      time_unit: seconds or milliseconds; None: seconds, refused where they look like milliseconds.
      scale: its lowest and highest value, which become -1 and 1; None: [-1, 1], refused where it looks like another.
      max_gap: seconds; points up to so far apart are joined by lines.

    Raises:
      DataError: a scale or a gap that is none.
    """

    time_unit: TimeUnit | None = None
    scale: tuple[float, float] | None = None
    max_gap: float = MAX_GAP_SECONDS

    def __post_init__(self) -> None:
        low, high = self._range
        if not (math.isfinite(high - low) and (high - low) / 2 > 0):
            raise DataError(
                f"--scale {low:g} {high:g}: give two numbers, the lower one first, such as --scale 1 9"
            )
        if not 0 < self.max_gap < math.inf:
            raise DataError(f"--max-gap {self.max_gap:g} is not a number of seconds above 0")

    @property
    def _range(self) -> tuple[float, float]:
        return self.scale or (-1.0, 1.0)

    def apply(self, path: Path, rows: np.ndarray, traces: Traces) -> np.ndarray:
        """A table in seconds and in [-1, 1].

        Args:
          path: of the table, for messages.
          rows: `[n, 4]` time, arousal, valence as they stand there (NaN: not rated), and the line of each.
          traces: whose rows they are, of what song.

        Returns:
          `[n, 4]` likewise.

        Raises:
          DataError: a number that cannot be meant so. The message names the line, or the option to give.
        """
        gaps = np.concatenate(
            [np.diff(np.sort(rows[list(places), 0])) for places in traces.values()]
        )
        seconds = self._seconds(path, rows, gaps)
        values = self._values(path, rows, traces)
        return np.column_stack([seconds, values, rows[:, 3]])

    def _seconds(self, path: Path, rows: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        times = rows[:, 0]
        seconds = np.round(times / (1000 if self.time_unit == "ms" else 1), TIME_DIGITS)
        whole = self.time_unit is None and (times == np.rint(times)).all() and times.min() >= 0
        (outside,) = np.nonzero(~((seconds >= 0) & (seconds <= max_seconds())))
        if len(outside):
            row = outside[0]
            mend = ""
            if whole and times.max() <= 1000 * max_seconds():
                mend = "; if times are milliseconds give --time-unit ms"
            raise DataError(
                f"{path}, line {rows[row, 3]:.0f}: time {times[row]:g} is not from 0 to "
                f"{max_seconds():g} s{mend}"
            )
        apart = float(np.median(gaps)) if len(gaps) else 0.0
        # Seconds that look so would leave next to nothing labelled: no gap is closed.
        if whole and times.max() >= MS_END and apart >= MS_GAP and apart > self.max_gap:
            raise DataError(
                f"{path}: times look like milliseconds (whole numbers up to {times.max():g}, mostly {apart:g} apart); "
                "give --time-unit ms, or --time-unit s if they are seconds"
            )
        if self.time_unit == "ms" and 0 < times.max() < MS_END:
            raise DataError(
                f"{path}: the last time is {times.max():g}, less than a second with --time-unit ms; if times are "
                "seconds leave that out"
            )
        return np.asarray(seconds)

    def _values(self, path: Path, rows: np.ndarray, traces: Traces) -> np.ndarray:
        values = rows[:, 1:3]
        low, high = self._range
        outside = (values < low) | (values > high)  # NaN compares false
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise DataError(
                f"{path}, line {rows[row, 3]:.0f}: {DIMENSIONS[column]} {values[row, column]:g} is not from {low:g} to "
                f"{high:g}; {self._proposed(values, outside)}"
            )
        if self.scale is None and _never_below_zero(values, traces):
            raise DataError(
                f"{path}: no rating of {len(traces)} is ever below 0; give --scale 0 1 if that is the scale, or "
                "--scale -1 1 if it is really so"
            )
        middle, half = (low + high) / 2, (high - low) / 2
        return np.clip((values - middle) / half, -1.0, 1.0)  # of [-1, 1] it changes no bit

    def _proposed(self, values: np.ndarray, outside: np.ndarray) -> str:
        """The option that mends values outside the scale."""
        if self.scale is not None:
            return "that is what --scale says"
        fitting = [
            scale for scale in SCALES if scale[0] <= np.nanmin(values) and np.nanmax(values) <= scale[1]
        ][:2]  # fmt: skip
        if not fitting or outside.sum() <= SLIPS * np.isfinite(values).sum():
            return "if the table has another scale give --scale LOW HIGH"
        said = " or ".join(f"{low} to {high}" for low, high in fitting)
        given = " or ".join(f"--scale {low} {high}" for low, high in fitting)
        return f"if the scale is {said} give {given}"

    def meaning(self) -> str:
        """What was published, and how it became seconds and [-1, 1]; for people."""
        low, high = self._range
        middle, half = (low + high) / 2, (high - low) / 2
        changed = "unchanged"
        if (low, high) != (-1.0, 1.0):
            shift = f"(x {'-' if middle > 0 else '+'} {abs(middle):g})" if middle else "x"
            changed = f"by {shift} / {half:g}"
        times = "; times in milliseconds" if self.time_unit == "ms" else ""
        return f"annotated in [{low:g}, {high:g}], {changed}{times}"

    def leaves_gaps(self, traces: Sequence[np.ndarray]) -> bool:
        """Whether most neighbouring points of `[n, 3]` traces are too far apart to be joined."""
        gaps = list(itertools.chain.from_iterable(np.diff(trace[:, 0]) for trace in traces))
        return bool(gaps) and float(np.median(gaps)) > self.max_gap + ROUNDING


def _never_below_zero(values: np.ndarray, traces: Traces) -> bool:
    songs, people = ({key[i] for key in traces} for i in (0, 1))
    both = bool(np.isfinite(values).any(axis=0).all())
    many = len(traces) >= UNIT_TRACES and len(songs) > 1 and len(people) > 1
    return both and many and float(np.nanmin(values)) >= 0 and float(np.nanmax(values)) > 0
