"""Sound files to mono waveforms at the rate asked for."""

from __future__ import annotations

import math
import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.base import DataError

AUDIO_SUFFIXES = (".mp3", ".wav", ".flac", ".ogg", ".opus", ".aiff", ".aif", ".au")
"""Looked for in this order. libsndfile decides by content what it can decode."""

MAX_SECONDS = 4 * 3600.0
RATES = (2_000, 384_000)
"""Sampling rates accepted, in Hz."""


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


def load_audio(path: Path, *, max_seconds: float = MAX_SECONDS) -> tuple[np.ndarray, int]:
    """Decodes a file and averages its channels.

    Samples are kept as decoded: the peaks above 1.0 that mp3 decoding makes are not clipped.

    Args:
      path: any file libsndfile reads, any number of channels.
      max_seconds: longer files are refused.

    Returns:
      waveform `[n]` float32, n > 0, and its rate in Hz.

    Raises:
      DataError: missing, unreadable, empty, too long, an odd rate, or samples that are not numbers.
    """
    import soundfile

    if not path.is_file():
        raise DataError(f"{path}: no such sound file")
    blocks = []
    try:
        with soundfile.SoundFile(path) as sound:
            rate = sound.samplerate
            if not RATES[0] <= rate <= RATES[1]:
                raise DataError(f"{path}: {rate} Hz; rates from {RATES[0]} to {RATES[1]} Hz work")
            seconds = 0.0
            for block in sound.blocks(blocksize=rate, dtype="float32", always_2d=True):
                blocks.append(block.mean(axis=1))
                seconds += len(block) / rate
                if seconds > max_seconds:
                    raise DataError(f"{path}: longer than the limit of {max_seconds:g} s")
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path}: not a sound file this can decode ({error.error_string})"
        ) from None
    except RuntimeError as error:
        raise DataError(f"{path}: decoding failed ({error})") from None
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(waveform):
        raise DataError(f"{path}: holds no samples")
    if not np.isfinite(waveform).all():
        raise DataError(f"{path}: holds samples that are not numbers")
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
