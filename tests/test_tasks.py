"""The annotator-task sampler: a pure function whose tasks never leak."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsaml_jax import UsageError
from dsaml_jax.corpus import evaluation_tasks, same_song_tasks
from dsaml_jax.corpus.tasks import in_front, make_pool, sample_tasks

NAMES = ("support", "query")


def make_corpus(annotators, songs, share, seed):
    """Ratings (annotator, song) present with probability `share`; every index distinct."""
    random = np.random.RandomState(seed)
    annotator, song = np.nonzero(random.random_sample((annotators, songs)) < share)
    return annotator.astype(np.int32), song.astype(np.int32)


def pool_of(annotators=8, songs=12, share=0.7, seed=0, min_songs=3, windows=1):
    annotator, song = make_corpus(annotators, songs, share, seed)
    ratings = np.arange(len(song))
    return make_pool(
        ratings, annotator, song, np.ones((len(song), windows), bool), min_songs=min_songs
    ), annotator


corpora = st.fixed_dictionaries(
    {
        "annotators": st.integers(2, 12),
        "songs": st.integers(4, 20),
        "share": st.floats(0.5, 1.0),
        "seed": st.integers(0, 99),
        "windows": st.integers(1, 4),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    corpus=corpora,
    step=st.integers(0, 10**6),
    tasks=st.integers(1, 20),
    support=st.integers(1, 2),
    query=st.integers(1, 15),
)
def test_a_task_is_one_person_and_its_songs_never_overlap(corpus, step, tasks, support, query):
    try:
        pool, annotator = pool_of(**corpus)
    except UsageError:
        return
    batch = sample_tasks(
        pool, seed=1, step=step, tasks=tasks, support_songs=support, query_songs=query
    )
    assert batch.support.shape == (tasks, support) and batch.query.shape == (tasks, query)
    assert (batch.support >= 0).all()
    for row in range(tasks):
        asked = batch.query[row][batch.query[row] >= 0]
        assert len(asked) >= 1
        assert set(annotator[batch.support[row]]) | set(annotator[asked]) == {batch.annotator[row]}
        assert not set(pool.songs[batch.support[row]]) & set(pool.songs[asked])
        assert len(set(asked)) == len(asked)
    np.testing.assert_array_equal(batch.support_song, pool.songs[batch.support])
    assert (batch.query_window < corpus["windows"]).all()
    assert len(set(batch.annotator)) == min(tasks, len(pool.annotators))


def test_pure_function_of_seed_and_step():
    pool, _ = pool_of()
    draw = lambda seed, step: sample_tasks(  # noqa: E731
        pool, seed=seed, step=step, tasks=4, support_songs=1, query_songs=3
    )
    np.testing.assert_array_equal(draw(0, 7).query, draw(0, 7).query)
    assert not np.array_equal(draw(0, 7).query, draw(0, 8).query)
    assert not np.array_equal(draw(0, 7).query, draw(1, 7).query)


def test_frozen_draws():
    """The same numbers on every machine and version; a change here breaks resuming old runs."""
    pool, _ = pool_of()
    digest = hashlib.sha256()
    for step in range(20):
        for kind in ("annotator", "random"):
            batch = sample_tasks(
                pool, seed=3, step=step, tasks=5, support_songs=1, query_songs=4, kind=kind
            )
            digest.update(batch.support.astype("<i4").tobytes())
            digest.update(batch.query.astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "ec528ba72a9f69c5"


def test_frozen_evaluation():
    """Which songs people are judged on; a change here makes old results and new ones incomparable."""
    pool, _ = pool_of(windows=6)
    batch = evaluation_tasks(pool, supports=3, most=20)
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(getattr(batch, name).astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "45b20cc3baab4aca"


def test_random_tasks_mix_people_but_not_songs():
    pool, annotator = pool_of(share=1.0)
    batch = sample_tasks(
        pool, seed=0, step=0, tasks=6, support_songs=1, query_songs=8, kind="random"
    )
    assert (batch.annotator == -1).all()
    chosen = np.concatenate([batch.support, batch.query], axis=1)
    assert all(len(set(pool.songs[row])) == 9 for row in chosen)
    assert all(len(set(annotator[row])) > 1 for row in chosen)


def test_people_with_too_few_songs_are_told_of():
    annotator = np.array([0, 0, 0, 1, 2, 2], np.int32)
    song = np.array([0, 1, 2, 0, 1, 2], np.int32)
    args = (np.arange(6), annotator, song, np.ones((6, 1), bool))
    pool = make_pool(*args, min_songs=2)
    np.testing.assert_array_equal(pool.excluded, [[1, 1]])
    with pytest.raises(UsageError, match=r"no annotator has 4 songs here \(the most is 3\)"):
        make_pool(*args, min_songs=4)
    with pytest.raises(UsageError, match=r"\(the most is 0\)"):
        make_pool(np.arange(0), *args[1:], min_songs=1)


def test_a_pool_does_not_depend_on_the_order_of_ratings():
    annotator = np.array([0, 0, 0, 1, 2, 2], np.int32)
    song = np.array([0, 1, 2, 0, 1, 2], np.int32)
    pool = make_pool(np.arange(6)[::-1], annotator, song, np.ones((6, 1), bool), min_songs=2)
    np.testing.assert_array_equal(pool.annotators, [0, 2])
    np.testing.assert_array_equal(pool.ratings, [[0, 1, 2], [4, 5, -1]])
    np.testing.assert_array_equal(pool.counts, [3, 2])


def every_kind_of_batch(pool, support_songs=1):
    """Batches with fewer songs than are asked for, so that all but the last have padding."""
    draw = {"seed": 0, "step": 3, "tasks": 9, "support_songs": support_songs, "query_songs": 30}
    return [
        sample_tasks(pool, **draw),
        sample_tasks(pool, **draw, kind="random"),
        evaluation_tasks(pool, supports=3, support_songs=support_songs),
        same_song_tasks(pool),
    ]


def test_padding_and_types():
    annotator, song = make_corpus(6, 10, 0.6, 0)
    windows = np.random.RandomState(1).randint(1, 7, len(song))
    drawable = np.arange(6) < windows[:, None]
    pool = make_pool(np.arange(len(song)), annotator, song, drawable, min_songs=3)
    for batch in every_kind_of_batch(pool):
        for name in NAMES:
            rating, songs, window = (
                getattr(batch, name + part) for part in ("", "_song", "_window")
            )
            assert rating.shape == songs.shape == window.shape
            assert (songs[rating >= 0] == song[rating[rating >= 0]]).all()
            padding = rating < 0
            assert (rating[padding] == -1).all()
            assert not songs[padding].any() and not window[padding].any()
        for query in batch.query:
            assert len(set(query[query >= 0])) == (query >= 0).sum()
        assert all(value.dtype == np.int32 for value in vars(batch).values())
        with pytest.raises(dataclasses.FrozenInstanceError):
            batch.support = batch.query
    assert any((batch.query < 0).any() for batch in every_kind_of_batch(pool))
    with pytest.raises(dataclasses.FrozenInstanceError):
        pool.counts = pool.counts + 1


def test_every_window_is_drawn_as_often_as_any_other():
    pool, _ = pool_of(annotators=2, songs=4, share=1.0, windows=4)
    drawn = np.zeros((len(pool.songs), 4))
    for step in range(400):
        batch = sample_tasks(pool, seed=0, step=step, tasks=2, support_songs=1, query_songs=3)
        for name in NAMES:
            np.add.at(drawn, (getattr(batch, name), getattr(batch, f"{name}_window")), 1)
    assert (drawn.sum(axis=1) == 400).all()
    np.testing.assert_allclose(drawn, 100, atol=35)  # four standard deviations


def test_evaluation_tasks_cover_everyone_with_different_supports():
    pool, annotator = pool_of(windows=6)
    tasks = evaluation_tasks(pool, supports=3)
    assert len(tasks.annotator) == 3 * len(pool.annotators)
    assert tasks.support.shape[1] == 4  # windows of the one support song
    assert tasks.query.shape[1] == pool.counts.max() - 1
    np.testing.assert_array_equal(tasks.support_window[0], [0, 2, 3, 5])
    for person in pool.annotators:
        mine = tasks.annotator == person
        assert len(set(tasks.support[mine, 0])) == 3
        for support, query in zip(tasks.support[mine], tasks.query[mine], strict=True):
            asked = query[query >= 0]
            assert support[0] not in asked
            assert len(asked) == (annotator == person).sum() - 1
    assert len(evaluation_tasks(pool, supports=3, most=5).annotator) == 5


def test_reference_protocol_adapts_on_the_song_itself():
    pool, annotator = pool_of()
    tasks = same_song_tasks(pool)
    np.testing.assert_array_equal(tasks.support, tasks.query)
    assert not tasks.support_window.any()
    of_pool = np.flatnonzero(np.isin(annotator, pool.annotators))
    np.testing.assert_array_equal(np.sort(tasks.query[:, 0]), of_pool)
    np.testing.assert_array_equal(tasks.annotator, annotator[tasks.query[:, 0]])
    some = same_song_tasks(pool, most=5)
    picked = np.linspace(0, len(of_pool) - 1, 5).round().astype(int)
    np.testing.assert_array_equal(some.query, tasks.query[picked])
    np.testing.assert_array_equal(some.annotator, tasks.annotator[picked])


def test_windows_of_a_support_song_are_spread_over_it():
    counts = np.arange(1, 8)
    drawable = np.arange(7) < counts[:, None]
    pool = make_pool(np.arange(7), np.zeros(7, np.int32), np.arange(7), drawable, min_songs=2)
    tasks = evaluation_tasks(pool, supports=7)
    expected = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 3, 4], [0, 2, 3, 5], [0, 2, 4, 6]]
    for support, window in zip(tasks.support, tasks.support_window, strict=True):
        assert window[support >= 0].tolist() == expected[support[0]]


def test_only_labelled_windows_are_drawn():
    annotator, song = make_corpus(6, 10, 1.0, 0)
    drawable = np.random.RandomState(0).random_sample((len(song), 5)) < 0.4
    drawable[::7] = False  # ratings without any are not drawn at all
    pool = make_pool(np.arange(len(song)), annotator, song, drawable, min_songs=3)
    batches = [
        sample_tasks(pool, seed=0, step=step, tasks=6, support_songs=1, query_songs=4)
        for step in range(20)
    ]
    for batch in [*batches, evaluation_tasks(pool, supports=3), same_song_tasks(pool)]:
        for name in NAMES:
            rating, window = getattr(batch, name), getattr(batch, f"{name}_window")
            assert drawable[rating[rating >= 0], window[rating >= 0]].all()
            assert (rating % 7 != 0).all()


def test_in_front():
    places, counts = in_front(np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1]], bool))
    np.testing.assert_array_equal(places, [[1, 2, -1], [-1, -1, -1], [0, 2, -1]])
    np.testing.assert_array_equal(counts, [2, 0, 2])
    assert places.dtype == counts.dtype == np.int32
    many = np.random.RandomState(0).random_sample((3, 500)) < 0.5
    for row, chosen in zip(in_front(many)[0], many, strict=True):
        np.testing.assert_array_equal(row[: chosen.sum()], np.flatnonzero(chosen))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_people_are_drawn_by_their_number_of_songs_to_a_power(weight):
    """One task a step, 4000 steps: shares to within five standard errors of the binomial."""
    songs = np.array([3, 6, 12, 24])
    annotator = np.repeat(np.arange(4), songs)
    pool = make_pool(
        np.arange(len(annotator)), annotator, np.arange(len(annotator)), np.ones((len(annotator), 1), bool), min_songs=2
    )  # fmt: skip
    drawn = [
        sample_tasks(pool, seed=0, step=step, tasks=1, support_songs=1, query_songs=1, rates=pool.counts**weight).annotator[0]
        for step in range(4000)
    ]  # fmt: skip
    expected = songs**weight / np.sum(songs**weight)
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_array_less(np.abs(shares - expected), 5 * np.sqrt(expected / len(drawn)))
    everybody = sample_tasks(pool, seed=0, step=0, tasks=4, support_songs=1, query_songs=1, rates=pool.counts**weight)  # fmt: skip
    assert sorted(everybody.annotator) == [0, 1, 2, 3]
