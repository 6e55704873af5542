"""Where things are: one device, several, or several processes with devices of their own.

Tasks (or the songs of DMER) are split over all devices; parameters and the corpus are on each. What is computed does
not depend on the number of devices, beyond the order in which a mean is added up: tasks are drawn on the host, by a
pure function of the step, the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsaml_jax.base import PyTree
from dsaml_jax.errors import UsageError


def join_processes(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of several that train together. Must come before any computation.

    Args:
      coordinator: `host:port` of the first process; None: as the cluster's environment says (Slurm, Open MPI,
        Kubernetes, TPU pods).
      processes: how many there are.
      process: which this is, from 0.

    Raises:
      UsageError: the environment does not say enough, or the others cannot be reached.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"--distributed: {error}. Outside a cluster that JAX knows, give --coordinator HOST:PORT, "
            "--processes N and --process I"
        ) from None


class Devices:
    """All devices of all processes, as one axis that tasks are split over."""

    def __init__(self, examples: int) -> None:
        """Takes as many devices as divide `examples`, the tasks or songs of a step.

        Raises:
          UsageError: several processes, and their devices do not divide the examples.
        """
        devices = np.asarray(jax.devices())
        count = max(n for n in range(1, len(devices) + 1) if examples % n == 0)
        if jax.process_count() > 1 and count < len(devices):
            raise UsageError(
                f"{len(devices)} devices cannot share {examples} tasks or songs evenly; change meta.tasks "
                "(training.batch_songs for DMER) or the number of processes"
            )
        self.count = count
        self._mesh = jax.sharding.Mesh(devices[:count], ("tasks",), axis_types=(AxisType.Auto,))
        self.everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._split = NamedSharding(self._mesh, PartitionSpec(None, "tasks"))

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies arrays that are the same in every process to every device."""
        return jax.tree.map(lambda x: self._put(x, self.everywhere), tree)

    def split(self, tree: PyTree) -> PyTree:
        """Splits arrays `[steps, tasks, ...]` by tasks."""
        return jax.tree.map(lambda x: self._put(x, self._split), tree)

    def _put(self, x: Any, sharding: NamedSharding) -> jax.Array:
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x  # restored from a checkpoint: already everywhere
        # `device_put` would ask all processes whether they mean the same.
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def describe_devices() -> str:
    """One line: what computes."""
    devices = jax.devices()
    several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"on {len(devices)} x {devices[0].device_kind}{several}"


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def largest(number: int) -> int:
    """The largest of the numbers that the processes bring; all must come here."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def on_first(action: Callable[[], None]) -> None:
    """Runs it in the first process; where it fails there, no process goes on.

    Raises:
      UsageError: in the others, when it failed in the first, where its own error is raised.
    """
    failed: Exception | None = None
    if is_first():
        try:
            action()
        except Exception as error:
            failed = error
    if largest(int(failed is not None)):
        raise failed or UsageError("the first process cannot go on; it says why")


def wait_for_others(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
