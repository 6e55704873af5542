"""The likeliest variances and correlations of how people differ from a model, from a few songs of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dsaml_jax.models import SongSpace
from dsaml_jax.runs import Correlations, Spread, Together

MOST_SONGS = 200
"""Of a person, evenly spread: what they say of people in general grows little beyond, and time by the cube."""

EXPECTED = 0.05
"""Share of the variance of levels that songs of a person are expected to have in common, before anything is known: where a
few people say little, little is believed (VGMIDI's people with two pieces have nothing in common, and fifty of them seem to)."""

MOST_ODDS = 12.0
"""Logarithm of the largest ratio of two variances."""


@dataclasses.dataclass(frozen=True)
class Likeness:
    """Which songs are alike.

    Attributes:
      space: in which they lie.
      places: `[songs, E]`, see :meth:`dsaml_jax.models.SongSpace.place`.
    """

    space: SongSpace
    places: np.ndarray

    def of(self, songs: np.ndarray) -> np.ndarray:
        """`[..., k, k]` of songs `[..., k]` to each other."""
        some = self.places[songs]
        rows = some.reshape(-1, *some.shape[-2:])
        found = np.stack([self.space.likeness(x, x) for x in rows])
        return found.reshape(*songs.shape, songs.shape[-1])

    def usual(self, songs: np.ndarray) -> float:
        """Of two of these songs, in the mean; of many songs, a number of them is looked at."""
        some = np.unique(songs)
        some = some[np.linspace(0, len(some) - 1, min(len(some), MOST_SONGS)).astype(int)]
        if len(some) < 2:
            return 1.0
        alike = self.of(some)
        return float((alike.sum() - len(some)) / (len(some) * (len(some) - 1)))


def groups_of(people: np.ndarray, *columns: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """People with equally many songs together: of each column `[people, k]`."""
    rows: dict[int, list[np.ndarray]] = {}
    for person in np.unique(people):
        (mine,) = np.nonzero(people == person)
        mine = mine[np.linspace(0, len(mine) - 1, min(len(mine), MOST_SONGS)).astype(int)]
        rows.setdefault(len(mine), []).append(mine)
    return [tuple(column[np.array(group)] for column in columns) for group in rows.values()]


def likeliest_variances(groups: Sequence[tuple[np.ndarray, ...]]) -> tuple[float, float, float]:
    """The likeliest variances of a person's level, of their taste, and of a song alone, all normal.

    A posteriori: the share that the first two have of all has an exponential prior of mean :data:`EXPECTED`.

    Args:
      groups: levels `[people, k]` and, where taste is looked for, the likeness `[people, k, k]` of their songs.
    """
    from scipy.optimize import minimize

    tastes = len(groups[0]) > 1
    count = sum(levels.size for levels, *_ in groups)

    def scaled(places: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Shares of the three, the likeliest sum of them, and minus twice the log-likelihood of both."""
        odds = np.exp(np.append(places, 0.0).clip(-MOST_ODDS, MOST_ODDS))
        level, *taste, alone = odds / odds.sum()
        squares = logarithms = 0.0
        for levels, *alike in groups:
            together = level + alone * np.eye(levels.shape[1]) + (taste[0] * alike[0] if tastes else 0.0)  # fmt: skip
            root = np.linalg.cholesky(np.broadcast_to(together, (*levels.shape, levels.shape[1])))
            squares += np.square(np.linalg.solve(root, levels[..., None])).sum()
            logarithms += 2.0 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum()
        total = max(squares / count, np.finfo(float).tiny)
        return np.array([level, *(taste or [0.0]), alone]), total, count * np.log(total) + logarithms  # fmt: skip

    begin = np.full(1 + tastes, -1.0)

    def surprise(places: np.ndarray) -> float:
        shares, _, twice = scaled(places)
        return float(twice + 2.0 * (1.0 - shares[-1]) / EXPECTED)

    best = minimize(surprise, begin, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4})  # fmt: skip
    shares, total, _ = scaled(best.x)
    level, taste, alone = (shares * total).tolist()
    return level, taste, alone


def likeliest_correlations(
    groups: Sequence[tuple[np.ndarray, ...]], spreads: Sequence[Spread]
) -> Correlations:
    """What arousal tells of valence, and the other way round, where their variances are known.

    A posteriori: the inverse hyperbolic tangent of each correlation (Fisher 1915) has a standard normal prior.

    Args:
      groups: levels `[people, k, 2]`, without gaps, and the likeness `[people, k, k]` of their songs.
      spreads: of both dimensions.
    """
    from scipy.optimize import minimize

    def surprise(places: np.ndarray) -> float:
        both = Together.of(spreads, Correlations(*np.tanh(places)))
        twice = float(np.square(places).sum())
        for levels, alike in groups:
            drawn = np.swapaxes(levels, 1, 2).reshape(len(levels), -1)
            root = np.linalg.cholesky(both.covariance(alike).reshape(*drawn.shape, drawn.shape[1]))
            twice += np.square(np.linalg.solve(root, drawn[..., None])).sum()
            twice += 2.0 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum()
        return twice

    best = minimize(surprise, np.full(3, 0.5), method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4})  # fmt: skip
    return Correlations(*np.tanh(best.x).tolist())
