"""How single listeners differ from a model on songs that it was not trained on: what bands and personal levels rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import chex
import numpy as np

from data_prep.curves import labelled_mean
from data_prep.shards import Corpus
from dsaml_jax.corpus import song_embeddings
from dsaml_jax.evaluation.methods import CurvesOfSongs
from dsaml_jax.models import SongSpace
from dsaml_jax.runs import BAND_SHARE, Listeners, Spread

MIN_PEOPLE = 2
"""With two songs each, or more: of fewer people nothing can be said."""

MOST_SONGS = 200
"""Of a person, evenly spread: what they say of people in general grows little beyond, and time by the cube."""

EXPECTED = 0.05
"""Share of the variance of levels that songs of a person are expected to have in common, before anything is known: where a
few people say little, little is believed (VGMIDI's people with two pieces have nothing in common, and fifty of them seem to)."""

MOST_ODDS = 12.0
"""Logarithm of the largest ratio of two variances."""


def listeners_of(
    drawn: Sequence[tuple[Corpus, np.ndarray, CurvesOfSongs]],
    space: SongSpace | None,
    step: int = 0,
) -> Listeners | None:
    """How the people of some ratings differ from a model's curves.

    Those of several corpora are looked at together: a listener whom the model predicts is from none of them.

    Args:
      drawn: of each corpus it, indices of ratings of songs that the model was not trained on, and curves of all their songs.
      space: where songs lie for the model, see :func:`dsaml_jax.models.song_space`.
      step: of its checkpoint.

    Returns:
      None where too few people have two songs.
    """
    people, found, before = [], [], 0
    for corpus, ratings, curves in drawn:
        people.append(before + corpus.rating_annotator[ratings])
        found += differences(corpus, ratings, curves)
        before += len(corpus.annotator_ids)
    if not found:
        return None
    rated = [(corpus, ratings) for corpus, ratings, _ in drawn]
    fitted = fit_listeners(np.concatenate(people), found, *likeness_of(rated, space))
    return None if fitted is None else dataclasses.replace(fitted, step=step)


def likeness_of(
    rated: Sequence[tuple[Corpus, np.ndarray]], space: SongSpace | None
) -> tuple[np.ndarray, Likeness | None]:
    """Which of the songs that were rated are alike.

    Args:
      rated: of each corpus it, and indices of ratings.
      space: where songs lie; None where nobody knows.

    Returns:
      `[ratings]` the number of each one's song; and their likeness.
    """
    numbers: list[np.ndarray] = []
    embeddings: list[np.ndarray] = []
    before = 0
    for corpus, ratings in rated:
        songs, here = np.unique(corpus.rating_song[ratings], return_inverse=True)
        numbers.append(before + here)
        before += len(songs)
        if space is not None:
            embeddings.append(song_embeddings(corpus, songs))
    if space is None:
        return np.concatenate(numbers), None
    places = space.place(np.concatenate(embeddings)).astype(np.float16)
    return np.concatenate(numbers), Likeness(space, places)


def differences(corpus: Corpus, ratings: np.ndarray, curves: CurvesOfSongs) -> list[np.ndarray]:
    """What people drew minus what a model says of the song, `[n, 2]` of each rating; NaN where they drew nothing.

    Args:
      corpus: with ratings by single people.
      ratings: their indices.
      curves: of all their songs; clipped to the scale, as they are written.
    """
    found = []
    for rating in ratings.tolist():
        song, first = corpus.rating_song[rating], corpus.rating_first[rating]
        steps = corpus.song_steps[song]
        predicted = np.clip(curves.of(song)[:steps], -1.0, 1.0)
        found.append(corpus.ratings[first : first + steps].astype(np.float64) - predicted)
    return found


def fit_listeners(
    people: np.ndarray,
    differences: list[np.ndarray],
    songs: np.ndarray | None = None,
    likeness: Likeness | None = None,
) -> Listeners | None:
    """Variances by maximum likelihood, and the band by quantiles of what was drawn.

    Songs count equally in the variances but for those of a person beyond :data:`MOST_SONGS`, curves in the band. The level of
    a person is about zero, not about the mean of these people: of whom nothing is known stays where everyone is.

    Args:
      people: `[ratings]` whose each difference is.
      differences: see :func:`differences`.
      songs: `[ratings]` the number of each one's song, see :func:`likeness_of`.
      likeness: of songs; None: no taste is looked for.

    Returns:
      None where too few people have two songs, in both dimensions.
    """
    chex.assert_shape(people, (len(differences),))
    arousal, valence = (
        _spread(people, [difference[:, column] for difference in differences], songs, likeness)
        for column in (0, 1)
    )
    if arousal is None and valence is None:
        return None
    return Listeners(arousal, valence, people=len(np.unique(people)), curves=len(people))


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


def _spread(
    people: np.ndarray,
    differences: list[np.ndarray],
    songs: np.ndarray | None,
    likeness: Likeness | None,
) -> Spread | None:
    levels = np.array([labelled_mean(difference) for difference in differences])
    (known,) = np.nonzero(np.isfinite(levels))
    _, counts = np.unique(people[known], return_counts=True)
    if (counts > 1).sum() < MIN_PEOPLE:
        return None
    if songs is None or likeness is None:
        level, _, alone = _likeliest(_groups(people[known], levels[known]))
        taste = alike = 0.0
    else:
        groups = _groups(people[known], levels[known], songs[known])
        level, taste, alone = _likeliest([(x, likeness.of(which)) for x, which in groups])
        alike = likeness.usual(songs[known])
    drawn = [difference[np.isfinite(difference)] for difference in differences]
    drawn = [difference for difference in drawn if len(difference)]
    moving = float(np.mean([np.var(difference) for difference in drawn]))
    low, high = _quantiles(drawn, ((1.0 - BAND_SHARE) / 2, (1.0 + BAND_SHARE) / 2))
    shared = level + taste * alike
    return Spread(shared, alone + taste * (1.0 - alike), moving, low, high, taste, alike)


def _groups(people: np.ndarray, *columns: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """People with equally many songs together: of each column `[people, k]`."""
    rows: dict[int, list[np.ndarray]] = {}
    for person in np.unique(people):
        (mine,) = np.nonzero(people == person)
        mine = mine[np.linspace(0, len(mine) - 1, min(len(mine), MOST_SONGS)).astype(int)]
        rows.setdefault(len(mine), []).append(mine)
    return [tuple(column[np.array(group)] for column in columns) for group in rows.values()]


def _likeliest(groups: Sequence[tuple[np.ndarray, ...]]) -> tuple[float, float, float]:
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


def _quantiles(curves: list[np.ndarray], shares: tuple[float, float]) -> tuple[float, float]:
    """Of all steps, where each curve counts as much as another, however long it is."""
    values = np.concatenate(curves)
    weights = np.concatenate([np.full(len(curve), 1.0 / len(curve)) for curve in curves])
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order]) / len(curves)
    places = np.minimum(np.searchsorted(cumulated, shares), len(values) - 1)
    low, high = values[order][places]
    return float(low), float(high)


def inside(differences: list[np.ndarray], listeners: Listeners) -> np.ndarray:
    """`[ratings, 2]` share of each curve that lies in the band of a person of whom nothing is known; NaN where nothing was drawn."""
    bands = [
        (np.nan, np.nan) if spread is None else (spread.low, spread.high)
        for spread in (listeners.arousal, listeners.valence)
    ]
    low, high = np.array(bands).T
    shares = []
    for difference in differences:
        known = np.isfinite(difference)
        within = (difference >= low) & (difference <= high)
        shares.append(labelled_mean(np.where(known, within.astype(np.float64), np.nan)))
    return np.stack(shares)
