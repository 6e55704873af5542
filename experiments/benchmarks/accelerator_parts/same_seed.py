"""Part f: whether two runs with the same seed end in the same bytes.

Four processes at once, two as they are and two with deterministic operations, and in each two runs. Runs of a process
share its compiled program; processes choose kernels by timing them, each for itself, and may choose differently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from accelerator_parts.corpora import MemoryCorpus, run_config
from accelerator_parts.report import Report
from accelerator_parts.sizes import Size
from accelerator_parts.training import SEED, first_state, training_step

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
META_STEPS = 5
PROCESSES = 2
"""Of each kind."""


def same_seed(report: Report, size: Size) -> None:
    """Starts the processes and compares their digests."""
    kinds = {"as it is": "", DETERMINISTIC: DETERMINISTIC}
    started = {(kind, i): _start(size, flag) for kind, flag in kinds.items() for i in range(PROCESSES)}  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    try:
        for (kind, i), process in started.items():
            result = report.case(f"{kind}, process {i + 1}", _result, process, report)
            if result is not None:
                found[kind].append(result)
    finally:
        for process in started.values():
            process.kill()
    for kind, results in found.items():
        digests = [digest for result in results for digest in result["digests"]]
        within = [len(set(result["digests"])) == 1 for result in results]
        report.row(
            "Parameters after two runs with one seed",
            operations=kind,
            equal_within_a_process=all(within) if within else None,
            equal_between_processes=len(set(digests)) == 1 if len(results) > 1 else None,
            first_losses_equal=len({result["first_loss"] for result in results}) == 1,
            ms_a_meta_step=min((r["ms"] for r in results), default=None),
            digests=" ".join(dict.fromkeys(digest[:8] for digest in digests)),
        )
    report.note(
        f"{META_STEPS} meta-steps of {_size(size)} tasks in every run; all bytes of the parameters are compared. The "
        "processes share the device, so the times only say how the two kinds compare."
    )


def _size(size: Size) -> int:
    return min(4, size.tasks)


def _start(size: Size, flag: str) -> subprocess.Popen[str]:
    """A process that prints one line of JSON. No compiled program is taken from another."""
    environment = {name: x for name, x in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # four share the device
    command = [sys.executable, "-m", "accelerator_parts.same_seed", size.name]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _result(process: subprocess.Popen[str], report: Report) -> Any:
    out, errors = process.communicate(timeout=max(report.left(), 1.0))
    if process.returncode:
        raise RuntimeError(" ".join(errors.split())[-300:])
    return json.loads(out.splitlines()[-1])


def runs(size: Size) -> dict[str, Any]:
    """Two runs from the same seed: digests of the parameters, the first loss, and the time of a meta-step."""
    config = run_config(size)
    config = dataclasses.replace(config, meta=dataclasses.replace(config.meta, tasks=_size(size)))
    corpus = MemoryCorpus(size)
    corpus.draw_for(config)
    step, _ = training_step(config)
    digests, losses, seconds = [], [], 0.0
    for _ in range(2):
        state, terms = first_state(config), []
        for number, (_, drawn) in enumerate(corpus.batches(META_STEPS + 1, 1)):
            start = time.perf_counter()
            state, now = step(state, corpus.device, drawn, np.int32(number + 1), SEED)
            terms.append(float(now["total_loss"][0]))
            seconds = time.perf_counter() - start
        leaves = jax.tree.leaves(jax.device_get(state.learned))
        digests.append(hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest())
        losses.append(terms[0])
    return {"digests": digests, "first_loss": losses[0], "ms": seconds * 1e3}


if __name__ == "__main__":
    from accelerator_parts.sizes import SIZES

    print(json.dumps(runs(SIZES[sys.argv[1]])))
