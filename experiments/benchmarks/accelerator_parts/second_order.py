"""Part b: second order in each memory mode: its time, its memory, and how much fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from problem import RATE, initial, meta_gradient_of, songs
from timing import interleaved

from accelerator_parts.programs import (
    WITHOUT_TUNING,
    Program,
    compiled,
    needed_bytes,
    peak_bytes,
    run_to_its_end,
)
from accelerator_parts.report import Report
from accelerator_parts.sizes import Size
from dsaml_jax import meta
from dsaml_jax.base import SongBatch
from dsaml_jax.meta import MEMORY_MODES, MemoryMode

FIRST = "first order"
RUN: tuple[MemoryMode, ...] = ("mixed-sqrt", "remat-sqrt", "mixed", "remat", "plain")
"""From the most frugal: the allocator's peak only rises, so each mode's own shows if it is a new one."""

SIZED: tuple[MemoryMode, ...] = ("mixed", "mixed-sqrt")
"""Modes whose largest inner loop and number of tasks are looked for."""


def second_order(report: Report, size: Size) -> None:
    """Compiles every mode, runs what fits, and compiles larger ones for their memory alone."""
    assert set(RUN) == set(MEMORY_MODES)
    variables = initial(size.model)
    data = jax.device_put(
        (
            variables["params"],
            songs(size.model, size.tasks, 1, 2),
            songs(size.model, size.tasks, size.queries, 3),
        )
    )
    limit = _limit(size)
    order = (FIRST, "mixed", *(mode for mode in RUN if mode != "mixed"))  # the default mode first
    wanted = {mode: (_gradient(size, variables, mode, size.steps), data) for mode in order}
    programs = {}
    for mode, program in compiled(report, wanted, keep=35.0):
        programs[mode] = program
        needed = needed_bytes(program)
        report.row(
            "Memory of the compiled program",
            mode=mode,
            temporaries_GB=program.memory_analysis().temp_size_in_bytes / 1e9,
            needed_GB=needed / 1e9,
            fits="yes" if needed <= limit else f"not in {limit / 1e9:.1f} GB",
        )
    _run(report, programs, data, limit)
    report.case("what fits", _what_fits, report, size, variables, data, programs, limit)
    report.note(
        f"{size.tasks} tasks side by side, {size.steps} inner steps, {size.queries} query songs, float32. needed: inputs, "
        "outputs and temporaries of the compiled program; peak: most that the allocator had given out since the start, "
        "modes in the order of the table, '-' where it was no new one or is not counted."
    )


def _limit(size: Size) -> float:
    """Bytes that a program may take: the size's, or the device's if that is less."""
    statistics = jax.devices()[0].memory_stats() or {}
    return min(size.memory, statistics.get("bytes_limit", size.memory))


def _gradient(size: Size, variables: Any, mode: str, steps: int, tasks: int | None = None) -> Any:
    """The meta-gradient as a function of parameters, support and query."""
    if mode == FIRST:
        algorithm = meta.algorithm("fomaml", steps=steps, learning_rate=RATE)
    else:
        algorithm = meta.algorithm("maml", steps=steps, learning_rate=RATE, memory=mode)
    return meta_gradient_of(size.model, variables["batch_stats"], algorithm, tasks or size.tasks)


def _run(report: Report, programs: dict[str, Any], data: Any, limit: float) -> None:
    """Runs each program that fits: once from the most frugal for the allocator's peak, then in turn for the time."""
    sides: dict[str, Callable[[], object]] = {}
    peaks: dict[str, float | None] = {}
    for mode in (FIRST, *RUN):
        if mode not in programs or needed_bytes(programs[mode]) > limit:
            continue
        before = peak_bytes()
        run = partial(run_to_its_end, programs[mode], data)
        if report.case(f"{mode}: running", run) is not None:
            sides[mode] = run
            after = peak_bytes()
            peaks[mode] = None if after is None or after == before else after / 1e9
    seconds = interleaved(sides, 3 if report.left() > 20 else 1) if sides else {}
    for mode, measured in seconds.items():
        ratio = float(np.median(measured / seconds[FIRST])) if FIRST in seconds else None
        report.row(
            "Time, and most that the allocator gave out",
            mode=mode,
            ms=float(np.median(measured)) * 1e3,
            times_first_order=ratio,
            peak_GB=peaks[mode],
        )


def _what_fits(
    report: Report, size: Size, variables: Any, data: Any, programs: dict[str, Any], limit: float
) -> None:
    """Memory of more inner steps and of more tasks, and the straight line through it to the limit.

    Compiled and not run, so only shapes are needed and no kernels are tried.
    """
    shapes = jax.eval_shape(lambda *x: x, *data)
    wanted: dict[str, Program] = {}
    points: dict[str, tuple[str, int, int]] = {}
    for mode in SIZED:
        settings = [(size.tasks, steps) for steps in size.more_steps]
        settings += [(2 * size.tasks, size.steps)]
        for tasks, steps in settings:
            name = f"{mode}, {tasks} tasks, {steps} inner steps"
            run = _gradient(size, variables, mode, steps, tasks)
            wanted[name] = run, _with_tasks(shapes, tasks)
            points[name] = mode, tasks, steps
    needs: dict[tuple[str, int, int], int] = {
        (mode, size.tasks, size.steps): needed_bytes(programs[mode])
        for mode in SIZED
        if mode in programs
    }
    for name, program in compiled(report, wanted, WITHOUT_TUNING, keep=5.0):
        needs[points[name]] = needed_bytes(program)
        _size_row(report, *points[name], needs[points[name]], limit)
    for mode in SIZED:
        by_steps = {k: n for (m, tasks, k), n in needs.items() if (m, tasks) == (mode, size.tasks)}
        by_tasks = {t: n for (m, t, k), n in needs.items() if (m, k) == (mode, size.steps)}
        report.note(
            f"{mode}: by the line through these figures {_largest(by_steps, limit)} inner steps of {size.tasks} tasks, and "
            f"{_largest(by_tasks, limit)} tasks of {size.steps} inner steps, take {limit / 1e9:.1f} GB."
        )


def _size_row(report: Report, mode: str, tasks: int, steps: int, needed: int, limit: float) -> None:
    report.row(
        "What fits", mode=mode, tasks=tasks, inner_steps=steps, needed_GB=needed / 1e9, fits=needed <= limit
    )  # fmt: skip


def _with_tasks(shapes: Any, tasks: int) -> Any:
    """The arguments' shapes with another number of tasks."""

    def changed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((tasks, *x.shape[1:]), x.dtype)

    params, support, query = shapes
    batches: tuple[SongBatch, SongBatch] = jax.tree.map(changed, (support, query))
    return params, *batches


def _largest(needed: dict[int, int], limit: float) -> str:
    """Where the last two points' line meets the limit."""
    if len(needed) < 2:
        return "unknown"
    (x0, y0), (x1, y1) = sorted(needed.items())[-2:]
    slope = (y1 - y0) / (x1 - x0)
    return f"{x1 + (limit - y1) / slope:.0f}" if slope > 0 else "any number of"
