"""What a person's songs tell of songs that are like them: in a personal model, and where it is judged.

Curves are float32 sums of some tens of numbers up to 1, from places of songs in float16: 1e-4 where both are made in two ways.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from data_prep.analysis import SongFeatures
from data_prep.curves import labelled_mean
from data_prep.features import window_starts
from data_prep.shards import read_corpus
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import embeddings_of
from dsaml_jax.evaluation import curves_of_songs, listener_trial
from dsaml_jax.evaluation.methods import with_prior
from dsaml_jax.listener import (
    AnnotatedSong,
    personalize,
    predict_features,
    save_personalized,
)
from dsaml_jax.models import listener_weights, song_space
from dsaml_jax.runs import Listeners, Spread, at_strength, export_model, load_model
from dsaml_jax.training import train
from tests.conftest import SMALL_DMER

SPREAD = Spread(0.04, 0.12, 0.01, -0.5, 0.4, taste=0.06, alike=0.4)
LISTENERS = Listeners(
    SPREAD, dataclasses.replace(SPREAD, taste=0.0, alike=0.0), people=9, curves=90
)


@pytest.fixture(scope="module")
def corpus(small_data):
    return read_corpus(small_data[1])


@pytest.fixture(scope="module")
def fitted(corpus, made_once):
    """A model with a head for levels, as trained."""

    def make(workdir):
        settings = ("model.standardize=true", "model.level_centres=32", "model.listener_centres=4")
        train(with_settings(preset("tiny"), [*SMALL_DMER, *settings, "training.steps=2", "training.validate_every=2"]), corpus, workdir)  # fmt: skip

    return load_model(made_once("levels_run", make))


@pytest.fixture(scope="module")
def loaded(fitted):
    return dataclasses.replace(fitted, listeners=LISTENERS)


def annotated(corpus, song, labels, digest=None):
    here = slice(corpus.song_start[song], corpus.song_start[song] + corpus.song_steps[song])
    first, count = corpus.window_first[song], corpus.window_count[song]
    (embedding,) = embeddings_of(corpus, np.array([song]))
    features = SongFeatures(corpus.log_mel[here], embedding, corpus.window_start[first : first + count])  # fmt: skip
    return AnnotatedSong(f"song {song}", digest or f"{song:04}", labels, features)


@pytest.fixture(scope="module")
def songs(corpus):
    """Five songs, of one of which only arousal is drawn, and the last one of several windows."""
    random = np.random.RandomState(0)
    made = []
    for song in range(5):
        steps = corpus.song_steps[song]
        labels = (random.uniform(-0.5, 0.5, 2) + 0.05 * random.randn(steps, 2)).astype(np.float32)
        labels[:, 1] = np.nan if song == 2 else labels[:, 1]
        made.append(annotated(corpus, song, labels))
    return [*made[:4], longer(made[4:], 3)]


def longer(songs, times):
    """The song again and again, with an embedding for each window as different as those of songs."""
    (song,) = songs
    features, labels = song.features, np.tile(song.labels, (times, 1))
    starts = window_starts(len(labels))
    random = np.random.RandomState(1)
    embedding = features.embedding[0] * random.uniform(0.8, 1.2, (len(starts), 1))
    features = SongFeatures(np.tile(features.log_mel, (times, 1, 1)), embedding, starts)
    return dataclasses.replace(song, labels=labels, features=features)


def numbers(loaded):
    return jax.tree.leaves((loaded.variables["params"], loaded.variables["batch_stats"]["level"]))


def equal(one, other):
    for x, y in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_trained_model_knows_which_songs_are_alike(fitted):
    for spread in (fitted.listeners.arousal, fitted.listeners.valence):
        assert 0.0 < spread.alike < 1.0 and spread.taste > 0.0


def test_it_predicts_what_it_says_it_does(loaded, songs):
    """The error after adapting is that of the curves which the adapted network makes, over several windows."""
    assert max(len(song.features.window_start) for song in songs) > 1
    result = personalize(loaded, songs)
    errors = []
    for song in songs:
        curve = predict_features(result.loaded, result.loaded.variables, song.features)
        errors.append(np.sqrt(labelled_mean(np.square(song.labels - curve, dtype=np.float64))))
    np.testing.assert_allclose(result.after, labelled_mean(np.array(errors)), atol=1e-4)
    again = personalize(result.loaded, songs)
    np.testing.assert_allclose(again.before, result.after, atol=1e-4)
    assert (result.after < result.before).all()


def test_songs_that_are_alike_move_more(loaded, songs):
    """Where there is taste, the song itself most; where there is none, all the same."""
    one = songs[0]
    personal = personalize(loaded, [dataclasses.replace(one, labels=np.full_like(one.labels, 0.9))]).loaded  # fmt: skip
    moved = [
        (predict_features(personal, personal.variables, x.features) - predict_features(loaded, loaded.variables, x.features)).mean(axis=0)
        for x in songs
    ]  # fmt: skip
    arousal, valence = np.abs(moved).T
    assert arousal[0] > 1.05 * arousal[1:].max()
    np.testing.assert_allclose(valence, valence[0], atol=1e-4)


def test_songs_may_come_in_any_order_and_one_by_one(loaded, songs, tmp_path):
    """To the bit, beyond the room that there was, and through the files."""
    at_once = personalize(loaded, songs).loaded
    assert at_once.info.config.model.listener_centres == at_once.model.config.listener_centres == 8
    assert (listener_weights(at_once.variables)[:5].any(axis=1)).all()
    for order in itertools.islice(itertools.permutations(songs), 0, 120, 40):
        equal(personalize(loaded, order).loaded, at_once)
    model = loaded
    for number, song in enumerate((songs[3], songs[1], songs[4], songs[0], songs[2])):
        result = personalize(model, [song])
        save_personalized(tmp_path / str(number), result, [song.name])
        model = load_model(tmp_path / str(number))
    equal(model, at_once)
    assert model.person == at_once.person
    equal(personalize(model, songs[1:2]).loaded, at_once)  # a song twice counts once
    export_model(model, tmp_path / "mine.safetensors")
    equal(load_model(tmp_path / "mine.safetensors"), at_once)


def test_a_strength_by_hand_moves_all_curves_alike(loaded, songs):
    personal = personalize(at_strength(loaded, 0.5), songs).loaded
    assert not listener_weights(personal.variables).any()


@pytest.mark.parametrize("shots", [1, 3])
def test_the_evaluation_judges_what_people_get(corpus, loaded, shots):
    """`with_prior` equals personalising on the support songs and predicting each query song."""
    trial = listener_trial(corpus, "test", protocol="clean", shots=shots)
    curves = curves_of_songs(trial, loaded.model, loaded.variables)
    judged = with_prior(trial, curves, LISTENERS, song_space(loaded.variables))
    for task in (0, len(judged) - 1):
        support = [
            annotated(corpus, song, truth[: corpus.song_steps[song]])
            for song, truth in zip(trial.support_songs[task].tolist(), trial.support_truth[task], strict=True)
        ]  # fmt: skip
        personal = personalize(loaded, support).loaded
        for place in np.flatnonzero(trial.listeners.query[task] >= 0)[:3]:
            song = int(trial.song[task, place])
            asked = annotated(corpus, song, support[0].labels)
            curve = predict_features(personal, personal.variables, asked.features)
            np.testing.assert_allclose(judged[task, place, : len(curve)], curve, atol=1e-4)
