"""What shows `dsaml_jax.meta` to people without music: the tour, and the benchmark beside other libraries."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.conftest import ROOT

BENCHMARKS = ROOT / "experiments" / "benchmarks"


@pytest.fixture
def libraries(monkeypatch):
    """The benchmark's module, imported as its command does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import meta_libraries

    return meta_libraries


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    script = ROOT / "experiments" / "meta_tour.py"
    run = subprocess.run(
        [sys.executable, script, "--quick", "--out", tmp_path],
        check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    table = (tmp_path / "meta_tour.md").read_text()
    rows = re.findall(r"^\| (\D[^|]*) \|(( \d+\.\d+ ± \d+\.\d+ \|)+)", table, re.MULTILINE)
    assert len(rows) == 7 and all(row[0] in run.stdout for row in rows)
    assert (tmp_path / "meta_tour.svg").read_text().count("<svg") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sinusoid", "convnet"])
def test_the_benchmark_runs_without_the_others(libraries, name, monkeypatch):
    """One small problem; the numbers are its own, and finite."""
    monkeypatch.setitem(libraries.PROBLEMS, name, lambda **_: SMALL[name](libraries))
    monkeypatch.setattr(libraries, "memory", libraries.own_memory)
    table = libraries.report(name, [libraries.OURS], rounds=1, steps=(2,))
    assert re.search(rf"\| 2 \| {libraries.OURS} \| [\d.e+]+ \| 1.00 \| 1.00 to 1.00 \| \d+ \| [\d.]+ \|", table)  # fmt: skip


SMALL = {
    "sinusoid": lambda module: module.sinusoid(tasks=2),
    "convnet": lambda module: module.convnet(tasks=1, ways=2, queries=1, channels=2),
}


@pytest.mark.parametrize("name", ["sinusoid", "convnet"])
def test_losses_of_the_benchmark_are_those_of_their_problem(libraries, name):
    """At the first parameters: finite, of a size with what a constant would give."""
    problem = libraries.cast(SMALL[name](libraries), np.float32)
    one = jax.tree.map(lambda x: x[0], problem.query)
    losses = [float(loss(problem.params, one)) for loss in libraries.LOSSES[name].values()]
    constant = np.mean(np.square(one[1])) if name == "sinusoid" else np.log(2)
    assert 0.1 * constant < losses[0] < 10 * constant
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)  # products in another order
