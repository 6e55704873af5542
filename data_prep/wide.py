"""A study of one dimension in wide tables: one file for each song, in it one column for each rater.

    ratings/{song_id}.csv       time, and a column for each rater
    audio/{song_id}.{mp3,wav,flac,...}

One row per moment, at any rate: the time in seconds (or as a :class:`~data_prep.convention.Convention` says, or as pandas
writes it, `1970-01-01 00:00:12.500`), and what each rater said then. A cell may be empty or `nan`. A column of the same
name is the same person in every table. Columns without a name (an index), whose name begins with `mean`, or that hold no
number (the name of the piece) are no raters. All values are of one dimension: tension, say, under the name of arousal.

TenseMusic (Barchet, Rimmele, Pelofi 2024, https://github.com/vivienbarchet/TenseMusic) is so: its `data_raw` (50 Hz, slips
to 1.01 beside [-1, 1]) becomes `ratings`, its `music` becomes `audio`. Its filtered tables leave raters out of some files
and number the others anew, so their columns are no persons.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.audio import AUDIO_SUFFIXES, sound_files
from data_prep.base import DIMENSIONS, AnnotatedCorpus, DataError, Song
from data_prep.convention import Convention
from data_prep.curves import Flat, FlatRule
from data_prep.folder import AUDIO, checked_name, corpus_name, own_corpus
from data_prep.reading import (
    any_number,
    csv_lines,
    id_order,
    in_time,
    rated,
    require_folder,
    safe_id,
)
from data_prep.traces import Traces, song_of_traces

RATINGS = "ratings"
TIME = "time"

Dimension = Literal["arousal", "valence"]

_CLOCK = re.compile(r"1970-01-01[ T](\d{2}):(\d{2}):(\d{2}(?:\.\d+)?)")


def read_wide(
    root: Path,
    name: str | None = None,
    *,
    dimension: Dimension = "arousal",
    flat: Flat = "keep",
    convention: Convention = Convention(),
) -> AnnotatedCorpus:
    """Reads a folder of wide tables.

    Args:
      root: the folder.
      name: of the corpus; by default made from the folder's name.
      dimension: what the values are kept as; the other one is unlabelled.
      flat: what becomes of traces that hardly move.
      convention: what the tables' numbers mean, and how far apart points are joined.

    Raises:
      DataError: something is missing or malformed: where, on which line, and what.
    """
    require_folder(root)
    name = corpus_name(root) if name is None else checked_name(name)
    tables = sorted((root / RATINGS).glob("[!.]*.csv")) if (root / RATINGS).is_dir() else []
    if not tables or not (root / AUDIO).is_dir():
        raise DataError(
            f"{root}: needs a folder {RATINGS} with a table song_id.csv for each song ({TIME}, and a column for each "
            f"rater) and a folder {AUDIO} with song_id{{{','.join(AUDIO_SUFFIXES)}}}"
        )
    audio = sound_files(root / AUDIO)
    dropped: Counter[str] = Counter()
    rule = FlatRule(flat)
    songs: list[Song] = []
    drawn: list[np.ndarray] = []
    for path in sorted(tables, key=lambda path: id_order(path.stem)):
        try:
            song_id = safe_id("song_id", path.stem)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        traces = read_table(path, song_id, dimension, convention)
        drawn += traces.values()
        song = song_of_traces(
            song_id, audio.get(song_id), traces, rule, dropped, convention.max_gap
        )
        if song:
            songs.append(song)
    return own_corpus(root, name, root / RATINGS, songs, drawn, convention, dropped, rule)


def read_table(path: Path, song_id: str, dimension: Dimension, convention: Convention) -> Traces:
    """One song's table: rater to trace.

    Args:
      path: of the table.
      song_id: whose.
      dimension: which one it is about.
      convention: what its numbers mean.

    Raises:
      DataError: no such file or not text; no column `time`; no rater; a cell that is no number; two rows of one time;
        or numbers that mean something else.
    """
    lines = csv_lines(path)
    _, header = next(lines, (1, []))
    names = [name.lower() for name in header]
    if names.count(TIME) != 1:
        raise DataError(f"{path}: needs one column {TIME!r}, and one for each rater")
    rows = list(lines)
    columns = {
        column: safe
        for column, title in enumerate(header)
        if title and names[column] != TIME and not names[column].startswith("mean")
        if _holds_numbers(rows, column)
        for safe in [_rater(path, title)]
    }
    if not columns:
        raise DataError(f"{path}: no column of a rater holds a number")
    repeated = [name for name, count in Counter(columns.values()).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: more than one column {repeated[0]!r}")
    points, places = _points(path, rows, names.index(TIME), columns, DIMENSIONS.index(dimension))
    meant = convention.apply(path, points, {(song_id, who): mine for who, mine in places.items()})
    return {who: in_time(path, f"{who},", meant[mine]) for who, mine in places.items()}


def _rater(path: Path, title: str) -> str:
    try:
        return safe_id("the rater", title)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _holds_numbers(rows: Sequence[tuple[int, list[str]]], column: int) -> bool:
    return any(column < len(cells) and _is_number(cells[column]) for _, cells in rows)


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _points(
    path: Path,
    rows: Sequence[tuple[int, list[str]]],
    time: int,
    columns: dict[int, str],
    dimension: int,
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """`[n, 4]` time, arousal, valence and line of every cell, rater after rater, and which rows are whose."""
    table = np.full((len(rows), len(columns)), math.nan)
    moments = np.zeros((len(rows), 2))
    for place, (line, cells) in enumerate(rows):
        try:
            if len(cells) <= time:
                raise ValueError(f"{len(cells)} cells, {time + 1} are needed")
            moments[place] = _seconds(cells[time]), line
            for rater, (column, who) in enumerate(columns.items()):
                if column < len(cells):
                    table[place, rater] = rated(who, cells[column])
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
    count = len(rows)
    points = np.full((count * len(columns), 4), math.nan)
    points[:, 0] = np.tile(moments[:, 0], len(columns))
    points[:, 1 + dimension] = table.T.reshape(-1)
    points[:, 3] = np.tile(moments[:, 1], len(columns))
    places = {
        who: list(range(k * count, (k + 1) * count)) for k, who in enumerate(columns.values())
    }
    return points, places


def _seconds(cell: str) -> float:
    """A number of seconds (or milliseconds), or the time since midnight as pandas writes it."""
    clock = _CLOCK.fullmatch(cell)
    if not clock:
        return any_number(TIME, cell)
    hours, minutes, seconds = map(float, clock.groups())
    return (60 * hours + minutes) * 60 + seconds
