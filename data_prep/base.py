"""Records of an annotated corpus, and the one error its readers raise."""

from __future__ import annotations

import csv
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

STEPS_PER_SECOND = 2
"""The grid of annotations and features."""

WINDOW_STEPS = 60
"""Steps the model sees at once: 30 s."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class DataError(Exception):
    """Bad or missing data. The message is one line and says where, what, and how to mend it."""


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
      audio: the sound file.
      start: seconds into the file of step 0.
      arousal: `[n]` the corpus's own mean curve in [-1, 1], NaN where missing.
      valence: `[n]` likewise.
      ratings: the curves of single listeners, each `[n]`.
      split: `train`, `validation` or `test`.
    """

    song_id: str
    audio: Path
    start: float
    arousal: np.ndarray
    valence: np.ndarray
    ratings: tuple[Rating, ...]
    split: Split


@dataclasses.dataclass(frozen=True)
class AnnotatedCorpus:
    """A corpus before features.

    Attributes:
      name: `deam`, `synthetic`, ...
      songs: in the order of their ids.
      notes: what was left out and why, one line each; shown to the user and kept with the shards.
      licence: whose data this is and on what terms.
    """

    name: str
    songs: tuple[Song, ...]
    notes: tuple[str, ...]
    licence: str


def split_by_rank(ids: list[str], seed: int, shares: tuple[float, float]) -> dict[str, Split]:
    """Deals ids into test, validation and train, the same way on every machine.

    Args:
      ids: distinct names, in any order.
      seed: of the shuffle.
      shares: of validation and of test; each gets at least one id where there are three or more.

    Returns:
      id to split.
    """
    ordered = sorted(ids)
    keys = np.random.RandomState(seed).random_sample(len(ordered))
    shuffled = [ordered[i] for i in np.argsort(keys, kind="stable")]
    least = 1 if len(ordered) >= 3 else 0
    validation, test = (max(least, round(share * len(ordered))) for share in shares)
    counts: dict[Split, int] = {"validation": validation, "test": test, "train": len(ordered)}
    parts = [part for part, count in counts.items() for _ in range(count)]
    return dict(zip(shuffled, parts, strict=False))


def read_csv_rows(path: Path) -> list[list[str]]:
    """Rows of a CSV file that hold something, as text; a byte order mark is skipped.

    Raises:
      DataError: no such file, or not text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`; renames it over `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:40]}.", suffix=path.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
