"""The most tasks side by side whose program fits into the memory that is free."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from dsaml_jax import UsageError, meta
from dsaml_jax.training import fitting
from dsaml_jax.training.fitting import first_that_fits, free_memory, tasks_side_by_side
from tests.conftest import SMALL_MODEL

ROWS = jnp.ones((8, 256))


def make(size):
    """A program that holds `size` matrices of 256 KB at once."""

    def run(rows):
        groups = rows.reshape(-1, size, 256)

        def largest(group):
            matrices = jnp.cos(group[:, :, None] * group[:, None, :])
            return jnp.max(jnp.sort(matrices @ matrices, axis=1))

        return jnp.max(jax.lax.map(largest, groups)), size

    return jax.jit(run)


NEEDED = {size: meta.cost_of(make(size), (ROWS,)) for size in (8, 4, 2, 1)}


def with_free(monkeypatch, free):
    monkeypatch.setattr(fitting, "free_memory", lambda: free)
    return first_that_fits(make, [8, 4, 2, 1])


def test_more_at_once_need_more():
    peaks = [cost.peak for cost in NEEDED.values()]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 4


@pytest.mark.parametrize("size", [8, 4, 2, 1])
def test_the_most_that_fit(monkeypatch, size):
    cost = NEEDED[size]
    enough = (cost.peak - cost.inputs) / fitting.SHARE + 1
    total, chosen = with_free(monkeypatch, enough)(ROWS)
    assert chosen == size
    assert total == make(1)(ROWS)[0]


def test_nothing_fits(monkeypatch):
    with pytest.raises(UsageError, match="needs 0.0 GB even with 1 tasks at once, .* set meta.mem"):
        with_free(monkeypatch, 1000)(ROWS)


def test_devices_that_do_not_say_take_all(monkeypatch):
    assert with_free(monkeypatch, None)(ROWS)[1] == 8


def test_decided_once(monkeypatch):
    run = with_free(monkeypatch, 1e9)
    assert run(ROWS)[1] == 8
    monkeypatch.setattr(fitting, "free_memory", lambda: 1000)
    assert run(ROWS)[1] == 8


@pytest.mark.parametrize(
    ("tasks", "devices", "sizes"),
    [(16, 1, [16, 8, 4, 2, 1]), (16, 4, [16, 8, 4]), (12, 4, [12, 4]), (3, 3, [3])],
)
def test_every_device_gets_as_many(tasks, devices, sizes):
    assert tasks_side_by_side(tasks, devices) == sizes


def test_free_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, **stats):
            self.memory_stats = lambda: stats or None

    def found(*devices):
        monkeypatch.setattr(jax, "local_devices", lambda: list(devices))
        return free_memory()

    assert found(Device(bytes_limit=10, bytes_in_use=3), Device(bytes_limit=9, bytes_in_use=4)) == 5
    assert found(Device(bytes_limit=10, bytes_in_use=3), Device()) is None


@pytest.mark.slow
def test_an_accelerator_trains_with_the_most_that_fit(small_data, tmp_path, monkeypatch):
    """The same run as with the tasks one by one; within 1e-5: another program, whose float32 sums have another order."""
    from data_prep.shards import read_corpus
    from dsaml_jax.config import preset, with_settings
    from dsaml_jax.runs import read_metrics
    from dsaml_jax.training import train

    corpus, config = read_corpus(small_data[1]), with_settings(preset("tiny"), SMALL_MODEL)
    train(config, corpus, tmp_path / "cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    asked = []
    monkeypatch.setattr(fitting, "free_memory", lambda: asked.append(1) or 10**10)
    train(config, corpus, tmp_path / "gpu")
    assert len(asked) == 1
    for mine, other in zip(*(read_metrics(tmp_path / n) for n in ("cpu", "gpu")), strict=True):
        assert mine.pop("kind") == other.pop("kind")
        assert mine == pytest.approx(other, abs=1e-5)
