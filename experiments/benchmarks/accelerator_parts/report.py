"""What a part has measured so far, on disk after every row, and the tables made of it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Report:
    """Rows of tables, errors and remarks of one part.

    The file is written anew with every row, so that a part that is stopped leaves what it has.
    """

    def __init__(self, path: Path, title: str, budget: float) -> None:
        """Begins.

        Args:
          path: of the JSON file.
          title: of the part.
          budget: seconds; cases that would begin later are left out.
        """
        self._path = path
        self._start = time.monotonic()
        self._budget = budget
        self.content: dict[str, Any] = {"title": title, "tables": {}, "notes": [], "failed": {}}
        self._save()

    def left(self) -> float:
        """Seconds until the budget is spent."""
        return self._budget - (time.monotonic() - self._start)

    def row(self, table: str, **cells: Any) -> None:
        """Adds a row to a table; its columns are the names, in which `_` stands for a space."""
        named = {name.replace("_", " "): value for name, value in cells.items()}
        self.content["tables"].setdefault(table, []).append(named)
        self._save()

    def note(self, text: str) -> None:
        """Adds a line of prose below the tables."""
        self.content["notes"].append(text)
        self._save()

    def fact(self, name: str, value: Any) -> None:
        """Keeps something that other parts or the header need."""
        self.content[name] = value
        self._save()

    def case(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work(*arguments)` returns; None where it fails or there is no time, which the report then says.

        An error in one case, out of memory above all, is a result and not the end of the others.
        """
        if self.left() <= 0:
            self.failed(name, "left out: no time")
            return None
        try:
            return work(*arguments)
        except Exception as error:
            self.failed(name, one_line(error))
            return None
        finally:
            gc.collect()

    def failed(self, name: str, why: str) -> None:
        """Records why a case has no result."""
        self.content["failed"][name] = why
        self._save()

    def _save(self) -> None:
        self.content["seconds"] = round(time.monotonic() - self._start, 1)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(temporary, self._path)


def one_line(error: BaseException) -> str:
    """Kind and beginning of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the main thread when the block takes longer, as soon as Python has its turn."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def markdown(content: dict[str, Any]) -> str:
    """A part as Markdown: its tables, what failed, and its remarks."""
    lines = [f"## {content['title']}", ""]
    for name, rows in content["tables"].items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [f"**{name}**", ""] if len(content["tables"]) > 1 else []
        lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(cell(row.get(column)) for column in columns)} |" for row in rows]
        lines.append("")
    lines += [f"* No result: {name}: {why}" for name, why in content["failed"].items()]
    lines += [f"* {note}" for note in content["notes"]]
    lines.append(f"* Took {content['seconds']:.0f} s.")
    return "\n".join([*lines, ""])


def cell(value: Any) -> str:
    """A number with three digits that count; whole numbers and words as they are."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if value != 0.0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def amount(value: float, unit: str) -> str:
    """With the prefix that leaves one to three digits before the point: `3.35 TB/s`."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
