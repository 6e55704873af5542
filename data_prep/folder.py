"""A lab's own corpus: one folder with a table of annotations and the sound files.

    annotations.csv             song_id, annotator_id, time, arousal, valence (or one of the two)
    audio/{song_id}.{mp3,wav,flac,...}

One row per point that an annotator drew: time in seconds into the sound file, arousal and valence in
[-1, 1]; of another unit or scale where a :class:`~data_prep.convention.Convention` says so. Rows and columns may be in
any order and at any rate; other columns are ignored. A cell of arousal or valence may be empty or `nan`, and one of
these columns absent (a study of tension, say, under the name arousal). A song's name may have its file's suffix.
Points up to a second apart (or as the convention says) are joined by lines, wider gaps stay unlabelled.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.audio import AUDIO_SUFFIXES, sound_files, without_suffix
from data_prep.base import DIMENSIONS, AnnotatedCorpus, DataError, Drawn, Provenance, Song
from data_prep.convention import Convention
from data_prep.curves import Flat, FlatRule
from data_prep.reading import (
    any_number,
    csv_records,
    empty_cells,
    id_order,
    in_time,
    rated,
    require_folder,
    safe_id,
)
from data_prep.traces import Traces, song_of_traces

TABLE = "annotations.csv"
AUDIO = "audio"
COLUMNS = ("song_id", "annotator_id", "time", *DIMENSIONS)
RESERVED_NAMES = ("deam", "merp", "pmemo", "synthetic", "vgmidi")
MAX_NAME_LENGTH = 40

_VALID_NAME = re.compile(r"[a-z][a-z0-9_]*")


def read_folder(
    root: Path,
    name: str | None = None,
    *,
    flat: Flat = "keep",
    convention: Convention = Convention(),
) -> AnnotatedCorpus:
    """Reads a folder of one's own.

    A song's own curve is the mean over all who annotated it, as in DEAM: also over those whose trace
    is flat, which may be left out of the ratings only.

    Args:
      root: the folder.
      name: of the corpus, `[a-z][a-z0-9_]*`; by default made from the folder's name.
      flat: what becomes of traces that hardly move.
      convention: what the table's numbers mean, and how far apart points are joined.

    Raises:
      DataError: something is missing or malformed: where, on which line, and what.
    """
    require_folder(root)
    name = corpus_name(root) if name is None else checked_name(name)
    if not (root / TABLE).is_file() or not (root / AUDIO).is_dir():
        raise DataError(
            f"{root}: needs a file {TABLE} with the columns {', '.join(COLUMNS)} and a folder {AUDIO} "
            f"with song_id{{{','.join(AUDIO_SUFFIXES)}}}"
        )
    audio = sound_files(root / AUDIO)
    dropped: Counter[str] = Counter()
    rule = FlatRule(flat)
    songs = []
    annotations = _by_file(read_annotations(root / TABLE, convention), audio)
    drawn = [trace for of_song in annotations.values() for trace in of_song.values()]
    for song_id, traces in sorted(annotations.items(), key=lambda item: id_order(item[0])):
        song = song_of_traces(
            song_id, audio.get(song_id), traces, rule, dropped, convention.max_gap
        )
        if song:
            songs.append(song)
    return own_corpus(root, name, root / TABLE, songs, drawn, convention, dropped, rule)


def own_corpus(
    root: Path,
    name: str,
    tables: Path,
    songs: Sequence[Song],
    drawn: Sequence[np.ndarray],
    convention: Convention,
    dropped: Mapping[str, int],
    rule: FlatRule,
) -> AnnotatedCorpus:
    """A corpus of somebody's own study.

    Args:
      root: its folder.
      name: of the corpus.
      tables: where the annotations are, for the message.
      songs: those with a label.
      drawn: all `[n, 3]` traces.
      convention: what their numbers meant.
      dropped: what was left out, and why.
      rule: what became of flat ones.

    Raises:
      DataError: no song has a label.
    """
    if not songs:
        raise DataError(
            f"{tables}: no song has an annotation that reaches a half second; points over "
            f"{convention.max_gap:g} s apart are not joined (--max-gap)"
        )
    provenance = Provenance(
        citation=f"the user's own corpus '{root.name or name}'",
        licence="the user's own; on what terms is for its owner to say",
        url="",
        scale=convention.meaning(),
    )
    return AnnotatedCorpus(
        name,
        tuple(songs),
        provenance,
        dict(dropped),
        notes=tuple(_notes(drawn, convention)),
        flat=rule.counted(),
        drawn=Drawn(sum(map(len, drawn)), convention.max_gap),
    )


def _notes(drawn: Sequence[np.ndarray], convention: Convention) -> Iterator[str]:
    empty = empty_cells(drawn)
    if empty:
        yield f"{empty} ratings are empty or nan: unlabelled"
    if convention.leaves_gaps(drawn):
        yield f"most points are over {convention.max_gap:g} s apart, and not joined; --max-gap joins them"


def corpus_name(root: Path) -> str:
    """A valid corpus name from a folder's: `Köln 2024` gives `koln_2024`, `2024` `corpus_2024`."""
    folder = os.path.basename(os.path.abspath(root))
    plain = unicodedata.normalize("NFKD", folder).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    if not _VALID_NAME.fullmatch(name) or name in RESERVED_NAMES:
        name = f"corpus_{name}"
    return name[:MAX_NAME_LENGTH].rstrip("_")


def checked_name(name: str) -> str:
    """A corpus's name that somebody gave.

    Raises:
      DataError: it cannot be one.
    """
    if not _VALID_NAME.fullmatch(name) or name in RESERVED_NAMES or len(name) > MAX_NAME_LENGTH:
        raise DataError(
            f"{name!r} cannot be a corpus's name: up to {MAX_NAME_LENGTH} of a-z, 0-9 and _, a letter "
            f"first, and none of {', '.join(RESERVED_NAMES)}"
        )
    return name


def read_annotations(path: Path, convention: Convention = Convention()) -> dict[str, Traces]:
    """`annotations.csv`: song to annotator to trace.

    Args:
      path: the table.
      convention: what its numbers mean.

    Raises:
      DataError: the file is missing or malformed, an annotator has two values at one time, or the numbers mean
        something else.
    """
    rows: list[tuple[float, float, float, int]] = []
    places: dict[tuple[str, str], list[int]] = {}
    for line, (song, annotator, time, arousal, valence) in csv_records(
        path, COLUMNS, _parse, optional=DIMENSIONS
    ):
        places.setdefault((song, annotator), []).append(len(rows))
        rows.append((time, arousal, valence, line))
    if not rows:
        raise DataError(f"{path}: no annotations")
    points = convention.apply(path, np.array(rows), places)
    traces: dict[str, Traces] = {}
    for (song, annotator), mine in places.items():
        trace = in_time(path, f"{annotator}, song {song},", points[mine])
        traces.setdefault(song, {})[annotator] = trace
    return traces


def _by_file(annotations: dict[str, Traces], audio: dict[str, Path]) -> dict[str, Traces]:
    """Songs that have the name of their file lose its suffix.

    Raises:
      DataError: a song stands there under both names.
    """
    found: dict[str, Traces] = {}
    for song, traces in annotations.items():
        name = song if song in audio else without_suffix(song)
        if name in found:
            raise DataError(
                f"{TABLE}: the song {name} stands there with its file's suffix and without"
            )
        found[name] = traces
    return found


def _parse(
    song: str, annotator: str, time: str, arousal: str, valence: str
) -> tuple[str, str, float, float, float]:
    return (
        safe_id("song_id", song),
        safe_id("annotator_id", annotator),
        any_number("time", time),
        rated("arousal", arousal),
        rated("valence", valence),
    )
