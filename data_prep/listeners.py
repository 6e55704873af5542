"""How personal the listeners of a corpus are, and the most that some songs of theirs could tell about the others.

Two things are looked at in each rating: its level (mean over time) and its movement (log of the standard deviation over
time). Their variance has three parts, `value = mean + song + person + rest`, where the rest is what only this person hears
in this song, and noise. What a model of everybody cannot know is the residual of a rating, its difference from the mean
of the song's other raters; how alike the residuals of one person are says what personalisation could gain.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from data_prep.base import DIMENSIONS, Song

SHOTS = (1, 2, 5, 10)
"""Songs of a person that the others are foretold from."""

SHARES = np.arange(11) / 10
"""Of a person's mean residual, how much is added to the mean of the others."""

DRAWS = 20
"""Times that the songs to foretell from are drawn."""

FEW = 10
"""With fewer people an interval over them is not to be trusted."""

_TELLS_APART = 1e9
"""Condition of the three equations; beyond it two of them say the same."""

RESAMPLES = 1999
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Traces:
    """The ratings of one dimension that share a step with another rating of their song, in numbers.

    Attributes:
      person, song: `[k]` whose, of what; a pair comes once.
      level: `[k]` mean over time.
      movement: `[k]` log of the standard deviation over time; NaN where the trace is constant.
      residual: `[k]` mean over time of the trace minus the mean of the other raters.
      spread: `[k]` variance over time of that difference.
    """

    person: np.ndarray
    song: np.ndarray
    level: np.ndarray
    movement: np.ndarray
    residual: np.ndarray
    spread: np.ndarray


def traces_of(songs: Sequence[Song], dimension: str) -> Traces:
    """Looks at each rating of a dimension."""
    people = {rating.annotator_id: 0 for song in songs for rating in song.ratings}
    people = {name: number for number, name in enumerate(sorted(people))}
    rows: list[np.ndarray] = []
    for number, song in enumerate(songs):
        if len(song.ratings) < 2:
            continue
        drawn = np.stack([getattr(rating, dimension) for rating in song.ratings]).astype(np.float64)
        known = np.isfinite(drawn)
        values = np.where(known, drawn, 0.0)
        others = known.sum(axis=0) - known
        shared = known & (others > 0)
        difference = np.where(shared, values - (values.sum(axis=0) - values) / np.maximum(others, 1), 0.0)  # fmt: skip
        level, variance = _moments(values, known)
        residual, spread = _moments(difference, shared)
        with np.errstate(divide="ignore"):
            movement = np.where(variance > 1e-12, 0.5 * np.log(variance), np.nan)
        who = np.array([people[rating.annotator_id] for rating in song.ratings], float)
        row = np.stack([who, np.full(len(who), float(number)), level, movement, residual, spread])
        rows.append(row[:, shared.any(axis=1)])
    person, song_of, *numbers = np.concatenate(rows, axis=1) if rows else np.zeros((6, 0))
    return Traces(person.astype(int), song_of.astype(int), *numbers)


def _moments(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each row `[k, n]` over what is known; 0 where nothing is."""
    count = np.maximum(known.sum(axis=1), 1)
    mean = np.where(known, values, 0.0).sum(axis=1) / count
    return mean, np.where(known, np.square(values - mean[:, None]), 0.0).sum(axis=1) / count


# ---- Variance components.


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def variance_components(
    person: np.ndarray, song: np.ndarray, value: np.ndarray
) -> dict[str, Estimate] | None:
    """Variances of `value = mean + song + person + rest`, each independent of the others.

    Estimated by Henderson's method 1 (Biometrics 1953), which any pattern of who rated what allows. The intervals take
    people and songs as random: the jackknife's variance over people and that over songs, added, on the logarithm.

    Args:
      person: `[k]` index.
      song: `[k]` index; a pair comes once.
      value: `[k]`, NaN where there is none.

    Returns:
      `song`, `person`, `rest`; None with fewer than three people or songs, or where they cannot be told apart without some one
      of them: nobody else rated two songs, or no other song has two raters.
    """
    there = np.isfinite(value)
    (people, person), (songs, song) = (np.unique(x[there], return_inverse=True) for x in (person, song))  # fmt: skip
    if min(len(people), len(songs)) < 3 or there.sum() <= len(people) or there.sum() <= len(songs):
        return None
    rated, values = (np.zeros((len(people), len(songs))) for _ in range(2))
    rated[person, song] = 1.0
    values[person, song] = value[there] - value[there].mean()
    whole, without_person = _henderson(rated, values)
    _, without_song = _henderson(rated.T, values.T)
    if not np.isfinite([*whole, *without_person.ravel(), *without_song.ravel()]).all():
        return None
    variance = _jackknife(without_person) + _jackknife(without_song[:, [1, 0, 2]])
    estimates = zip(whole, np.sqrt(variance), strict=True)
    wide = stats.t.ppf(0.5 + LEVEL / 2, min(len(people), len(songs)) - 1)
    of = dict(zip(("person", "song", "rest"), (_positive(*one, wide) for one in estimates), strict=True))  # fmt: skip
    return {name: of[name] for name in ("song", "person", "rest")}


def _positive(value: float, error: float, wide: float) -> Estimate:
    """Of a variance: symmetric on the logarithm; where the estimate is not above zero, from zero on."""
    if value <= 0.0:
        return Estimate(0.0, 0.0, max(0.0, value + wide * error))
    return Estimate(value, *(value * np.exp(sign * wide * error / value) for sign in (-1, 1)))


def _jackknife(without_one: np.ndarray) -> np.ndarray:
    """Variance of estimates from those `[n, ...]` with one unit left out each."""
    count = len(without_one)
    return (count - 1) / count * np.square(without_one - without_one.mean(axis=0)).sum(axis=0)


def _henderson(rated: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances of rows, columns and rest, from a table `[r, c]` in which `rated` says what is there.

    Returns:
      `[3]` of the whole table, and `[r, 3]` with each row left out; NaN where they cannot be told apart.
    """
    of_row, of_column = rated.sum(axis=1), rated.sum(axis=0)
    row_sum, column_sum = values.sum(axis=1), values.sum(axis=0)
    squares = np.square(values).sum(axis=1)
    row_term = np.square(row_sum) / of_row

    def estimate(
        count: np.ndarray, square: np.ndarray, total: np.ndarray, row: np.ndarray,
        rows: np.ndarray, row_counts: np.ndarray, column_count: np.ndarray, column_total: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Sums of squares, less that of the mean, set equal to what they are expected to be."""
        column = (np.square(column_total) / np.maximum(column_count, 1.0)).sum(axis=-1)
        columns = (column_count > 0).sum(axis=-1).astype(float)
        mean = np.square(total) / count
        of_rows, of_columns = row_counts / count, np.square(column_count).sum(axis=-1) / count
        one = np.ones_like(count)
        expected = np.stack([
            np.stack([count - of_rows, rows - of_columns, rows - one], axis=-1),
            np.stack([columns - of_rows, count - of_columns, columns - one], axis=-1),
            np.stack([count - of_rows, count - of_columns, count - one], axis=-1),
        ], axis=-2)  # fmt: skip
        found = np.stack([row - mean, column - mean, square - mean], axis=-1)
        apart = np.linalg.cond(expected) < _TELLS_APART
        safe = np.where(apart[..., None, None], expected, np.eye(3))
        return np.where(apart[..., None], np.linalg.solve(safe, found[..., None])[..., 0], np.nan)

    count, rows, row_counts = of_row.sum(), np.asarray(len(of_row), float), np.square(of_row).sum()
    whole = estimate(count, squares.sum(), row_sum.sum(), row_term.sum(), rows, row_counts, of_column, column_sum)  # fmt: skip
    without = estimate(
        count - of_row, squares.sum() - squares, row_sum.sum() - row_sum, row_term.sum() - row_term,
        np.full(len(of_row), rows - 1), row_counts - np.square(of_row), of_column - rated, column_sum - values,
    )  # fmt: skip
    return whole, without


# ---- How alike the residuals of a person are.


def intraclass_correlation(person: np.ndarray, value: np.ndarray) -> Estimate | None:
    """Share of the variance of `value` that is between people: ICC(1) of the one-way analysis of variance.

    The interval is the bias-corrected and accelerated bootstrap over people.

    Args:
      person: `[k]` index.
      value: `[k]`, NaN where there is none.

    Returns:
      None with fewer than three people, or where nobody has two values.
    """
    there = np.isfinite(value)
    _, who = np.unique(person[there], return_inverse=True)
    count = np.bincount(who).astype(float)
    if len(count) < 3 or count.max() < 2:
        return None
    total, squares = (np.bincount(who, value[there] ** power) for power in (1, 2))
    found = float(_icc(count, total, squares))
    return Estimate(found, *_interval((count, total, squares), _icc))


def _icc(count: np.ndarray, total: np.ndarray, squares: np.ndarray, axis: int = -1) -> np.ndarray:
    """From each person's number, sum and sum of squares of values."""
    people, values = count.shape[axis], count.sum(axis)
    mean_square = total.sum(axis) ** 2 / values
    between_sum = (total**2 / count).sum(axis)
    between = (between_sum - mean_square) / (people - 1)
    within = (squares.sum(axis) - between_sum) / np.maximum(values - people, 1.0)
    size = (values - (count**2).sum(axis) / values) / (people - 1)
    return (between - within) / np.maximum(between + (size - 1.0) * within, 1e-12)


def _interval(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]
) -> tuple[float, float]:
    """Of a statistic of people, who are drawn again; of no width where they are all alike."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            samples, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=LEVEL,
            method="BCa", random_state=np.random.RandomState(0),
        ).confidence_interval  # fmt: skip
    low, high = float(interval.low), float(interval.high)
    return (low, high) if math.isfinite(low + high) else (float(statistic(*samples)),) * 2


# ---- The most that some songs could tell.


def shots_that_fit(person: np.ndarray) -> tuple[int, ...]:
    """Those of :data:`SHOTS` for which :data:`FEW` people, or all who have two ratings, have a song more."""
    count = np.bincount(person) if len(person) else np.zeros(0, int)
    wanted = min(FEW, int((count >= 2).sum()))
    return tuple(shots for shots in SHOTS if wanted and (count > shots).sum() >= wanted)


def ceiling(traces: Traces) -> dict[str, Any] | None:
    """What a perfect model of everybody gains by knowing the levels of some songs of a person.

    It predicts the mean of the other raters, and adds a share of the person's mean residual on `K` other songs, drawn at
    random. The share is the one that gains most, for all people alike; people weigh the same.

    Returns:
      `people` who have enough songs for the most `K`, their `rmse` without any song, and `shots`: for each `K` the `gain` in
      RMSE with its interval over people, the `share`, and `gaining`: the share of people who gain. None where nobody
      rated two songs.
    """
    shots = shots_that_fit(traces.person)
    if not shots:
        return None
    count = np.bincount(traces.person)
    people = np.flatnonzero(count > max(shots))
    before = np.zeros(len(people))
    after = np.zeros((len(shots), len(people), len(SHARES)))
    random = np.random.RandomState(0)
    for place, who in enumerate(people):
        residual, spread = (x[traces.person == who] for x in (traces.residual, traces.spread))
        before[place] = np.sqrt(spread + residual**2).mean()
        order = np.argsort(random.random_sample((DRAWS, len(residual))), axis=1)
        drawn, noise = residual[order], spread[order]
        for row, k in enumerate(shots):
            # In a random circle the next k songs are as good as any k others.
            told = np.mean([np.roll(drawn, -step, axis=1) for step in range(1, k + 1)], axis=0)
            left = drawn[..., None] - told[..., None] * SHARES
            after[row, place] = np.sqrt(noise[..., None] + left**2).mean(axis=(0, 1))
    rows = []
    for k, errors in zip(shots, after, strict=True):
        best = int(errors.mean(axis=0).argmin())
        gain = before - errors[:, best]
        low, high = _interval((gain,), np.mean) if len(gain) > 2 else (None, None)
        rows.append({"songs": k, "gain": float(gain.mean()), "low": low, "high": high,
                     "share": float(SHARES[best]), "gaining": float((gain > 1e-9).mean())})  # fmt: skip
    return {"people": len(people), "rmse": float(before.mean()), "shots": rows}


# ---- Both dimensions, as facts of a dataset.


def describe_listeners(songs: Sequence[Song]) -> dict[str, Any] | None:
    """All of the above, as numbers that JSON can hold.

    Returns:
      for each dimension that ratings share, `people`, `ratings`, `level` and `movement` (each `components`, and `icc` of
      the residual), `typical_sd` of a trace over time, `ceiling`; and `correlation` of the mean residuals in the two, of people with enough songs for
      both ceilings. None where no song has two raters.
    """
    found: dict[str, Any] = {}
    means: list[dict[int, float]] = []
    for dimension in DIMENSIONS:
        traces = traces_of(songs, dimension)
        if not len(traces.person):
            continue
        movement = _from_the_others(traces.song, traces.movement)
        found[dimension] = {
            "people": len(np.unique(traces.person)),
            "ratings": len(traces.person),
            "level": _trait(traces, traces.level, traces.residual),
            "movement": _trait(traces, traces.movement, movement),
            "typical_sd": _median_sd(traces.movement),
            "ceiling": ceiling(traces),
        }
        means.append(_mean_residuals(traces))
    if not found:
        return None
    found["correlation"] = _correlation(means)
    return found


def _from_the_others(song: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Each value `[k]` minus the mean of the others of its song; NaN where there are none."""
    there = np.isfinite(value)
    others = np.bincount(song, there)[song] - 1
    total = np.bincount(song, np.where(there, value, 0.0))[song]
    return np.where(there & (others > 0), value - (total - value) / np.maximum(others, 1), np.nan)


def _median_sd(movement: np.ndarray) -> float | None:
    """Of the traces that move, the median standard deviation over time."""
    moving = movement[np.isfinite(movement)]
    return float(np.exp(np.median(moving))) if len(moving) else None


def _trait(traces: Traces, value: np.ndarray, residual: np.ndarray) -> dict[str, Any]:
    components = variance_components(traces.person, traces.song, value)
    icc = intraclass_correlation(traces.person, residual)
    return {
        "components": components and {k: dataclasses.asdict(x) for k, x in components.items()},
        "icc": icc and dataclasses.asdict(icc),
    }


def _mean_residuals(traces: Traces) -> dict[int, float]:
    """Of each person with enough songs for the ceiling."""
    count = np.bincount(traces.person)
    total = np.bincount(traces.person, traces.residual)
    enough = max(shots_that_fit(traces.person), default=len(traces.person))
    return {who: total[who] / count[who] for who in np.flatnonzero(count > enough).tolist()}


def _correlation(means: Sequence[dict[int, float]]) -> float | None:
    """Of people's means in two dimensions, over those who have both."""
    if len(means) < 2:
        return None
    both = sorted(means[0].keys() & means[1].keys())
    pairs = np.array([[mean[who] for who in both] for mean in means])
    if len(both) < 3 or (np.ptp(pairs, axis=1) < 1e-12).any():
        return None
    return float(np.corrcoef(pairs)[0, 1])
