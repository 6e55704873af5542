"""DEAM, the MediaEval Database for Emotional Analysis in Music (Aljanaki, Yang, Soleymani 2017).

Download: https://cvml.unige.ch/databases/DEAM/ (audio and annotations). Research use; it is not ours
to ship. Layout, at the root or one folder up or down from it:

    DEAM_audio/MEMD_audio/{id}.mp3
    DEAM_Annotations/annotations/annotations averaged per song/
        dynamic (per second annotations)/{arousal,valence}.csv
    DEAM_Annotations/annotations/annotations per each rater/
        dynamic (per second annotations)/{arousal,valence}/{id}.csv

Averaged files hold one ragged row per song: `song_id, sample_15000ms, sample_15500ms, ...`. Rater files
hold one row per rater; where they have no `WorkerId` column nobody knows who drew what, so they are
of no use for personalisation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np

from data_prep.audio import AUDIO_SUFFIXES
from data_prep.base import (
    AnnotatedCorpus,
    DataError,
    Rating,
    Song,
    Split,
    read_csv_rows,
    split_by_rank,
)

ANNOTATION_START = 15.0
"""Seconds into a song where annotations begin."""

FIRST_TEST_ID = 2001
FLAT_LEVEL = 0.01
FLAT_STEPS = 60
LICENCE = (
    "DEAM (Aljanaki, Yang, Soleymani 2017): research use; the songs are under Creative Commons"
)

_AUDIO = Path("MEMD_audio")
_AVERAGED = Path("annotations averaged per song/dynamic (per second annotations)")
_PER_RATER = Path("annotations per each rater/dynamic (per second annotations)")
_PARENTS = ("", "*/", "*/*/", "*/*/*/")


def read_deam(
    root: Path,
    *,
    limit: int | None = None,
    name: str = "deam",
    licence: str = LICENCE,
) -> AnnotatedCorpus:
    """Reads a folder in DEAM's layout.

    Songs 2001 and up are the test set, as published; a corpus without any (a subset, or another corpus
    in this layout) gets a fixed random fifth. A tenth of the rest is for validation.

    Args:
      root: the folder, or the one above or below it.
      limit: only so many songs, evenly spread over the ids.
      name: of the corpus.
      licence: of its data.

    Raises:
      DataError: something needed is missing (what, and where it was looked for) or malformed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    averaged = _find(root, _AVERAGED, "the averaged annotations (DEAM_Annotations.zip)")
    audio_folder = _find(root, _AUDIO, "the audio (DEAM_audio.zip)")
    per_rater = _find_or_none(root, _PER_RATER)

    arousal = read_averaged(averaged / "arousal.csv")
    valence = read_averaged(averaged / "valence.csv")
    notes: list[str] = []
    audio = _audio_files(audio_folder)
    ids = sorted(arousal.keys() & valence.keys(), key=_song_order)
    one_sided = len(arousal.keys() ^ valence.keys())
    if one_sided:
        notes.append(f"{one_sided} songs are annotated in one dimension only; left out")
    with_audio = [song for song in ids if song in audio]
    if not with_audio:
        raise DataError(
            f"{audio_folder}: no audio for any of the {len(ids)} annotated songs (looked for "
            f"{ids[0] if ids else '{id}'}{'|'.join(AUDIO_SUFFIXES[:4])} and so on)"
        )
    if len(with_audio) < len(ids):
        notes.append(
            f"{len(ids) - len(with_audio)} of {len(ids)} annotated songs have no audio in "
            f"{audio_folder.name}; left out"
        )
    if limit is not None and limit < len(with_audio):
        picked = np.linspace(0, len(with_audio) - 1, limit).round().astype(int)
        with_audio = [with_audio[i] for i in picked]

    splits = _splits(with_audio)
    counts: Counter[str] = Counter()
    songs = []
    for song in with_audio:
        steps = min(len(arousal[song]), len(valence[song]))
        ratings = _read_ratings(per_rater, song, steps, counts) if per_rater else ()
        songs.append(
            Song(
                song_id=song,
                audio=audio[song],
                start=ANNOTATION_START,
                arousal=arousal[song][:steps],
                valence=valence[song][:steps],
                ratings=ratings,
                split=splits[song],
            )
        )
    if per_rater is None:
        notes.append("no annotations per rater were found: DMER works, PDMER needs them")
    notes += [f"{count} {what}" for what, count in counts.items() if count]
    return AnnotatedCorpus(name, tuple(songs), tuple(notes), licence)


_REASONS = {
    "anonymous": "songs have ratings without a WorkerId; nobody knows whose they are, left out",
    "one dimension": "ratings exist in one dimension only; left out",
    "flat": f"ratings hardly move (mean |x - mean| < {FLAT_LEVEL} over 30 s); left out",
}


def _find_or_none(root: Path, wanted: Path) -> Path | None:
    places = [root.parent / wanted] if root.name == wanted.name else []
    for parent in _PARENTS:
        places += sorted(root.glob(parent + wanted.as_posix()))
    places += sorted(root.parent.glob("DEAM_*/" + wanted.as_posix()))
    places += sorted(root.parent.glob("DEAM_*/*/" + wanted.as_posix()))
    return next((place for place in places if place.is_dir()), None)


def _find(root: Path, wanted: Path, what: str) -> Path:
    found = _find_or_none(root, wanted)
    if found is None:
        raise DataError(
            f"{root}: {what} not found; looked for a folder '{wanted}' here, up to three levels "
            "down, and in DEAM_* beside it; https://cvml.unige.ch/databases/DEAM/ has it"
        )
    return found


def _audio_files(folder: Path) -> dict[str, Path]:
    """Song id to file; earlier suffixes of AUDIO_SUFFIXES win."""
    rank = {suffix: i for i, suffix in enumerate(AUDIO_SUFFIXES)}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if suffix not in rank:
            continue
        known = found.get(path.stem)
        if known is None or rank[suffix] < rank[known.suffix.lower()]:
            found[path.stem] = path
    return found


def _song_order(song_id: str) -> tuple[int, str]:
    return (int(song_id), "") if song_id.isdecimal() else (2**31, song_id)


def _splits(ids: list[str]) -> dict[str, Split]:
    official = {song for song in ids if song.isdecimal() and int(song) >= FIRST_TEST_ID}
    if not official:
        return split_by_rank(ids, seed=0, shares=(0.1, 0.2))
    splits = split_by_rank([song for song in ids if song not in official], seed=0, shares=(0.1, 0))
    # With no share for the test set the one id it is always given goes back to training.
    splits = {song: "train" if split == "test" else split for song, split in splits.items()}
    return splits | dict.fromkeys(official, "test")


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header (stripped) and the rows that are not blank."""
    rows = read_csv_rows(path)
    if not rows:
        raise DataError(f"{path}: empty")
    return [cell.strip() for cell in rows[0]], rows[1:]


_SAMPLE = re.compile(r"sample_(\d+)ms")


def _sample_columns(path: Path, header: list[str]) -> slice:
    """Checks that the samples are columns 15000 ms, 15500 ms, ... without a gap."""
    times = [(i, int(m[1])) for i, name in enumerate(header) if (m := _SAMPLE.fullmatch(name))]
    if not times:
        raise DataError(f"{path}: the header has no sample_15000ms, sample_15500ms, ... columns")
    first, start = times[0]
    expected = [(first + k, round(ANNOTATION_START * 1000) + 500 * k) for k in range(len(times))]
    if times != expected:
        raise DataError(
            f"{path}: samples must be 15000 ms, 15500 ms, ... side by side; got {start} ms"
        )
    return slice(first, first + len(times))


def _curve(path: Path, row: int, cells: list[str]) -> np.ndarray:
    """Numbers in [-1, 1]; empty cells at the end are cut, others are NaN."""
    texts = [cell.strip() for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    try:
        values = np.array([float(text) if text else np.nan for text in texts], np.float32)
    except ValueError as error:
        raise DataError(f"{path}, row {row}: {error}") from None
    if any(text and not math.isfinite(float(text)) for text in texts):
        raise DataError(f"{path}, row {row}: holds a value that is no number; leave the cell empty")
    wrong = np.abs(values) > 1.0  # false for NaN
    if wrong.any():
        raise DataError(f"{path}, row {row}: {values[wrong][0]:g} is outside [-1, 1]")
    return values


def read_averaged(path: Path) -> dict[str, np.ndarray]:
    """`arousal.csv` or `valence.csv`: song id to curve `[n]`, n differing from song to song."""
    header, rows = _read_table(path)
    columns = _sample_columns(path, header)
    if columns.start != 1:
        raise DataError(f"{path}: the first column must be song_id and the second sample_15000ms")
    curves: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows, start=2):
        song = row[0].strip()
        if not song or song in curves:
            raise DataError(f"{path}, row {number}: song id {song!r} is empty or there twice")
        curve = _curve(path, number, row[columns])
        if not len(curve):
            raise DataError(f"{path}, row {number}: song {song} has no samples")
        curves[song] = curve
    if not curves:
        raise DataError(f"{path}: no songs")
    return curves


def read_raters(path: Path) -> dict[str, np.ndarray] | None:
    """One song's rater file: worker to curve `[n]`, or None where it has no WorkerId column."""
    header, rows = _read_table(path)
    columns = _sample_columns(path, header)
    if "WorkerId" not in header:
        return None
    worker_column = header.index("WorkerId")
    curves: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) <= worker_column:
            raise DataError(f"{path}, row {number}: too short to have a WorkerId")
        worker = row[worker_column].strip()
        if worker and worker not in curves:
            curves[worker] = _curve(path, number, row[columns])
    return curves


def _is_flat(curve: np.ndarray) -> bool:
    start = curve[:FLAT_STEPS]
    start = start[np.isfinite(start)]
    return not len(start) or float(np.abs(start - start.mean()).mean()) < FLAT_LEVEL


def _fit(curve: np.ndarray, steps: int) -> np.ndarray:
    """Cuts, or fills with NaN, to `steps`."""
    fitted = np.full(steps, np.nan, np.float32)
    fitted[: len(curve)] = curve[:steps]
    return fitted


def _read_ratings(folder: Path, song: str, steps: int, counts: Counter[str]) -> tuple[Rating, ...]:
    by_dimension = []
    for dimension in ("arousal", "valence"):
        path = folder / dimension / f"{song}.csv"
        curves = read_raters(path) if path.is_file() else {}
        if curves is None:
            counts[_REASONS["anonymous"]] += 1
            return ()
        by_dimension.append(curves)
    arousal, valence = by_dimension
    counts[_REASONS["one dimension"]] += len(arousal.keys() ^ valence.keys())
    ratings = []
    for worker in sorted(arousal.keys() & valence.keys()):
        if _is_flat(arousal[worker]) or _is_flat(valence[worker]):
            counts[_REASONS["flat"]] += 1
            continue
        ratings.append(Rating(worker, _fit(arousal[worker], steps), _fit(valence[worker], steps)))
    return tuple(ratings)
