"""PMEmo, popular music with emotional annotations (Zhang et al. 2018).

Download: https://github.com/HuiZhangDB/PMEmo. Research use; it is not ours to ship. Layout, from the
root or from folders above or below it:

    annotations/dynamic_annotations.csv     musicId, frameTime, Arousal(mean), Valence(mean)
    chorus/{id}.mp3

One row per song and half second, in [0, 1]; annotations begin 15.5 s into a chorus. Only means over the
listeners are read.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data_prep.audio import max_seconds, sound_files
from data_prep.base import STEPS_PER_SECOND, AnnotatedCorpus, DataError, Provenance, Song
from data_prep.reading import (
    csv_records,
    find,
    id_order,
    number,
    require_folder,
    require_half_seconds,
    safe_id,
)

PROVENANCE = Provenance(
    citation=(
        "Zhang, Zhang, Li, Yang, Sun 2018, 'The PMEmo Dataset for Music Emotion Recognition', "
        "ICMR (PMEmo)"
    ),
    licence="research use",
    url="https://github.com/HuiZhangDB/PMEmo",
    scale="published in [0, 1], by 2 x - 1",
)

GRID_TOLERANCE = 1e-3
"""Seconds that a frame's time may be off the half second."""

_TABLE = "annotations/dynamic_annotations.csv"
_AUDIO = "chorus"
_LAYOUT = re.compile(r"PMEmo.*|annotations|chorus")
_COLUMNS = ("musicId", "frameTime", "Arousal(mean)", "Valence(mean)")

Curves = dict[int, tuple[float, float]]
"""Step from the beginning of the sound file to (arousal, valence) in [-1, 1]."""


def read_pmemo(root: Path, *, audio_start: float = 0.0) -> AnnotatedCorpus:
    """Reads a folder in PMEmo's layout.

    Args:
      root: the folder with `annotations` and `chorus`, one above it, or one of the two.
      audio_start: seconds into the chorus where the sound files begin; 0 for whole ones.

    Raises:
      DataError: something is missing (what, and where it was looked for) or malformed.
    """
    require_folder(root)
    require_half_seconds(audio_start)
    table = find(root, _TABLE, _LAYOUT, Path.is_file)
    audio_folder = find(root, _AUDIO, _LAYOUT)
    if table is None or audio_folder is None:
        wanted = f"file '{_TABLE}'" if table is None else f"folder '{_AUDIO}' with the audio"
        raise DataError(
            f"{root}: PMEmo's {wanted} not found; looked here, below, and in the parts of PMEmo "
            f"beside it; {PROVENANCE.url} has it"
        )
    audio = sound_files(audio_folder)
    songs = []
    for song_id, curves in sorted(read_dynamic(table).items(), key=lambda item: id_order(item[0])):
        first = min(curves)
        values = np.full((max(curves) - first + 1, 2), np.nan, np.float32)
        for step, pair in curves.items():
            values[step - first] = pair
        songs.append(
            Song(
                song_id=song_id,
                audio=audio.get(song_id),
                start=first / STEPS_PER_SECOND - audio_start,
                arousal=values[:, 0],
                valence=values[:, 1],
            )
        )
    notes = ("annotations are means over listeners: DMER works, PDMER needs single ones",)
    return AnnotatedCorpus("pmemo", tuple(songs), PROVENANCE, notes=notes)


def read_dynamic(path: Path) -> dict[str, Curves]:
    """`dynamic_annotations.csv`: song id to its annotated steps.

    Raises:
      DataError: the file is missing or malformed.
    """
    songs: dict[str, Curves] = {}
    for line, (song, step, values) in csv_records(path, _COLUMNS, _parse):
        curves = songs.setdefault(song, {})
        if step in curves:
            raise DataError(
                f"{path}, line {line}: song {song} has {step / STEPS_PER_SECOND:g} s twice"
            )
        curves[step] = values
    if not songs:
        raise DataError(f"{path}: no songs")
    return songs


def _parse(
    song: str, time: str, arousal: str, valence: str
) -> tuple[str, int, tuple[float, float]]:
    seconds = number("frameTime", time, 0, max_seconds())
    step = round(seconds * STEPS_PER_SECOND)
    if abs(step / STEPS_PER_SECOND - seconds) > GRID_TOLERANCE:
        raise ValueError(f"frameTime {seconds:g} is not a multiple of {1 / STEPS_PER_SECOND:g} s")
    values = (
        2 * number("Arousal(mean)", arousal, 0, 1) - 1,
        2 * number("Valence(mean)", valence, 0, 1) - 1,
    )
    return safe_id("musicId", song), step, values
