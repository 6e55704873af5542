"""Compiling several programs at once, timing one, and what the device can do at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelerator_parts.report import Report, one_line
from accelerator_parts.sizes import Size

Program = tuple[Callable[..., Any], Sequence[Any]]
"""A function and its arguments, or their shapes."""

TOGETHER = 4
"""Programs in compilation at once: more would share the same few cores."""

WITHOUT_TUNING = {"xla_gpu_autotune_level": 0}
"""For programs that are never run: trying kernels takes most of the compiler's time, and little of the memory."""


def compiled(
    report: Report,
    programs: dict[str, Program],
    options: dict[str, Any] | None = None,
    *,
    together: int = TOGETHER,
    keep: float = 15.0,
) -> Iterator[tuple[str, Any]]:
    """Name and compiled program, in order; the report says which could not be compiled, or not in time.

    Nothing should be timed before all are there: the compiler tries kernels on the device.

    Args:
      report: of the part.
      programs: by name.
      options: of the compiler.
      together: how many at once.
      keep: seconds of the part's budget for what comes afterwards.
    """
    pool = ThreadPoolExecutor(together)

    def make(program: Program) -> Any:
        function, arguments = program
        jitted = function if hasattr(function, "lower") else jax.jit(function)
        return jitted.lower(*arguments).compile(compiler_options=options)

    futures = {name: pool.submit(make, program) for name, program in programs.items()}
    pool.shutdown(wait=False)
    for name, future in futures.items():
        try:
            program = future.result(max(0.0, report.left() - keep))
        except TimeoutError:
            future.cancel()
            report.failed(name, "not compiled in time")
        except Exception as error:
            report.failed(name, f"not compiled: {one_line(error)}")
        else:
            yield name, program


def seconds_of(
    run: Callable[..., Any], *arguments: Any, rounds: int = 5, least: float = 0.02
) -> float:
    """Median time of a call, of several groups of calls that each take `least` seconds or more."""
    jax.block_until_ready(run(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    calls = max(1, int(least / max(time.perf_counter() - start, 1e-6)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        results = [run(*arguments) for _ in range(calls)]
        jax.block_until_ready(results)
        times.append((time.perf_counter() - start) / calls)
        del results
    return float(np.median(times))


def run_to_its_end(program: Callable[..., Any], data: Sequence[Any]) -> Any:
    """What the program makes of the data, once it is there."""
    return jax.block_until_ready(program(*data))


def limits(size: Size) -> dict[str, float]:
    """What this device reaches: bytes per second of a copy, and operations per second of a large product.

    Returns:
      `bytes`, and `float32` (factors as the default precision has them) and `bfloat16`.
    """
    found = {}
    x = jnp.ones(size.copied)
    add = jax.jit(lambda x: x + 1.0)
    found["bytes"] = 2 * x.nbytes / seconds_of(add, x)
    del x
    multiply = jax.jit(jnp.matmul)
    for dtype in ("float32", "bfloat16"):
        a = jax.random.normal(jax.random.key(0), (size.matrix, size.matrix), dtype)
        found[dtype] = 2 * size.matrix**3 / seconds_of(multiply, a, a)
    return found


def peak_bytes() -> int | None:
    """Most bytes that the allocator had given out so far; None where it does not count, as on a CPU."""
    statistics = jax.devices()[0].memory_stats()
    return None if statistics is None else statistics.get("peak_bytes_in_use")


def needed_bytes(program: Any) -> int:
    """Of a compiled program: its inputs, outputs and temporaries, what is shared counted once."""
    analysis = program.memory_analysis()
    everything = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
    return int(everything + analysis.output_size_in_bytes - analysis.alias_size_in_bytes)


def norm_of_difference(a: Any, b: Any) -> float:
    """`|a - b| / |b|` of two trees as one vector."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    square = sum(float(jnp.sum(jnp.square(x - y))) for x, y in pairs)
    return float(np.sqrt(square / sum(float(jnp.sum(jnp.square(y))) for _, y in pairs)))
