"""What a run writes about itself while it trains, and reading it back: metrics, TensorBoard, and how it is doing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import filelock

from data_prep.base import replacing
from data_prep.plain import from_plain, parse_json
from dsaml_jax.errors import UsageError

METRICS_FILE = "metrics.jsonl"
STATUS_FILE = "status.json"
RUN_FILE = "run.json"
REPORT_FILE = "report.html"
LOCK_FILE = ".lock"
TENSORBOARD_FOLDER = "tensorboard"

State = Literal["training", "validating", "finished", "stopped", "failed", "killed"]


# ---- One process at a time.


@contextmanager
def only_here(workdir: Path) -> Iterator[None]:
    """Holds a work directory, which is made if missing, as long as the block runs.

    Raises:
      UsageError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        # Not at once: whoever looks at runs holds the lock for a moment.
        with filelock.FileLock(workdir / LOCK_FILE, timeout=2.0):
            for file in (RUN_FILE, METRICS_FILE, STATUS_FILE, REPORT_FILE):
                for torn in workdir.glob(f".{file}.*"):  # by a kill while it was written
                    torn.unlink(missing_ok=True)
            yield
    except filelock.Timeout:
        raise UsageError(
            f"{workdir}: another process is training this run right now; wait for it, or choose another --workdir"
        ) from None


def is_held(workdir: Path) -> bool:
    """Whether a process trains this run now."""
    if not (workdir / LOCK_FILE).exists():
        return False
    try:
        with filelock.FileLock(workdir / LOCK_FILE, blocking=False):
            return False
    except (filelock.Timeout, OSError):
        return True


# ---- Numbers.


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file, but for a last one that is being written.

    `kind` is `train` (means since the line before) or `validation`.
    """
    path = workdir / METRICS_FILE
    return [parse_json(line) for line in _whole_lines(path)] if path.is_file() else []


def _whole_lines(path: Path) -> list[str]:
    """Lines up to the first that is none of ours: what a cut of power has torn."""
    whole = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            values = parse_json(line)
            needed = {"train": "total_loss", "validation": "score"}[values["kind"]]
            numbers = [value for name, value in values.items() if name != "kind"]
            whole_step = isinstance(values["step"], int)
            if (
                not line.endswith("\n")
                or not whole_step
                or needed not in values
                or any(not isinstance(value, (int, float)) for value in numbers)
            ):
                break
        except (ValueError, KeyError, TypeError):
            break
        whole.append(line)
    return whole


# ---- How it is doing.


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
      state: `killed` is never written: it is what a run is in whose process ended without a word.
      step: reached.
      steps: in all.
      seconds: spent on it so far, over all its processes.
      steps_per_second: lately; at the first word after a step with compiling; 0 before.
      best_step: of the best validation so far; 0 before the first.
      best_score: of that.
      updated: when this was written, ISO 8601 in UTC.
      message: why it stopped or failed.
    """

    state: State
    step: int
    steps: int
    seconds: float
    steps_per_second: float = 0.0
    best_step: int = 0
    best_score: float = 0.0
    updated: str = ""
    message: str = ""

    @property
    def seconds_left(self) -> float | None:
        """At the pace of late; None where that is not known."""
        if not self.steps_per_second:
            return None
        return (self.steps - self.step) / self.steps_per_second


def read_status(workdir: Path) -> RunStatus | None:
    """How far a run is; None where it has not said so, or not readably."""
    try:
        status = from_plain(RunStatus, parse_json((workdir / STATUS_FILE).read_text()))
    except (OSError, ValueError):
        return None
    if status.state in ("training", "validating") and not is_held(workdir):
        return dataclasses.replace(status, state="killed")
    return status


# ---- Writing them.


class _TensorBoard:
    """Scalars as TensorBoard reads them, written at once: a writer with a queue hangs when its thread has died."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder, step
        self._writer: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}")
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            # What an earlier process wrote from this step on does not count.
            self._writer.write_event(
                event_pb2.Event(wall_time=time.time(), step=self._step + 1, session_log=started)
            )
        for name, value in values.items():
            summary = scalar(name, value)
            self._writer.write_event(
                event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
            )
        self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer is not None:
                self._writer.close()


class RunLog:
    """What a run tells while it trains: a line of JSON for every line of numbers, the same for TensorBoard, its status.

    Nothing but people reads the status and TensorBoard's files; a run does not depend on them.
    """

    def __init__(self, workdir: Path, step: int, steps: int, *, silent: bool = False) -> None:
        """Goes on with a run: what its metrics file holds beyond `step` is dropped.

        Args:
          workdir: of the run.
          step: that the run goes on from.
          steps: in all.
          silent: write nothing, as all but the first of several processes do.
        """
        self._workdir, self._steps, self._silent = workdir, steps, silent
        self._started = time.monotonic()
        self._first = step
        self._paced: tuple[float, int] | None = None
        self._before, self._best = 0.0, (0, 0.0)
        self._board = _TensorBoard(workdir / TENSORBOARD_FOLDER, step)
        if silent:
            return
        before = read_status(workdir)
        self._before = before.seconds if before and step else 0.0
        metrics = workdir / METRICS_FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if not metrics.is_file() or metrics.read_bytes() != text.encode():
            with replacing(metrics) as temporary:
                temporary.write_text(text)
        for line in kept:
            if line["kind"] == "validation":
                self._note_best(line["step"], line["score"])

    def numbers(
        self, kind: Literal["train", "validation"], step: int, values: Mapping[str, float]
    ) -> None:
        """Adds a line, on the disk when this returns."""
        if self._silent:
            return
        with (self._workdir / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            self._board.write(step, {f"{kind}/{name}": value for name, value in values.items()})
        if kind == "validation":
            self._note_best(step, values["score"])

    def _note_best(self, step: int, score: float) -> None:
        if not self._best[0] or score >= self._best[1]:
            self._best = step, score

    def state(self, state: State, step: int, message: str = "") -> None:
        """Says how the run is; the pace is that since the first call after a step, which comes after compiling."""
        if self._silent:
            return
        now = time.monotonic()
        pace = 0.0
        if self._paced is not None and step > self._paced[1] and now > self._paced[0]:
            pace = (step - self._paced[1]) / (now - self._paced[0])
        elif step > self._first:  # with compiling, better than no word
            pace = (step - self._first) / (now - self._started)
        if self._paced is None and step > self._first:
            self._paced = now, step
        status = RunStatus(
            state, step, self._steps,
            seconds=round(self._before + now - self._started, 1),
            steps_per_second=pace,
            best_step=self._best[0], best_score=self._best[1],
            updated=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            message=message,
        )  # fmt: skip
        with replacing(self._workdir / STATUS_FILE) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(status), indent=1) + "\n")

    def finished(self, step: int) -> None:
        """Says that the run is, unless it has said so."""
        status = None if self._silent else read_status(self._workdir)
        if status is None or status.state != "finished":
            self.state("finished", step)

    def close(self) -> None:
        """Releases the files."""
        self._board.close()
