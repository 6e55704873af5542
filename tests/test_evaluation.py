"""Evaluation: baselines see what adaptation sees, scores are the metrics, nothing is judged unseen."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from data_prep.base import Provenance
from data_prep.features import FeatureConfig, window_starts
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.adaptation import adapt_to_listener
from dsaml_jax.config import with_settings
from dsaml_jax.corpus import gather_windows
from dsaml_jax.errors import UsageError
from dsaml_jax.evaluation import (
    Evaluation,
    evaluate,
    keep_evaluation,
    listener_trial,
    methods,
    scores,
)
from dsaml_jax.evaluation.scores import unit_means
from dsaml_jax.runs import Listeners, Spread, load_model

STEPS = 200
SONGS = 4


@pytest.fixture
def corpus(monkeypatch):
    """One annotator, four songs of 200 steps, all in the test part; the drawn value is 100 * song + step / 1000."""
    monkeypatch.setattr(
        "dsaml_jax.corpus.folds.deal", lambda names, **_: dict.fromkeys(names, "test")
    )
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
        sounds=("",) * SONGS,
        raters=np.ones(SONGS, np.int32),
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


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # nobody is left for training
def test_reference_protocol_shows_baselines_the_first_30_s_only(corpus):
    trial = listener_trial(corpus, "test", protocol="reference")
    seen = trial.support_truth
    assert seen.shape == (SONGS, 1, STEPS, 2)
    known = np.isfinite(seen[:, 0, :, 0])
    assert known[:, :60].all()
    assert not known[:, 60:].any()


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("shots", [1, 2])
def test_every_support_song_counts_and_none_is_asked(corpus, shots):
    trial = listener_trial(corpus, "test", supports=9, shots=shots)
    songs, seen = trial.support_songs, trial.support_truth
    assert songs.shape == (SONGS, shots)
    for task in range(SONGS):
        assert not set(songs[task]) & set(trial.song[task])
        means = np.nanmean(seen[task, :, :, 0], axis=1)
        # A song's values spread over 0.2.
        np.testing.assert_allclose(means, 100.0 * songs[task], atol=0.2)
    # Four of the five windows on the grid of a 200-step song, as adaptation sees them.
    assert np.isfinite(seen[0, 0, :, 0]).sum() == 180


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_fewer_shots_are_the_first_of_more(corpus):
    two = listener_trial(corpus, "test", shots=2)
    one = two.with_shots(1)
    np.testing.assert_array_equal(one.support_songs, two.support_songs[:, :1])
    np.testing.assert_array_equal(one.song, two.song)
    np.testing.assert_array_equal(one.support_truth[:, 0], two.support_truth[:, 0])


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_queries_carry_their_own_labels(corpus):
    trial = listener_trial(corpus, "test", supports=2)
    truth = trial.truth
    # 0.0995 is the middle of a song's values, which spread over 0.2.
    np.testing.assert_allclose(truth[..., 0].mean(axis=-1), 100.0 * trial.song + 0.0995, atol=0.1)
    truth[0, 1] = np.nan
    assert scores.labelled(truth).sum() == truth.shape[0] * truth.shape[1] - 1
    assert len(trial.labels()) == truth.shape[0] * truth.shape[1] - 1


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("shots", [1, 2])
def test_an_offset_is_a_share_of_the_mean_error_on_the_support_songs(corpus, shots):
    corpus.ratings[:, 1] = np.nan  # valence was not drawn: nothing to move it by
    trial = listener_trial(corpus, "test", supports=9, shots=shots)
    flat = methods.CurvesOfSongs(trial.songs, np.ones((SONGS, STEPS, 2), np.float32))
    moved = methods.with_offset(trial, flat, 0.5)
    error = np.nanmean(trial.support_truth[..., 0], axis=(1, 2)) - 1.0
    expected = np.broadcast_to(1.0 + 0.5 * error[:, None, None], moved.shape[:-1])
    np.testing.assert_allclose(moved[..., 0], expected, rtol=1e-5)  # float32 means of 180 values
    assert (moved[..., 1] == 1.0).all()


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("shots", [1, 3])
def test_by_prior_a_person_moves_by_what_each_song_says(corpus, shots):
    """Each support song counts alike, however much of it is drawn."""
    trial = listener_trial(corpus, "test", shots=shots)
    songs = trial.songs
    curves = np.random.RandomState(0).uniform(-0.5, 0.5, (len(songs), trial.shape[0], 2))
    known = methods.CurvesOfSongs(songs, curves.astype(np.float32))
    spread = Spread(between=0.3, within=0.1, moving=0.0, low=-1.0, high=1.0)
    moved = methods.with_prior(trial, known, Listeners(spread, spread, people=2, curves=4), None)
    difference = trial.support_truth - known.of(trial.support_songs)
    expected = spread.share(shots) * np.nanmean(np.nanmean(difference, axis=2), axis=1)
    shift = (moved - known.of(trial.song))[:, 0, 0]
    np.testing.assert_allclose(shift, expected, rtol=1e-5)  # float32


def test_no_share_is_better_than_the_best(corpus):
    trial = listener_trial(corpus, "test")
    songs = trial.songs
    known = methods.CurvesOfSongs(songs, np.zeros((len(songs), trial.shape[0], 2), np.float32))

    def errors(predicted):
        columns = scores.score_curves(predicted, trial.truth)
        return [unit_means(trial.units(), columns[f"{name}_rmse"])[1].mean() for name in ("arousal", "valence")]  # fmt: skip

    best = errors(methods.with_best_offset(trial, known))
    tried = [errors(methods.with_offset(trial, known, share)) for share in (0.0, 0.15, 0.5, 1.0)]
    assert (best <= np.min(tried, axis=0) * (1 + 1e-6)).all()  # float32


def test_the_other_raters_and_how_far_somebody_is_from_them(corpus):
    """b draws what a draws and 1 more, c one less in the first song alone."""
    more = corpus.ratings + 1.0
    less = corpus.ratings[:STEPS] - 1.0
    rated = dataclasses.replace(
        corpus,
        annotator_ids=("a", "b", "c"),
        rating_song=np.array([0, 1, 2, 3, 0, 1, 2, 3, 0], np.int32),
        rating_annotator=np.array([0, 0, 0, 0, 1, 1, 1, 1, 2], np.int32),
        rating_first=(np.arange(9) * STEPS).astype(np.int32),
        ratings=np.concatenate([corpus.ratings, more, less]).astype(np.float32),
    )
    trial = listener_trial(rated, "test", supports=9)
    assert set(trial.listeners.annotator) == {0, 1}  # c has one song
    asked = trial.listeners.query >= 0
    song = np.where(asked, trial.listeners.query_song, -1)
    for share, error in ((0.0, 1.0), (1.0, 0.0)):
        wrong = trial.truth - methods.others(trial, share)
        # In the first song the others are two, of mean 0 for a and -0.5 for b; a is 1 below b elsewhere.
        for who, sign in ((0, -1.0), (1, 1.0)):
            mine = (trial.listeners.annotator == who)[:, None]
            told = share and (trial.support_songs[:, :1] != 0)
            elsewhere = mine & (song > 0) & (told if share else True)
            assert elsewhere.any()
            np.testing.assert_allclose(wrong[elsewhere], sign * error, atol=1e-4)  # values to 300
        first = (trial.listeners.annotator == 0)[:, None] & (song == 0)
        np.testing.assert_allclose(wrong[first], 0.0 if not share else 1.0, atol=1e-4)


def test_affine_calibration_is_least_squares():
    random = np.random.RandomState(0)
    support = random.randn(3, 50, 2)
    truth = support * [2.0, -0.5] + [0.3, 0.1]
    truth[:, 40:] = np.nan
    query = random.randn(3, 4, 50, 2)
    calibrated = methods._calibrate(query, support, truth)
    # float64: 50 points are solved for two unknowns.
    np.testing.assert_allclose(calibrated, query * [2.0, -0.5] + [0.3, 0.1], atol=1e-9)
    flat = methods._calibrate(query, np.zeros_like(support), truth)
    # float64.
    np.testing.assert_allclose(flat[0, 0], np.broadcast_to(np.nanmean(truth[0], 0), (50, 2)))


def test_a_prediction_that_is_no_number_is_no_perfect_fit():
    truth = np.zeros((2, 5, 2), np.float32)
    with pytest.raises(ValueError, match="not finite"):
        scores.score_curves(np.full_like(truth, np.nan), truth)


adapt = jax.jit(adapt_to_listener, static_argnums=(0, 1))


@pytest.mark.parametrize(
    ("algorithm", "adapts", "strength"),
    [
        ("maml", "predictor/out", 0.5),
        ("meta-curvature", "predictor/out", 1),  # learns matrices, and steps by the rate of the settings
        *(pytest.param(*more, marks=pytest.mark.slow)
          for more in (("maml", "predictor/out", 1), ("meta-sgd", "predictor/out", 1), ("maml++", "predictor/out", 1),
                       ("anil", "all", 1), ("maml", "encoder", 1), ("maml", "all", 1))),
    ],
)  # fmt: skip
def test_curves_after_adapting_are_those_of_the_adapted_model(
    small_data, small_run, algorithm, adapts, strength
):
    """What is shared between listeners is cut out of the model by a program, not by hand."""
    corpus, run = read_corpus(small_data[1]), load_model(small_run)
    settings = (f"meta.algorithm={algorithm}", f"meta.adapts={adapts}", "meta.learning_rate=0.05", f"meta.strength={strength}")  # fmt: skip
    config = with_settings(run.info.config, settings).meta
    variables = {
        name: x for name, x in run.variables.items() if name != "rates"
    }  # another algorithm's
    trial = listener_trial(corpus, "test", most=2)
    predicted = methods.adapted(trial, run.model, config, variables)
    tasks = trial.listeners
    for task in range(2):
        support = gather_windows(
            trial.device, tasks.support_song[task], tasks.support_window[task], tasks.support[task]
        )
        own = adapt(run.model, config, variables, support)
        curves = methods.curves_of_songs(trial, run.model, own).of(trial.song[task])
        kept = tasks.query[task] >= 0
        # float32, two programs.
        np.testing.assert_allclose(predicted[task][kept], curves[kept], atol=2e-6)
        before = methods.curves_of_songs(trial, run.model, variables).of(trial.song[task])
        assert np.abs(curves - before).max() > 1e-4  # far above rounding


@pytest.mark.slow
def test_strength_is_the_share_of_the_way(small_data, small_run):
    corpus, run = read_corpus(small_data[1]), load_model(small_run)
    trial = listener_trial(corpus, "test", most=2)
    tasks = trial.listeners
    support = gather_windows(trial.device, tasks.support_song[0], tasks.support_window[0], tasks.support[0])  # fmt: skip

    def adapted(strength):
        config = with_settings(run.info.config, [f"meta.strength={strength}"]).meta
        return adapt(run.model, config, run.variables, support)["params"]

    chex.assert_trees_all_equal(adapted(0.0), run.variables["params"])
    half = jax.tree.map(lambda a, b: (a + b) / 2, adapted(0.0), adapted(1.0))
    chex.assert_trees_all_close(adapted(0.5), half, atol=1e-7)  # float32: one rounding more
    with pytest.raises(UsageError, match="strength"):
        adapted(1.5)


def test_another_evaluation_overwrites_the_latest_alone(tmp_path):
    def made(protocol, corpus, score):
        columns = {"arousal_rmse": {"mean": score, "sd": 0.0}}
        return Evaluation(
            protocol, "pdmer", [], {"x": columns}, {"judged_on": corpus, "checkpoint_step": 7}
        )

    asked = [
        ("clean", "deam/tiny/1", 0.1),
        ("reference", "deam/tiny/1", 0.2),
        ("clean", "deam/tiny/2", 0.3),
    ]
    places = [keep_evaluation(made(*one), tmp_path) for one in asked]
    assert len(set(places)) == 3
    for place, (protocol, corpus, score) in zip(
        [*places, tmp_path], [*asked, asked[-1]], strict=True
    ):
        found = json.loads((place / "results.json").read_text())
        assert (found["protocol"], found["facts"]["judged_on"]) == (protocol, corpus)
        assert found["summary"]["x"]["arousal_rmse"]["mean"] == score


def test_without_test_songs_it_says_so(small_data, small_run):
    corpus = read_corpus(small_data[1])
    corpus.split[corpus.split == "test"] = "train"
    with pytest.raises(UsageError, match="no test songs"):
        evaluate(load_model(small_run), corpus)
