"""Looking at runs and checkpoints from outside: what `dsaml runs` and `dsaml checkpoint` print."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

from dsaml_jax.adaptation import to_learned
from dsaml_jax.config import RunConfig, flatten
from dsaml_jax.errors import UsageError
from dsaml_jax.models import build_model
from dsaml_jax.progress import duration
from dsaml_jax.runs import (
    CHECKPOINTS,
    RUN_FILE,
    CheckpointStore,
    DamagedCheckpoint,
    RunStatus,
    read_metrics,
    read_run_info,
    read_status,
    variables_like,
)
from dsaml_jax.training import make_optimizer

SEARCH_DEPTH = 3
"""Folders below the one that is named in which runs are looked for."""


@dataclasses.dataclass(frozen=True)
class CheckpointLine:
    """One checkpoint.

    Attributes:
      step: of the run.
      score: of its validation; None where it cannot be read.
      size: in bytes.
      state: `whole`; `no checksum` for one of an early version; or what is wrong.
    """

    step: int
    score: float | None
    size: int
    state: str


def find_runs(root: Path) -> Iterator[Path]:
    """Work directories at or below `root`, in order."""
    folders = [root]
    for _ in range(SEARCH_DEPTH + 1):
        below: list[Path] = []
        for folder in folders:
            if (folder / RUN_FILE).is_file():
                yield folder
            else:
                inner = (x for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))
                below += sorted(inner)
        folders = below


def runs_table(root: Path) -> str:
    """A line for each run at or below `root`.

    Raises:
      UsageError: no such folder, or no runs in it.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    rows: list[tuple[str, ...]] = [
        ("run", "task", "state", "step", "best score", "steps/s", "time", "left")
    ]
    for folder in find_runs(root):
        try:
            task = read_run_info(folder).config.training.task
        except UsageError as error:
            rows.append((str(folder), "-", str(error).partition(": ")[2], "", "", "", "", ""))
            continue
        rows.append((str(folder), task, *_cells(read_status(folder))))
    if len(rows) == 1:
        raise UsageError(f"{root}: no runs here, nor {SEARCH_DEPTH} folders below")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _cells(status: RunStatus | None) -> tuple[str, ...]:
    """State, step, best score, pace, time spent, time left."""
    if status is None:
        return ("no word", "", "", "", "", "")
    best = f"{status.best_score:.3f} at {status.best_step}" if status.best_step else "-"
    running = status.state in ("training", "validating")
    left = status.seconds_left if running else None
    return (
        status.state,
        f"{status.step}/{status.steps}",
        best,
        f"{status.steps_per_second:.3g}" if running and status.steps_per_second else "-",
        duration(status.seconds),
        "-" if left is None else duration(left),
    )


def run_lines(workdir: Path) -> list[str]:
    """What there is to know of one run.

    Raises:
      UsageError: it is none.
    """
    info = read_run_info(workdir)
    status = read_status(workdir)
    names = ("state", "step", "best validation score", "steps/s", "time", "left")
    lines = [f"run: {workdir}", f"data: {info.data}"]
    lines += [f"note: {info.note}"] if info.note else []
    lines += [f"{name}: {cell}" for name, cell in zip(names, _cells(status), strict=True)]
    if status and status.message:
        lines.append(f"message: {status.message}")
    for kind in ("train", "validation"):
        written = [line for line in read_metrics(workdir) if line["kind"] == kind]
        if written:
            numbers = ", ".join(
                f"{name} {value:.4g}" for name, value in written[-1].items() if name not in ("kind", "step")
            )  # fmt: skip
            lines.append(f"last {kind} line, step {written[-1]['step']}: {numbers}")
    settings = (f"{name}={value}" for name, value in flatten(info.config).items())
    lines.append(f"settings: {', '.join(settings)}")
    return lines


def checkpoint_lines(workdir: Path, *, verify: bool) -> list[CheckpointLine]:
    """The checkpoints of a run or of a personal model.

    Args:
      workdir: of the run.
      verify: read every number and compare checksums.

    Raises:
      UsageError: it is no run, or has none.
    """
    info = read_run_info(workdir)
    store = CheckpointStore(workdir, read_only=True)
    like = (
        variables_like(info.config, info.features, build_model(info.config.model))
        if verify
        else None
    )
    optimizer_like = (
        jax.eval_shape(partial(_optimizer_state, info.config), like) if verify else None
    )
    lines = []
    for step in store.steps():
        state, score = "not checked", None
        try:
            score = store.score(step)
            manifest = store.manifest(step)
            if not manifest:
                state = "no checksum"
            if verify:
                store.restore_model(step, like)
                if store.has_optimizer(step):
                    store.restore_optimizer(step, {"optimizer": optimizer_like})
                state = "whole" if manifest else "readable, no checksum"
        except DamagedCheckpoint as error:
            state = str(error)
        folder = workdir / CHECKPOINTS / str(step)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        lines.append(CheckpointLine(step, score, size, state))
    store.close()
    if not lines:
        raise UsageError(f"{workdir}: has no checkpoint yet")
    return lines


def _optimizer_state(config: RunConfig, variables: Any) -> Any:
    learned = variables["params"]
    if config.training.task == "pdmer":
        learned = to_learned(config.meta, variables)
    return make_optimizer(config.training).init(learned)


def stay_on_the_host() -> None:
    """Whoever looks at a run leaves the accelerator to it."""
    jax.config.update("jax_platforms", "cpu")
