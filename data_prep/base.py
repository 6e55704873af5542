"""Records of an annotated corpus, and the one error its readers raise."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np

STEPS_PER_SECOND = 2
"""Annotations, features and predictions are all on this 2 Hz grid (DEAM and PMEmo's own)."""

WINDOW_STEPS = 60
"""Steps the model sees at once: 30 s."""

MIN_SECONDS = 5.0
"""Sound that is shorter is refused."""

DIMENSIONS = ("arousal", "valence")
"""In the order of every last axis of 2."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class DataError(Exception):
    """Bad or missing data. The message is one line and says where, what, and how to mend it."""


def printable(text: str) -> str:
    """A text from somebody else's file for a terminal or a page.

    What is no letter, sign, space or end of a line (but may move a terminal's cursor) is written as an escape.
    """
    return "".join(
        x if x.isprintable() or x == "\n" else x.encode("unicode_escape").decode() for x in text
    )


def plain_cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula: such ones get an apostrophe in front."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as text, lines ended as on Unix."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # noqa: RUF001


@dataclasses.dataclass(frozen=True)
class Rating:
    """One listener's curves of one song.

    Attributes:
      annotator_id: who.
      arousal: `[n]` in [-1, 1], NaN where missing.
      valence: `[n]` likewise.
    """

    annotator_id: str
    arousal: np.ndarray
    valence: np.ndarray


@dataclasses.dataclass(frozen=True)
class Song:
    """One song of a corpus.

    Attributes:
      song_id: its name in the corpus.
      audio: the sound file, or None where the corpus's folder holds none for it.
      start: seconds into the file of step 0; below 0 where the file begins later than the annotations.
      arousal: `[n]` the corpus's own mean curve in [-1, 1], NaN where missing.
      valence: `[n]` likewise.
      ratings: the curves of single listeners, each `[n]`.
      split: `train`, `validation` or `test`; None until :func:`deal_splits`, unless the corpus says.
      static: arousal and valence of the song as a whole in [-1, 1], where listeners gave that too.
      raters: everybody who drew it, also those whose rating was left out; empty where nobody knows.
    """

    song_id: str
    audio: Path | None
    start: float
    arousal: np.ndarray
    valence: np.ndarray
    ratings: tuple[Rating, ...] = ()
    split: Split | None = None
    static: tuple[float, float] | None = None
    raters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Whose data a corpus is. Shown by every command that reads it and kept with the shards.

    Attributes:
      citation: authors, year, title.
      licence: on what terms.
      url: where it can be had; empty for data that is made here.
      scale: what the published numbers were and how they became [-1, 1].
    """

    citation: str
    licence: str
    url: str
    scale: str


@dataclasses.dataclass(frozen=True)
class FlatTraces:
    """Traces of single raters in one dimension that hardly move.

    Attributes:
      traces: how many there are, flat or not.
      flat: how many of them hardly move.
      people: how many raters drew a flat one.
    """

    traces: int
    flat: int
    people: int


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What labels on the half-second grid were made from.

    Attributes:
      points: rows of the table: points that annotators drew.
      max_gap: seconds; points up to so far apart were joined by lines.
    """

    points: int
    max_gap: float


@dataclasses.dataclass(frozen=True)
class AnnotatedCorpus:
    """A corpus before features.

    Attributes:
      name: `deam`, `synthetic`, ...
      songs: in the order of their ids: every annotated one, whether or not its sound is there.
      provenance: whose it is.
      dropped: reason -> how many ratings (or songs, as the reason says) were left out for it.
      notes: what else the user should know, one line each.
      flat: dimension -> what there is of traces that hardly move, kept or not.
      drawn: from what the labels were made, where annotators' points are not on the grid.
    """

    name: str
    songs: tuple[Song, ...]
    provenance: Provenance
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    flat: Mapping[str, FlatTraces] = dataclasses.field(default_factory=dict)
    drawn: Drawn | None = None


def deal_splits(
    songs: Sequence[Song], copy_of: Mapping[str, str] | None = None
) -> tuple[Song, ...]:
    """Gives every song a split.

    Where the corpus names test songs, a tenth of the others is for validation. Where it names none
    (or a subset has none of them), a fixed fifth is for the test and a tenth for validation.

    Args:
      songs: of one corpus.
      copy_of: song id -> id of the song whose recording it is, too; the two go to one part, that of the test if
        either is named for it.
    """
    first = {song.song_id: (copy_of or {}).get(song.song_id, song.song_id) for song in songs}
    official = {first[song.song_id] for song in songs if song.split == "test"}
    others = dict.fromkeys(name for name in first.values() if name not in official)
    dealt = deal(others, validation=0.1, test=0.0 if official else 0.2)
    return tuple(
        dataclasses.replace(song, split=dealt.get(first[song.song_id], "test")) for song in songs
    )


def copies(sounds: Mapping[str, str]) -> dict[str, str]:
    """Song id -> id of the first song with the same sound, for those that are not the first.

    Args:
      sounds: song id -> what its sound is known by; an empty one is like no other.
    """
    first: dict[str, str] = {}
    return {
        name: first[sound]
        for name, sound in sounds.items()
        if sound and first.setdefault(sound, name) != name
    }


def shuffled(ids: Iterable[str]) -> list[str]:
    """Ids in an order that looks random and is always the same, whichever others there are."""
    return sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())


def deal(ids: Iterable[str], *, validation: float, test: float) -> dict[str, Split]:
    """Deals ids into validation, test and train, the same way on every machine.

    An id more or less moves a few of the others to another part, not all of them.

    Args:
      ids: distinct names, in any order.
      validation: share; where it is not 0 it is one id at least, if there are enough for all parts.
      test: share; likewise.

    Returns:
      id to split.
    """
    ordered = shuffled(ids)
    parts = sum(share > 0 for share in (validation, test)) + 1
    least = 1 if len(ordered) >= parts else 0
    splits: dict[str, Split] = dict.fromkeys(ordered, "train")
    first = 0
    wanted: dict[Split, float] = {"validation": validation, "test": test}
    for split, share in wanted.items():
        count = max(least, round(share * len(ordered))) if share else 0
        splits |= dict.fromkeys(ordered[first : first + count], split)
        first += count
    return splits


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`; renames it over `path` only if the block succeeds.

    After the block the file is on the disk: a power cut leaves the old one or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:40]}.", suffix=path.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or all below a folder, is on the disk."""
    for inner in path.rglob("*") if path.is_dir() else ():
        (sync_folder if inner.is_dir() else _sync_file)(inner)
    (sync_folder if path.is_dir() else _sync_file)(path)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can be asked to."""
    with suppress(OSError):  # Windows opens no folders, some network disks sync none
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
