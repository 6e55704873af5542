"""The accelerator's benchmark: its counts, its report, and a rehearsal of its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dsaml_jax import ModelConfig
from tests.conftest import ROOT

BENCHMARKS = ROOT / "experiments" / "benchmarks"


@pytest.fixture
def parts(monkeypatch):
    """Lets the benchmarks' modules be imported as their commands do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_operations_of_the_encoder_are_those_the_compiler_counts(parts):
    from accelerator_parts.counts import gradient_work
    from accelerator_parts.profile import _encoded
    from problem import initial

    config = ModelConfig(width=256, num_heads=4, num_layers=2, ffn_width=512, dropout=0.0)
    params = jax.eval_shape(lambda: initial(config))["params"]
    features = jax.ShapeDtypeStruct((2, 60, 476), np.float32)
    embedding = jax.ShapeDtypeStruct((2, 1, 256), np.float32)
    lowered = jax.jit(lambda *x: _encoded(config, *x)).lower(params, features, embedding)
    ours = gradient_work(config, params, 2)["adapter and encoder"].flop / 3
    # The compiler also counts what is done number by number: softmax, LayerNorm.
    assert 1.0 < lowered.cost_analysis()["flops"] / ours < 1.03


def test_full_size_counts_are_those_of_the_docstring(parts):
    from accelerator_parts.counts import first_order_work
    from accelerator_parts.sizes import FULL
    from problem import initial

    params = jax.eval_shape(lambda: initial(FULL.model))["params"]
    work = first_order_work(
        FULL.model, params, tasks=FULL.tasks, steps=FULL.steps, queries=FULL.queries
    )
    # The docstring gives two or three digits.
    np.testing.assert_allclose(
        [work["inner"].flop, work["outer"].flop], [5.1e12, 4.77e12], rtol=0.01
    )
    np.testing.assert_allclose(
        [work["inner"].bytes, work["outer"].bytes], [166e9, 18.8e9], rtol=0.01
    )
    assert sum(part.seconds(350e12, 3e12) for part in work.values()) == pytest.approx(
        0.069, abs=1e-3
    )


def test_report_keeps_what_was_measured_before_a_failure(parts, tmp_path):
    from accelerator_parts.report import Report, markdown

    report = Report(tmp_path / "part.json", "A part", budget=60.0)
    report.row("Times", side="ours", ms=1.5, equal=True)

    def too_large():
        raise MemoryError("RESOURCE_EXHAUSTED: 90 GB\nof memory")

    assert report.case("large", too_large) is None
    assert report.case("sum", lambda a, b: a + b, 1, 2) == 3
    content = json.loads((tmp_path / "part.json").read_text())
    assert content["failed"] == {"large": "MemoryError: RESOURCE_EXHAUSTED: 90 GB of memory"}
    text = markdown(content)
    assert "| ours | 1.50 | yes |" in text
    assert "* No result: large: MemoryError" in text


def test_report_leaves_out_what_there_is_no_time_for(parts, tmp_path):
    from accelerator_parts.report import Report

    report = Report(tmp_path / "part.json", "A part", budget=0.0)
    assert report.case("late", lambda: 1) is None
    assert report.content["failed"] == {"late": "left out: no time"}


def test_what_takes_too_long_is_interrupted(parts):
    from accelerator_parts.report import within

    with pytest.raises(TimeoutError, match="not done within"), within(0.05):
        time.sleep(5)
    with within(5.0):
        pass
    time.sleep(0.1)  # nothing rings afterwards


def test_numbers_are_written_with_three_digits(parts):
    from accelerator_parts.report import amount, cell

    assert [cell(x) for x in (None, True, 3, 0.0, 0.5, 1.234, 56.78, 999.5, 2e-5, 3e7)] == [
        "-", "yes", "3", "0.000", "0.500", "1.23", "56.8", "1000", "2.0e-05", "3.0e+07",
    ]  # fmt: skip
    assert [amount(x, "B/s") for x in (3.351e12, 4e9, 5e6, 10.0)] == [
        "3.35 TB/s", "4 GB/s", "5 MB/s", "10 B/s",
    ]  # fmt: skip


def test_the_line_through_two_figures_says_what_fits(parts):
    from accelerator_parts.second_order import _largest

    assert _largest({16: 30.0, 32: 46.0}, 80.0) == "66"
    assert _largest({16: 30.0}, 80.0) == "unknown"
    assert _largest({16: 30.0, 32: 30.0}, 80.0) == "any number of"


def test_made_up_corpus_makes_tasks(parts):
    from accelerator_parts.corpora import MemoryCorpus
    from accelerator_parts.sizes import TINY

    corpus = MemoryCorpus(TINY)
    items = list(corpus.batches(stop=5, together=2))
    assert len(items) == 2
    _, drawn = items[0]
    assert drawn.query.shape == (2, TINY.tasks, TINY.queries)
    assert (drawn.query >= 0).all()
    np.testing.assert_array_equal(drawn.support[1], corpus.draw(2).support)


@pytest.mark.slow
def test_the_command_writes_what_it_measures(tmp_path):
    """Part c, which needs the model, the counts and the corpus; then a part that has no time."""
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--out", str(tmp_path)]
    # Unlike the other tests' programs, these run long enough for the compiler's work to pay.
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    run = subprocess.run(
        [*command, "--parts", "c", "--size", "tiny", "--hardware", "a machine", "--budget", "3600"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    part = json.loads((tmp_path / "results.json").read_text())["parts"]["c"]
    assert not part["failed"]
    rows = {row["part"]: row for row in part["tables"]["Parts of a meta-step"]}
    assert len(rows) == 11
    assert all(row["ms"] > 0 for row in rows.values())
    table = (tmp_path / "table.md").read_text()
    assert "rehearsed" in table and "a machine" in table and "| inner: SGD |" in table

    subprocess.run([*command, "--parts", "b", "--budget", "1"], check=True, capture_output=True)
    part = json.loads((tmp_path / "results.json").read_text())["parts"]["b"]
    assert "stopped after 1 s" in part["failed"].values()


def test_the_command_refuses_unknown_parts(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--out", str(tmp_path)]
    run = subprocess.run([*command, "--parts", "xyz"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "letters of abcdef" in run.stderr
