"""Several devices and several processes: the same run as on one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from dsaml_jax import UsageError, cli
from dsaml_jax.config import preset, with_settings
from dsaml_jax.devices import Devices
from dsaml_jax.runs import METRICS_FILE, load_model, read_metrics
from tests.conftest import SMALL_DMER, SMALL_MODEL

RUN = (*SMALL_MODEL, "meta.tasks=4", "training.steps=20", "training.validate_every=10",
       "training.log_every=1", "training.learning_rate=1e-4")  # fmt: skip


def start(small_data, workdir, *, devices=1, settings=(), flags=()):
    """`dsaml train` in a process of its own with so many virtual devices."""
    command = [sys.executable, "-m", "dsaml_jax", "train", "--data", str(small_data[1]),
               "--workdir", str(workdir), "--preset", "tiny", *flags,
               *[f"--set={setting}" for setting in (*RUN, *settings)]]  # fmt: skip
    environment = os.environ | {
        "DSAML_CACHE": jax.config.jax_compilation_cache_dir,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def finish(*processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


@pytest.fixture(scope="module")
def one_device(small_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("devices") / "one"
    finish(start(small_data, workdir))
    return workdir


@pytest.fixture(scope="module")
def four_devices(small_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("devices") / "four"
    (output,) = finish(start(small_data, workdir, devices=4))
    assert "on 4 x cpu" in output
    return workdir


def assert_same_run(ours, theirs):
    """Numbers within 1e-5, as the README says of losses. A gradient's norm is no mean but a sum over all parameters: it
    was seen to differ by 1.3e-5, since devices add in another order (4e-7 a step) and Adam carries that on."""
    lines = read_metrics(ours), read_metrics(theirs)
    assert len(lines[0]) == len(lines[1]) == 22
    for mine, other in zip(*lines, strict=True):
        assert mine.pop("kind") == other.pop("kind")
        norms = [line.pop("gradient_norm", 0.0) for line in (mine, other)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4, abs=1e-5)
        assert mine == pytest.approx(other, abs=1e-5)


@pytest.mark.slow
def test_four_devices(four_devices, one_device):
    assert_same_run(four_devices, one_device)


@pytest.mark.slow
def test_two_processes_over_loopback(small_data, one_device, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    first, second = (
        start(
            small_data, tmp_path / "both", devices=2,
            flags=("--distributed", "--coordinator", address, "--processes", "2", "--process", str(i)),
        )
        for i in range(2)
    )  # fmt: skip
    outputs = finish(first, second)
    assert "on 4 x cpu in 2 processes" in outputs[0]
    assert "best validation score" in outputs[0] and "best validation" not in outputs[1]
    assert_same_run(tmp_path / "both", one_device)
    loaded = load_model(tmp_path / "both")
    assert loaded.step == load_model(one_device).step


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4)])
def test_a_checkpoint_goes_on_with_another_number_of_devices(
    small_data, one_device, four_devices, tmp_path, before, after
):
    """The run up to step 10, written on `before` devices, continued on `after`."""
    workdir = tmp_path / "run"
    shutil.copytree({1: one_device, 4: four_devices}[before], workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    (output,) = finish(start(small_data, workdir, devices=after))
    assert "resuming" in output and "step 10" in output
    assert_same_run(workdir, one_device)
    assert (workdir / METRICS_FILE).read_text().count("\n") == 22


def test_devices_that_do_not_divide_the_tasks_stay_idle(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 4)
    assert [Devices(n).count for n in (1, 2, 3, 6, 8)] == [1, 2, 3, 3, 4]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UsageError, match="cannot share 6 tasks"):
        Devices(6)


def test_options_of_several_processes(small_data, tmp_path, capsys):
    arguments = ["train", "--data", str(small_data[1]), "--workdir", str(tmp_path / "run")]
    assert cli.main([*arguments, "--processes", "2"]) == 2
    assert "need --distributed" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_in_one_dispatch_are_the_same_steps(small_data, tmp_path):
    """Also where the last dispatch is shorter, and where the run goes on in between.

    Within 1e-5: a scan is another program, whose float32 sums may have another order.
    """
    from data_prep.shards import read_corpus
    from dsaml_jax.training import train

    corpus = read_corpus(small_data[1])
    for together in (1, 2):
        settings = [*SMALL_DMER, "training.steps=7",
                    f"training.steps_per_dispatch={together}"]  # fmt: skip
        train(with_settings(preset("tiny"), settings), corpus, tmp_path / str(together))
    for mine, other in zip(*(read_metrics(tmp_path / n) for n in "12"), strict=True):
        assert mine.pop("kind") == other.pop("kind")
        assert mine == pytest.approx(other, abs=1e-5)
    for a, b in zip(
        *(jax.tree.leaves(load_model(tmp_path / n).variables) for n in "12"),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
