"""Folds over annotators and songs, what is judged, and corpora of one dimension from the files to the curves."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile

from data_prep.base import deal
from data_prep.card import read_card
from data_prep.deam import read_deam
from data_prep.features import TINY, FeatureConfig
from data_prep.prepare import prepare
from data_prep.shards import read_corpus
from dsaml_jax import UsageError
from dsaml_jax.cli import main
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import Fold, fold_of, gather_windows, held_out, to_device
from dsaml_jax.corpus.device import window_steps
from dsaml_jax.evaluation import ListenerCurves, agreed_judging, listener_judging, listener_trial
from dsaml_jax.evaluation import methods as ways
from dsaml_jax.experiment import Runner
from dsaml_jax.experiment.scales import QUICK
from dsaml_jax.reporting import figures
from dsaml_jax.runs import read_metrics
from dsaml_jax.training import judging_lines, train
from experiments.pdmer import experiment
from tests.conftest import SMALL_DMER, SMALL_MODEL
from tests.deam_files import make_deam

FOLDS = [Fold(4, 0, fold) for fold in range(4)]


def _in_training(people):
    """Two more people whom the corpus's own split gives to training: then nobody is left for its test songs."""
    for number in range(1000):
        strangers = [f"stranger{number}", f"stranger{number + 1}"]
        parts = deal([*people, *strangers], validation=0.15, test=0.2)
        if {parts[name] for name in strangers} == {"train"}:
            return strangers
    raise AssertionError("no such names")


@pytest.fixture(scope="module")
def quirky(tmp_path_factory):
    """Excerpts of 8 s. One person rated all of 40 songs, others ten, two or one; the official test songs are rated by
    strangers; a person is always flat; some rate in one dimension."""
    folder = tmp_path_factory.mktemp("quirky")
    songs = [*range(1001, 1041), *range(2001, 2007)]
    root = make_deam(folder / "deam", {str(i): (50, 50) for i in songs}, raters=1, seconds=8.0)
    annotated = read_deam(root, audio_start=20.0)
    random = np.random.RandomState(0)
    people = ["everyone", *(f"ten{i}" for i in range(6)), *(f"two{i}" for i in range(8)), "once", "flat"]  # fmt: skip
    strangers = _in_training(people)
    changed = []
    for place, song in enumerate(annotated.songs):
        (everyone,) = song.ratings
        if int(song.song_id) > 2000:
            who = strangers
        else:
            who = ["everyone", *(f"ten{i}" for i in range(6) if place % 4 == i % 4), *(f"two{i}" for i in range(8) if place in (i, i + 20)),
                   *(["once"] if place == 7 else []), *(["flat"] if place % 3 == 0 else [])]  # fmt: skip
        ratings = []
        for name in who:
            level = 0.3 * np.sin(sum(map(ord, name)))
            curves = [curve + level + 0.05 * random.randn(len(curve)) for curve in (everyone.arousal, everyone.valence)]  # fmt: skip
            if name == "flat":
                curves = [np.full_like(curve, 0.1) for curve in curves]
            if name in ("ten0", "two0"):
                curves[1] = np.full_like(curves[1], np.nan)
            ratings.append(dataclasses.replace(everyone, annotator_id=name, arousal=np.float32(curves[0]), valence=np.float32(curves[1])))  # fmt: skip
        changed.append(dataclasses.replace(song, ratings=tuple(ratings)))
    annotated = dataclasses.replace(annotated, songs=tuple(changed))
    prepare(annotated, folder / "data", FeatureConfig(sample_rate=8000, hop_ms=50, mel_bands=8, embedding="spectral"), workers=1)  # fmt: skip
    return folder / "data"


@pytest.fixture(scope="module")
def corpus(quirky):
    return read_corpus(quirky)


def test_a_fold_holds_out_people_and_songs(corpus):
    tested_people, tested_songs = [], []
    for fold in FOLDS:
        parts = held_out(corpus, fold)
        songs = [set(parts[name].songs) for name in ("train", "validation", "test")]
        assert not songs[0] & songs[1] and not songs[0] & songs[2] and not songs[1] & songs[2]
        assert set.union(*songs) == set(range(len(corpus.song_ids)))
        people = [set(corpus.rating_annotator[parts[x].ratings]) for x in ("train", "validation", "test")]  # fmt: skip
        assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
        for name, part in parts.items():
            assert set(corpus.rating_song[part.ratings]) <= set(part.songs), name
            assert set(part.ratings) <= set(part.support)
        later = set(corpus.rating_song[parts["validation"].support]) & songs[2]
        assert not later  # no sound of the test before the test
        judging, tasks = listener_judging(corpus, "test", fold=fold)
        asked = tasks.query >= 0
        assert set(corpus.rating_song[tasks.query[asked]]) <= songs[2]
        assert not set(tasks.annotator) & (people[0] | people[1])
        for support, query in zip(tasks.support, tasks.query, strict=True):
            assert not set(support[support >= 0]) & set(query[query >= 0])
        assert judging.people == len(set(tasks.annotator))
        assert judging.curves == asked.sum() and judging.tasks == len(tasks.annotator)
        tested_people += sorted(set(tasks.annotator))
        tested_songs += sorted(songs[2])
    assert len(tested_people) == len(set(tested_people))  # once each
    assert sorted(tested_songs) == list(range(len(corpus.song_ids)))


def test_support_may_be_a_song_of_training(corpus):
    """Somebody with one song in the part is judged on it, after another song of theirs."""
    few = 0
    for fold in FOLDS:
        _, tasks = listener_judging(corpus, "test", fold=fold)
        test = set(held_out(corpus, fold)["test"].songs)
        for song, query in zip(tasks.support_song, tasks.query, strict=True):
            few += (query >= 0).sum() == 1 and not set(song) & test
    assert few


def test_what_is_judged_is_said_before(corpus):
    with pytest.raises(UsageError, match="--folds 5 --fold 0"):
        listener_judging(corpus, "test")
    config = with_settings(preset("tiny"), (*SMALL_MODEL, "training.folds=4"))
    lines = judging_lines(corpus, config)
    assert any("people" in line and "fold 0 of 4" in line for line in lines)
    (line,) = agreed_judging(corpus, "test").lines()
    assert "6 songs" in line


@pytest.mark.parametrize(
    ("fold", "message"),
    [(Fold(4, 0, 4), "fold 4 does not exist: 4 folds are 0 to 3"), (Fold(99, 0, 0), "99 folds are more than the"),
     (Fold(4, 99, 0), "99 of songs"), (Fold(4, 1, 0), "2 to the number")],
)  # fmt: skip
def test_folds_that_cannot_be(corpus, fold, message):
    with pytest.raises(UsageError, match=message):
        held_out(corpus, fold)


def test_a_fold_without_folds_is_a_mistake():
    for wrong in ("training.fold=1", "training.folds=-1"):
        with pytest.raises(UsageError, match=r"training\.fold"):
            with_settings(preset("tiny"), [wrong])


def test_windows_are_as_long_as_the_longest_song(corpus):
    assert window_steps(corpus) == corpus.song_steps.max() == 16
    device = to_device(corpus, corpus.mean)
    index = np.zeros(1, np.int32)
    assert gather_windows(device, index, index).log_mel.shape[1] == 16


def test_baselines_know_what_was_not_drawn(corpus):
    """A person who drew arousal alone: their valence is predicted by what training said."""
    fold = next(
        fold for fold in FOLDS
        if "ten0" in {corpus.annotator_ids[x] for x in listener_judging(corpus, "test", fold=fold)[1].annotator}
    )  # fmt: skip
    trial = listener_trial(corpus, "test", fold=fold)
    (rows,) = np.nonzero(trial.listeners.annotator == corpus.annotator_ids.index("ten0"))
    predicted = ways.support_mean(trial)[rows]
    assert np.isfinite(predicted).all()
    np.testing.assert_allclose(predicted[..., 1], trial.constant[1], rtol=1e-6)
    assert not np.allclose(predicted[..., 0], trial.constant[0])
    assert not np.isfinite(trial.truth[rows][..., 1]).any()


@pytest.mark.slow
def test_an_experiment_judges_everybody_once(corpus, tmp_path):
    short = ("training.batch_songs=3", "model.width=16", "model.num_heads=2", "model.ffn_width=16",
             "training.steps=6", "training.validate_every=2", "training.log_every=2", "meta.min_songs=2")  # fmt: skip
    runner = Runner("pdmer", dataclasses.replace(experiment(), protocols=("clean",)), QUICK, corpus, tmp_path,
                    seeds=1, settings=short, folds=FOLDS[:2])  # fmt: skip
    assert len([line for line in runner.judging() if "people," in line]) == 2
    runner.train_all()
    outcome = runner.judge_all("clean")
    labels = [one.labels for judged in outcome.judged.values() for one in judged]
    assert all(one == labels[0] for one in labels)
    whose = {label["annotator"] for label in labels[0]}
    each = [
        {corpus.annotator_ids[x] for x in listener_judging(corpus, "test", fold=fold)[1].annotator}
        for fold in FOLDS[:2]
    ]
    assert whose == each[0] | each[1] and not each[0] & each[1]
    facts = outcome.facts
    assert (
        facts["test annotators"] == str(len(whose))
        and "counts as one" in facts["songs of an annotator"]
    )
    assert facts["left out"] == "3: none of their songs is in this part"


# ---- One dimension alone.


@pytest.fixture(scope="module")
def tension(small_data, tmp_path_factory):
    """A folder of one's own with arousal alone, some cells of it empty."""
    root = tmp_path_factory.mktemp("tension")
    (root / "audio").mkdir()
    rows = ["song_id,annotator_id,time,arousal"]
    songs = sorted((small_data[0] / "DEAM_audio" / "MEMD_audio").glob("*.flac"))[:12]
    for number, path in enumerate(songs):
        shutil.copy(path, root / "audio" / f"{number}.flac")
        for who in range(6):
            for step in range(60):
                value = 0.3 * np.sin(step / 5 + who) + 0.1 * who - 0.2
                rows.append(f"{number},p{who},{step / 2},{'' if step == 20 else round(value, 3)}")
    (root / "annotations.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.slow
def test_one_dimension_from_the_files_to_the_curves(tension, tmp_path, capsys):
    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    data, work, mine, out = (tmp_path / name for name in ("data", "run", "mine", "out"))
    run("prepare", "folder", "--root", tension, "--name", "tension", "--out", data, "--features", "tiny", "--embedding", "spectral")  # fmt: skip
    card = read_card(next(data.rglob("dataset.json")).parent)
    assert "valence" not in card
    small = [f"--set={setting}" for setting in (*SMALL_MODEL, "training.folds=3")]
    run("train", "--data", data, "--workdir", work, "--preset", "tiny", *small)
    assert json.loads((work / "run.json").read_text())["dimensions"] == ["arousal"]
    said = run("evaluate", "--data", data, "--workdir", work)
    assert "A RMSE" in said and "V RMSE" not in said
    rows = list(csv.DictReader((work / "per_song.csv").open()))
    assert "arousal_ccc" in rows[0] and "valence_ccc" not in rows[0]
    song = tension / "audio" / "0.flac"
    drawn = tmp_path / "drawn.csv"
    drawn.write_text("time,arousal\n" + "".join(f"{t / 2},0.4\n" for t in range(40)))
    said = run("personalize", "--checkpoint", work, "--audio", song, "--annotations", drawn, "--out", mine)  # fmt: skip
    assert "arousal: RMSE" in said and "valence" not in said
    run("predict", "--checkpoint", mine, song, "--out", out)
    assert (out / "0.csv").read_text().splitlines()[0] == "time,arousal,arousal_low,arousal_high"
    assert (out / "0.png").is_file()


@pytest.mark.slow
def test_dmer_of_one_dimension(tension, tmp_path):
    from data_prep.folder import read_folder

    data = prepare(read_folder(tension, "tension"), tmp_path / "data", TINY)
    config = with_settings(preset("tiny"), (*SMALL_DMER, "training.steps=2", "training.validate_every=2"))  # fmt: skip
    train(config, read_corpus(data), tmp_path / "run")
    for line in read_metrics(tmp_path / "run"):
        assert any(name.startswith("arousal") for name in line)
        assert not any(name.startswith("valence") for name in line)


def test_a_run_knows_its_fold(corpus, quirky, tmp_path, capsys):
    """Judging by another fold, or beginning from one, is refused."""
    base = (*SMALL_DMER, "training.steps=2", "training.validate_every=2", "training.folds=4")
    train(with_settings(preset("tiny"), base), corpus, tmp_path / "run")
    asked = ["evaluate", "--data", str(quirky), "--workdir", str(tmp_path / "run")]
    assert main([*asked, "--folds", "4", "--fold", "0", "--quiet"]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["facts"]["held_out"] == "fold 0 of 4"  # fmt: skip
    assert main([*asked, "--fold", "1"]) == 2
    assert "--fold 1: the run was trained with 0" in capsys.readouterr().err
    other = with_settings(
        preset("tiny"), (*base, "training.fold=1", f"training.init_from={tmp_path / 'run'}")
    )
    with pytest.raises(UsageError, match="fold 0 of 4, this run is fold 1 of 4"):
        train(other, corpus, tmp_path / "other")


def test_sound_of_excerpts_through_prediction(tmp_path, small_run):
    """A file of 6 s is predicted, one of 4 s is one line."""
    for seconds in (6, 4):
        wave = 0.1 * np.random.RandomState(0).randn(seconds * 8000)
        soundfile.write(tmp_path / f"{seconds}.wav", wave, 8000)
    arguments = ["predict", "--checkpoint", str(small_run), "--out", str(tmp_path / "out"), "--quiet"]  # fmt: skip
    assert main([*arguments, str(tmp_path / "6.wav")]) == 0
    assert len((tmp_path / "out" / "6.csv").read_text().splitlines()) == 13
    assert main([*arguments, str(tmp_path / "4.wav")]) != 0


def test_the_published_protocol_holds_out_songs_alone(corpus, tmp_path):
    """Everybody's ratings of training songs train; whoever rated a test song is judged on it."""
    settings = (*SMALL_MODEL, "training.protocol=reference", "meta.min_songs=16")
    config = with_settings(preset("tiny"), settings)
    parts = held_out(corpus, fold_of(config.training))
    of_songs = np.isin(corpus.rating_song, parts["train"].songs)
    np.testing.assert_array_equal(parts["train"].ratings, np.flatnonzero(of_songs))
    said = " ".join(judging_lines(corpus, config))
    assert "test (the corpus's own split of songs, nobody held out): 2 people, 6 to 6 songs" in said
    assert "6 of 6 songs are no longer than the 30 s" in said
    with pytest.raises(UsageError, match="no folds"):
        with_settings(preset("tiny"), (*settings, "training.folds=3"))


def test_folds_are_validated_by_different_people(corpus):
    validated = [held_out(corpus, fold)["validation"] for fold in FOLDS]
    for name in ("songs", "ratings"):
        assert len({tuple(getattr(part, name)) for part in validated}) == len(FOLDS)


def test_who_is_left_out_is_counted(corpus):
    """Everybody of a part is judged, or left out for a reason."""
    for fold in FOLDS:
        judging, _ = listener_judging(corpus, "test", fold=fold)
        support = held_out(corpus, fold)["test"].support
        there = len(set(corpus.rating_annotator[support]))
        assert judging.people + sum(judging.left_out.values()) == there


def test_an_experiment_over_folds_is_planned(corpus, tmp_path):
    """Every run of it has a configuration, and what it judges is said, before anything is trained."""
    plan = dataclasses.replace(experiment(), protocols=("clean",))
    runner = Runner("pdmer", plan, QUICK, corpus, tmp_path, seeds=1, folds=FOLDS)
    for fold in FOLDS:
        training = runner.config("Meta-SGD", 0, fold).training
        assert (training.folds, training.fold) == (4, fold.fold)
        assert f"fold{fold.fold}" in training.init_from
    lines = runner.judging()
    assert len([line for line in lines if "clean: test" in line and "people," in line]) == 4


def test_what_adaptation_saw_is_not_judged(uneven_reference):
    """Protocol `reference`: the rest of the song, wherever the window lies that is adapted to."""
    trial = listener_trial(uneven_reference, "test", protocol="reference", fold=Fold(everyone=True))
    assert trial.judging.people == 2 and trial.judging.curves == 2  # the third drew nothing else
    known, seen = np.isfinite(trial.truth[:, 0]), np.isfinite(trial.support_truth[:, 0])
    assert known.any(axis=(1, 2)).all() and not (known & seen).any()
    assert len(trial.labels()) == trial.judging.curves


@pytest.fixture
def uneven_reference(small_data):
    """Three people who rated one song of 120 steps: all of it, its last 45 s, and its first 30 s."""
    corpus = read_corpus(small_data[1])
    ratings = np.full((360, 2), 0.25, np.float32)
    ratings[120:150] = ratings[300:] = np.nan
    return dataclasses.replace(
        corpus,
        song_ids=("long",), split=np.array(["test"]), song_start=np.zeros(1, np.int32), song_steps=np.full(1, 120, np.int32),
        mean=np.full((120, 2), 0.1, np.float32), window_first=np.zeros(1, np.int32), window_count=np.full(1, 3, np.int32),
        window_start=np.array([0, 30, 60], np.int32), embedding_first=np.zeros(1, np.int32),
        log_mel=np.zeros((120, 11, 32), np.float16), embedding=np.zeros((3, 256), np.float32),
        annotator_ids=("all", "late", "early"), rating_song=np.zeros(3, np.int32), rating_annotator=np.arange(3, dtype=np.int32),
        rating_first=np.array([0, 120, 240], np.int32), ratings=ratings,
    )  # fmt: skip


def test_curves_of_one_dimension_are_drawn_alone():
    truth = np.full((2, 10, 2), np.nan)
    truth[..., 1] = 0.2
    one = figures.listener_curves(ListenerCurves("s", ("a", "b"), truth, truth + 0.1, truth + 0.2))
    assert [axis.get_ylabel() for axis in one.axes] == ["valence", ""]
    both = figures.listener_curves(ListenerCurves("s", ("a", "b"), *(np.zeros((3, 2, 10, 2)))))
    assert [axis.get_ylabel() for axis in both.axes] == ["arousal", "", "valence", ""]
