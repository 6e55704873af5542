"""MAML in second order, beside learn2learn, higher and TorchOpt as their users write it: speed, memory, same gradients.

Claim: on two CPU cores a meta-step of `dsaml_jax.meta`, one compiled program, is 10 to 50 times as fast as their loops
over tasks and inner steps where operations are small. With convolutions it is 0.3 to 0.6 times as fast, for XLA computes
those slowly on a CPU and more slowly in a loop; written as patches and a product (`dsaml_jax.meta, products`: the same
numbers) it is 2.6 to 5 times as fast. With all tasks side by side it needs about the memory that learn2learn and higher
need for one task after the other.
Command: `python experiments/benchmarks/meta_libraries.py`, after `pip install ./dsaml_jax/meta torch higher torchopt`.
learn2learn 0.2.0 does not build on Python 3.11 and later as it is, because the C files that it ships are too old. Delete them,
translate again (`cython -3 learn2learn/data/*.pyx`, Cython below 3), then `pip install --no-deps --no-build-isolation .`; it
imports `gym`, `torchvision`, `qpth`, `requests`, none of which plays a part here (its `torchvision` was an empty module).
A library that is not there is left out. Time: six minutes.
Result: `experiments/results/meta_libraries.md`.

Two problems: `sinusoid` (25 tasks, 5 and 10 points, a network of 40 and 40 units) and `convnet` (4 tasks of made-up images
28 x 28, 5 ways, 1 shot, 5 query images a class; four convolutions of 32 channels and stride 2, normalised by the batch).
Before anything is timed the meta-gradients of all are compared in float64, on fewer tasks. Sides are timed in turn. Compiling
is not in the times; the table says how long it took. Memory is the largest resident size of a fresh process in one meta-step,
minus that before it.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import interleaved, measured_on, write_result

from dsaml_jax import meta

STEPS = (1, 5, 16, 64)
PEERS = ("learn2learn", "higher", "torchopt")
OURS = "dsaml_jax.meta"
TOLERANCE = 1e-9
"""Relative, of a gradient in float64: the same sums in another order, through 5 inner steps."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What all sides compute.

    Attributes:
      rate: of the inner steps.
      params: initial parameters, laid out as in JAX (`[in, out]`, `[height, width, in, out]`).
      support, query: `(x, y)`, with a leading axis of tasks; images `[task, image, 28, 28, 1]`.
    """

    rate: float
    params: Arrays
    support: tuple[np.ndarray, np.ndarray]
    query: tuple[np.ndarray, np.ndarray]


def sinusoid(tasks: int = 25) -> Problem:
    """Finn et al. 2017, section 5.1."""
    random = np.random.default_rng(0)
    sizes = (1, 40, 40, 1)
    params = {}
    for i, shape in enumerate(zip(sizes, sizes[1:], strict=False)):
        params[f"w{i}"] = random.standard_normal(shape) / (5.0 if i == 0 else shape[0] ** 0.5)
        params[f"b{i}"] = random.standard_normal(shape[1]) / 10
    amplitude, phase = random.uniform(0.1, 5.0, (tasks, 1, 1)), random.uniform(0, np.pi, (tasks, 1, 1))  # fmt: skip
    x = random.uniform(-5.0, 5.0, (tasks, 15, 1))
    y = amplitude * np.sin(x - phase)
    return Problem(0.01, params, (x[:, :5], y[:, :5]), (x[:, 5:], y[:, 5:]))


def convnet(tasks: int = 4, ways: int = 5, shots: int = 1, queries: int = 5, channels: int = 32) -> Problem:  # fmt: skip
    """The network that Finn et al. 2017 use for Omniglot (section 5.2), on noise around one image for each class."""
    random = np.random.default_rng(0)
    params = {}
    for i, inputs in enumerate((1, channels, channels, channels)):
        params[f"w{i}"] = random.standard_normal((3, 3, inputs, channels)) / (9 * inputs) ** 0.5
        params[f"scale{i}"] = 1 + random.standard_normal(channels) / 10
        params[f"b{i}"] = random.standard_normal(channels) / 10
    params["out"] = random.standard_normal((channels, ways)) / channels**0.5
    classes = random.standard_normal((tasks, ways, 1, 28, 28, 1))

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        noise = random.standard_normal((tasks, ways, count, 28, 28, 1))
        labels = np.broadcast_to(np.arange(ways)[None, :, None], (tasks, ways, count))
        return (classes + noise).reshape(tasks, -1, 28, 28, 1), labels.reshape(tasks, -1).astype(np.int32)  # fmt: skip

    return Problem(0.05, params, images(shots), images(queries))


PROBLEMS: dict[str, Callable[..., Problem]] = {"sinusoid": sinusoid, "convnet": convnet}
FEWER = {"sinusoid": {"tasks": 3}, "convnet": {"tasks": 2, "queries": 2}}
"""Sizes at which gradients are compared."""


def sinusoid_loss(params: Any, batch: Any) -> jax.Array:
    """Squared error of one task."""
    x, y = batch
    for i in range(3):
        x = x @ params[f"w{i}"] + params[f"b{i}"][None]
        x = jax.nn.relu(x) if i < 2 else x
    return jnp.mean(jnp.square(x - y))


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Of 3 x 3, stride 2, as one writes it: `[image, h, w, in]`, `[3, 3, in, out]` -> `[image, h / 2, w / 2, out]`."""
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def patches_and_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same numbers: nine shifted images side by side, and one matrix product."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, kernel.shape[-1])


def convnet_loss(params: Any, batch: Any, convolve: Callable[..., jax.Array] = convolution) -> jax.Array:  # fmt: skip
    """Cross-entropy of one task."""
    x, labels = batch
    for i in range(4):
        x = convolve(x, params[f"w{i}"])
        mean, variance = jnp.mean(x, (0, 1, 2), keepdims=True), jnp.var(x, (0, 1, 2), keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
        scale, shift = (params[f"{name}{i}"][None, None, None] for name in ("scale", "b"))
        x = jax.nn.relu(x * scale + shift)
    logits = jnp.mean(x, (1, 2)) @ params["out"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


def product_loss(params: Any, batch: Any) -> jax.Array:
    """:func:`convnet_loss` without an operation for convolutions, which XLA computes slowly on CPUs, in loops above all."""
    return convnet_loss(params, batch, patches_and_product)


LOSSES = {
    "sinusoid": {OURS: sinusoid_loss},
    "convnet": {OURS: convnet_loss, f"{OURS}, products": product_loss},
}


def cast(problem: Problem, dtype: Any) -> Problem:
    """The same numbers in another type; labels stay."""

    def change(x: np.ndarray) -> np.ndarray:
        return x if x.dtype == np.int32 else x.astype(dtype)

    params, support, query = jax.tree.map(change, (problem.params, problem.support, problem.query))
    return Problem(problem.rate, params, support, query)


Side = Callable[[], tuple[float, Arrays]]
"""A meta-step without its optimiser: the mean query loss, and its gradient in the layout of JAX."""


def ours(loss: Callable[..., jax.Array], problem: Problem, steps: int) -> tuple[Side, float]:
    """This package, compiled; and the seconds that took."""
    algorithm = meta.algorithm("maml", steps=steps, learning_rate=problem.rate)
    data = jax.device_put((problem.params, problem.support, problem.query))

    def run(params: Any, support: Any, query: Any) -> Any:
        return meta.meta_gradient(loss, params, support, query, algorithm=algorithm)

    began = time.perf_counter()
    compiled = jax.jit(run).lower(*data).compile()
    seconds = time.perf_counter() - began
    return lambda: jax.block_until_ready(compiled(*data)), seconds


def side(who: str, name: str, problem: Problem, steps: int) -> tuple[Side, float]:
    """A side by its name; seconds of compiling."""
    if who in LOSSES[name]:
        return ours(LOSSES[name][who], problem, steps)
    from meta_peers import peer

    return peer(who, name, problem, steps), 0.0


def installed() -> list[str]:
    """Other libraries that can be run here."""
    return [name for name in PEERS if importlib.util.find_spec(name)]


def largest_difference(names: Sequence[str], name: str, steps: int) -> float:
    """Of loss and gradient of all sides to ours in float64, relative.

    Raises:
      AssertionError: it is more than `TOLERANCE`.
    """
    with jax.enable_x64(True):
        problem = cast(PROBLEMS[name](**FEWER[name]), np.float64)
        loss, gradient = side(OURS, name, problem, steps)[0]()
        worst = 0.0
        for who in names[1:]:
            other_loss, other = side(who, name, problem, steps)[0]()
            errors = [np.linalg.norm(other[k] - gradient[k]) / np.linalg.norm(gradient[k]) for k in gradient]  # fmt: skip
            worst = max(worst, abs(float(other_loss) / float(loss) - 1), *map(float, errors))
            assert worst < TOLERANCE, f"{who}, {name}, {steps} steps: {worst}"
    return worst


def own_memory(who: str, name: str, steps: int) -> float:
    """MB by which one meta-step raises the largest resident size of this process. Linux."""
    run, _ = side(who, name, cast(PROBLEMS[name](), np.float32), steps)
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def resident(field: str) -> float:
        (line,) = (x for x in status.read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) * 1024 / 1e6

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compiling left behind
    clear.write_text("5")  # the largest size begins anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def memory(who: str, name: str, steps: int) -> float:
    """:func:`own_memory` of a fresh process."""
    command = [sys.executable, __file__, "--memory", json.dumps([who, name, steps])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])  # fmt: skip


def report(name: str, names: Sequence[str], rounds: int, steps: Sequence[int] = STEPS) -> str:
    """Markdown of one problem."""
    lines = [
        "| inner steps | | meta-steps per second | times our time, median | quartiles | memory [MB] | compiling [s] |",
        "|---|---|---|---|---|---|---|",
    ]
    worst = largest_difference(names, name, steps=5)
    for number in steps:
        made = {who: side(who, name, cast(PROBLEMS[name](), np.float32), number) for who in names}
        seconds = interleaved({who: run for who, (run, _) in made.items()}, rounds)
        for who in names:
            ratio = np.percentile(seconds[who] / seconds[OURS], (25, 50, 75))
            lines.append(
                f"| {number} | {who} | {1 / np.median(seconds[who]):.3g} | {ratio[1]:.2f} | {ratio[0]:.2f} to {ratio[2]:.2f} "
                f"| {memory(who, name, number):.0f} | {f'{made[who][1]:.1f}' if made[who][1] else ''} |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        f"Loss and gradient of all sides differ by at most {worst:.0e} (float64, relative, 5 inner steps).",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory", type=json.loads, help="print the memory of [side, problem, steps]"
    )
    options = parser.parse_args(arguments)
    if options.memory:
        print(own_memory(*options.memory))
        return
    peers = installed()
    missing = sorted({*PEERS} - {*peers})
    parts = ["# MAML in second order, beside PyTorch libraries"]
    parts += [
        f"## {name}\n\n{report(name, [*LOSSES[name], *peers], options.rounds)}" for name in PROBLEMS
    ]
    said = measured_on("jax", *(["torch"] if peers else []), *peers)
    parts.append(said + (f"; not installed: {', '.join(missing)}" if missing else ""))
    write_result("meta_libraries", "\n\n".join(parts))


if __name__ == "__main__":
    main()
