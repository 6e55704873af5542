"""Every figure of an accelerator in at most eight minutes: meta-steps, memory, where the time goes, training, songs, seeds.

Nothing but jax, flax, optax, orbax-checkpoint, chex and numpy need be installed, and PyTorch for its side of part `a`; the
repository itself need not be. On a CPU everything runs at about a tenth of the size, to see that it runs.

Aims, not yet measured, for one device of the H100's class at the paper's size (16 tasks, 1 support song, 15 query songs, 16 inner steps):
the first-order meta-step is at least 50 times as fast as PyTorch as people write it, at least 5 times as fast as the
strongest PyTorch we could write, and reaches at least 40 % of the bound below; second order with 16 inner steps takes
at most 3 times as long as first order.
Command: `python experiments/benchmarks/accelerator.py --out DIR` (`--parts abc`, `--budget SECONDS`, `--size tiny`).
Result: `DIR/table.md` and `DIR/results.json`, written after each part; of a part at work, `DIR/part_a.json` and so on. On a
CPU: `experiments/results/accelerator_cpu/`. Not yet measured on an accelerator. Time: at most `--budget`, 8 minutes.

| part | |
|---|---|
| a | first-order meta-step, float32 and bfloat16, against PyTorch: plain, strong, tasks by vmap, compiled, as CUDA graphs |
| b | second order: time and memory of each memory mode, and how many inner steps and tasks fit 80 GB |
| c | front end, encoder, LSTM, optimisers and gathers one by one: bytes and operations per second against the device's limits |
| d | training from a corpus in memory, one and ten meta-steps a program: meta-steps per second, host waiting, device idle |
| e | adapting to a song and predicting another; ImageBind's audio tower |
| f | two runs with the same seed, with and without deterministic operations |

Embeddings of musicnn are not in part `e`: the project has no such encoder yet.

**Bound of part a.** A task's gradient costs `2 x 3 x N` operations a step of a song and scale, `N` the 25.2 million weights of
the encoder: with adapter, LSTM, attention and front end 19.9 GFLOP a song (`accelerator_parts/counts.py`). The inner steps, one
song each, are bound by memory: each reads each task's own 119 MB of weights forward and backward, and writes a gradient and
new weights, of which one is read again, five times in all; with the front end's maps 16 x 16 x 0.65 GB = 166 GB, and 5.1 TFLOP.
The outer loss is bound by arithmetic: 15 songs for each weight, 4.8 TFLOP and 19 GB. As no inner step can overlap with what
follows, the bound is the sum of the two, each the larger of `FLOP / F` and `bytes / B`: at 3 TB/s and 350 TFLOP/s (TF32)
55 + 14 = 69 ms. `F` and `B` are measured in the same process, by a large product and a copy. Left out: the LSTM's 60 steps
one after the other, and its weights that are read again in each of them (97 GB, unless a cache holds them).

**Memory.** Each part is a process of its own, which gives all its memory back, and is ended when its time is up; what time it
leaves the later ones have. JAX takes most of the device's memory at its start, in one piece, so that nothing is lost between
the pieces: 92 % (`XLA_PYTHON_CLIENT_MEM_FRACTION`), in part `a` 55 %, so that PyTorch has the rest. A case that does not
fit records that and the others go on.

**TF32.** XLA rounds the factors of float32 products to TF32 on such devices unless told otherwise, so PyTorch is told to do the
same; for comparing gradients, before anything is timed, both compute in full float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerator_parts.report import Report, markdown, one_line
from timing import measured_on

ROOT = Path(__file__).resolve().parents[2]

PARTS = {
    "a": ("First-order meta-step", 200),
    "b": ("Second order", 110),
    "c": ("Where the time goes", 60),
    "d": ("Training", 50),
    "e": ("One song", 30),
    "f": ("The same seed twice", 50),
}
"""Title and share of the time, the most important first."""

BUDGET = 470.0
"""Seconds for all parts."""

MEMORY_FRACTION = {"a": "0.55"}
"""Of the device's memory, for JAX; 0.92 in the other parts."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "torch")


def main() -> None:
    """Runs the parts, each in its process, and writes the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--parts", default="".join(PARTS), help="letters, in the order to be run")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts; each has its share")  # fmt: skip
    parser.add_argument("--size", choices=("auto", "full", "tiny"), default="auto", help="auto: tiny on a CPU")  # fmt: skip
    parser.add_argument("--hardware", default="", help="what the machine is, for the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown or not options.parts:
        parser.error(f"--parts {options.parts!r}: letters of {''.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        run_part(options.one, options.out, options.budget, options.size)
        sys.stdout.flush()
        os._exit(0)  # without waiting for programs that were not compiled in time

    # So that a part at work is ended with its parent.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parts: dict[str, Any] = {}
    results: dict[str, Any] = {
        "command": shlex.join(["python", "experiments/benchmarks/accelerator.py", *sys.argv[1:]]),
        "measured_on": measured_on(),
        "hardware": options.hardware or platform.processor() or platform.machine(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "parts": parts,
    }
    end = time.monotonic() + options.budget
    with tempfile.TemporaryDirectory() as cache:
        for number, part in enumerate(options.parts):
            shares = [PARTS[later][1] for later in options.parts[number:]]
            seconds = max(0.0, end - time.monotonic()) * shares[0] / sum(shares)
            parts[part] = _in_a_process(part, options, seconds, cache)
            _write(options.out, results)
            (options.out / f"part_{part}.json").unlink(missing_ok=True)
            print(markdown(parts[part]), flush=True)


def _in_a_process(
    part: str, options: argparse.Namespace, seconds: float, cache: str
) -> dict[str, Any]:
    """What a part has measured when it ends or its time is up."""
    path = options.out / f"part_{part}.json"
    path.unlink(missing_ok=True)
    environment = os.environ | {
        # A checkout is enough: neither this project nor anything that only its commands need is imported.
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        "JAX_COMPILATION_CACHE_DIR": cache,  # parts d and f, or a and b, have programs in common
        "XLA_PYTHON_CLIENT_MEM_FRACTION": MEMORY_FRACTION.get(part, "0.92"),
        # Part f starts processes that need the device's memory for themselves.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false" if part == "f" else "true",
    }
    command = [sys.executable, __file__, "--one", part, "--out", str(options.out)]
    command += ["--budget", str(seconds), "--size", options.size]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    ended = ""
    try:
        if process.wait(seconds):
            ended = f"the process ended with status {process.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"stopped after {seconds:.0f} s"
    finally:
        _end(process)
    content: dict[str, Any] = {
        "title": PARTS[part][0],
        "tables": {},
        "notes": [],
        "failed": {},
        "seconds": seconds,
    }
    if path.is_file():
        content = json.loads(path.read_text())
    if ended:
        content["failed"]["the rest" if content["tables"] else "everything"] = ended
    return content


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a part and the processes that it started; nothing where it has ended."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    process.wait()


def _write(out: Path, results: dict[str, Any]) -> None:
    """`results.json` and `table.md` of the parts so far."""
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    devices = dict.fromkeys(
        part["device"] for part in results["parts"].values() if "device" in part
    )
    sizes = dict.fromkeys(part["size"] for part in results["parts"].values() if "size" in part)
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [
        "# On an accelerator"
        if "tiny" not in sizes
        else "# The accelerator's benchmark, rehearsed",
        "",
        f"Size {', '.join(sizes)}, on {', '.join(devices)}; host: {results['hardware']}, load {results['load']} before.",
        f"{results['measured_on']}; {versions}.",
        f"`{results['command']}`",
        "",
        *(markdown(content) for content in results["parts"].values()),
    ]
    (out / "table.md").write_text("\n".join(lines))


def run_part(part: str, out: Path, budget: float, size_name: str) -> None:
    """Measures one part, in this process."""
    report = Report(out / f"part_{part}.json", PARTS[part][0], budget)
    # Only now, with the memory's share in the environment.
    import jax
    from accelerator_parts.sizes import SIZES

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    on_cpu = jax.default_backend() == "cpu"
    name = size_name if size_name != "auto" else "tiny" if on_cpu else "full"
    report.fact("size", name)
    report.fact("device", f"{len(jax.devices())} x {jax.devices()[0].device_kind}")
    try:
        _function(part)(report, SIZES[name])
    except Exception as error:
        report.failed("the rest", one_line(error))
        raise


def _function(part: str) -> Callable[[Report, Any], None]:
    """What measures a part. Imported alone, so that no part fails for another's sake."""
    if part == "a":
        from accelerator_parts.first_order import first_order as run
    elif part == "b":
        from accelerator_parts.second_order import second_order as run
    elif part == "c":
        from accelerator_parts.profile import profile as run
    elif part == "d":
        from accelerator_parts.training import training as run
    elif part == "e":
        from accelerator_parts.one_song import one_song as run
    else:
        from accelerator_parts.same_seed import same_seed as run
    return run


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
