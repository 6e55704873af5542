"""Paired differences of two methods, and how sure one can be of them.

The unit is the annotator (of DMER the song): their curves are not independent of each other, so each one's scores
are averaged first, over curves and over seeds, and annotators are drawn again (Efron 1979; here the bias-corrected
and accelerated interval of `scipy.stats.bootstrap`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

RESAMPLES = 9999
LEVEL = 0.95
NO_DIFFERENCE = 1e-6
"""Two scores this close are equal: what is between them is rounding."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A method minus another, in one column.

    Attributes:
      mean: over units.
      low, high: ends of the 95 % interval of the mean.
      better, worse: units that gain and lose; equal ones are neither.
      lower_is_better: of the column.
    """

    mean: float
    low: float
    high: float
    better: int
    worse: int
    lower_is_better: bool

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval excludes zero, and what rounding makes of it; else empty."""
        if self.low <= NO_DIFFERENCE and self.high >= -NO_DIFFERENCE:
            return ""
        return "better" if (self.high < 0.0) == self.lower_is_better else "worse"


def paired_difference(ours: np.ndarray, theirs: np.ndarray, *, lower_is_better: bool) -> Difference:
    """Compares the same units under two methods.

    Args:
      ours: `[units]`.
      theirs: `[units]`, in the same order.
      lower_is_better: of this column.

    Raises:
      ValueError: different lengths, or fewer than two units.
    """
    if ours.shape != theirs.shape or ours.ndim != 1 or len(ours) < 2:
        raise ValueError(f"{ours.shape} and {theirs.shape} are not two or more paired units")
    difference = ours - theirs
    low = high = mean = float(difference.mean())
    if np.ptp(difference) > NO_DIFFERENCE:  # rounding has no spread to draw from
        interval = stats.bootstrap(
            (difference,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="BCa",
            random_state=np.random.RandomState(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    gain = -difference if lower_is_better else difference
    better, worse = (int((side > NO_DIFFERENCE).sum()) for side in (gain, -gain))
    return Difference(mean, low, high, better, worse, lower_is_better)
