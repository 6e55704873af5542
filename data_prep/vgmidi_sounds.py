"""Which of VGMIDI's WAV files is the sound of which piece.

The files are named otherwise than the MIDI files and than the studies say: `Final_Fantasy_7_Tifa.wav` is `Final
Fantasy_PS1_Final Fantasy VII_Tifa.mid`. Names are compared without case and signs. A name has to be a piece's, or to end
with its title and begin much like its game; and the sound has to be as long as the piece. What fits nothing is left alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.audio import read_sound, sound_files
from data_prep.base import DataError

LIKE_GAME = 0.6
"""Share of letters that the beginning of a file's name and the game have in common: `finalfantasy7`, `finalfantasyvii`."""

TOLERATED_SECONDS = 5.0
"""Recordings ring on, and durations are rounded: to 3 s in the first study."""


@dataclasses.dataclass(frozen=True)
class Titled:
    """Names of a piece.

    Attributes:
      song_id: series, console, game and title, with `_` between.
      names: other names, also those of files.
      duration: seconds.
    """

    song_id: str
    names: tuple[str, ...]
    duration: float


def recordings_of(pieces: Sequence[Titled], folder: Path) -> dict[str, Path]:
    """Song id to the file that is its sound; each file for one piece at most.

    Args:
      pieces: those to be found.
      folder: of the sound files; it may be missing.
    """
    files = sound_files(folder) if folder.is_dir() else {}
    likely = sorted(
        (
            (likeness, piece.song_id, stem, piece.duration)
            for stem in files
            for piece in pieces
            if (likeness := _likeness(stem, piece)) > LIKE_GAME
        ),
        key=lambda one: (-one[0], *one[1:3]),
    )
    found: dict[str, Path] = {}
    taken: set[str] = set()
    for _, song_id, stem, duration in likely:
        if song_id not in found and stem not in taken and _lasts(files[stem], duration):
            found[song_id] = files[stem]
            taken.add(stem)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _likeness(stem: str, piece: Titled) -> float:
    """2 where a file has a piece's name; else how like its game the beginning is, if the title is the end; else 0."""
    fields = piece.song_id.split("_")
    title, game = _plain("".join(fields[3:])), _plain("".join(fields[2:3]))
    name = _plain(stem)
    if name in {_plain(other) for other in (piece.song_id, *(Path(x).stem for x in piece.names))}:
        return 2.0
    if not title or not name.endswith(title):
        return 0.0
    return difflib.SequenceMatcher(None, name[: -len(title)], game, autojunk=False).ratio()


def _lasts(path: Path, duration: float) -> bool:
    try:
        seconds = read_sound(path, lambda sound: sound.frames / sound.rate)
    except DataError:
        return False
    return abs(seconds - duration) <= TOLERATED_SECONDS
