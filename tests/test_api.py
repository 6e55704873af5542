"""The public names, what an exported model is worth, and two runs side by side."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsaml_jax
from dsaml_jax import UsageError
from dsaml_jax.cli import main


@pytest.fixture(scope="module")
def evaluated(small_run, small_data, tmp_path_factory):
    run = shutil.copytree(small_run, tmp_path_factory.mktemp("api") / "run")
    assert main(["evaluate", "--data", str(small_data[1]), "--workdir", str(run), "--quiet"]) == 0
    return run


def test_public_names():
    assert set(dsaml_jax.__all__) <= set(dir(dsaml_jax))
    for name in dsaml_jax.__all__:
        assert getattr(dsaml_jax, name) is not None


def test_an_exported_model_predicts_the_same(small_run, tmp_path):
    run, out = str(small_run), tmp_path / "model.safetensors"
    assert main(["checkpoint", "export", run, "--out", str(out)]) == 0
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(20 * 8000) / 5), 8000)
    whole, alone = (dsaml_jax.load_model(x) for x in (run, str(out)))
    assert alone.info == whole.info and alone.step == whole.step
    curves = [dsaml_jax.predict_file(x, str(tmp_path / "a.wav")) for x in (whole, alone)]
    np.testing.assert_array_equal(*curves)
    with pytest.raises(UsageError, match="no such file"):
        dsaml_jax.load_model(tmp_path / "b.safetensors")
    assert main(["checkpoint", "export", run, "--out", str(tmp_path / "model.bin")]) == 2


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "model.safetensors"
    assert main(["checkpoint", "export", str(small_run), "--out", str(out)]) == 0
    return out.read_bytes()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.integers(0, 3000), value=st.binary(min_size=1, max_size=8), cut=st.integers(0, 9000)
)
def test_a_damaged_export_is_a_model_or_an_error(exported, tmp_path, place, value, cut):
    """The header says what the numbers are; damage to it, or an end that is missing, is one line."""
    path = tmp_path / "model.safetensors"
    damaged = bytearray(exported)
    damaged[place : place + len(value)] = value
    path.write_bytes(damaged[: len(damaged) - cut])
    try:
        loaded = dsaml_jax.load_model(path)
    except UsageError as error:
        assert str(path) in str(error) or "model." in str(error)
    else:
        assert loaded.variables["params"]


def test_results_as_a_tidy_table(small_run, small_data):
    evaluation, _ = dsaml_jax.evaluate(
        dsaml_jax.load_model(small_run), dsaml_jax.load_corpus(str(small_data[1]))
    )
    rows = evaluation.tidy()
    assert {*rows[0]} == {
        "method", "annotator", "support", "song", "dimension", "metric", "value"
    }  # fmt: skip
    assert len(rows) == sum(len(row) - 4 for row in evaluation.rows)
    mine = [x["value"] for x in rows if (x["method"], x["dimension"], x["metric"]) == ("constant", "arousal", "rmse")]  # fmt: skip
    assert np.mean(mine) == pytest.approx(np.mean([x["arousal_rmse"] for x in evaluation.rows if x["method"] == "constant"]))  # fmt: skip


def test_two_methods_side_by_side(evaluated, capsys):
    run = str(evaluated)
    methods = ["--method", "support mean", "--method", "constant"]
    assert main(["compare", run, run, *methods]) == 0
    said = capsys.readouterr().out
    people: dict[str, dict[tuple[str, str], list[float]]] = {"support mean": {}, "constant": {}}
    for row in csv.DictReader((evaluated / "per_song.csv").open()):
        if row["method"] in people:
            key = row["annotator"], row["song"]
            people[row["method"]].setdefault(key, []).append(float(row["arousal_rmse"]))
    means = []
    for scores in people.values():
        of_person: dict[str, list[float]] = {}
        for (person, _), values in scores.items():
            of_person.setdefault(person, []).append(np.mean(values))
        means.append(np.mean([np.mean(x) for x in of_person.values()]))
    (line,) = (x for x in said.splitlines() if x.startswith("arousal rmse"))
    assert f"{means[0]:.3f}" in line and f"{means[1]:.3f}" in line
    assert f"{means[0] - means[1]:+.4f}" in line  # all digits are read
    assert "fewer than 10" in said


def test_a_run_against_itself_is_no_difference(evaluated, capsys):
    assert main(["compare", str(evaluated), str(evaluated)]) == 0
    said = capsys.readouterr().out
    assert said.count("+0.0000 [+0.0000, +0.0000]") == 6 and "surely" not in said


def test_what_cannot_be_compared(evaluated, small_run, tmp_path, capsys):
    run = str(evaluated)
    for words, message in (
        ((run, str(small_run)), "not evaluated yet"),
        ((run, run, "--method", "nothing"), "there are constant, support mean"),
        ((run, run, *["--method", "constant"] * 3), "once for both runs"),
    ):
        assert main(["compare", *words]) == 2
        assert message in capsys.readouterr().err
    other = shutil.copytree(evaluated, tmp_path / "other")
    text = (other / "results.json").read_text()
    (other / "results.json").write_text(text.replace('"protocol": "clean"', '"protocol": "reference"'))  # fmt: skip
    assert main(["compare", run, str(other)]) == 2
    assert "not judged alike: protocol is clean and reference" in capsys.readouterr().err
    (other / "results.json").write_text("[]")
    assert main(["compare", run, str(other)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_the_scores_of_one_listener_are_what_the_summary_averages(evaluated):
    rows = list(csv.DictReader((evaluated / "per_annotator.csv").open()))
    summary = json.loads((evaluated / "results.json").read_text())["summary"]
    for method, columns in summary.items():
        mine = [row for row in rows if row["method"] == method]
        assert len({row["annotator"] for row in mine}) == len(mine)
        for column, numbers in columns.items():
            values = [float(row[column]) for row in mine if row[column]]
            assert np.mean(values) == pytest.approx(
                numbers["mean"]
            )  # float64, written with all digits
            assert np.std(values, ddof=1) == pytest.approx(numbers["sd"])
