"""What the readers of corpora share: finding files in unpacked downloads, and rows of CSV files."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep.base import STEPS_PER_SECOND, DataError

SEARCH_DEPTH = 4
"""Folders between the root and what is looked for: archives like to be unpacked inside a folder."""

MAX_ID_LENGTH = 100

SEPARATORS = ",;\t"

_DECIMAL_COMMA = re.compile(r"^([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)$")

Parsed = TypeVar("Parsed")


def find(
    root: Path,
    wanted: str,
    layout: re.Pattern[str],
    is_wanted: Callable[[Path], bool] = Path.is_dir,
) -> Path | None:
    """Looks for a part of a corpus around the folder that the user named.

    Below `root` first. Where `root` is itself a part of the corpus, its parents as far as the corpus
    goes, and the other parts in them; unrelated folders beside it are never searched.

    Args:
      root: where the corpus is said to be.
      wanted: relative path of the part.
      layout: matches the names of the corpus's folders.
      is_wanted: tells the part from something else of its name.
    """
    return next(filter(is_wanted, _places(root, wanted, layout)), None)


def _places(root: Path, wanted: str, layout: re.Pattern[str]) -> Iterator[Path]:
    def below(folder: Path) -> Iterator[Path]:
        for depth in range(SEARCH_DEPTH + 1):
            yield from sorted(folder.glob("*/" * depth + wanted))

    yield from below(root)
    inside = Path(os.path.abspath(root))
    while layout.fullmatch(inside.name):
        inside = inside.parent
        yield inside / wanted
        for sibling in sorted(inside.glob("*")):
            if layout.fullmatch(sibling.name) and sibling.is_dir():
                yield from below(sibling)


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file that hold something, each with the number of its line.

    The separator is a comma, a semicolon or a tab, whichever the first row has most of. Where it is no comma, numbers
    may have decimal commas, as spreadsheets write them in most of Europe; they are given with points. The text is UTF-8,
    or UTF-16 with a byte order mark. Spaces around cells and the mark are taken off.

    Raises:
      DataError: no such file, or not text.
    """
    try:
        content = path.read_bytes()  # once: it may be a pipe
        wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = content.decode("utf-16" if wide else "utf-8-sig")
        first = next((line for line in text.splitlines() if line.strip()), "")
        separator = max(SEPARATORS, key=first.count)  # the comma, where there are as many
        with io.StringIO(text, newline="") as file:
            reader = csv.reader(file, delimiter=separator)
            for row in reader:
                cells = [cell.strip() for cell in row]
                if separator != ",":
                    cells = [_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in cells]
                if any(cells):
                    yield reader.line_num, cells
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from None


def csv_records(
    path: Path,
    columns: Sequence[str],
    parse: Callable[..., Parsed],
    *,
    optional: Sequence[str] = (),
    absent: Sequence[str] = (),
) -> Iterator[tuple[int, Parsed]]:
    """Rows of a CSV file whose columns have names.

    Args:
      path: of a file whose first row is the header; its columns may be in any order and in capitals.
      columns: those wanted; others are ignored.
      parse: called with a row's cells of `columns`. Says what is wrong with them by a ValueError.
      optional: those of the columns of which one has to be there; cells of the others are empty.
      absent: those that need not be there; their cells are empty then.

    Yields:
      The line, and what `parse` made of it.

    Raises:
      DataError: no such file, not text, no such column, or a row that is too short or that `parse`
        refuses.
    """
    lines = csv_lines(path)
    _, names = next(lines, (1, []))
    header = [name.lower() for name in names]
    some = any(column.lower() in header for column in optional)
    missing = {*absent, *(optional if some else ())}
    indices: list[int | None] = []
    for column in columns:
        there = header.count(column.lower())
        if there != 1 and not (column in missing and not there):
            needed = ", ".join(name for name in columns if name not in absent)
            raise DataError(
                f"{path}: {'more than one' if there else 'no'} column {column!r}; needed: {needed}"
                + (" (or one of the last two)" if optional else "")
            )
        indices.append(header.index(column.lower()) if there else None)
    least = max(index for index in indices if index is not None) + 1
    for line, cells in lines:
        try:
            if len(cells) < least:
                raise ValueError(f"{len(cells)} cells, {least} are needed")
            parsed = parse(*["" if index is None else cells[index] for index in indices])
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
        yield line, parsed


def number(name: str, text: str, low: float, high: float) -> float:
    """A finite number from `low` to `high`.

    Raises:
      ValueError: it is none; the message says what `name` it has.
    """
    value = _float(text)
    if not low <= value <= high:  # NaN compares false
        raise ValueError(f"{name} {text[:40]!r} is not a number from {low:g} to {high:g}")
    return value


def any_number(name: str, text: str) -> float:
    """A finite number of whatever size; see :class:`data_prep.convention.Convention` for what it means.

    Raises:
      ValueError: it is none; the message says what `name` it has.
    """
    value = _float(text)
    if not math.isfinite(value):
        raise ValueError(f"{name} {text[:40]!r} is not a number")
    return value


def _float(text: str) -> float:
    try:
        return math.nan if "_" in text else float(text)  # float() takes 1_0 for 10
    except ValueError:
        return math.nan


def rated(name: str, text: str) -> float:
    """A finite number; NaN where the cell is empty or says so, as pandas does.

    Raises:
      ValueError: it is neither.
    """
    return math.nan if text.lower() in NO_NUMBER else any_number(name, text)


NO_NUMBER = ("", "nan", "na", "none", "null")
"""Cells, in any case, that hold no rating."""


def in_time(path: Path, what: str, rows: np.ndarray) -> np.ndarray:
    """Points in the order of their times.

    Args:
      path: of the table, for the message.
      what: whose, of what, for the message.
      rows: `[n, 4]` time, arousal, valence, line of each.

    Returns:
      `[n, 3]` time, arousal, valence.

    Raises:
      DataError: two points at one time.
    """
    points = rows[np.argsort(rows[:, 0], kind="stable")]
    (repeated,) = np.nonzero(np.diff(points[:, 0]) == 0)
    if len(repeated):
        first, second = points[repeated[0]], points[repeated[0] + 1]
        raise DataError(
            f"{path}, line {second[3]:.0f}: {what} has {second[0]:g} s already on line {first[3]:.0f}"
        )
    return points[:, :3]


def empty_cells(traces: Sequence[np.ndarray]) -> int:
    """How many cells of `[n, 3]` traces hold no rating, in the dimensions that hold any."""
    ratings = np.concatenate(traces)[:, 1:]
    missing = np.isnan(ratings)
    return int(missing[:, ~missing.all(axis=0)].sum())


def safe_id(name: str, text: str) -> str:
    """An id that can be a file's name and part of a message, in Unicode's composed form.

    Raises:
      ValueError: it is empty, long, has slashes or control characters, or is `.` or `..`.
    """
    if (
        not 0 < len(text) <= MAX_ID_LENGTH
        or text in (".", "..")
        or "/" in text
        or "\\" in text
        or not text.isprintable()
    ):
        raise ValueError(
            f"{name} {text[:40]!r} is not a plain name of up to {MAX_ID_LENGTH} characters, no slashes"
        )
    return unicodedata.normalize("NFC", text)


def id_order(song_id: str) -> tuple[bool, int, str]:
    """Sorting key: numbers as numbers, before other names."""
    return (False, int(song_id), song_id) if song_id.isdecimal() else (True, 0, song_id)


def require_folder(root: Path) -> None:
    """Refuses a root that is none, and says what to do with an archive."""
    if root.is_file() and root.suffix.lower() in (".zip", ".gz", ".tar", ".tgz", ".7z"):
        raise DataError(f"{root} is an archive; unpack it, and give the folder as --root")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")


def require_half_seconds(audio_start: float) -> None:
    """Refuses a beginning of the sound that is before the song or off the grid of annotations."""
    if not (0.0 <= audio_start <= 1e6) or audio_start * STEPS_PER_SECOND % 1:
        raise DataError(
            f"--audio-start {audio_start:g} is no time in a song in steps of {1 / STEPS_PER_SECOND:g} s"
        )
