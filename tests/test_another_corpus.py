"""A model judged on another corpus than that of its training: all of it, nothing it has seen, and the result says so.

Tolerances of 1e-6: scores are float32 sums of some hundred numbers of size 1.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from data_prep.curves import labelled_mean
from data_prep.features import FeatureConfig
from data_prep.shards import read_corpus
from dsaml_jax import UsageError, evaluate
from dsaml_jax.cli import main
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import WHOLE, Fold, held_out, identity
from dsaml_jax.evaluation import level_agreement
from dsaml_jax.runs import load_model
from dsaml_jax.training import train
from tests.conftest import SMALL_DMER


@pytest.fixture(scope="module")
def dmer_run(small_data, made_once):
    """A DMER run of a fold of the small corpus."""

    def make(workdir):
        settings = [*SMALL_DMER, "training.folds=3", "training.fold=1"]
        train(with_settings(preset("tiny"), settings), read_corpus(small_data[1]), workdir)

    return made_once("dmer_of_a_fold", make)


def test_everything_is_the_test(small_data):
    parts = held_out(read_corpus(small_data[1]), WHOLE)
    assert [len(parts[name].songs) for name in ("train", "validation", "test")] == [0, 0, 30]
    assert len(parts["test"].ratings) == len(parts["test"].support) > 0
    assert not len(parts["train"].consensus)


def test_a_dmer_model_is_judged_on_all_songs(dmer_run, elsewhere):
    run, corpus = load_model(dmer_run), read_corpus(elsewhere)
    evaluation, _ = evaluate(run, corpus)
    facts = evaluation.facts
    assert facts["another_corpus"] and facts["songs"] == len(corpus.song_ids) == 10
    assert (facts["trained_on"], facts["judged_on"]) == (run.info.data, identity(corpus))
    assert facts["held_out"] == "everything, the model is of another corpus"
    assert facts["seen_in_training"] == {"model": {"songs": 0, "people": 0}}
    assert {row["song"] for row in evaluation.rows} == set(corpus.song_ids)
    # The constant is the mean of what is judged: none is better.
    steps = np.concatenate([corpus.mean[s : s + n] for s, n in zip(corpus.song_start, corpus.song_steps, strict=True)])  # fmt: skip
    (first,) = [r for r in evaluation.rows if (r["method"], r["song"]) == ("constant", corpus.song_ids[0])]  # fmt: skip
    song = corpus.mean[: corpus.song_steps[0]]
    expected = np.sqrt(np.nanmean((song - labelled_mean(steps)) ** 2, axis=0))
    assert [first["arousal_rmse"], first["valence_rmse"]] == pytest.approx(expected, abs=1e-6)
    assert set(evaluation.levels) == {"constant", "DMER"}
    assert evaluation.levels["constant"]["arousal"] == {"correlation": 0.0, "r2": 0.0}


def test_part_of_another_corpus_if_that_is_asked_for(dmer_run, elsewhere):
    run, corpus = load_model(dmer_run), read_corpus(elsewhere)
    fold = Fold(2, 0, 1)
    evaluation, _ = evaluate(run, corpus, fold=fold)
    assert {row["song"] for row in evaluation.rows} == {
        corpus.song_ids[song] for song in held_out(corpus, fold)["test"].songs
    }
    assert evaluation.facts["held_out"] == "fold 1 of 2"
    whole, _ = evaluate(run, corpus)
    assert evaluation.name == f"{whole.name}-fold1of2"


def test_of_its_own_corpus_the_run_says_who_is_held_out(dmer_run, small_data):
    run, corpus = load_model(dmer_run), read_corpus(small_data[1])
    with pytest.raises(UsageError, match="who is held out of its corpus is the run's to say"):
        evaluate(run, corpus, fold=Fold(2, 0, 1))
    evaluation, _ = evaluate(run, corpus, fold=Fold(3, 0, 1))
    assert not evaluation.facts["another_corpus"] and evaluation.facts["songs"] == 10
    assert not evaluation.facts["part"] and set(evaluation.levels) == {"constant", "DMER"}


def test_other_features_and_songs_that_were_seen_are_refused(dmer_run, elsewhere, small_data):
    run, corpus = load_model(dmer_run), read_corpus(elsewhere)
    other = dataclasses.replace(corpus, features=FeatureConfig())
    with pytest.raises(UsageError, match="the model reads .*; the data has"):
        evaluate(run, other)
    copied = dataclasses.replace(corpus, sounds=(run.info.seen.sounds[0], *corpus.sounds[1:]))
    with pytest.raises(UsageError, match="has seen 1 of the 10 test songs.*--seen-songs"):
        evaluate(run, copied)
    evaluation, _ = evaluate(run, copied, seen_songs=True)
    assert evaluation.facts["seen_in_training"]["model"]["songs"] == 1


def test_everybody_elsewhere_is_adapted_to(small_run, dmer_run, elsewhere):
    """PDMER: nothing is chosen for the baselines, for nobody is left to choose by."""
    run, corpus = load_model(small_run), read_corpus(elsewhere)
    evaluation, shown = evaluate(run, corpus)
    assert shown is not None and evaluation.facts["chosen_on_validation"] == {}
    judged = {row["annotator"] for row in evaluation.rows}
    people, songs = np.unique(corpus.rating_annotator, return_counts=True)
    assert judged == {corpus.annotator_ids[who] for who in people[songs > 1]}
    assert not evaluation.levels
    assert all(np.isfinite(row["arousal_rmse"]) for row in evaluation.rows)


def test_a_run_as_published_may_be_judged_by_unseen_people_elsewhere(small_run, elsewhere):
    run, corpus = load_model(small_run), read_corpus(elsewhere)
    training = dataclasses.replace(run.info.config.training, protocol="reference")
    info = dataclasses.replace(run.info, config=dataclasses.replace(run.info.config, training=training))  # fmt: skip
    published = dataclasses.replace(run, info=info)
    evaluation, _ = evaluate(published, corpus, protocol="clean")
    assert evaluation.protocol == "clean"


def test_the_command_says_so_and_keeps_both(dmer_run, elsewhere, small_data, tmp_path, capsys):
    work = tmp_path / "run"
    shutil.copytree(dmer_run, work)
    words = ["evaluate", "--workdir", str(work), "--data"]
    assert main([*words, str(small_data[1])]) == 0
    capsys.readouterr()
    assert main([*words, str(elsewhere)]) == 0
    said = capsys.readouterr().out
    assert "another corpus: trained on synthetic/" in said and "judged on elsewhere/" in said
    assert "10 curves of 10 songs" in said and "A level R²" in said
    results = json.loads((work / "results.json").read_text())
    assert results["facts"]["another_corpus"] and set(results["levels"]["DMER"]) == {"arousal", "valence"}  # fmt: skip
    assert len(list((work / "evaluations").iterdir())) == 2
    assert len(list(csv.DictReader((work / "per_song.csv").open()))) == 20
    assert main([*words, str(elsewhere), "--folds", "2", "--fold", "1"]) == 0
    assert "fold 1 of 2" in capsys.readouterr().out
    assert main([*words, str(elsewhere), "--folds", "0"]) == 0
    assert "the corpus's own split" in capsys.readouterr().out
    assert len(list((work / "evaluations").iterdir())) == 4
    for wrong, message in (
        (["--fold", "1"], "need --folds"), (["--folds", "1"], "holds nothing out"),
        (["--folds", "2", "--fold", "5"], "fold 5 does not exist"),
    ):  # fmt: skip
        assert main([*words, str(elsewhere), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_a_model_to_pass_on_is_judged_elsewhere(small_data, elsewhere, tmp_path):
    """Nothing of its own corpus is left to judge it by."""
    settings = [*SMALL_DMER, "training.folds=1", "training.steps=4", "training.validate_every=2"]
    corpus = read_corpus(small_data[1])
    train(with_settings(preset("tiny"), settings), corpus, tmp_path / "run")
    run = load_model(tmp_path / "run")
    with pytest.raises(UsageError, match="judge it on another corpus"):
        evaluate(run, corpus)
    evaluation, _ = evaluate(run, read_corpus(elsewhere))
    assert evaluation.facts["songs"] == 10


# ---- Levels.


def test_levels_are_those_of_labelled_steps():
    truth = np.array([[0.1, 0.3, np.nan], [0.5, 0.7, 0.9], [-0.2, -0.4, np.nan]])
    truth = np.stack([truth, np.full_like(truth, np.nan)], axis=-1).astype(np.float32)
    predicted = np.array([[0.0, 0.2, 9.0], [0.2, 0.2, 0.2], [-0.1, 0.1, 9.0]])
    predicted = np.stack([predicted, predicted], axis=-1).astype(np.float32)
    levels, guesses = np.array([0.2, 0.7, -0.3]), np.array([0.1, 0.2, 0.0])
    constant = np.array([0.1, 0.0], np.float32)
    found = level_agreement(predicted, truth, constant)
    r2 = 1 - np.mean((guesses - levels) ** 2) / np.mean((0.1 - levels) ** 2)
    assert list(found) == ["arousal"]
    assert found["arousal"]["r2"] == pytest.approx(r2, abs=1e-6)
    assert found["arousal"]["correlation"] == pytest.approx(np.corrcoef(guesses, levels)[0, 1], abs=1e-6)  # fmt: skip
    perfect = level_agreement(np.nan_to_num(truth), truth, constant)["arousal"]
    assert perfect == {"correlation": pytest.approx(1), "r2": pytest.approx(1)}
    flat = level_agreement(np.full_like(predicted, 0.1), truth, constant)["arousal"]
    assert flat == {"correlation": 0.0, "r2": pytest.approx(0, abs=1e-6)}


def test_levels_of_one_song_are_finite():
    truth = np.full((1, 4, 2), 0.25, np.float32)
    found = level_agreement(truth, truth, np.array([0.25, 0.5], np.float32))
    assert found == {"arousal": {"correlation": 0.0, "r2": 0.0}, "valence": {"correlation": 0.0, "r2": 1.0}}  # fmt: skip
