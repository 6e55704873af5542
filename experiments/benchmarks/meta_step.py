"""First-order meta-step against PyTorch in two forms.

Claim: on two CPU cores, the meta-step of the paper's size takes two thirds of the time of MAML as people write it in PyTorch,
and no more than the strongest form of it that we found; see `torch_peers.py` for both, and for what was tried there.
Command: `python experiments/benchmarks/meta_step.py` (needs the extra [torch]; `--rounds`, `--tasks`).
Result: `experiments/results/meta_step.md` (3 rounds). Time: about 15 minutes.

All sides get the same weights and the same batch, and must give the same loss and gradient before anything is timed.
They run in turn in one process. What the C library does with freed memory matters more than most code here, so
everything is measured twice: as it is, and with memory kept by the process (`keep_memory`), for all sides alike.

**Bound.** A task costs `2 x 3 x N` floating-point operations per step of a song and scale, `N` the 25.2 million weights of
the encoder, forward and backward: 18 GFLOP a song of 60 steps, and 31 songs (16 inner steps and 15 queries): 560 GFLOP
at full size. Two cores multiply matrices of these shapes at 150 to 180 GFLOP/s, which is 3.1 to 3.7 s a task; the front
end, bound by memory, comes on top. On an accelerator with `F` FLOP/s and `B` bytes/s the bound of 16 tasks is the larger of
`16 x 560e9 / F` and `16 x 16 x 5 x 119e6 / B`: each inner step reads each task's own 119 MB of weights twice, and
writes a gradient and new weights.

**What we aimed at and missed.** The aim was 1.5 times the plain peer and 1.2 times the strong one at full size, 3 and 2 times at
width 64; measured: 1.5 and 1.04, 2.3 and 1.2. With memory kept, PyTorch gains a quarter to a half, and we gain nothing,
as XLA allocates once for a whole program; the strong peer is then faster than we are. At full size, matrix products are 3.3 s
of our 5.5 s by the profiler, at up to 210 GFLOP/s: 1.2 times the strong peer would leave 1.9 s for everything else, and the front
end alone takes 1.4 s. At width 64 the front end is nearly everything, 31 songs at 40 ms: its arithmetic takes 8 ms, the rest goes
into arrays of 4 to 14 MB that are written and read again. oneDNN's convolution, which PyTorch uses, need not write what
a kernel sees; XLA's own for a CPU was slower than ours, which must.

**What was tried.** Kept, with the meta-step's time at width 64 before and after: windows as matrix products, moments of the
first convolution from its input, blocks of 60 patches (2.4 to 1.7 s); pooling that chooses by comparison and does not share
the gradient of equals, and both directions' recurrent kernel as one matrix, so that no step of SGD transposes it (1.7 to 1.35 s).
Not kept: `jnp.max` over a window (as fast, but its gradient can be 0 / 0), choosing by an index of 8 bits (a fifth faster for one
song, twice as slow in blocks), rows of windows in pairs like the columns (no gain), blocks of 10 or 20 patches (no gain over
all), tasks side by side by `vmap` (slower: weights of their own leave the cache), keeping the C library's memory (no gain).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import jax
import numpy as np
from problem import MODELS, QUERIES, RATE, STEPS, initial, meta_gradient_of, songs
from timing import interleaved, measured_on, table, write_result
from torch_check import check_equal
from torch_peers import Plain, Strong, keep_memory, meta_gradient, without_masks

from dsaml_jax import ModelConfig, meta
from dsaml_jax.convert import to_torch


def measure(config: ModelConfig, tasks: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per task of each side in each round."""
    variables = initial(config)
    peers = {"PyTorch, plain": Plain, "PyTorch, strong": Strong}
    weights = to_torch(variables, config)
    made = {name: kind(config, weights) for name, kind in peers.items()}
    small = [without_masks(songs(config, 1, n, seed)) for n, seed in ((1, 0), (2, 1))]
    for name, peer in made.items():
        print(
            f"{name}: worst relative error of a tensor's gradient {check_equal(peer, variables, *small):.1e}"
        )

    support, query = songs(config, tasks, 1, 2), songs(config, tasks, QUERIES, 3)
    algorithm = meta.algorithm("fomaml", steps=STEPS, learning_rate=RATE)
    ours = jax.jit(meta_gradient_of(config, variables["batch_stats"], algorithm, 1))
    on_device = jax.device_put((variables["params"], support, query))
    batches = without_masks(support), without_masks(query)

    def run(name: str) -> Callable[[], object]:
        return lambda: meta_gradient(made[name], *batches, steps=STEPS, learning_rate=RATE)

    sides: dict[str, Callable[[], object]] = {
        "dsaml_jax": lambda: jax.block_until_ready(ours(*on_device)),
        **{name: run(name) for name in made},
    }
    return {name: list(seconds / tasks) for name, seconds in interleaved(sides, rounds).items()}


def main() -> None:
    """Measures in a process for each size and way of keeping memory, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=2, help="per call; times are per task")
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "MEMORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        size, memory = options.one
        if memory == "kept":
            keep_memory()
        print(json.dumps(measure(MODELS[size], options.tasks, options.rounds)))
        return

    parts = ["# First-order meta-step, seconds per task", ""]
    for size in MODELS:
        for memory in ("as it is", "kept"):
            command = [sys.executable, __file__, "--one", size, memory]
            command += ["--rounds", str(options.rounds), "--tasks", str(options.tasks)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            *checks, last = output.splitlines()
            seconds = {name: np.asarray(values) for name, values in json.loads(last).items()}
            parts += [
                f"## {size}, memory {memory}",
                "",
                table(seconds, "dsaml_jax"),
                "",
                *checks,
                "",
            ]
            print("\n".join(parts[-5:]), flush=True)
    parts += [
        f"{STEPS} inner SGD steps on all parameters, 1 support song, {QUERIES} query songs of 30 s, "
        f"{options.tasks} tasks one after the other, {options.rounds} rounds, sides in turn.",
        measured_on("jax", "torch"),
    ]
    write_result("meta_step", "\n".join(parts))


if __name__ == "__main__":
    main()
