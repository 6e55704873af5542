"""Evaluation: baselines see what adaptation sees, scores are the metrics, nothing is judged unseen."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.base import Provenance
from data_prep.features import FeatureConfig, window_starts
from data_prep.shards import Corpus
from dsaml_jax import evaluation
from dsaml_jax.corpus import pool_of
from dsaml_jax.tasks import evaluation_tasks, same_song_tasks

STEPS = 200
SONGS = 4


@pytest.fixture
def corpus():
    """One annotator, four songs of 200 steps; the drawn value is 100 * song + step."""
    starts = window_starts(STEPS)
    first = (np.arange(SONGS) * STEPS).astype(np.int32)
    values = np.concatenate([100.0 * song + np.arange(STEPS) / 1000 for song in range(SONGS)])
    count = np.full(SONGS, len(starts), np.int32)
    return Corpus(
        name="x",
        features=FeatureConfig(),
        fingerprint="0",
        provenance=Provenance("", "", "", ""),
        song_ids=tuple("abcd"),
        split=np.full(SONGS, "test"),
        song_start=first,
        song_steps=np.full(SONGS, STEPS, np.int32),
        log_mel=np.zeros((SONGS * STEPS, 1, 1)),
        mean=np.zeros((SONGS * STEPS, 2)),
        window_first=(np.arange(SONGS) * len(starts)).astype(np.int32),
        window_count=count,
        window_start=np.tile(starts, SONGS),
        embedding_first=first,
        embedding=np.zeros((SONGS * STEPS, 1)),
        annotator_ids=("someone",),
        rating_song=np.arange(SONGS, dtype=np.int32),
        rating_annotator=np.zeros(SONGS, np.int32),
        rating_first=first,
        ratings=np.stack([values, -values], axis=-1).astype(np.float32),
        store=None,
    )


@pytest.fixture
def pool(corpus):
    return pool_of(corpus, np.arange(SONGS), min_songs=1)


def test_reference_protocol_shows_baselines_the_first_30_s_only(corpus, pool):
    tasks = same_song_tasks(pool)
    songs = evaluation._support_songs(corpus, tasks, 1)
    seen = evaluation._support_targets(corpus, tasks, songs, STEPS)
    assert seen.shape == (SONGS, 1, STEPS, 2)
    known = np.isfinite(seen[:, 0, :, 0])
    assert known[:, :60].all()
    assert not known[:, 60:].any()


@pytest.mark.parametrize("shots", [1, 2])
def test_every_support_song_counts_and_none_is_asked(corpus, pool, shots):
    tasks = evaluation_tasks(pool, supports=9, support_songs=shots)
    songs = evaluation._support_songs(corpus, tasks, shots)
    assert songs.shape == (SONGS, shots)
    seen = evaluation._support_targets(corpus, tasks, songs, STEPS)
    for task in range(SONGS):
        assert not set(songs[task]) & set(tasks.query_song[task])
        means = np.nanmean(seen[task, :, :, 0], axis=1)
        np.testing.assert_allclose(means, 100.0 * songs[task], atol=0.2)
    # Four of the five windows on the grid of a 200-step song, as adaptation sees them.
    assert np.isfinite(seen[0, 0, :, 0]).sum() == 180


def test_queries_carry_their_own_labels(corpus, pool):
    tasks = evaluation_tasks(pool, supports=2)
    truth = evaluation._query_targets(corpus, tasks, STEPS)
    np.testing.assert_allclose(
        truth[..., 0].mean(axis=-1), 100.0 * tasks.query_song + 0.0995, atol=0.1
    )
    truth[0, 1] = np.nan
    assert evaluation._labelled(truth).sum() == truth.shape[0] * truth.shape[1] - 1


def test_affine_calibration_is_least_squares():
    random = np.random.RandomState(0)
    support = random.randn(3, 50, 2)
    truth = support * [2.0, -0.5] + [0.3, 0.1]
    truth[:, 40:] = np.nan
    query = random.randn(3, 4, 50, 2)
    calibrated = evaluation._calibrate(query, support, truth)
    np.testing.assert_allclose(calibrated, query * [2.0, -0.5] + [0.3, 0.1], atol=1e-9)
    flat = evaluation._calibrate(query, np.zeros_like(support), truth)
    np.testing.assert_allclose(flat[0, 0], np.broadcast_to(np.nanmean(truth[0], 0), (50, 2)))
