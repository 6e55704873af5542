"""Paired differences: who gains, and intervals that hold the truth as often as they say, by simulation.

Simulated coverage is given two and a half standard errors of the number of draws.
"""

from __future__ import annotations

import numpy as np
import pytest

from dsaml_jax.experiment import statistics
from dsaml_jax.experiment.statistics import paired_difference


@pytest.mark.parametrize(
    ("shift", "lower_is_better", "verdict"),
    [(1.0, False, "better"), (1.0, True, "worse"), (-1.0, True, "better"), (0.0, True, "")],
)
def test_only_an_interval_without_zero_is_a_verdict(shift, lower_is_better, verdict):
    random = np.random.RandomState(0)
    theirs = random.randn(40)
    noise = random.randn(40)
    ours = theirs + noise - noise.mean() + shift
    found = paired_difference(ours, theirs, lower_is_better=lower_is_better)
    assert found.verdict == verdict
    assert found.mean == pytest.approx(shift) and found.low < found.mean < found.high
    assert found.sure == (found.low, found.high)
    gains = (ours < theirs) if lower_is_better else (ours > theirs)
    assert (found.better, found.worse) == (gains.sum(), 40 - gains.sum())


def test_equal_methods_differ_by_nothing():
    found = paired_difference(np.ones(5), np.ones(5), lower_is_better=True)
    assert (found.mean, found.low, found.high, found.better, found.worse) == (0, 0, 0, 0, 0)
    assert found.verdict == ""
    rounded = paired_difference(np.full(5, 1.0 + 1e-8), np.ones(5), lower_is_better=True)
    assert (rounded.better, rounded.worse, rounded.verdict) == (0, 0, "")
    # A constant difference has no spread to draw from, and needs none.
    assert paired_difference(np.ones(5), np.zeros(5), lower_is_better=False).verdict == "better"
    with pytest.raises(ValueError, match="paired units"):
        paired_difference(np.ones(3), np.ones(4), lower_is_better=True)
    with pytest.raises(ValueError, match="paired units"):
        paired_difference(np.ones(1), np.ones(1), lower_is_better=True)


def test_a_person_of_many_songs_counts_as_one():
    ours = np.full((1, 3, 50), np.nan)
    ours[0, 0] = 5.0
    ours[0, 1:, :2] = -1.0
    found = paired_difference(ours, np.zeros_like(ours), lower_is_better=False)
    assert found.mean == pytest.approx(1.0) and (found.better, found.worse, found.units) == (
        1,
        2,
        3,
    )


def test_a_method_without_seeds_is_compared_with_every_seed():
    random = np.random.RandomState(1)
    ours, theirs = random.randn(3, 8, 4), random.randn(1, 8, 4)
    found = paired_difference(ours, theirs, lower_is_better=False)
    assert found.mean == pytest.approx((ours - theirs).mean())


def test_many_comparisons_are_surer():
    """The level of one in twenty looks is not that of each look."""
    random = np.random.RandomState(2)
    ours = random.randn(40)
    ours += 2.2 / np.sqrt(40) - ours.mean()  # between two and three standard errors
    alone, of_many = (
        paired_difference(ours, np.zeros(40), lower_is_better=False, comparisons=n) for n in (1, 20)
    )
    assert (alone.low, alone.high) == (of_many.low, of_many.high)
    assert of_many.sure[0] < alone.sure[0] < alone.sure[1] < of_many.sure[1]
    assert alone.verdict == "better" and of_many.verdict == ""


def drawn(random, people, songs=60, each=20, seeds=1, *, person=0.1, song=0.1, seed=0.0):
    """Differences of mean 0, with variance 1 beside those of person, song and seed."""
    asked = np.zeros((people, songs), bool)
    for row in asked:
        row[random.choice(songs, each, replace=False)] = True
    noise = [
        np.sqrt(person) * random.randn(1, people, 1),
        np.sqrt(song) * random.randn(1, 1, songs),
        np.sqrt(seed) * random.randn(seeds, 1, 1),
        random.randn(1, people, songs),
    ]
    return np.where(asked, sum(noise), np.nan)


@pytest.mark.parametrize(
    ("people", "kinds", "least"),
    [
        (5, {"person": 1.0, "song": 0.0}, 0.95),
        (10, {"person": 1.0, "song": 0.0}, 0.95),
        (40, {"person": 1.0, "song": 0.0}, 0.95),
        (10, {"song": 0.3}, 0.95),
        (40, {"song": 0.3}, 0.95),
        (40, {"seeds": 3, "seed": 0.1}, 0.89),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch, people, kinds, least):
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    random = np.random.RandomState(3)
    draws, held = 100, 0
    for _ in range(draws):
        difference = drawn(random, people, **kinds)
        found = paired_difference(difference, np.zeros_like(difference), lower_is_better=False)
        held += found.low <= 0.0 <= found.high
    assert held / draws >= least - 2.5 * np.sqrt(least * (1 - least) / draws), held / draws


def test_people_alone_would_be_too_sure():
    """Songs that suit one method suit it for everybody: means over people of the same songs err together."""
    random = np.random.RandomState(4)
    difference = drawn(random, 40, person=0.0, song=0.3)
    both = paired_difference(difference, np.zeros_like(difference), lower_is_better=False)
    of_people = paired_difference(
        np.nanmean(difference[0], axis=1), np.zeros(40), lower_is_better=False
    )
    assert both.high - both.low > 1.4 * (of_people.high - of_people.low)
