"""A person's annotations of a song, from a table."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from data_prep.audio import sound_files, without_suffix
from data_prep.base import DIMENSIONS, DataError
from data_prep.convention import Convention
from data_prep.folder import AUDIO, TABLE
from data_prep.reading import any_number, csv_records, in_time, rated

COLUMNS = ("time", *DIMENSIONS)
OF_A_STUDY = ("song_id", "annotator_id")
"""Columns of a whole study's table, which says whose a row is and of what song."""


def read_annotations(
    path: Path, song: Path | None = None, convention: Convention = Convention()
) -> np.ndarray:
    """`[n, 3]` time in seconds, arousal, valence from a CSV with those columns, in the order of time.

    One of arousal and valence may be absent as a column, and either may be empty or `nan` in a row: NaN. Other columns are
    ignored. Of a table of several songs (`song_id`, with or without the file's suffix) the rows of one are taken.

    Args:
      path: the table.
      song: its sound file, for a table of several songs.
      convention: what the table's numbers mean.

    Raises:
      DataError: missing, empty, ragged, not numbers, numbers that mean something else, two ratings at one time, several
        people, or nothing of the song.
    """
    rows: list[tuple[float, float, float, int]] = []
    places: dict[tuple[str, str], list[int]] = {}
    for line, (time, arousal, valence, song_id, person) in csv_records(
        path, (*COLUMNS, *OF_A_STUDY), _parse, optional=DIMENSIONS, absent=OF_A_STUDY
    ):
        places.setdefault((song_id, person), []).append(len(rows))
        rows.append((time, arousal, valence, line))
    if not rows:
        raise DataError(f"{path}: no annotations below the header")
    mine = {
        key: rows_of for key, rows_of in places.items()
        if song is None or not key[0] or _is_named(song, key[0])
    }  # fmt: skip
    if not mine and song:
        raise DataError(
            f"{path}: no annotation of {song_name(song)} among those of "
            f"{_few({without_suffix(song_id) for song_id, _ in places})}"
        )
    people = {person for _, person in mine}
    if len(people) > 1:
        raise DataError(f"{path}: annotations of {len(people)} people ({_few(people)}); keep one's")
    points = convention.apply(path, np.array(rows), places)
    return in_time(path, "the annotation", points[[row for of in mine.values() for row in of]])


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _is_named(audio: Path, song_id: str) -> bool:
    """Whether a table's id means this sound file: its name with or without suffix, or that of another file of the song."""
    stem = song_name(audio)
    return (
        song_id in (stem, unicodedata.normalize("NFC", audio.name))
        or without_suffix(song_id) == stem
    )


def song_name(audio: Path) -> str:
    """What a table calls the song of a sound file, without suffix and in Unicode's composed form."""
    return unicodedata.normalize("NFC", audio.stem)


def _parse(
    time: str, arousal: str, valence: str, song: str, person: str
) -> tuple[float, float, float, str, str]:
    return (
        any_number("time", time),
        rated("arousal", arousal),
        rated("valence", valence),
        unicodedata.normalize("NFC", song),
        person,
    )


def annotated_in(study: Path) -> list[tuple[Path, Path]]:
    """The songs of a folder with `audio/` and `annotations.csv` that are annotated there: sound file and table, by name.

    Raises:
      DataError: one of the two is missing, or a song that is annotated has no sound file.
    """
    table = study / TABLE
    if not table.is_file() or not (study / AUDIO).is_dir():
        raise DataError(f"{study}: needs a file {TABLE} and a folder {AUDIO}")
    files = sound_files(study / AUDIO)
    records = csv_records(table, ("song_id",), lambda song: unicodedata.normalize("NFC", song))
    named = {song if song in files else without_suffix(song) for _, song in records}
    missing = sorted(named - files.keys())
    if missing:
        raise DataError(f"{table}: no sound file of {_few(set(missing))} in {study / AUDIO}")
    return [(files[song], table) for song in sorted(named)]
