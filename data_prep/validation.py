"""Are the files there, and can they be read? Asked before an hour of work, not after."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.audio import load_audio, read_sound
from data_prep.base import (
    MIN_SECONDS,
    STEPS_PER_SECOND,
    AnnotatedCorpus,
    DataError,
    Rating,
    Song,
    shuffled,
)
from data_prep.decoding import Damaged, Sound
from data_prep.parallel import Progress, parallel_map

TOLERATED_SECONDS = 1.0
"""That sound may be shorter than its annotations: DEAM's clips of 45.01 s are annotated to 45.5 s."""

_TAIL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Checked:
    """Which songs of a corpus can be used.

    Attributes:
      songs: those whose sound was found and opened, in the corpus's order, without the annotations of before the
        sound begins.
      digests: song id -> sha256 of the sound file, 16 hexadecimal digits.
      missing: ids of annotated songs without a sound file.
      damaged: one line for each sound file that cannot be used: which, and why.
      short: one line for each song whose sound ends well before its annotations; it is used as far
        as it goes.
      early: one line for each song whose sound ends before its annotations begin.
    """

    songs: tuple[Song, ...]
    digests: dict[str, str]
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    short: tuple[str, ...] = ()
    early: tuple[str, ...] = ()

    def all_lines(self) -> list[str]:
        """What is wrong with each file."""
        return [*self.damaged, *self.early, *self.short, *self._missing()]

    def lines(self) -> list[str]:
        """The same for people: of more than :data:`LIKE_MESSAGES` like lines the first, and how many there are."""
        lines = [*_shortened(self.damaged, "sound files cannot be used")]
        excerpts = len(self.early) > len(self.songs)
        hint = "; if they are excerpts, --audio-start SECONDS says where in the song they begin"
        lines += _shortened(
            self.early, "sound files end before their annotations begin", hint if excerpts else ""
        )
        lines += _shortened(
            self.short, "songs are annotated beyond the end of their sound; the rest is cut"
        )
        return [*lines, *self._missing()]

    @property
    def is_shortened(self) -> bool:
        """Whether :meth:`lines` says less than :meth:`all_lines`."""
        return len(self.all_lines()) > len(self.lines())

    def _missing(self) -> list[str]:
        lines = []
        if self.missing:
            some = ", ".join(self.missing[:8]) + (", ..." if len(self.missing) > 8 else "")
            total = len(self.missing) + len(self.damaged) + len(self.early) + len(self.songs)
            lines.append(
                f"{len(self.missing)} of {total} annotated songs have no sound file: {some}"
            )
        return lines


LIKE_MESSAGES = 10


def _shortened(lines: Sequence[str], what: str, hint: str = "") -> list[str]:
    if len(lines) <= LIKE_MESSAGES:
        return list(lines)
    return [f"{len(lines)} {what}{hint}; the first: {lines[0]}"]


def heard(song: Song) -> Song:
    """The song without what is annotated before its sound begins."""
    cut = max(0, math.ceil(-song.start * STEPS_PER_SECOND))
    if not cut:
        return song
    ratings = (
        Rating(rating.annotator_id, rating.arousal[cut:], rating.valence[cut:])
        for rating in song.ratings
    )
    return dataclasses.replace(
        song,
        start=song.start + cut / STEPS_PER_SECOND,
        arousal=song.arousal[cut:],
        valence=song.valence[cut:],
        ratings=tuple(rating for rating in ratings if _drawn(rating)),
    )


def _drawn(curves: Song | Rating) -> bool:
    return bool(np.isfinite(curves.arousal).any() or np.isfinite(curves.valence).any())


def subset(songs: Sequence[Song], limit: int | None) -> tuple[Song, ...]:
    """So many of the songs that have sound; all songs where `limit` is None.

    A larger limit gives the same ones and more, so that a preparation can grow.
    """
    if limit is None:
        return tuple(songs)
    usable = [song for song in songs if song.audio is not None]
    chosen = set(shuffled(song.song_id for song in usable)[:limit])
    return tuple(song for song in usable if song.song_id in chosen)


def check(
    corpus: AnnotatedCorpus,
    *,
    limit: int | None = None,
    thorough: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Opens every sound file of a corpus.

    Args:
      corpus: as read.
      limit: look at so many songs only, of those that have sound.
      thorough: decode every file to its end; otherwise its header and the last annotated moment.
      workers: processes; None takes all cores.
      progress: called with files done and files in all.
    """
    chosen = subset(corpus.songs, limit)
    with_sound = [heard(song) for song in chosen if song.audio is not None]
    answers = parallel_map(_check_sound, [(song, thorough) for song in with_sound], workers)
    songs, digests, damaged, short, early = [], {}, [], [], []
    for done, (song, answer) in enumerate(zip(with_sound, answers, strict=True), start=1):
        if isinstance(answer, str):
            damaged.append(answer)
        elif answer.seconds < song.start + 1 / STEPS_PER_SECOND:
            early.append(
                f"{song.audio}: {answer.seconds:.1f} s of sound, but annotations begin at {song.start:g} s"
            )
        else:
            songs.append(song)
            digests[song.song_id] = answer.digest
            annotated = song.start + len(song.arousal) / STEPS_PER_SECOND
            if answer.seconds < annotated - TOLERATED_SECONDS:
                short.append(
                    f"{song.audio}: {answer.seconds:.1f} s of sound, annotated up to {annotated:.1f} s; "
                    "the rest is cut"
                )
        if progress:
            progress(done, len(with_sound))
    missing = tuple(song.song_id for song in chosen if song.audio is None)
    return Checked(tuple(songs), digests, missing, tuple(damaged), tuple(short), tuple(early))


@dataclasses.dataclass(frozen=True)
class _Sound:
    digest: str
    seconds: float


def _check_sound(work: tuple[Song, bool]) -> _Sound | str:
    """What a sound file is, or what is wrong with it."""
    song, thorough = work
    assert song.audio is not None
    if not _drawn(song):
        return f"{song.audio}: its annotations end before the sound begins"
    try:
        with song.audio.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        seconds = read_sound(song.audio, partial(_check_end, song, song.audio))
        if thorough:
            waveform, rate = load_audio(song.audio)
            seconds = len(waveform) / rate
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{song.audio}: {error.strerror or error}"
    return _Sound(digest, seconds)


def _check_end(song: Song, path: Path, sound: Sound) -> float:
    """Reads the last moment that is needed; returns how many seconds there should be.

    Raises:
      DataError: it is too short.
      Damaged: it is cut off.
    """
    claimed: float = sound.frames / sound.rate
    if claimed < MIN_SECONDS:
        raise DataError(f"{path}: {claimed:.1f} s of sound; at least {MIN_SECONDS:g} s are needed")
    if claimed < song.start + 1 / STEPS_PER_SECOND:
        return claimed
    needed = min(claimed, song.start + len(song.arousal) / STEPS_PER_SECOND)
    if not sound.reaches(int((needed - _TAIL_SECONDS) * sound.rate)):
        raise Damaged(f"cut off; it claims {claimed:.1f} s of sound")
    return claimed
