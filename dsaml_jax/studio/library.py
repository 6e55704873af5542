"""The songs of a study: what they are, how browsers get them, and their features."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import TimeoutError as TookTooLong
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pebble import ProcessExpired, ProcessPool

from data_prep.analysis import Embed, SongAnalysis, SongFeatures, analyse, finish
from data_prep.audio import AUDIO_SUFFIXES, load_audio, open_sound, sound_files
from data_prep.base import WINDOW_STEPS, DataError, printable, replacing
from data_prep.features import FeatureConfig
from data_prep.reading import id_order
from dsaml_jax.base import STEPS_PER_SECOND
from dsaml_jax.studio.store import Store

DECODE_SECONDS = 60.0
"""A file that takes longer to decode and analyse is given up."""

LONGEST_SECONDS = 900.0
MOST_UPLOAD_BYTES = 60_000_000
_LEAST_SECONDS = WINDOW_STEPS / STEPS_PER_SECOND

MEDIA_TYPES = {".mp3": "audio/mpeg", ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".opus": "audio/ogg"}  # fmt: skip
"""What browsers play; the rest they get as WAV."""


@dataclasses.dataclass(frozen=True)
class StudioSong:
    """A song that can be annotated.

    Attributes:
      number: in this study.
      name: for people.
      path: the file.
      digest: of its bytes.
      seconds: of sound.
    """

    number: int
    name: str
    path: Path
    digest: str
    seconds: float


class Library:
    """Songs of a folder and those that were uploaded; features are kept in the study's cache."""

    def __init__(
        self, store: Store, songs: Path, uploads: Path, cache: Path, config: FeatureConfig, embed: Embed | None
    ) -> None:  # fmt: skip
        """Looks at every file's header.

        Args:
          store: of the study.
          songs: folder of sound files.
          uploads: folder of those that participants brought.
          cache: folder for features.
          config: how features are made.
          embed: the network behind the global embedding, where there is one.

        Raises:
          DataError: no song can be used.
        """
        self._store, self._cache, self._uploads, self._config = store, cache, uploads, config
        self._lock = threading.Lock()
        self._songs: dict[int, StudioSong] = {}
        self._embed = embed
        self._decoders = ProcessPool(max_workers=1, context=get_context("spawn"))
        self.refused: dict[str, str] = {}
        """File name to why it cannot be used."""

        uploads.mkdir(parents=True, exist_ok=True)
        if not songs.is_dir():
            raise DataError(f"{songs}: no such folder; --songs is a folder with sound files")
        for folder in (songs, uploads):
            for name, path in sound_files(folder).items():
                self._look_at(path, name if folder is songs else name.partition(".")[2] or name)
        if not self._songs:
            why = next(iter(self.refused.values()), f"it holds none of {', '.join(AUDIO_SUFFIXES)}")
            raise DataError(f"{songs}: no song can be used: {why}")

    def close(self) -> None:
        """Ends the processes that decode."""
        self._decoders.stop()
        self._decoders.join()

    def __iter__(self) -> Iterator[StudioSong]:
        with self._lock:
            return iter(
                sorted(self._songs.values(), key=lambda song: id_order(song.name.casefold()))
            )

    def __len__(self) -> int:
        return len(self._songs)

    def get(self, number: int) -> StudioSong | None:
        """A song by its number in the study."""
        return self._songs.get(number)

    def _look_at(self, path: Path, name: str) -> StudioSong | None:
        try:
            with open_sound(path) as sound:
                seconds = sound.frames / sound.samplerate
            if not _LEAST_SECONDS <= seconds <= LONGEST_SECONDS:
                raise DataError(
                    f"{path}: {seconds:.1f} s; songs of {_LEAST_SECONDS:g} to {LONGEST_SECONDS:g} s can be annotated"
                )
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        except (DataError, OSError) as error:
            self.refused[path.name] = printable(str(error))
            return None
        shown = printable(name)[:100]
        song = StudioSong(self._store.song_number(digest, shown), shown, path, digest, seconds)
        with self._lock:
            return self._songs.setdefault(song.number, song)

    def upload(self, name: str, content: bytes) -> StudioSong:
        """Takes in a song that somebody brought.

        Args:
          name: as they call the file; nothing but its suffix is used in the name of ours.
          content: of the file.

        Raises:
          DataError: too large, too short or long, of another kind, or nothing that can be decoded in time.
        """
        stem, suffix = os.path.splitext(name.replace("\\", "/").rpartition("/")[2])
        suffix = suffix.lower()
        if suffix not in AUDIO_SUFFIXES:
            raise DataError(f"only {', '.join(AUDIO_SUFFIXES)} can be uploaded")
        if len(content) > MOST_UPLOAD_BYTES:
            raise DataError(f"more than {MOST_UPLOAD_BYTES // 10**6} MB")
        digest = hashlib.sha256(content).hexdigest()[:32]
        plain = "".join(x if x.isalnum() or x in " -_()" else "_" for x in stem)[:80].strip() or "song"  # fmt: skip
        path = self._uploads / f"{digest}.{plain}{suffix}"
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        song = None
        try:
            song = self._look_at(path, stem)
            if song is None:
                why = self.refused.pop(path.name)
                raise DataError(why.removeprefix(f"{path}: "))
            self.features(song)
        except DataError as error:
            if song is None or song.path == path:
                path.unlink(missing_ok=True)
                if song is not None:
                    with self._lock:
                        del self._songs[song.number]
            raise DataError(str(error).removeprefix(f"{path}: ")) from None
        if song.path != path:  # the same bytes are there under another name
            path.unlink(missing_ok=True)
        return song

    def features(self, song: StudioSong) -> SongFeatures:
        """Features of a song, from the cache or decoded in a process of its own.

        Raises:
          DataError: the file cannot be decoded, or not in time.
        """
        path = self._cache / "features" / f"{song.digest}-{_digest(self._config)}.npz"
        if path.is_file():
            with np.load(path) as stored:
                return SongFeatures(stored["log_mel"], stored["embedding"], stored["window_start"])
        job = self._decoders.schedule(_analyse, args=(song.path, self._config), timeout=DECODE_SECONDS)  # fmt: skip
        try:
            analysis = job.result()
        except TookTooLong:
            raise DataError(f"{song.path}: not decoded within {DECODE_SECONDS:g} s") from None
        except ProcessExpired:
            raise DataError(f"{song.path}: the decoder gave up on it") from None
        features = finish(analysis, self._embed)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, log_mel=features.log_mel, embedding=features.embedding, window_start=features.window_start)  # fmt: skip
        return features

    def playable(self, song: StudioSong) -> tuple[Path, str]:
        """A file that browsers play, and its media type."""
        known = MEDIA_TYPES.get(song.path.suffix.lower())
        if known:
            return song.path, known
        path = self._cache / "playable" / f"{song.digest}.wav"
        if not path.is_file():
            import soundfile

            waveform, rate = load_audio(song.path)
            with replacing(path) as temporary:
                soundfile.write(temporary, waveform, rate, subtype="PCM_16", format="WAV")
        return path, "audio/wav"


def _digest(config: FeatureConfig) -> str:
    return hashlib.sha256(config.name.encode()).hexdigest()[:12]


def _analyse(path: Path, config: FeatureConfig) -> SongAnalysis:
    """Runs in a process of its own, which may be ended at any time."""
    waveform, rate = load_audio(path)
    return analyse(waveform, rate, config)
