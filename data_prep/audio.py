"""Sound files to mono waveforms at the rate asked for."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep.base import DataError
from data_prep.decoding import CUT_SECONDS, Damaged, Sound, Undecodable, open_sndfile
from data_prep.ffmpeg import open_ffmpeg

T = TypeVar("T")

AUDIO_SUFFIXES = (
    ".mp3", ".wav", ".flac", ".ogg", ".opus", ".aiff", ".aif", ".au", ".m4a", ".aac", ".wma", ".caf", ".oga", ".weba",
    ".m4b", ".mka", ".wv", ".ape", ".tta", ".webm", ".mp4", ".mkv", ".mov", ".3gp",
)  # fmt: skip
"""Looked for in this order. What can be decoded is decided by content, not by these."""

RATES = (2_000, 384_000)
"""Sampling rates accepted, in Hz."""

MAX_HOURS = 4.0
"""Longer sound is refused; $DSAML_MAX_HOURS changes that."""

MAX_GB = 6.0
"""Sound that is larger when decoded (float32, all channels) is refused; $DSAML_MAX_GB changes that. It bounds the
memory and the time of decoding: 10 kB of FLAC can hold hours of silence in eight channels."""

MAX_PEAK = 1e10
"""Samples beyond this are no sound: their power would overflow float32. Integers as they are reach 2e9."""


def max_seconds() -> float:
    """Longest sound that is read, and latest time of an annotation."""
    return 3600 * _limit("DSAML_MAX_HOURS", MAX_HOURS)


def _limit(name: str, default: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise DataError(f"${name} is {text[:40]!r}; it must be a number above 0")
    return value


def without_suffix(name: str) -> str:
    """A song's name, which may be that of its sound file."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in AUDIO_SUFFIXES else name


def sound_files(folder: Path) -> dict[str, Path]:
    """Name without suffix (in Unicode's composed form) to file; earlier suffixes of AUDIO_SUFFIXES win."""
    return _by_name((path.stem, path) for path in sorted(folder.iterdir()))


def songs_below(folder: Path) -> dict[str, Path]:
    """The same of :func:`files_below`, the names with the folders in between: `album/song`."""
    files = ((path.relative_to(folder), path) for path in files_below(folder))
    return _by_name((inside.with_suffix("").as_posix(), path) for inside, path in files)


def _by_name(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    rank = {suffix: i for i, suffix in enumerate(AUDIO_SUFFIXES)}
    found: dict[str, Path] = {}
    for stem, path in named:
        suffix = path.suffix.lower()
        if suffix not in rank:
            continue
        name = unicodedata.normalize("NFC", stem)  # macOS stores names decomposed
        known = found.get(name)
        if known is None or rank[suffix] < rank[known.suffix.lower()]:
            found[name] = path
    return found


def files_below(folder: Path) -> list[Path]:
    """Sound files in a folder and all folders below it, sorted; what is hidden, and symbolic links, are left alone."""
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(here, name)
            sound = path.suffix.lower() in AUDIO_SUFFIXES and not name.startswith(".")
            if sound and not path.is_symlink():
                found.append(path)
    return sorted(found)


def read_sound(path: Path, use: Callable[[Sound], T]) -> T:
    """Opens a sound file that is within the limits by what its header says, and calls a function with it.

    libsndfile comes first, so that what it decodes is the same samples as ever; FFmpeg's decoders get what it does not
    know. Ogg Opus as FFmpeg writes it (and all that is made with it) libsndfile opens, but may give up on somewhere:
    then the function is called once more, with what the other decoder makes of it.

    Args:
      path: of the file.
      use: gets the sound. What it raises is raised, a :class:`~data_prep.decoding.Damaged` with the file's name.

    Raises:
      DataError: no such file, over a limit, or nothing that can be decoded, also as far as the function reads.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such sound file")
    why = []
    with path.open("rb", buffering=0) as file:  # libsndfile moves in it, behind Python's back
        for opening in (open_sndfile, open_ffmpeg):
            last = opening is open_ffmpeg
            try:
                with opening(file) as sound:
                    last = not sound.may_be_given_up
                    _require_within_limits(path, sound)
                    return use(sound)
            except Damaged as error:
                if last:
                    raise DataError(f"{path}: {error}") from None
            except Undecodable as error:
                why.append(str(error))
            if last:
                break
    raise DataError(f"{path}: not a sound file this can decode ({'; '.join(why)})")


def _require_within_limits(path: Path, sound: Sound) -> None:
    rate, frames = sound.rate, sound.frames
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{path}: {rate} Hz; rates from {RATES[0]} to {RATES[1]} Hz work")
    if frames >= 2**62:
        raise DataError(f"{path}: does not say how long it is; encode it again")
    _require_not_longer(path, sound, frames)


def _require_not_longer(path: Path, sound: Sound, frames: int) -> None:
    """Refuses sound of so many frames where it is over a limit."""
    longest, largest = max_seconds(), _limit("DSAML_MAX_GB", MAX_GB)
    if frames > longest * sound.rate:
        raise DataError(
            f"{path}: {frames / sound.rate:.0f} s, longer than the limit of {longest:g} s; cut it, or raise "
            "$DSAML_MAX_HOURS"
        )
    size = frames * sound.channels * 4 / 1e9
    if size > largest:
        raise DataError(
            f"{path}: {size:.3g} GB when decoded ({sound.channels} channels, {sound.rate} Hz), above the limit of "
            f"{largest:g} GB; mix it down, or raise $DSAML_MAX_GB"
        )


def load_audio(path: Path) -> tuple[np.ndarray, int]:
    """Decodes a file and averages its channels.

    Samples are kept as decoded: the peaks above 1.0 that mp3 decoding makes are not clipped. Decoding needs
    the memory of the waveform and 8 MB.

    Args:
      path: any file that libsndfile reads, or that FFmpeg's decoders do; any number of channels. Of a video its sound.

    Returns:
      waveform `[n]` float32, n > 0, and its rate in Hz.

    Raises:
      DataError: missing, unreadable, empty, cut off, over a limit, an odd rate, or samples that are not
        numbers.
    """
    return read_sound(path, partial(_decode, path))


def _decode(path: Path, sound: Sound) -> tuple[np.ndarray, int]:
    rate, claimed = sound.rate, sound.frames
    waveform = np.empty(claimed, np.float32)
    filled = 0
    for block in sound.blocks():
        end = filled + len(block)
        if end > len(waveform):  # a header may be wrong
            _require_not_longer(path, sound, end)
            waveform.resize(end + len(waveform) // 8, refcheck=False)
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused below
            waveform[filled:end] = block.mean(axis=1)
        filled = end
    waveform = waveform[:filled]
    if not filled:
        raise DataError(f"{path}: holds no samples")
    if claimed - filled > CUT_SECONDS * rate and sound.counted:
        raise Damaged(
            f"cut off; it claims {claimed / rate:.1f} s of sound and has {filled / rate:.1f} s"
        )
    peak = max(float(waveform.max()), -float(waveform.min()))  # NaN passes through both
    if not math.isfinite(peak):
        raise DataError(f"{path}: holds samples that are not numbers")
    if peak > MAX_PEAK:
        raise DataError(f"{path}: holds samples up to {peak:.3g}; sound lies in [-1, 1]")
    return waveform, rate


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Windowed-sinc resampling: Hann window, 6 zero crossings, rolloff 0.99.

    The filter of the published features; any sharper one gives a slightly other treble.

    Args:
      waveform: `[n]`.
      from_rate: Hz.
      to_rate: Hz.

    Returns:
      `[ceil(n * to_rate / from_rate)]` float32.
    """
    if from_rate == to_rate:
        return waveform.astype(np.float32, copy=False)
    from scipy.signal import resample_poly

    divisor = math.gcd(from_rate, to_rate)
    up, down = to_rate // divisor, from_rate // divisor
    resampled = resample_poly(waveform, up, down, window=_sinc_filter(up, down))
    return np.asarray(resampled, np.float32)


@lru_cache(maxsize=16)
def _sinc_filter(up: int, down: int, crossings: int = 6, rolloff: float = 0.99) -> np.ndarray:
    """Low-pass at `rolloff` times the lower of the two Nyquist rates, sampled at `up` times the input."""
    bandwidth = rolloff * min(1.0, up / down)  # in units of the input's rate
    half = math.ceil(crossings * up / bandwidth)
    position = np.clip(np.arange(-half, half + 1) * bandwidth / up, -crossings, crossings)
    window = np.cos(position * np.pi / crossings / 2) ** 2
    return (np.sinc(position) * window * bandwidth / up).astype(np.float32)
