"""Experiments: tables, figures, and a whole experiment that is resumed.

Tolerances are those of NumPy and pytest (1e-7 and 1e-6 relative): the statistics are in float64.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.shards import read_corpus
from dsaml_jax import UsageError
from dsaml_jax.cli import main
from dsaml_jax.corpus import OWN_SPLIT, held_out
from dsaml_jax.evaluation import COLUMNS, agreed_trial, level_errors, mean_scores
from dsaml_jax.evaluation.scores import unit_means
from dsaml_jax.experiment import Experiment, Judged, Method, Runner, Training
from dsaml_jax.experiment.base import Outcome
from dsaml_jax.experiment.regression import regression_curves
from dsaml_jax.experiment.scales import FULL, QUICK, STANDARD
from dsaml_jax.experiment.tables import (
    difference,
    differences_table,
    levels_table,
    over_seeds,
    over_songs,
    pairs,
    score_table,
    scores_table,
    to_latex,
    to_markdown,
    unit_scores,
    write_tables,
)
from experiments import NAMES
from tests.conftest import SMALL_MODEL

# ---- Tables.


def test_a_person_counts_once_and_each_song_of_theirs_once():
    """Three curves of one song (by three support songs) and one of another: a mean of two, in a mean of two people."""
    cells = [("a", "x"), ("a", "x"), ("a", "x"), ("a", "y"), ("b", "x")]
    labels = [{"annotator": who, "support": "s", "song": song} for who, song in cells]
    values = {column: np.array([1.0, 2.0, 3.0, 6.0, 8.0]) for column in COLUMNS}
    values["valence_ccc"] = np.array([1.0, np.nan, 3.0, np.nan, np.nan])  # not labelled there
    one = Judged(labels, values)
    two = Judged(labels, {column: x + 1.0 for column, x in values.items()})
    assert unit_means(cells, values["arousal_ccc"])[1].tolist() == [4.0, 8.0]
    assert unit_scores([one, two], "arousal_ccc", "annotator") == {"a": 4.5, "b": 8.5}
    assert unit_scores([one], "arousal_ccc", "song") == {"x": 3.5, "y": 6.0}
    assert unit_scores([one], "valence_ccc", "annotator") == {"a": 2.0}
    mean, spread = over_seeds([one, two], "arousal_ccc", "annotator")
    assert mean == 6.5 and spread == pytest.approx(np.sqrt(0.5))  # of a sample of two
    assert over_songs([one, two], "arousal_ccc", "annotator") == pytest.approx(16 / 3 + 0.5)
    names, table = score_table([one, two], "arousal_ccc", "annotator")
    assert names == ["a", "b"]
    np.testing.assert_array_equal(table[0], [[2.0, 6.0], [8.0, np.nan]])


def judged(value, people=("=cmd()", "b", "c")):
    labels = [{"annotator": who, "support": "s", "song": song} for who in people for song in "xy"]
    values = value + 0.1 * np.arange(len(labels))
    return Judged(labels, {column: values.astype(float) for column in COLUMNS})


@pytest.fixture
def outcome():
    experiment = Experiment(
        title="50 % of A_B",
        claim="",
        task="pdmer",
        trainings={},
        methods={name: Method("constant") for name in ("low", "base", "top|pipe")},
        against="base",
        subjects=("top|pipe",),
    )
    scores = {
        "low": [judged(0.0), judged(0.2)],
        "base": [judged(1.0), judged(1.2)],
        "top|pipe": [judged(2.0)],
    }
    return Outcome(experiment, "clean", scores, {})


def test_tables_say_what_was_measured(outcome):
    table = scores_table(outcome)
    assert table.rows[0][:2] == ("low", "0.350 ± 0.141") and table.rows[2][1] == "2.250"
    compared = pairs(outcome)
    assert list(compared) == ["each minus base", "top|pipe minus each"]
    assert difference(outcome, "ccc", "low", "base").mean == pytest.approx(-1.0)
    first = differences_table(outcome, compared["each minus base"])
    assert [row[0] for row in first.rows] == ["low", "top|pipe"]
    marked = {(first.rows[row][0], first.header[column]) for row, column in first.marked}
    assert marked == {("low", "RMSE"), ("top|pipe", "PCC"), ("top|pipe", "CCC")}
    text = to_markdown(first)
    assert "**-1.0000 [-1.0000, -1.0000]**" in text and r"top\|pipe" in text and "3/0" in text


def test_latex_takes_any_name(outcome):
    text = to_latex(scores_table(outcome), "50 % of A_B ± sd")
    assert r"\caption{50 \% of A\_B $\pm$ sd}" in text
    assert text.count(r"\\") == 4 and text.count("&") == 6 * 4


def test_files(outcome, tmp_path):
    write_tables(outcome, tmp_path)
    with (tmp_path / "per_annotator.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 3 and rows[0]["annotator"] == "'=cmd()"
    assert float(rows[0]["arousal_ccc"]) == pytest.approx(0.05)
    with (tmp_path / "per_song.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5 * 2
    with (tmp_path / "table.csv").open() as file:
        values = list(csv.DictReader(file))
    assert len(values) == 9 * (3 + 2 + 2)
    assert {row["minus"] for row in values} == {"", "base", "low"}


# ---- The experiments.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [QUICK, STANDARD, FULL])
def test_every_experiment_is_well_formed(small_data, tmp_path, name, scale):
    import importlib

    experiment = importlib.import_module(f"experiments.{NAMES[name]}").experiment()
    runner = Runner(name, experiment, scale, read_corpus(small_data[1]), tmp_path, seeds=1)
    assert {experiment.against, *experiment.subjects} <= set(experiment.methods)
    seen = set()
    for key, training in experiment.trainings.items():
        assert not training.start or training.start in seen
        assert training.as_long_as is None or set(training.as_long_as) <= seen
        seen.add(key)
        if training.as_long_as is None:
            assert runner.config(key, 0).training.task == training.task
    for method in experiment.methods.values():
        assert (method.kind in ("constant", "support mean", "others", "ridge", "svr")) == (
            not method.training
        )
        assert not method.training or method.training in seen
    assert not list(tmp_path.iterdir())


def test_experiments_share_a_folder():
    """Trainings of one name are one: models are found by it, also those that another experiment has trained."""
    found: dict[str, Training] = {}
    for name in NAMES.values():
        experiment = importlib.import_module(f"experiments.{name}").experiment()
        for training, made in experiment.trainings.items():
            assert found.setdefault(training, made) == made, training


def test_explained_variance_by_hand():
    """Four songs, a constant that is off by 1, 1, 1, 3; a model off by half as much, and one that is as bad."""
    labels = [{"annotator": "", "support": "", "song": name} for name in "abcd"]
    off = np.array([1.0, -1.0, 1.0, -3.0])
    judged = {
        name: [Judged(labels, dict.fromkeys(COLUMNS, off) | {"arousal_level": share * off})]
        for name, share in (("constant", 1.0), ("half", 0.5), ("same", 1.0))
    }
    experiment = Experiment("t", "", "dmer", {}, {name: Method("constant") for name in judged}, "half")  # fmt: skip
    table = levels_table(Outcome(experiment, "clean", judged, {}))
    assert table.header == ("method", "arousal R²", "minus half")
    assert [row[1] for row in table.rows] == ["0.000", "0.750", "0.000"]
    assert table.rows[1][2] == "" and table.rows[2][2].startswith("-0.750 [")
    without = {name: [Judged(labels, dict.fromkeys(COLUMNS, off))] for name in judged}
    assert levels_table(Outcome(experiment, "clean", without, {})) is None


def test_a_level_is_judged_where_it_is_labelled():
    truth = np.full((2, 4, 2), np.nan)
    truth[0, 1:3, 0] = [0.1, 0.3]
    predicted = np.full((2, 4, 2), 0.5)
    predicted[0, 2, 0] = 7.0  # beyond the scale
    assert level_errors(predicted, truth) == {"arousal_level": pytest.approx([0.55])}


@pytest.mark.parametrize("regressor", ["ridge", "svr"])
def test_regressors_beat_the_constant(small_data, regressor):
    corpus = read_corpus(small_data[1])
    trial, validation = agreed_trial(corpus, "test"), agreed_trial(corpus, "validation")

    def predicted():
        return regression_curves(trial, validation, regressor=regressor, features=("spectral",))

    curves = predicted()
    constant = np.broadcast_to(trial.constant, trial.truth.shape)
    assert mean_scores(curves, trial.truth)["score"] > mean_scores(constant, trial.truth)["score"]
    # Nothing of the test songs is learned from.
    corpus.mean[np.isin(np.repeat(np.arange(30), corpus.song_steps), trial.songs)] += 0.5
    np.testing.assert_array_equal(predicted(), curves)


SETTINGS = [f"--set={setting}" for setting in SMALL_MODEL]


@pytest.fixture
def quick(small_data, tmp_path_factory):
    """`dsaml experiment pdmer --quick`, on the small corpus and model that other tests have compiled for."""
    out = tmp_path_factory.mktemp("experiment")
    arguments = ["experiment", "pdmer", "--dataset", "synthetic", "--quick", "--quiet", "--folds", "0", *SETTINGS,
                 "--data", str(small_data[1]), "--out", str(out)]  # fmt: skip
    assert main(arguments) == 0
    return out, arguments


def check_what_is_written(quick):
    out, _ = quick
    folder = out / "pdmer"
    page = (folder / "table.md").read_text()
    for word in ("Meta-SGD adapted", "counts for more", "DMER + affine", "reference settings", "random tasks", "seeds: 1",
                 "the validation part chose", "Protocol reference", "--quick"):  # fmt: skip
        assert word in page
    for protocol in ("clean", "reference"):
        names = {path.name for path in (folder / protocol).iterdir()}
        assert names == {"table.csv", "table.tex", "per_annotator.csv", "per_song.csv"}
    drawn = {path.name for path in (folder / "figures").iterdir()}
    linked = {word.split(")")[0] for word in page.split("](figures/")[1:]}
    assert linked == {name for name in drawn if name.endswith(".svg")} and len(linked) == 9
    assert {name[:-4] for name in linked} == {n[:-4] for n in drawn if n.endswith(".pdf")}


def check_that_it_uses_again_what_is_there(quick, monkeypatch):
    out, arguments = quick
    before = {p: p.read_bytes() for p in (out / "pdmer").rglob("*") if p.is_file()}
    calls = []
    monkeypatch.setattr(Runner, "predict", lambda *args: calls.append(args))
    monkeypatch.setattr("dsaml_jax.experiment.reporting.draw", lambda *_: {})
    assert main(arguments) == 0
    assert not calls
    for path, content in before.items():
        if path.name != "table.md":
            assert path.read_bytes() == content, path


def check_that_figures_are_the_same_bytes(quick):
    out, arguments = quick
    before = {p: p.read_bytes() for p in (out / "pdmer" / "figures").iterdir()}
    assert main(arguments) == 0
    assert {p: p.read_bytes() for p in before} == before


def check_that_others_share_its_models(quick, small_data, capsys):
    out, arguments = quick
    assert main([word for word in arguments if word != "--quiet"] + []) == 0
    stamps = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("metrics.jsonl")}
    assert main([word.replace("pdmer", "tasks") if word == "pdmer" else word for word in arguments]) == 0  # fmt: skip
    assert {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("metrics.jsonl")} == stamps
    page = (out / "tasks" / "table.md").read_text()
    assert "mean only, adapted" in page and "Each minus annotator tasks, adapted" in page


def check_that_a_changed_setting_is_refused(quick, capsys):
    _, arguments = quick
    assert main([*arguments, "--set=meta.steps=1"]) == 2
    assert "meta.steps: 2 -> 1" in capsys.readouterr().err


def check_that_equal_time_means_fewer_steps(quick, small_data):
    out, _ = quick
    experiment = Experiment(
        "x", "", "pdmer",
        {"Meta-SGD": Training("pdmer"), "DMER": Training("dmer"), "timed": Training("pdmer", start="DMER", as_long_as=("Meta-SGD", "DMER"))},
        {"Meta-SGD": Method("unadapted", "Meta-SGD")}, against="Meta-SGD",
    )  # fmt: skip
    corpus = read_corpus(small_data[1])
    runner = Runner("time", experiment, QUICK, corpus, out, seeds=1, settings=SMALL_MODEL)
    steps = runner.config("timed", 0).training.steps
    assert steps % 2 == 0 and steps >= 2  # a whole number of logged lines
    (out / "runs" / "DMER" / "seed0" / "status.json").rename(out / "gone")
    assert runner.config("timed", 0).training.steps == steps  # measured once
    (out / "gone").rename(out / "runs" / "DMER" / "seed0" / "status.json")


def check_that_choices_are_made_on_validation(small_data, quick, monkeypatch):
    out, _ = quick
    import experiments.pdmer

    experiment = experiments.pdmer.experiment()
    corpus = read_corpus(small_data[1])
    runner = Runner("pdmer", experiment, QUICK, corpus, out, seeds=1, settings=SMALL_MODEL)
    asked = []
    original = Runner.predict

    def watched(self, trial, *rest):
        asked.append(set(trial.songs.tolist()))
        return original(self, trial, *rest)

    monkeypatch.setattr(Runner, "predict", watched)
    model = runner.model("DMER", 0)
    runner._choose(experiment.methods["DMER fine-tuned"], "clean", model, 0, OWN_SPLIT)
    assert asked and set.union(*asked) <= set(held_out(corpus)["validation"].songs.tolist())


@pytest.mark.slow
def test_a_quick_experiment(capsys, monkeypatch, quick, small_data):
    """One test, since every worker that has one of several would make the experiment anew."""
    check_what_is_written(quick)
    with monkeypatch.context() as patched:
        check_that_it_uses_again_what_is_there(quick, patched)
    check_that_figures_are_the_same_bytes(quick)
    check_that_others_share_its_models(quick, small_data, capsys)
    check_that_a_changed_setting_is_refused(quick, capsys)
    check_that_equal_time_means_fewer_steps(quick, small_data)
    with monkeypatch.context() as patched:
        check_that_choices_are_made_on_validation(small_data, quick, patched)


def test_bad_requests(small_data, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["experiment", "dmer", "--dataset", "deam", *out]) == 2
    assert "dsaml prepare deam" in capsys.readouterr().err
    assert main(["experiment", "dmer", "--full", *out]) == 2
    assert "--data" in capsys.readouterr().err
    data = ["--data", str(small_data[1]), "--quick", *out]
    assert main(["experiment", "dmer", "--dataset", "deam", *data]) == 2
    assert "holds synthetic" in capsys.readouterr().err
    assert main(["experiment", "dmer", *data, "--protocol", "reference"]) == 2
    assert "dmer is judged by clean" in capsys.readouterr().err
    assert main(["experiment", "dmer", *data, "--set=model.depth=3"]) == 2
    assert "unknown setting" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mean_curves_alone_make_no_listeners(small_data, tmp_path):
    import experiments.pdmer

    corpus = read_corpus(small_data[1])
    nobody = np.zeros(0, np.int32)
    alone = dataclasses.replace(corpus, rating_song=nobody, rating_annotator=nobody)
    with pytest.raises(UsageError, match="mean curves only"):
        Runner("pdmer", experiments.pdmer.experiment(), QUICK, alone, tmp_path, seeds=1)


def test_too_few_songs_for_a_task_are_said_before_the_first_training(small_data, tmp_path):
    """Not after the hours of a DMER model that PDMER would begin from."""
    import experiments.pdmer

    corpus = read_corpus(small_data[1])
    settings = (*SMALL_MODEL, "meta.min_songs=99")
    runner = Runner("pdmer", experiments.pdmer.experiment(), QUICK, corpus, tmp_path, seeds=1, settings=settings)  # fmt: skip
    with pytest.raises(UsageError, match="no annotator has 99 songs here.*--set meta.min_songs="):
        runner.judging()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the memory maps of Linux")
def test_trainings_leave_no_programs_behind(small_data, tmp_path, monkeypatch):
    """Hundreds of them are compiled by an experiment of many folds, and a process has room for some thousand maps."""
    import experiments.dmer

    def maps():
        return len(Path("/proc/self/maps").read_text().splitlines())

    program = jax.jit(lambda x: jnp.tanh(x @ x.T).sum())

    def compile_many(*_):
        for size in range(1, 60):
            program(jnp.ones((size, size)))
        found.append(maps())

    found = []
    monkeypatch.setattr("dsaml_jax.experiment.running.train", compile_many)
    corpus = read_corpus(small_data[1])
    runner = Runner("dmer", experiments.dmer.experiment(), QUICK, corpus, tmp_path, seeds=1, settings=SMALL_MODEL)  # fmt: skip
    runner.train_all()
    assert maps() < min(found) - 100  # about eight for each program
