"""VGMIDI, piano arrangements of video game music, rated measure by measure (Ferreira and Whitehead 2019).

Download: `git clone https://github.com/lucasnfe/vgmidi`. No licence is stated. Layout, from the root or from folders
above or below it:

    labelled/annotations/vgmidi_raw_{1,2}.json    two studies, of other pieces and other people
    labelled/midi/{SERIES_CONSOLE_GAME_TITLE}.mid
    labelled/audio/*.wav                          optional: some of the pieces, under other names

A study's `pieces` have the name of a MIDI file, a `duration` in seconds and a number of `measures`; its `annotations`
are `piece12_7`, the seventh rating of piece 12: arousal and valence in [-1, 1], one value for each measure. Value i
is at i * duration / measures, also where the bars of the MIDI file are others in number.

Nobody has an id. A person is who gave the same answers to everything that was asked: age, country, gender,
musicianship, and five about two examples. So two people who answered alike are taken for one, and people of the two
studies never are. People are numbered (`p2_17`); what they answered stays in the download.
"""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from data_prep.audio import max_seconds
from data_prep.base import DIMENSIONS, AnnotatedCorpus, DataError, Drawn, Provenance, Song
from data_prep.convention import TIME_DIGITS
from data_prep.curves import Flat, FlatRule
from data_prep.midi import MIDI_SUFFIXES
from data_prep.plain import parse_json
from data_prep.reading import find, id_order, require_folder, safe_id
from data_prep.traces import Traces, song_of_traces
from data_prep.vgmidi_sounds import Titled, recordings_of

PROVENANCE = Provenance(
    citation=(
        "Ferreira, Whitehead 2019, 'Learning to Generate Music with Sentiment', ISMIR (VGMIDI)"
    ),
    licence="none stated; the authors ask to be cited",
    url="https://github.com/lucasnfe/vgmidi",
    scale="published in [-1, 1], unchanged; one value for each measure",
)

_ANSWERS = ("ex1_arousal", "ex1_description", "ex1_valence", "ex2_arousal", "ex2_valence")
_DESCRIPTION = ("age", "country", "gender", "musicianship", *_ANSWERS)
_LAYOUT = re.compile(r"(?i:vgmidi.*)|labelled|annotations|midi|audio")
_STUDY = re.compile(r"vgmidi_raw_([0-9]{1,9})\.json")
_STUDIES = ("vgmidi_raw_1.json", "vgmidi_raw_2.json")
_RATING = re.compile(r"(piece[0-9]{1,9})_[0-9]{1,9}")

_BAD_PIECE = "pieces have no MIDI file, duration and measures that could be, or the MIDI file of another; left out"
_NO_PIECE = "ratings are of pieces that are not described; left out"
_BAD_RATING = "ratings are no lists of numbers from -1 to 1; left out"
_EMPTY_RATING = "ratings hold no value; left out"
_REPEATED = (
    "ratings are by a person (or one who answered alike) who rated the piece before; left out"
)
_LONGER = "ratings have more values than the piece has measures; those beyond are left out"
_SHORTER = "ratings have fewer values than the piece has measures; kept as far as they go"
_UNANSWERED = (
    "ratings lack the answers about the examples: their people are known by {} alone; kept"
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a study says of a piece.

    Attributes:
      song_id: name of its MIDI file, without the suffix.
      interval: seconds from one value to the next.
      measures: how many.
      titled: under what names its sound may be found.
    """

    song_id: str
    interval: float
    measures: int
    titled: Titled


def read_vgmidi(root: Path, *, flat: Flat = "keep") -> AnnotatedCorpus:
    """Reads a clone of VGMIDI.

    The `audio` of a song is the download's WAV file where one is its sound, else its MIDI file, for
    :func:`data_prep.midi.render_songs`; None where there is neither.

    Args:
      root: the clone, a folder above it, or a part of it.
      flat: what becomes of traces that hardly move.

    Raises:
      DataError: no study is there (where it was looked for), or one that is cut off or something else.
    """
    require_folder(root)
    folder = find(root, "annotations", _LAYOUT, _has_studies)
    if folder is None:
        raise DataError(
            f"{root}: VGMIDI's file 'labelled/annotations/{_STUDIES[0]}' not found; looked here, below, and in the "
            f"parts of VGMIDI beside it; git clone {PROVENANCE.url} brings it"
        )
    dropped: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    people: Counter[int] = Counter()
    rule = FlatRule(flat)
    pieces: list[tuple[Piece, Traces]] = []
    for path in _studies(folder):
        pieces += _read_study(path, {piece.song_id for piece, _ in pieces}, dropped, counted, people)  # fmt: skip
    sounds = _sounds(folder.parent, [piece for piece, _ in pieces])
    songs: list[Song] = []
    for piece, traces in pieces:
        song = song_of_traces(
            piece.song_id, sounds.get(piece.song_id), traces, rule, dropped, piece.interval
        )
        if song:
            songs.append(song)
    if not songs:
        raise DataError(f"{folder}: no piece has a rating; download VGMIDI again")
    missing = [name for name in _STUDIES if not (folder / name).is_file()]
    notes = [*(f"{folder / name} is not there" for name in missing), _who(people)]
    notes += [f"{count} {what}" for what, count in counted.items()]
    return AnnotatedCorpus(
        "vgmidi",
        tuple(sorted(songs, key=lambda song: id_order(song.song_id))),
        PROVENANCE,
        dict(dropped),
        tuple(notes),
        rule.counted(),
        Drawn(
            sum(len(trace) for _, traces in pieces for trace in traces.values()),
            max(piece.interval for piece, _ in pieces),
        ),
    )


def _has_studies(folder: Path) -> bool:
    return folder.is_dir() and bool(_studies(folder))


def _studies(folder: Path) -> list[Path]:
    """Files of the studies, by their numbers."""
    found = {path: _STUDY.fullmatch(path.name) for path in folder.iterdir()}
    return sorted((path for path, name in found.items() if name), key=_number)


def _number(path: Path) -> int:
    name = _STUDY.fullmatch(path.name)
    assert name is not None
    return int(name[1])


def _who(people: Counter[int]) -> str:
    """How many people, by how many pieces they rated."""
    of = ", ".join(
        f"{count} of {pieces} piece{'s' * (pieces > 1)}" for pieces, count in sorted(people.items())
    )
    return f"people are told apart by what they answered: {people.total()} people, {of}"


# ---- One study.


def _read_study(
    path: Path,
    known: set[str],
    dropped: Counter[str],
    counted: Counter[str],
    people: Counter[int],
) -> list[tuple[Piece, Traces]]:
    """Pieces that have ratings, in the study's order. Adds to the counts what is odd, and who rated how many pieces.

    Args:
      path: of the study.
      known: MIDI files of pieces of earlier studies.
      dropped: what is left out, and why.
      counted: what is odd, and kept.
      people: how many pieces -> how many people rated so many.
    """
    described, annotations = _parts(path)
    pieces: dict[str, Piece] = {}
    for name, value in described.items():
        piece = _piece(value)
        if piece and piece.song_id not in known:
            pieces[name] = piece
            known.add(piece.song_id)
        else:
            dropped[_BAD_PIECE] += 1
    number = _number(path)
    persons: dict[tuple[str, ...], str] = {}
    traces: dict[str, Traces] = {}
    for key, rating in annotations.items():
        named = _RATING.fullmatch(key)
        piece = pieces.get(named[1]) if named else None
        if not isinstance(rating, dict) or not named:
            dropped[_BAD_RATING] += 1
            continue
        description = tuple(repr(rating.get(field)) for field in _DESCRIPTION)
        who = persons.setdefault(description, f"p{number}_{len(persons) + 1}")
        if piece is None:
            dropped[_NO_PIECE] += 1
            continue
        trace = _trace(rating, piece, dropped, counted)
        if trace is None:
            continue
        if who in traces.setdefault(named[1], {}):
            dropped[_REPEATED] += 1
            continue
        if any(rating.get(field) is None for field in _ANSWERS):
            counted[_UNANSWERED.format(", ".join(_DESCRIPTION[: -len(_ANSWERS)]))] += 1
        traces[named[1]][who] = trace
    rated = Counter(who for of_piece in traces.values() for who in of_piece)
    people.update(rated.values())
    return [(pieces[name], of_piece) for name, of_piece in traces.items() if of_piece]


def _parts(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`pieces` and `annotations` of a study.

    Raises:
      DataError: it cannot be read, or holds something else.
    """
    try:
        study = parse_json(path.read_text(encoding="utf-8"))
        pieces, annotations = (study[name] for name in ("pieces", "annotations"))
        if not isinstance(pieces, dict) or not isinstance(annotations, dict):
            raise TypeError("pieces and annotations are no objects")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cut off, or no study of VGMIDI ({error}); download it again"
        ) from None
    return pieces, annotations


def _piece(value: Any) -> Piece | None:
    """What is said of a piece; None where it cannot be."""
    if not isinstance(value, dict):
        return None
    midi, duration = value.get("midi"), value.get("duration")
    measures: Any = value.get("measures")
    if not isinstance(midi, str) or not _is_number(duration) or type(measures) is not int:
        return None
    if not 0 < duration <= max_seconds() or not 0 < measures <= 1e6:
        return None
    try:
        song_id = safe_id("midi", Path(safe_id("midi", midi)).stem)
    except ValueError:
        return None
    names = [value[name] for name in ("name", "audio") if isinstance(value.get(name), str)]
    return Piece(song_id, duration / measures, measures, Titled(song_id, tuple(names), duration))


def _trace(
    rating: Mapping[str, Any], piece: Piece, dropped: Counter[str], counted: Counter[str]
) -> np.ndarray | None:
    """`[n, 3]` time, arousal, valence; None, and counted, where there is nothing to use."""
    lists = [rating.get(dimension, []) for dimension in DIMENSIONS]
    if not all(isinstance(values, list) and all(map(_is_rating, values)) for values in lists):
        dropped[_BAD_RATING] += 1
        return None
    lengths = [len(values) for values in lists]
    trace = np.full((min(max(lengths), piece.measures), 3), math.nan)
    trace[:, 0] = np.round(np.arange(len(trace)) * piece.interval, TIME_DIGITS)
    for column, values in enumerate(lists, start=1):
        used = values[: piece.measures]
        trace[: len(used), column] = [math.nan if value is None else value for value in used]
    if not np.isfinite(trace[:, 1:]).any():
        dropped[_EMPTY_RATING] += 1
        return None
    if max(lengths) > piece.measures:
        counted[_LONGER] += 1
    elif any(0 < length < piece.measures for length in lengths):
        counted[_SHORTER] += 1
    return trace


def _is_rating(value: Any) -> bool:
    """A number from -1 to 1, or nothing."""
    return value is None or (_is_number(value) and abs(value) <= 1)


def _is_number(value: Any) -> TypeGuard[float]:
    """A finite number; JSON as Python reads it has others, and truth values."""
    return type(value) in (int, float) and math.isfinite(value)


# ---- Sound.


def _sounds(folder: Path, pieces: list[Piece]) -> dict[str, Path]:
    """The sound of each piece, or its MIDI file, by what is in the folders beside the annotations."""
    midi = folder / "midi"
    found = {
        unicodedata.normalize("NFC", path.stem): path
        for path in (sorted(midi.iterdir()) if midi.is_dir() else ())
        if path.suffix.lower() in MIDI_SUFFIXES and not path.name.startswith(".")
    }
    return found | recordings_of([piece.titled for piece in pieces], folder / "audio")
