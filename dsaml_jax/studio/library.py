"""The songs of a study: what they are, how browsers get them, and their features."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as TookTooLong
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pebble import ProcessExpired, ProcessPool

from data_prep.analysis import Embed, SongAnalysis, SongFeatures, analyse, finish
from data_prep.audio import AUDIO_SUFFIXES, load_audio, read_sound, songs_below, sound_files
from data_prep.base import MIN_SECONDS, DataError, printable, replacing
from data_prep.features import FeatureConfig
from data_prep.reading import id_order
from dsaml_jax.studio.store import Participant, Store

T = TypeVar("T")

DECODE_SECONDS = 60.0
"""A file that takes longer to decode and analyse is given up."""

LONGEST_SECONDS = 900.0
MOST_UPLOAD_BYTES = 60_000_000
DECODED_GB = "1"
"""Sound that is larger when decoded is refused (a file of a megabyte may hold more), see :mod:`data_prep.audio`."""


MEDIA_TYPES = {".mp3": "audio/mpeg", ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".opus": "audio/ogg"}  # fmt: skip
"""What all browsers play; the rest (m4a, wma, the sound of videos, ...) they get as WAV, decoded as the model hears it."""


@dataclasses.dataclass(frozen=True)
class StudioSong:
    """A song that can be annotated.

    Attributes:
      number: in this study.
      name: for people.
      path: the file.
      digest: of its bytes.
      seconds: of sound, as the file's header says.
      brought_by: participants who uploaded it, or None: it is the study's.
    """

    number: int
    name: str
    path: Path
    digest: str
    seconds: float
    brought_by: frozenset[int] | None = None


class Library:
    """Songs of a folder and those that were uploaded; features are kept in the study's cache."""

    def __init__(
        self, store: Store, songs: Path, uploads: Path, cache: Path, config: FeatureConfig, embed: Embed | None
    ) -> None:  # fmt: skip
        """Looks at every file's header.

        Args:
          store: of the study.
          songs: folder of sound files, also in folders of it. What the study itself keeps there is none of its songs.
          uploads: folder of those that participants brought.
          cache: folder for features.
          config: how features are made.
          embed: the network behind the global embedding, where there is one.

        Raises:
          DataError: no song can be used.
        """
        self._store, self._cache, self._uploads, self._config = store, cache, uploads, config
        self._folder = songs
        self._lock = threading.Lock()
        self._songs: dict[int, StudioSong] = {}
        self._embed = embed
        self._decoders = ProcessPool(max_workers=1, context=get_context("spawn"), initializer=_limit)  # fmt: skip
        self.refused: dict[str, str] = {}
        """File, as it is called below its folder, to why it cannot be used."""

        uploads.mkdir(parents=True, exist_ok=True)
        if not songs.is_dir():
            raise DataError(f"{songs}: no such folder; --songs is a folder with sound files")
        for name, path in songs_below(songs).items():
            if not any(path.resolve().is_relative_to(own.resolve()) for own in (uploads, cache)):
                self._add(path, name, _inspect)
        brought_by = store.uploads()
        for digest, path in sound_files(uploads).items():
            song = self._add(path, store.song_name(digest) or digest, _inspect, frozenset())
            if song is not None and song.brought_by is not None:
                self._own(song, brought_by.get(song.number, set()))
        if not self._songs:
            why = next(iter(self.refused.values()), f"it holds none of {', '.join(AUDIO_SUFFIXES)}")
            raise DataError(f"{songs}: no song can be used: {why}")

    def close(self) -> None:
        """Ends the processes that decode."""
        self._decoders.stop()
        self._decoders.join()

    def __iter__(self) -> Iterator[StudioSong]:
        with self._lock:
            return iter(sorted(self._songs.values(), key=lambda song: id_order(song.name.casefold())))  # fmt: skip

    def __len__(self) -> int:
        return len(self._songs)

    def get(self, number: int) -> StudioSong | None:
        """A song by its number in the study."""
        with self._lock:
            return self._songs.get(number)

    def of(self, who: Participant) -> list[StudioSong]:
        """The songs that somebody sees: the study's, and those they brought."""
        return [song for song in self if song.brought_by is None or who.id in song.brought_by]

    def refuse(self, song: StudioSong, why: str) -> None:
        """Takes a song out that turned out to be unusable."""
        self.refused[self._called(song.path)] = printable(why)
        with self._lock:
            self._songs.pop(song.number, None)

    def forget(self, number: int) -> None:
        """Takes a song out that is to be deleted."""
        with self._lock:
            self._songs.pop(number, None)

    def _called(self, path: Path) -> str:
        here = self._folder if path.is_relative_to(self._folder) else path.parent
        return path.relative_to(here).as_posix()

    def _add(
        self, path: Path, name: str, inspect: Callable[[Path], tuple[str, float]], brought_by: frozenset[int] | None = None
    ) -> StudioSong | None:  # fmt: skip
        """The song in a file, which may be one that is there already; None where it is refused."""
        try:
            digest, seconds = inspect(path)
        except (DataError, OSError) as error:
            self.refused[self._called(path)] = printable(str(error))
            return None
        shown = printable(name)[-100:]  # a song's own name is behind those of its folders
        number = self._store.song_number(digest, shown)
        song = StudioSong(number, shown, path, digest, seconds, brought_by)
        with self._lock:
            return self._songs.setdefault(number, song)

    def _own(self, song: StudioSong, people: Iterable[int]) -> StudioSong:
        owned = dataclasses.replace(song, brought_by=frozenset(people) | (song.brought_by or frozenset()))  # fmt: skip
        with self._lock:
            self._songs[song.number] = owned
        return owned

    def upload(self, who: Participant, name: str, content: bytes) -> StudioSong:
        """Takes in a song that somebody brought; they alone see it.

        Args:
          who: brings it.
          name: as they call the file; it is shown, and its suffix is used in the name of ours.
          content: of the file.

        Raises:
          DataError: too large, too short or long, of another kind, or nothing that can be decoded in time.
        """
        stem, suffix = os.path.splitext(name.replace("\\", "/").rpartition("/")[2])
        suffix = suffix.lower()
        if suffix not in AUDIO_SUFFIXES:
            raise DataError(f"only {', '.join(AUDIO_SUFFIXES)} can be uploaded")
        path = self._uploads / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        song = None
        try:
            song = self._add(path, stem or "song", lambda path: self._decode(_inspect, path), frozenset())  # fmt: skip
            if song is None:
                raise DataError(self.refused.pop(self._called(path)))
            self.features(song)
        except DataError as error:
            if song is None or song.path == path:
                path.unlink(missing_ok=True)
                if song is not None:
                    self.refuse(song, "")
                    self.refused.pop(self._called(path), None)
            raise DataError(str(error).removeprefix(f"{path}: ")) from None
        if song.path != path:  # the same bytes are there under another name
            path.unlink(missing_ok=True)
        if song.brought_by is None:
            return song
        try:
            self._store.add_upload(who, song.number)
        except sqlite3.IntegrityError:
            path.unlink(missing_ok=True)
            raise DataError("this link belongs to nobody any more") from None
        return self._own(song, {who.id})

    def features(self, song: StudioSong) -> SongFeatures:
        """Features of a song, from the cache or decoded in a process of its own.

        Raises:
          DataError: the file cannot be decoded, or not in time.
        """
        path = self._cache / "features" / f"{song.digest}-{_digest(self._config)}.npz"
        if path.is_file():
            with np.load(path) as stored:
                return SongFeatures(stored["log_mel"], stored["embedding"], stored["window_start"])
        analysis = self._decode(_analyse, song.path, self._config)
        features = finish(analysis, self._embed)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, log_mel=features.log_mel, embedding=features.embedding, window_start=features.window_start)  # fmt: skip
        return features

    def _decode(self, function: Callable[..., T], path: Path, *rest: Any) -> T:
        """Calls a function that reads a file in a process of its own, which is ended when it takes too long."""
        job = self._decoders.schedule(function, args=(path, *rest), timeout=DECODE_SECONDS)
        try:
            result: T = job.result()
        except TookTooLong:
            raise DataError(f"{path}: not decoded within {DECODE_SECONDS:g} s") from None
        except ProcessExpired:
            raise DataError(f"{path}: the decoder gave up on it") from None
        return result

    def playable(self, song: StudioSong) -> tuple[Path, str]:
        """A file that browsers play, and its media type."""
        known = MEDIA_TYPES.get(song.path.suffix.lower())
        if known:
            return song.path, known
        path = self._cache / "playable" / f"{song.digest}.wav"
        if not path.is_file():
            self._decode(_write_wav, song.path, path)
        return path, "audio/wav"


def _digest(config: FeatureConfig) -> str:
    return hashlib.sha256(config.name.encode()).hexdigest()[:12]


# ---- In a process of its own, which may be ended at any time.


def _limit() -> None:
    os.environ.setdefault("DSAML_MAX_GB", DECODED_GB)


def _inspect(path: Path) -> tuple[str, float]:
    """Digest of a file's bytes, and its length in seconds."""
    seconds = read_sound(path, lambda sound: sound.frames / sound.rate)
    if not MIN_SECONDS <= seconds <= LONGEST_SECONDS:
        raise DataError(
            f"{path}: {seconds:.1f} s; songs of {MIN_SECONDS:g} to {LONGEST_SECONDS:g} s can be annotated"
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32], seconds


def _analyse(path: Path, config: FeatureConfig) -> SongAnalysis:
    waveform, rate = load_audio(path)
    return analyse(waveform, rate, config)


def _write_wav(path: Path, target: Path) -> None:
    import soundfile

    waveform, rate = load_audio(path)
    with replacing(target) as temporary:
        soundfile.write(temporary, waveform, rate, subtype="PCM_16", format="WAV")
