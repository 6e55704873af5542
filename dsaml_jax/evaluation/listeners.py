"""How single listeners differ from a model on songs that it was not trained on: what bands and personal levels rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import chex
import numpy as np

from data_prep.curves import labelled_mean
from data_prep.shards import Corpus
from dsaml_jax.corpus import song_embeddings
from dsaml_jax.evaluation.likelihood import (
    Likeness,
    groups_of,
    likeliest_correlations,
    likeliest_variances,
)
from dsaml_jax.evaluation.methods import CurvesOfSongs
from dsaml_jax.models import SongSpace
from dsaml_jax.runs import BAND_SHARE, Correlations, Listeners, Spread

MIN_PEOPLE = 2
"""With two songs each, or more: of fewer people nothing can be said."""


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
    """Variances and correlations by maximum likelihood, and the band by quantiles of what was drawn.

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
    if songs is None or likeness is None:
        songs, likeness = np.arange(len(people)), None
    levels = np.array([labelled_mean(difference) for difference in differences])
    arousal, valence = (
        _spread(people, [x[:, column] for x in differences], levels[:, column], songs, likeness)
        for column in (0, 1)
    )
    if arousal is None and valence is None:
        return None
    together = Correlations()
    if arousal is not None and valence is not None:
        (known,) = np.nonzero(np.isfinite(levels).all(axis=1))
        groups = [
            (x, _alike(which, likeness))
            for x, which in groups_of(people[known], levels[known], songs[known])
        ]
        together = likeliest_correlations(groups, (arousal, valence))
    return Listeners(arousal, valence, people=len(np.unique(people)), curves=len(people), together=together)  # fmt: skip


def _alike(songs: np.ndarray, likeness: Likeness | None) -> np.ndarray:
    """`[people, k, k]` of songs `[people, k]`; where nobody knows, of none."""
    if likeness is not None:
        return likeness.of(songs)
    count = songs.shape[1]
    return np.broadcast_to(np.eye(count), (len(songs), count, count))


def _spread(
    people: np.ndarray,
    differences: list[np.ndarray],
    levels: np.ndarray,
    songs: np.ndarray,
    likeness: Likeness | None,
) -> Spread | None:
    (known,) = np.nonzero(np.isfinite(levels))
    _, counts = np.unique(people[known], return_counts=True)
    if (counts > 1).sum() < MIN_PEOPLE:
        return None
    groups = groups_of(people[known], levels[known], songs[known])
    if likeness is None:
        level, taste, alone = likeliest_variances([(x,) for x, _ in groups])
        alike = 0.0
    else:
        level, taste, alone = likeliest_variances([(x, likeness.of(which)) for x, which in groups])
        alike = likeness.usual(songs[known])
    drawn = [difference[np.isfinite(difference)] for difference in differences]
    drawn = [difference for difference in drawn if len(difference)]
    moving = float(np.mean([np.var(difference) for difference in drawn]))
    low, high = _quantiles(drawn, ((1.0 - BAND_SHARE) / 2, (1.0 + BAND_SHARE) / 2))
    shared = level + taste * alike
    return Spread(shared, alone + taste * (1.0 - alike), moving, low, high, taste, alike)


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
