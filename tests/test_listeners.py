"""How personal listeners are: closed forms, made-up corpora with known variances, and corpora with little to say.

Closed forms hold to 1e-9 relative: everything is float64, and nothing is ill-conditioned.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from data_prep.base import Rating, Song
from data_prep.listeners import (
    Traces,
    ceiling,
    describe_listeners,
    intraclass_correlation,
    shots_that_fit,
    traces_of,
    variance_components,
)


def table(random, people, songs, variances, share=1.0):
    """Person, song and value of ratings with known variances of song, person and rest."""
    person, song = np.nonzero(random.random_sample((people, songs)) < share)
    of_song, of_person, rest = (math.sqrt(x) for x in variances)
    value = 0.3 + of_song * random.randn(songs)[song] + of_person * random.randn(people)[person]
    return person, song, value + rest * random.randn(len(person))


def traces(person, song, residual, spread=0.0):
    same = np.asarray(residual, float)
    return Traces(person, song, same, same, same, np.full(len(same), spread))


def song(name, drawn, dimension="arousal"):
    """A song of curves `{who: [n]}` in one dimension."""
    ratings = []
    for who, curve in drawn.items():
        curve = np.asarray(curve, np.float32)
        both = {"arousal": np.full_like(curve, np.nan), "valence": np.full_like(curve, np.nan)}
        ratings.append(Rating(who, **(both | {dimension: curve})))
    nothing = np.full(len(next(iter(drawn.values()))), np.nan, np.float32)
    return Song(name, Path(f"{name}.wav"), 0.0, nothing, nothing, tuple(ratings))


# ---- What is looked at.


def test_a_trace_is_compared_with_the_others_where_both_drew():
    nan = math.nan
    found = traces_of(
        [
            song("x", {"b": [1.0, 2.0, 3.0, nan], "a": [0.0, 0.0, nan, 9.0], "c": [nan, 1.0, nan, nan]}),
            song("alone", {"a": [1.0, 2.0]}),
            song("apart", {"a": [1.0, nan], "b": [nan, 1.0]}),
        ],
        "arousal",
    )  # fmt: skip
    np.testing.assert_array_equal(found.person, [1, 0, 2])
    np.testing.assert_array_equal(found.song, [0, 0, 0])
    np.testing.assert_allclose(found.level, [2.0, 3.0, 1.0])
    # b against a, then against the mean of a and c; a against b, then b and c; c against a and b.
    np.testing.assert_allclose(found.residual, [(1.0 + 1.5) / 2, (-1.0 - 1.5) / 2, 0.0])
    np.testing.assert_allclose(found.spread, [1 / 16, 1 / 16, 0.0], atol=1e-15)
    np.testing.assert_allclose(found.movement[:2], np.log([math.sqrt(2 / 3), math.sqrt(18)]))
    assert math.isnan(found.movement[2])  # one value does not move


# ---- Variance components.


def test_a_whole_table_gives_the_analysis_of_variance():
    random = np.random.RandomState(0)
    person, piece, value = table(random, 7, 9, (0.5, 0.2, 0.1))
    y = value.reshape(7, 9)
    of_person, of_piece = y.mean(axis=1, keepdims=True), y.mean(axis=0, keepdims=True)
    rest = np.square(y - of_person - of_piece + y.mean()).sum() / (6 * 8)
    found = variance_components(person, piece, value)
    assert list(found) == ["song", "person", "rest"]
    assert found["rest"].value == pytest.approx(rest, rel=1e-9)
    assert found["person"].value == pytest.approx(of_person.var(ddof=1) - rest / 9, rel=1e-9)
    assert found["song"].value == pytest.approx(of_piece.var(ddof=1) - rest / 7, rel=1e-9)
    shifted = variance_components(person * 3 + 5, piece, value + 1000.0)  # any indices, any mean
    assert shifted["song"].value == pytest.approx(
        found["song"].value, rel=1e-6
    )  # 1000 costs digits


def test_leaving_one_out_is_doing_without_it():
    from data_prep.listeners import _henderson

    random = np.random.RandomState(1)
    rated = (random.random_sample((6, 8)) < 0.6).astype(float)
    rated[:, 0] = rated[0] = 1.0
    values = rated * random.randn(6, 8)
    _, without = _henderson(rated, values)
    for row in range(6):
        left = np.arange(6) != row
        some = rated[left].any(axis=0)
        np.testing.assert_allclose(
            without[row], _henderson(rated[left][:, some], values[left][:, some])[0], rtol=1e-9
        )


@pytest.mark.parametrize("variances", [(0.04, 0.02, 0.06), (0.05, 0.004, 0.08)])
def test_known_variances_are_in_their_intervals(variances):
    random = np.random.RandomState(2)
    held = np.zeros(3)
    for _ in range(100):
        found = variance_components(*table(random, 40, 80, variances, share=0.3))
        held += [one.low <= truth <= one.high for one, truth in zip(found.values(), variances, strict=True)]  # fmt: skip
    assert (held >= 90).all(), held  # 95 expected; 90 is two and a half standard errors below


def test_too_little_for_components():
    nothing = np.zeros(0, int)
    assert variance_components(nothing, nothing, np.zeros(0)) is None
    each_one = np.arange(5)
    assert variance_components(each_one, each_one % 3, np.arange(5.0)) is None  # nobody rated two
    assert (
        variance_components(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.arange(4.0)) is None
    )


@pytest.mark.parametrize("bridge", ["person", "song"])
def test_what_hangs_on_one_person_or_song_cannot_be_told_apart(bridge):
    """Somebody rated everything and the others one song each; or one song has everybody, and the others one."""
    one = np.concatenate([np.zeros(12, int), np.arange(1, 13)])
    other = np.concatenate([np.arange(12), np.arange(12)])
    value = np.random.RandomState(0).randn(24)
    pair = (one, other) if bridge == "person" else (other, one)
    assert variance_components(*pair, value) is None


# ---- The residuals of a person.


def test_the_intraclass_correlation_of_equal_groups():
    random = np.random.RandomState(3)
    value = random.randn(6, 1) + random.randn(6, 5)
    between = 5 * value.mean(axis=1).var(ddof=1)
    within = value.var(axis=1, ddof=1).mean()
    found = intraclass_correlation(np.repeat(np.arange(6), 5), value.ravel())
    assert found.value == pytest.approx((between - within) / (between + 4 * within), rel=1e-9)
    assert found.low < found.value < found.high
    same = intraclass_correlation(np.array([0, 0, 1, 1, 2, 2]), np.array([1.0, 1, 2, 2, 3, 3]))
    assert same.value == pytest.approx(1.0)
    assert intraclass_correlation(np.array([0, 0, 1, 1]), np.arange(4.0)) is None
    assert intraclass_correlation(np.arange(4), np.arange(4.0)) is None


def test_the_interval_over_people_holds_the_truth():
    random = np.random.RandomState(4)
    held = 0
    for _ in range(100):
        person, _, value = table(random, 40, 20, (0.0, 0.3, 0.7), share=0.5)
        found = intraclass_correlation(person, value)
        held += found.low <= 0.3 <= found.high
    assert held >= 88, (
        held
    )  # 95 are promised; BCa over 40 people keeps about 93, and 100 draws are 2 off


# ---- What some songs could tell.


def test_the_ceiling_of_normal_residuals():
    """With residuals `p + e` the best share is `vp / (vp + ve / K)`, the error's variance `ve + ve / K * share`."""
    random = np.random.RandomState(5)
    between, within = 0.3, 0.7
    person, piece, value = table(random, 1500, 12, (0.0, between, within))
    found = ceiling(traces(person, piece, value - 0.3))
    assert found["people"] == 1500
    before = math.sqrt(2 / math.pi) * math.sqrt(between + within)
    assert found["rmse"] == pytest.approx(before, rel=0.02)  # two standard errors of 1,500 people
    assert [one["songs"] for one in found["shots"]] == [1, 2, 5, 10]
    for one in found["shots"]:
        k = one["songs"]
        share = between / (between + within / k)
        after = math.sqrt(2 / math.pi) * math.sqrt(within + share * within / k)
        assert abs(one["share"] - share) <= 0.1  # the grid
        assert one["gain"] == pytest.approx(before - after, abs=0.012)  # three standard errors
        assert one["low"] < one["gain"] < one["high"] and 0.45 < one["gaining"] <= 1.0


def test_nothing_personal_gains_nothing():
    random = np.random.RandomState(6)
    person, piece, value = table(random, 2000, 12, (0.0, 0.0, 1.0))
    for row in ceiling(traces(person, piece, value - 0.3))["shots"]:
        assert (
            row["gain"] < 0.005
        )  # of an error of 0.8: a few times what 2,000 people leave to chance


def test_people_weigh_the_same():
    """One who drew 900 songs and has a level does not speak for thirty who have none."""
    random = np.random.RandomState(7)
    person = np.concatenate([np.zeros(900, int), np.repeat(np.arange(1, 31), 12)])
    residual = 0.1 * random.randn(len(person)) + np.where(person == 0, 1.0, 0.0)
    found = ceiling(traces(person, np.arange(len(person)), residual))
    assert found["rmse"] == pytest.approx((1.0 + 30 * 0.08) / 31, rel=0.05)


def test_as_many_songs_as_people_have():
    assert shots_that_fit(np.zeros(0, int)) == ()
    assert shots_that_fit(np.arange(9)) == ()
    assert shots_that_fit(np.repeat(np.arange(20), 2)) == (1,)
    assert shots_that_fit(np.concatenate([np.repeat(np.arange(10), 11), np.arange(10, 99)])) == (1, 2, 5, 10)  # fmt: skip
    assert shots_that_fit(np.repeat(np.arange(3), 6)) == (
        1,
        2,
        5,
    )  # fewer than ten people: all of them


def test_people_of_two_songs_each():
    random = np.random.RandomState(9)
    songs = [
        song(f"s{j}", {f"p{2 * (j % 30) + i}": random.randn() + 0.1 * random.randn(20) for i in range(2)})
        for j in range(60)
    ]  # fmt: skip
    found = describe_listeners(songs)["arousal"]
    assert found["level"]["components"] is not None
    (one,) = found["ceiling"]["shots"]
    assert (one["songs"], found["ceiling"]["people"]) == (1, 60)
    assert one["gain"] < 0.1  # of an error of 1.1: there is nothing personal


def test_facts_of_a_corpus_of_one_dimension():
    random = np.random.RandomState(8)
    people = {f"p{i}": 0.3 * random.randn() for i in range(12)}
    songs = [
        song(f"s{j}", {who: level + 0.1 * random.randn(30) for who, level in people.items()}, "valence")
        for j in range(12)
    ]  # fmt: skip
    found = describe_listeners(songs)
    assert set(found) == {"valence", "correlation"} and found["correlation"] is None
    valence = found["valence"]
    assert (valence["people"], valence["ratings"]) == (12, 144)
    assert valence["level"]["icc"]["value"] > 0.9 > 0.2 > abs(valence["movement"]["icc"]["value"])
    assert [row["songs"] for row in valence["ceiling"]["shots"]] == [1, 2, 5, 10]
    assert describe_listeners([song("s", {"p": np.zeros(5)})]) is None
    assert describe_listeners([]) is None
