"""The annotator-task sampler: a pure function whose tasks never leak."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsaml_jax import UsageError
from dsaml_jax.tasks import evaluation_tasks, in_front, make_pool, same_song_tasks, sample_tasks


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
    with pytest.raises(UsageError, match="no annotator has 4 songs"):
        make_pool(*args, min_songs=4)


def test_evaluation_tasks_cover_everyone_with_different_supports():
    pool, annotator = pool_of(windows=6)
    tasks = evaluation_tasks(pool, supports=3)
    assert len(tasks.annotator) == 3 * len(pool.annotators)
    assert tasks.support.shape[1] == 4  # windows of the one support song
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
    pool, _ = pool_of()
    tasks = same_song_tasks(pool)
    np.testing.assert_array_equal(tasks.support, tasks.query)
    assert not tasks.support_window.any()


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
        for name in ("support", "query"):
            rating, window = getattr(batch, name), getattr(batch, f"{name}_window")
            assert drawable[rating[rating >= 0], window[rating >= 0]].all()
            assert (rating % 7 != 0).all()


def test_in_front():
    places, counts = in_front(np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1]], bool))
    np.testing.assert_array_equal(places, [[1, 2, -1], [-1, -1, -1], [0, 2, -1]])
    np.testing.assert_array_equal(counts, [2, 0, 2])
