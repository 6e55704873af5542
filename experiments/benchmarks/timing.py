"""What the benchmarks share: sides timed in turn, one table, and on what it was measured."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parents[1] / "results"


def interleaved(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every side in every round, `[rounds]`.

    Each round runs every side once, beginning with another one each time, so that what else the
    machine does falls on all of them. One round before does not count.

    Args:
      sides: name -> what is timed; it must not return before its work is done.
      rounds: how many count.
    """
    names = list(sides)
    seconds = {name: np.zeros(rounds) for name in names}
    for number in range(-1, rounds):
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            start = time.perf_counter()
            sides[name]()
            if number >= 0:
                seconds[name][number] = time.perf_counter() - start
    return seconds


def table(seconds: dict[str, np.ndarray], ours: str) -> str:
    """Markdown: median time with its quartiles, and how many times as long as ours (ratios by round)."""
    lines = [
        "| | median [ms] | quartiles [ms] | times ours, median | quartiles |",
        "|---|---|---|---|---|",
    ]
    for name, values in seconds.items():
        low, middle, high = np.percentile(values * 1e3, (25, 50, 75))
        ratio = np.percentile(values / seconds[ours], (25, 50, 75))
        lines.append(
            f"| {name} | {middle:.1f} | {low:.1f} to {high:.1f} | {ratio[1]:.2f} "
            f"| {ratio[0]:.2f} to {ratio[2]:.2f} |"
        )
    return "\n".join(lines)


def measured_on(*packages: str) -> str:
    """One line: date, processor, cores, and the versions of Python and these packages."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"Python {platform.python_version()}"
    versions = [python, *(f"{name} {version(name)}" for name in packages)]
    return f"{datetime.date.today()}, {cpu}, {cores} cores, {', '.join(versions)}"


def write_result(name: str, text: str) -> None:
    """Prints a result and keeps it in `experiments/results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n")
    print(text)
