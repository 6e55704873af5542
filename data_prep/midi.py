"""MIDI files become sound, by a SoundFont (extra `[midi]`).

midirenderer, a synthesiser in Rust, plays a file with all its controllers and tempo changes; the same file, SoundFont and
version give the same samples. They are kept as FLAC, mono (all that is ever listened to), 48 kHz, 16 bit, under names that
have a digest of all that they depend on, so that a stale one is never heard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from data_prep.audio import max_seconds
from data_prep.base import AnnotatedCorpus, DataError, replacing
from data_prep.parallel import Progress, parallel_map
from data_prep.validation import subset

MIDI_SUFFIXES = (".mid", ".midi")

SOUNDFONT = "TimGM6mb.sf2"
"""A small General MIDI SoundFont, which the package pretty_midi ships."""

RENDERED = "rendered"
"""Folder of rendered sound, in that of a corpus's prepared data."""


@dataclasses.dataclass(frozen=True)
class Renderer:
    """What plays MIDI files.

    Attributes:
      soundfont: its file.
      digest: of that.
      version: of midirenderer.
    """

    soundfont: Path
    digest: str
    version: str

    def target(self, folder: Path, midi: Path) -> Path:
        """Where the sound of a MIDI file is kept."""
        made_of = f"{self.version}|{self.digest}|".encode() + midi.read_bytes()
        return folder / f"{midi.stem}.{hashlib.sha256(made_of).hexdigest()[:12]}.flac"


def find_renderer(soundfont: Path | None = None) -> Renderer:
    """What plays MIDI files here.

    Args:
      soundfont: of an instrument's sounds; by default :data:`SOUNDFONT`.

    Raises:
      DataError: the extra is not installed, or no such SoundFont.
    """
    shipped = importlib.util.find_spec("pretty_midi")
    parts = (importlib.util.find_spec(name) for name in ("midirenderer", "mido"))
    if not all(parts) or shipped is None or shipped.origin is None:
        raise DataError(
            "the pieces are MIDI files, and nothing that plays them is installed: pip install 'dsaml_jax[midi]'"
        )
    path = soundfont or Path(shipped.origin).with_name(SOUNDFONT)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the SoundFont cannot be read ({error.strerror}); --soundfont FILE.sf2 takes another"
        ) from None
    if content[:4] != b"RIFF" or content[8:12] != b"sfbk":
        raise DataError(f"{path}: no SoundFont; --soundfont takes an .sf2 file")
    return Renderer(
        path, hashlib.sha256(content).hexdigest()[:12], importlib.metadata.version("midirenderer")
    )


def render_songs(
    corpus: AnnotatedCorpus,
    folder: Path,
    *,
    soundfont: Path | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnnotatedCorpus:
    """Renders the songs whose `audio` is a MIDI file; what is there already is used again.

    Each sound appears whole or not at all: after an interruption the same call goes on.

    Args:
      corpus: as read.
      folder: where rendered sound is kept.
      soundfont: see :func:`find_renderer`.
      limit: only those of so many songs, as :func:`data_prep.prepare.prepare` chooses them.
      workers: processes; None takes all cores.
      progress: called with files done and files in all.

    Returns:
      the corpus with sound files. A MIDI file that cannot be played gives its song none, and a note.

    Raises:
      DataError: see :func:`find_renderer`; or somebody else renders there now.
    """
    import filelock

    midi = {
        song.song_id: song.audio
        for song in corpus.songs
        if song.audio is not None and song.audio.suffix.lower() in MIDI_SUFFIXES
    }
    if not midi:
        return corpus
    renderer = find_renderer(soundfont)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", blocking=False):
            for left in folder.glob(".*.flac"):
                left.unlink()  # what a kill has left half written
            return _rendered(corpus, midi, folder, renderer, limit, workers, progress)
    except filelock.Timeout:
        raise DataError(f"{folder}: another command is rendering this right now") from None


def _rendered(
    corpus: AnnotatedCorpus,
    midi: Mapping[str, Path],
    folder: Path,
    renderer: Renderer,
    limit: int | None,
    workers: int | None,
    progress: Progress | None,
) -> AnnotatedCorpus:
    """With all of the chosen songs rendered. Where one cannot be, another is chosen for it."""
    notes: list[str] = []
    played: dict[str, Path] = {}
    while True:
        chosen = [song.song_id for song in subset(corpus.songs, limit)]
        todo = {
            song: renderer.target(folder, midi[song])
            for song in chosen
            if song in midi and song not in played
        }
        problems = _render_missing({midi[song]: todo[song] for song in todo}, renderer, workers, progress)  # fmt: skip
        failed = {song for song in todo if midi[song] in problems}
        notes += problems.values()
        played |= {song: path for song, path in todo.items() if song not in failed}
        corpus = dataclasses.replace(
            corpus,
            songs=tuple(
                dataclasses.replace(
                    song, audio=None if song.song_id in failed else played.get(song.song_id, song.audio)
                )
                for song in corpus.songs
            ),
        )  # fmt: skip
        if not failed or limit is None:
            break
    others = sum(song.audio is not None and song.song_id not in midi for song in corpus.songs)
    how = f"{len(played)} songs rendered from MIDI by midirenderer {renderer.version} with {renderer.soundfont.name} ({renderer.digest})"
    notes += [how, *([f"{others} songs have a recording of the download"] if others else [])]
    return dataclasses.replace(corpus, notes=(*corpus.notes, *notes))


def _render_missing(
    targets: Mapping[Path, Path],
    renderer: Renderer,
    workers: int | None,
    progress: Progress | None,
) -> dict[Path, str]:
    """Renders what is not there; MIDI file to what is wrong with it, for those that cannot be played."""
    todo = [(source, target, renderer) for source, target in targets.items() if not target.is_file()]  # fmt: skip
    problems = {}
    done = len(targets) - len(todo)
    for number, ((source, _, _), problem) in enumerate(
        zip(todo, parallel_map(_render, todo, workers), strict=True), start=1
    ):
        if problem:
            problems[source] = problem
        if progress:
            progress(done + number, len(targets))
    return problems


def _render(work: tuple[Path, Path, Renderer]) -> str:
    """Writes one sound; what is wrong with the MIDI file, or nothing."""
    import midirenderer

    source, target, renderer = work
    wrong = _wrong(source)
    if wrong:
        return f"{source}: {wrong}"
    try:
        wave = midirenderer.render_wave_from(renderer.soundfont.read_bytes(), source.read_bytes())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        return f"{source}: cannot be played ({error})"
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="int16", always_2d=True)
    mono = (samples.sum(axis=1, dtype=np.int32) // samples.shape[1]).astype(np.int16)
    if not mono.any():
        return f"{source}: is silent with {renderer.soundfont.name}"
    with replacing(target) as temporary:
        soundfile.write(temporary, mono, rate, format="FLAC", subtype="PCM_16")
    return ""


def _wrong(source: Path) -> str:
    """Why a MIDI file cannot be played, or nothing."""
    import mido

    try:
        file = mido.MidiFile(source, clip=True)
        seconds = file.length
        notes = any(message.type == "note_on" and message.velocity for track in file.tracks for message in track)  # fmt: skip
    except Exception as error:  # mido raises whatever it comes across
        return f"cut off, or no MIDI file ({str(error) or type(error).__name__}); download it again"
    if not notes:
        return "holds no notes"
    if seconds > max_seconds():
        return f"lasts {seconds:.0f} s, longer than the limit of {max_seconds():g} s; raise $DSAML_MAX_HOURS"
    return ""
