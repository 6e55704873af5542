"""Sound files to mono waveforms at the rate asked for."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.base import DataError

if TYPE_CHECKING:
    import soundfile

AUDIO_SUFFIXES = (".mp3", ".wav", ".flac", ".ogg", ".opus", ".aiff", ".aif", ".au")
"""Looked for in this order. libsndfile decides by content what it can decode."""

RATES = (2_000, 384_000)
"""Sampling rates accepted, in Hz."""

MAX_HOURS = 4.0
"""Longer sound is refused; $DSAML_MAX_HOURS changes that."""

MAX_GB = 6.0
"""Sound that is larger when decoded (float32, all channels) is refused; $DSAML_MAX_GB changes that. It bounds the
memory and the time of decoding: 10 kB of FLAC can hold hours of silence in eight channels."""

MAX_PEAK = 1e10
"""Samples beyond this are no sound: their power would overflow float32. Integers as they are reach 2e9."""

CUT_SECONDS = 1.0
"""A file whose sound ends this much before it says has been cut off."""

_BLOCK_SAMPLES = 1 << 20


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
    rank = {suffix: i for i, suffix in enumerate(AUDIO_SUFFIXES)}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if suffix not in rank:
            continue
        name = unicodedata.normalize("NFC", path.stem)  # macOS stores names decomposed
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


@contextmanager
def open_sound(path: Path) -> Iterator[soundfile.SoundFile]:
    """Opens a sound file that is within the limits by what its header says.

    Raises:
      DataError: also from the block, where decoding fails.
    """
    import soundfile

    if not path.is_file():
        raise DataError(f"{path}: no such sound file")
    try:
        # libsndfile gets no name: by some it would take any bytes for sound, and not all are text.
        with path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            _require_within_limits(path, sound)
            yield sound
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path}: not a sound file this can decode ({error.error_string})"
        ) from None
    except RuntimeError as error:
        raise DataError(f"{path}: decoding failed ({error})") from None


def _require_within_limits(path: Path, sound: soundfile.SoundFile) -> None:
    rate, frames = sound.samplerate, sound.frames
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{path}: {rate} Hz; rates from {RATES[0]} to {RATES[1]} Hz work")
    if frames >= 2**62:
        raise DataError(f"{path}: does not say how long it is; encode it again")
    longest, largest = max_seconds(), _limit("DSAML_MAX_GB", MAX_GB)
    if frames > longest * rate:
        raise DataError(
            f"{path}: {frames / rate:.0f} s, longer than the limit of {longest:g} s; cut it, or raise "
            "$DSAML_MAX_HOURS"
        )
    size = frames * sound.channels * 4 / 1e9
    if size > largest:
        raise DataError(
            f"{path}: {size:.3g} GB when decoded ({sound.channels} channels, {rate} Hz), above the limit of "
            f"{largest:g} GB; mix it down, or raise $DSAML_MAX_GB"
        )


def load_audio(path: Path) -> tuple[np.ndarray, int]:
    """Decodes a file and averages its channels.

    Samples are kept as decoded: the peaks above 1.0 that mp3 decoding makes are not clipped. Decoding needs
    the memory of the waveform and 8 MB.

    Args:
      path: any file libsndfile reads, any number of channels.

    Returns:
      waveform `[n]` float32, n > 0, and its rate in Hz.

    Raises:
      DataError: missing, unreadable, empty, cut off, over a limit, an odd rate, or samples that are not
        numbers.
    """
    with open_sound(path) as sound:
        rate, claimed = sound.samplerate, sound.frames
        waveform = np.empty(claimed, np.float32)
        filled = 0
        block_frames = max(1, _BLOCK_SAMPLES // sound.channels)
        # Not sound.blocks(): where a file ends early, that goes on with the samples of the block before.
        while len(block := sound.read(block_frames, dtype="float32", always_2d=True)):
            with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused below
                waveform[filled : filled + len(block)] = block.mean(axis=1)
            filled += len(block)
    waveform = waveform[:filled]
    if not filled:
        raise DataError(f"{path}: holds no samples")
    if claimed - filled > CUT_SECONDS * rate and _is_counted(path):
        raise DataError(
            f"{path}: cut off; it claims {claimed / rate:.1f} s of sound and has {filled / rate:.1f} s"
        )
    peak = max(float(waveform.max()), -float(waveform.min()))  # NaN passes through both
    if not math.isfinite(peak):
        raise DataError(f"{path}: holds samples that are not numbers")
    if peak > MAX_PEAK:
        raise DataError(f"{path}: holds samples up to {peak:.3g}; sound lies in [-1, 1]")
    return waveform, rate


def _is_counted(path: Path) -> bool:
    """Whether a file says how long it is. Of an mp3 without a Xing header the length is estimated."""
    with path.open("rb") as file:
        tag = file.read(10)
        size = 0
        if tag.startswith(b"ID3") and len(tag) == 10:
            size = 10 + sum(
                byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)
            )
        file.seek(size)
        first = file.read(4096)
    is_mp3 = first[:1] == b"\xff"
    return not is_mp3 or any(name in first for name in (b"Xing", b"Info", b"VBRI"))


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
