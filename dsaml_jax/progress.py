"""Progress on the screen, which can be told to be quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from data_prep.base import printable


class _Lines:
    """A stream on which every state of a progress bar is a line of its own: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def show(text: str) -> None:
    """What a command was asked for, on the standard output, `--quiet` or not."""
    print(printable(text))


def duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Console:
    """Prints what a person wants to see; numbers and files do not depend on it.

    Attributes:
      quiet: print nothing but errors.
    """

    def __init__(self, quiet: bool = False) -> None:
        """Starts the clock of :meth:`elapsed`."""
        self.quiet = quiet
        self._started = time.monotonic()

    def say(self, text: str = "") -> None:
        """A line on the standard output."""
        if not self.quiet:
            tqdm.write(printable(text), file=sys.stdout)
            sys.stdout.flush()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def bar(self, total: int, title: str, unit: str, done: int = 0) -> tqdm:
        """A progress bar with speed and time left, on the standard error."""
        live = sys.stderr.isatty()
        file: Any = sys.stderr if live else _Lines(sys.stderr)
        return tqdm(
            total=total,
            desc=title,
            unit=unit,
            initial=done,
            disable=self.quiet,
            file=file,
            dynamic_ncols=live,
            mininterval=0.2 if live else 10.0,
            ascii=None if live else True,
        )

    @contextmanager
    def counter(self, title: str, unit: str = "song") -> Iterator[Callable[[int, int], None]]:
        """Gives a callback `(done, total)` that draws a bar, and closes the bar whatever happens."""
        bar = self.bar(0, title, unit)

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        with bar:
            yield update
