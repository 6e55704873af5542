"""DEAM, the MediaEval Database for Emotional Analysis in Music (Aljanaki, Yang, Soleymani 2017).

Download: https://cvml.unige.ch/databases/DEAM/ (DEAM_audio.zip, DEAM_Annotations.zip). Research use; it
is not ours to ship. Layout, from the root or from folders above or below it:

    DEAM_audio/MEMD_audio/{id}.mp3
    DEAM_Annotations/annotations/annotations averaged per song/
        dynamic (per second annotations)/{arousal,valence}.csv
        song_level/static_annotations_averaged_songs_{1_2000,2000_2058}.csv      optional
    DEAM_Annotations/annotations/annotations per each rater/
        dynamic (per second annotations)/{arousal,valence}/{id}.csv              optional

Averaged files hold one ragged row per song: `song_id, sample_15000ms, sample_15500ms, ...`; a few songs
have one sample more in one dimension than in the other. Rater files hold one row per rater; where
they have no `WorkerId` column nobody knows who drew what, so they are of no use for personalisation.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from data_prep.audio import sound_files
from data_prep.base import DIMENSIONS, AnnotatedCorpus, DataError, Provenance, Rating, Song
from data_prep.curves import FLAT_REASON, Flat, FlatRule, fit
from data_prep.reading import (
    csv_lines,
    csv_records,
    find,
    id_order,
    number,
    require_folder,
    require_half_seconds,
    safe_id,
)

ANNOTATION_START = 15.0
"""Seconds into a song where annotations begin."""

FIRST_TEST_ID = 2001
LAST_SWAPPED_ID = 1000
"""Song-level files have arousal under `valence_mean`, and the reverse, up to this id."""

PROVENANCE = Provenance(
    citation=(
        "Aljanaki, Yang, Soleymani 2017, 'Developing a benchmark for emotional analysis of music', "
        "PLoS ONE 12(3) (DEAM)"
    ),
    licence="research use; the songs are under Creative Commons licences",
    url="https://cvml.unige.ch/databases/DEAM/",
    scale="curves published in [-1, 1], unchanged; songs as a whole in [1, 9], by (x - 5) / 4",
)

AUDIO = "DEAM_audio/MEMD_audio"
_DYNAMIC = "dynamic (per second annotations)"
AVERAGED = f"DEAM_Annotations/annotations/annotations averaged per song/{_DYNAMIC}"
PER_RATER = f"DEAM_Annotations/annotations/annotations per each rater/{_DYNAMIC}"
"""Where the downloads have sound, mean curves and those of single raters."""

_AUDIO = AUDIO.rpartition("/")[2]
_AVERAGED, _PER_RATER = ("/".join(path.split("/")[-2:]) for path in (AVERAGED, PER_RATER))
_STATIC = "static_annotations_averaged_songs_*.csv"
_LAYOUT = re.compile(r"DEAM_.*|MEMD_audio|annotations.*|dynamic \(.*|arousal|valence|song_level")

_ANONYMOUS_SONG = "songs have ratings without a WorkerId; nobody knows whose they are, left out"
_ANONYMOUS_TRACE = "traces have an empty WorkerId; left out"
_EMPTY_RATING = "ratings hold no value; left out"
_REPEATED_TRACE = "traces are by a rater who drew the song before; the first is kept"


def read_deam(
    root: Path,
    *,
    name: str = "deam",
    provenance: Provenance = PROVENANCE,
    audio_start: float = 0.0,
    flat: Flat = "keep",
) -> AnnotatedCorpus:
    """Reads a folder in DEAM's layout.

    Songs 2001 and up are the test set, as published. A song, and a rating, may be there in one dimension
    only. A rater file that is damaged costs its song the ratings of that dimension and gives a note; any
    other damaged file is an error.

    Args:
      root: the folder with DEAM_audio and DEAM_Annotations, one above it, or one of its parts.
      name: of the corpus.
      provenance: of its data.
      audio_start: seconds into the song where the sound files begin; 0 for whole clips.
      flat: what becomes of raters' traces that hardly move.

    Raises:
      DataError: something needed is missing (what, and where it was looked for) or malformed.
    """
    require_folder(root)
    require_half_seconds(audio_start)
    averaged = _find_needed(root, _AVERAGED, "the averaged annotations (DEAM_Annotations.zip)")
    audio = sound_files(_find_needed(root, _AUDIO, "the audio (DEAM_audio.zip)"))
    per_rater = find(root, _PER_RATER, _LAYOUT)

    dropped: Counter[str] = Counter()
    notes: list[str] = []
    rule = FlatRule(flat)
    arousal, valence = _read_both(averaged, notes)
    static = read_static(sorted(averaged.parent.rglob(_STATIC)))
    one_sided = len(arousal.keys() ^ valence.keys())
    if one_sided and arousal and valence:
        notes.append(f"{one_sided} songs are annotated in one dimension only")
    songs = []
    nothing = np.zeros(0, np.float32)
    for song in sorted(arousal.keys() | valence.keys(), key=id_order):
        curves = arousal.get(song, nothing), valence.get(song, nothing)
        steps = max(map(len, curves))
        raters: tuple[str, ...] = ()
        ratings: tuple[Rating, ...] = ()
        if per_rater:
            raters, ratings = _read_ratings(per_rater, song, steps, dropped, notes, rule)
        songs.append(
            Song(
                song_id=song,
                audio=audio.get(song),
                start=ANNOTATION_START - audio_start,
                arousal=fit(curves[0], steps),
                valence=fit(curves[1], steps),
                ratings=ratings,
                split="test" if song.isdecimal() and int(song) >= FIRST_TEST_ID else None,
                static=static.get(song),
                raters=raters,
            )
        )
    if per_rater is None:
        notes.append("no annotations per rater were found: DMER works, PDMER needs them")
    if per_rater is not None and not any(song.ratings for song in songs):
        notes.append("no rating says whose it is: DMER works, PDMER needs a WorkerId")
    return AnnotatedCorpus(
        name, tuple(songs), provenance, dict(+dropped), tuple(notes), rule.counted()
    )


def _read_both(averaged: Path, notes: list[str]) -> tuple[dict[str, np.ndarray], ...]:
    """The averaged curves of both dimensions, of which one may have no file."""
    there = [name for name in DIMENSIONS if (averaged / f"{name}.csv").exists()]
    if len(there) == 1:
        notes.append(f"{averaged} holds {there[0]}.csv alone: a corpus of {there[0]} alone")
    return tuple(
        read_averaged(averaged / f"{name}.csv") if name in there or not there else {}
        for name in DIMENSIONS
    )


def _find_needed(root: Path, wanted: str, what: str) -> Path:
    found = find(root, wanted, _LAYOUT)
    if found is None:
        raise DataError(
            f"{root}: {what} not found; looked for a folder '{wanted}' here, below, and in the "
            f"parts of DEAM beside it; {PROVENANCE.url} has it"
        )
    return found


_SAMPLE = re.compile(r"sample_([0-9]{1,9})ms")


def _sample_columns(path: Path, header: list[str]) -> slice:
    """Checks that the samples are columns 15000 ms, 15500 ms, ... without a gap."""
    times = [(i, int(m[1])) for i, name in enumerate(header) if (m := _SAMPLE.fullmatch(name))]
    if not times:
        raise DataError(f"{path}: the header has no sample_15000ms, sample_15500ms, ... columns")
    first, start = times[0]
    expected = [(first + k, round(ANNOTATION_START * 1000) + 500 * k) for k in range(len(times))]
    if times != expected:
        raise DataError(
            f"{path}: samples must be 15000 ms, 15500 ms, ... side by side; the first is {start} ms"
        )
    return slice(first, first + len(times))


def _curve(cells: list[str]) -> np.ndarray:
    """Numbers in [-1, 1]; empty cells at the end are cut, others are NaN."""
    values = [number("the value", cell, -1, 1) if cell else np.nan for cell in cells]
    length = max((i for i, cell in enumerate(cells, start=1) if cell), default=0)
    return np.array(values[:length], np.float32)


def read_averaged(path: Path) -> dict[str, np.ndarray]:
    """`arousal.csv` or `valence.csv`: song id to curve `[n]`, n differing from song to song.

    Raises:
      DataError: the file is missing or malformed.
    """
    lines = csv_lines(path)
    _, header = next(lines, (1, []))
    columns = _sample_columns(path, header)
    if columns.start != 1:
        raise DataError(f"{path}: the first column must be song_id and the second sample_15000ms")
    curves: dict[str, np.ndarray] = {}
    for line, cells in lines:
        try:
            song, curve = safe_id("song_id", cells[0]), _curve(cells[columns])
            if song in curves:
                raise ValueError(f"song {song} is there twice")
            if not len(curve):
                raise ValueError(f"song {song} has no samples")
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
        curves[song] = curve
    if not curves:
        raise DataError(f"{path}: no songs")
    return curves


def read_static(paths: list[Path]) -> dict[str, tuple[float, float]]:
    """Files of song-level annotations: song id to (arousal, valence) in [-1, 1].

    Up to song 1000 the published columns are swapped: as named, they correlate by .57 with the mean
    of the song's curves; swapped, by .95.

    Raises:
      DataError: a file is malformed, or a song is there twice.
    """
    static: dict[str, tuple[float, float]] = {}
    for path in paths:
        for line, (song, arousal, valence) in csv_records(
            path, ("song_id", "arousal_mean", "valence_mean"), _parse_static
        ):
            if song in static:
                raise DataError(f"{path}, line {line}: song {song} is there twice")
            swapped = song.isdecimal() and int(song) <= LAST_SWAPPED_ID
            static[song] = (valence, arousal) if swapped else (arousal, valence)
    return static


def _parse_static(song: str, arousal: str, valence: str) -> tuple[str, float, float]:
    return (
        safe_id("song_id", song),
        (number("arousal_mean", arousal, 1, 9) - 5) / 4,
        (number("valence_mean", valence, 1, 9) - 5) / 4,
    )


def read_raters(path: Path) -> list[tuple[str, np.ndarray]] | None:
    """One song's rater file: worker and curve `[n]` of each row, or None without a WorkerId column.

    Raises:
      DataError: the file is missing or malformed.
    """
    lines = csv_lines(path)
    _, header = next(lines, (1, []))
    if "WorkerId" not in header and any(map(_SAMPLE.fullmatch, header)):
        return None
    columns = _sample_columns(path, header)
    worker_column = header.index("WorkerId")
    traces = []
    for line, cells in lines:
        try:
            if len(cells) <= worker_column:
                raise ValueError("too short to have a WorkerId")
            worker = cells[worker_column]
            traces.append((worker and safe_id("WorkerId", worker), _curve(cells[columns])))
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
    return traces


def _read_ratings(
    folder: Path,
    song: str,
    steps: int,
    dropped: Counter[str],
    notes: list[str],
    rule: FlatRule,
) -> tuple[tuple[str, ...], tuple[Rating, ...]]:
    """Who drew a song, and the ratings that can be used; adds to `dropped` and `notes` what cannot, and why."""
    files = []
    for dimension in DIMENSIONS:
        path = folder / dimension / f"{song}.csv"
        try:
            files.append(read_raters(path) if path.is_file() else [])
        except DataError as error:
            notes.append(f"{error}; song {song} has no ratings of {dimension} for that")
            files.append([])
    if None in files:
        dropped[_ANONYMOUS_SONG] += 1
    arousal, valence = (_by_worker(traces or [], dropped) for traces in files)
    nothing = np.zeros(0, np.float32)
    ratings = []
    workers = sorted(arousal.keys() | valence.keys())
    for worker in workers:
        curves = (fit(traces.get(worker, nothing), steps) for traces in (arousal, valence))
        rating = rule.rating(worker, *curves)
        if rating:
            ratings.append(rating)
        elif any(len(traces.get(worker, nothing)) for traces in (arousal, valence)):
            dropped[FLAT_REASON] += 1
        else:
            dropped[_EMPTY_RATING] += 1
    return tuple(workers), tuple(ratings)


def _by_worker(
    traces: list[tuple[str, np.ndarray]], dropped: Counter[str]
) -> dict[str, np.ndarray]:
    curves: dict[str, np.ndarray] = {}
    for worker, curve in traces:
        if not worker:
            dropped[_ANONYMOUS_TRACE] += 1
        elif worker in curves:
            dropped[_REPEATED_TRACE] += 1
        else:
            curves[worker] = curve
    return curves
