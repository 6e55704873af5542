"""MERP, full songs rated by people who say who they are (Koh et al. 2023).

Download: the data set `amaai-lab/MERP` of the Hugging Face hub (CC-BY 4.0). Its ratings are Parquet files, for which the
extra `[parquet]` is needed. Layout, from the root or from folders above or below it:

    annotations_filtered.parquet, else annotations_raw.parquet
    audio/{song_id}.wav

Assumed, from descriptions of the data set: one row per rating, with the columns `song_id`, one that says who (one of
:data:`RATER_COLUMNS`), and `arousal` and `valence`, lists of values in [-1, 1], ten a second from the beginning of the song. No
real file was at hand when this was written. The filtered table, from which careless raters are missing, was brought to
[-1, 1] for each rater and then smoothed, so that some values may lie a little outside: they are clipped, and counted. Its
ratings end before their songs do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.audio import sound_files
from data_prep.base import DIMENSIONS, AnnotatedCorpus, DataError, Drawn, Provenance
from data_prep.convention import TIME_DIGITS
from data_prep.curves import MAX_GAP_SECONDS, Flat, FlatRule
from data_prep.reading import find, id_order, require_folder, safe_id
from data_prep.traces import Traces, song_of_traces

RATE = 10.0
"""Values a second."""

OVERSHOOT = 0.5
"""How far outside [-1, 1] smoothing may have brought a value. What is further out is of another scale."""

TABLES = ("annotations_filtered.parquet", "annotations_raw.parquet")
AUDIO = "audio"
RATER_COLUMNS = ("worker_id", "workerid", "rater_id", "rater", "annotator_id", "participant_id")
"""Names, in any case, of the column that says who."""

PROVENANCE = Provenance(
    citation=(
        "Koh, Cheuk, Heung, Agres, Herremans 2023, 'MERP: A Music Dataset with Emotion Ratings and Raters' Profile "
        "Information', Sensors 23(1), 382 (MERP)"
    ),
    licence="CC-BY 4.0; the songs are under Creative Commons licences",
    url="https://huggingface.co/datasets/amaai-lab/MERP",
    scale="published in [-1, 1], unchanged (the filtered ratings stretched for each rater, and smoothed)",
)

_LAYOUT = re.compile(r"(?i:merp.*)|audio")
_ANCHOR = "deam_"
_REPEATED = "ratings are by a rater who rated the song before; the first is kept"
_EMPTY = "ratings hold no value; left out"


def read_merp(root: Path, *, flat: Flat = "keep") -> AnnotatedCorpus:
    """Reads a download of MERP.

    Args:
      root: its folder, one above it, or its `audio`.
      flat: what becomes of traces that hardly move.

    Raises:
      DataError: the extra is not installed; something is missing (what, and where it was looked for) or malformed.
    """
    require_folder(root)
    found = (find(root, name, _LAYOUT, Path.is_file) for name in TABLES)
    table = next(filter(None, found), None)
    audio_folder = find(root, AUDIO, _LAYOUT)
    if table is None or audio_folder is None:
        wanted = f"file '{TABLES[0]}'" if table is None else f"folder '{AUDIO}'"
        raise DataError(
            f"{root}: MERP's {wanted} not found; looked here, below, and in the parts of MERP beside it; "
            f"{PROVENANCE.url} has it"
        )
    audio = sound_files(audio_folder)
    dropped: Counter[str] = Counter()
    clipped = 0
    by_song: dict[str, Traces] = {}
    for song, who, trace in read_ratings(table):
        if not np.isfinite(trace[:, 1:]).any():
            dropped[_EMPTY] += 1
        elif who in by_song.setdefault(song, {}):
            dropped[_REPEATED] += 1
        else:
            clipped += int((np.abs(trace[:, 1:]) > 1).sum())
            trace[:, 1:] = np.clip(trace[:, 1:], -1.0, 1.0)
            by_song[song][who] = trace
    rule = FlatRule(flat)
    songs = [
        song_of_traces(name, audio.get(name), traces, rule, dropped, MAX_GAP_SECONDS)
        for name, traces in sorted(by_song.items(), key=lambda item: id_order(item[0]))
        if traces
    ]
    there = tuple(song for song in songs if song)
    if not there:
        raise DataError(f"{table}: no song has a rating; download it again")
    anchors = sum(song.song_id.startswith(_ANCHOR) for song in there)
    notes = [f"ratings of {table.name}"]
    notes += [f"{clipped} values outside [-1, 1] are clipped"] if clipped else []
    notes += [f"{anchors} songs are whole ones of DEAM's: a model of DEAM has heard of them"] if anchors else []  # fmt: skip
    points = sum(len(trace) for traces in by_song.values() for trace in traces.values())
    return AnnotatedCorpus(
        "merp", there, PROVENANCE, dict(dropped), tuple(notes), rule.counted(), Drawn(points, MAX_GAP_SECONDS)
    )  # fmt: skip


def read_ratings(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Rows of a table: song, rater, and `[n, 3]` time, arousal, valence, NaN where one is missing.

    Raises:
      DataError: the extra is not installed, or the table is damaged or of another layout: which row, and what.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow: pip install 'dsaml_jax[parquet]'"
        ) from None
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged, or no Parquet ({reason}); download it again") from None
    columns = _columns(path, table.column_names)
    for row in range(table.num_rows):
        song, who, *values = (table.column(name)[row] for name in columns)
        try:
            first, second = _id("song_id", song), _id("the rater", who)
            curves = [_curve(name, x) for name, x in zip(DIMENSIONS, values, strict=True)]
            trace = np.full((max(map(len, curves)), 3), np.nan)
            trace[:, 0] = np.round(np.arange(len(trace)) / RATE, TIME_DIGITS)
            for column, curve in enumerate(curves, start=1):
                trace[: len(curve), column] = curve
        except ValueError as error:
            raise DataError(f"{path}, row {row + 1}: {error}") from None
        yield first, second, trace


def _id(what: str, cell: Any) -> str:
    """Of a song or rater. Numbers are whole: a table with a gap keeps them as 7.0.

    Raises:
      ValueError: it is missing, or none.
    """
    value = cell.as_py()
    if value is None or value != value:
        raise ValueError(f"{what} is missing")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return safe_id(what, str(value))


def _columns(path: Path, names: list[str]) -> list[str]:
    """Names of the columns of song, rater, arousal and valence."""
    known = {name.lower(): name for name in names}
    raters = [name for name in RATER_COLUMNS if name in known][:1]
    wanted = ["song_id", *(raters or [RATER_COLUMNS[0]]), *DIMENSIONS]
    missing = [name for name in wanted if name not in known]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r}; needed: song_id, one of {', '.join(RATER_COLUMNS)}, arousal, valence"
        )
    return [known[name] for name in wanted]


def _curve(name: str, cell: Any) -> np.ndarray:
    """A list of numbers, NaN where one is missing; empty where there is no list.

    Raises:
      ValueError: something else, or numbers of another scale.
    """
    values = cell.as_py()
    if values is None:
        return np.zeros(0)
    try:
        curve = np.array([np.nan if x is None else x for x in values], float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is no list of numbers") from None
    if curve.ndim != 1 or np.isinf(curve).any():
        raise ValueError(f"{name} is no list of numbers")
    outside = np.abs(curve) > 1 + OVERSHOOT
    if outside.any():
        raise ValueError(f"{name} {curve[outside][0]:g} is not from -1 to 1; values of another scale cannot be read")  # fmt: skip
    return curve
