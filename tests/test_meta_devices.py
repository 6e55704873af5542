"""Meta-gradients of tasks that are dealt over four devices: those of one device, or refused.

Tolerance 1e-5, relative: float32 sums in another order.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import jax
import pytest

from dsaml_jax import meta

QUICK = ("maml", "imaml")
REST = (
    *sorted(set(meta.algorithm_names()) - {*QUICK}),
    *(f"maml:{mode}" for mode in meta.MEMORY_MODES if mode != "mixed"),
)


@functools.cache
def compared(names):
    """`{case: errors}`, from a process of its own: devices are counted when JAX starts."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    done = subprocess.run(
        [sys.executable, "-m", "tests.on_four_devices", *names],
        env=os.environ | cache | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", QUICK)
def test_tasks_on_four_devices(name):
    """In `jax.shard_map` with its check of what varies, and on an explicit mesh.

    With tasks in groups, with a loss that closes over its data, and with one task whose *data* is dealt.
    """
    found = {case: errors for case, errors in compared(QUICK).items() if case.split()[0] == name}
    assert "is no multiple of the 4 devices" in found.pop(f"{name} refused")
    assert len(found) == (10 if name == "maml" else 7)
    for case, errors in found.items():
        assert max(errors) < 1e-5, case


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_every_algorithm_and_mode_on_four_devices(name):
    for way in ("shard_map", "explicit"):
        assert max(compared(REST)[f"{name} {way}"]) < 1e-5, way
