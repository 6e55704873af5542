"""How single listeners differ from a model on songs that it was not trained on: what bands and personal levels rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_prep.curves import labelled_mean
from data_prep.shards import Corpus
from dsaml_jax.evaluation.methods import CurvesOfSongs
from dsaml_jax.runs import BAND_SHARE, Listeners, Spread

MIN_PEOPLE = 2
"""With two songs each, or more: of fewer people nothing can be said."""


def listeners_of(
    drawn: Sequence[tuple[Corpus, np.ndarray, CurvesOfSongs]], step: int = 0
) -> Listeners | None:
    """How the people of some ratings differ from a model's curves.

    Those of several corpora are looked at together: a listener whom the model predicts is from none of them.

    Args:
      drawn: of each corpus it, indices of ratings of songs that the model was not trained on, and curves of all their songs.
      step: of the model's checkpoint.

    Returns:
      None where too few people have two songs.
    """
    people, found, before = [], [], 0
    for corpus, ratings, curves in drawn:
        people.append(before + corpus.rating_annotator[ratings])
        found += differences(corpus, ratings, curves)
        before += len(corpus.annotator_ids)
    fitted = fit_listeners(np.concatenate(people), found) if found else None
    return None if fitted is None else dataclasses.replace(fitted, step=step)


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


def fit_listeners(people: np.ndarray, differences: list[np.ndarray]) -> Listeners | None:
    """Variances by their moments, and the band by quantiles of what was drawn.

    People count equally in `between`, songs in `within`, curves in the band. `between` is about zero, not about the mean
    of these people: a person of whom nothing is known stays where everyone is.

    Args:
      people: `[ratings]` whose each difference is.
      differences: see :func:`differences`.

    Returns:
      None where too few people have two songs, in both dimensions.
    """
    arousal, valence = (
        _spread(people, [difference[:, column] for difference in differences]) for column in (0, 1)
    )
    if arousal is None and valence is None:
        return None
    return Listeners(arousal, valence, people=len(np.unique(people)), curves=len(people))


def _spread(people: np.ndarray, differences: list[np.ndarray]) -> Spread | None:
    levels = np.array([labelled_mean(difference) for difference in differences])
    known = np.isfinite(levels)
    _, who, counts = np.unique(people[known], return_inverse=True, return_counts=True)
    if (counts > 1).sum() < MIN_PEOPLE:
        return None
    means = np.bincount(who, levels[known]) / counts
    within = float(np.sum(np.square(levels[known] - means[who])) / np.sum(counts - 1))
    between = max(float(np.mean(np.square(means) - within / counts)), 0.0)
    drawn = [difference[np.isfinite(difference)] for difference in differences]
    drawn = [difference for difference in drawn if len(difference)]
    moving = float(np.mean([np.var(difference) for difference in drawn]))
    low, high = _quantiles(drawn, ((1.0 - BAND_SHARE) / 2, (1.0 + BAND_SHARE) / 2))
    return Spread(between, within, moving, low, high)


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
