"""Waveforms to what the model reads: log-mel patches and a global embedding."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Literal

import numpy as np

from data_prep.audio import resample
from data_prep.base import STEPS_PER_SECOND, WINDOW_STEPS, DataError

LOG_OFFSET = 1e-6
WINDOW_HOP = WINDOW_STEPS // 2
SPECTRAL_STATISTICS = 8


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """How features are made. The defaults are the paper's; `tiny` makes a CPU's day.

    Attributes:
      sample_rate: Hz, of the log-mel patches.
      frame_ms: length of the Hann window and of the FFT.
      hop_ms: between frames; must divide the half second of a step.
      mel_bands: `M`.
      embedding: `spectral`, eight statistics of every mel band: no weights, deterministic.
      embedding_per: `clip`, one embedding for each window of 30 s, or `step`, one for the 30 s
        around each step's start.
      dtype: of the log-mel patches in the shards.
    """

    sample_rate: int = 44_100
    frame_ms: int = 60
    hop_ms: int = 10
    mel_bands: int = 128
    embedding: Literal["spectral"] = "spectral"
    embedding_per: Literal["clip", "step"] = "clip"
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.step_samples * STEPS_PER_SECOND != self.sample_rate:
            raise DataError(f"sample_rate {self.sample_rate} must be even")
        if self.step_samples % self.hop:
            raise DataError(f"hop_ms {self.hop_ms} must divide half a second into whole samples")
        if self.embedding != "spectral":
            raise DataError(f"embedding {self.embedding!r} is unknown; there is: spectral")
        if self.embedding_per not in ("clip", "step"):
            raise DataError(f"embedding_per {self.embedding_per!r} is neither clip nor step")

    @property
    def step_samples(self) -> int:
        """Samples in half a second."""
        return self.sample_rate // STEPS_PER_SECOND

    @property
    def hop(self) -> int:
        """Samples between frames."""
        return self.sample_rate * self.hop_ms // 1000

    @property
    def fft(self) -> int:
        """Samples in a frame, and length of the FFT."""
        return self.sample_rate * self.frame_ms // 1000

    @property
    def frames(self) -> int:
        """`F`, frames in a step: one on each edge and those between."""
        return self.step_samples // self.hop + 1

    @property
    def embedding_width(self) -> int:
        """`E`."""
        return SPECTRAL_STATISTICS * self.mel_bands

    @property
    def name(self) -> str:
        """TFDS config name: every setting is in it, so that stale features are never read."""
        return (
            f"mel{self.mel_bands}-{self.frame_ms}ms-{self.hop_ms}ms-{self.sample_rate}hz"
            f"-{self.embedding}-{self.embedding_per}-{self.dtype}"
        )


TINY = FeatureConfig(hop_ms=50, mel_bands=32)
"""11 x 32 patches: an eighteenth of the full front end's work."""


@dataclasses.dataclass(frozen=True)
class SongFeatures:
    """Features of one song of n steps.

    Attributes:
      log_mel: `[n, F, M]` float32.
      embedding: `[w, E]`, one per window, or `[n, E]`, one per step.
      window_start: `[w]` int32, first step of each window of :data:`WINDOW_STEPS`.
    """

    log_mel: np.ndarray
    embedding: np.ndarray
    window_start: np.ndarray


def window_starts(steps: int) -> np.ndarray:
    """First step of each window over a song: every 15 s, and one flush with the end. `[w]` int32."""
    last = max(steps - WINDOW_STEPS, 0)
    return np.unique(np.append(np.arange(0, last + 1, WINDOW_HOP), last)).astype(np.int32)


def log_mel(
    waveform: np.ndarray, sample_rate: int, config: FeatureConfig = FeatureConfig()
) -> np.ndarray:
    """Log-mel patches of half a second each (DSAML, section 3.1).

    Patch k covers samples [k n, (k + 1) n) of the resampled waveform, n half a second; an incomplete
    tail is dropped. Each patch is a short-time Fourier transform of its own, with reflection at its
    own edges; power; HTK mel triangles without area norm; `log(x + 1e-6)`.

    Args:
      waveform: `[samples]`, or `[samples, channels]`, which is averaged.
      sample_rate: Hz.
      config: frame, hop, bands.

    Returns:
      `[steps, F, M]` float32; 51 x 128 by default.

    Raises:
      DataError: less than one step of sound.
    """
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1)
    waveform = resample(np.asarray(waveform, np.float32), sample_rate, config.sample_rate)
    steps = len(waveform) // config.step_samples
    if not steps:
        raise DataError("less than half a second of sound")
    import scipy.fft

    patches = waveform[: steps * config.step_samples].reshape(steps, config.step_samples)
    half = config.fft // 2
    padded = np.pad(patches, ((0, 0), (half, half)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.fft, axis=1)[:, :: config.hop]
    window, filterbank = _window_and_filterbank(config)
    out = np.empty((steps, config.frames, config.mel_bands), np.float32)
    for first in range(0, steps, WINDOW_STEPS):  # bounds memory on long songs
        part = slice(first, first + WINDOW_STEPS)
        spectrum = scipy.fft.rfft(frames[part] * window, axis=-1)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        out[part] = np.log(power @ filterbank + np.float32(LOG_OFFSET))
    return out


@lru_cache(maxsize=8)
def _window_and_filterbank(config: FeatureConfig) -> tuple[np.ndarray, np.ndarray]:
    """Periodic Hann window `[fft]` and mel triangles `[fft // 2 + 1, M]`."""
    import librosa

    window = librosa.filters.get_window("hann", config.fft, fftbins=True)
    mel = librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.fft,
        n_mels=config.mel_bands,
        fmin=0.0,
        fmax=config.sample_rate / 2,
        htk=True,
        norm=None,
    )
    return window.astype(np.float32), np.ascontiguousarray(mel.T.astype(np.float32))


def spectral_embedding(patches: np.ndarray) -> np.ndarray:
    """Eight statistics of every mel band over a stretch of sound, scaled to about [-1, 1].

    Mean, standard deviation, 10th, 50th and 90th percentile over frames; mean absolute difference
    of neighbouring frames; standard deviation and linear trend of the half-second means.

    Args:
      patches: `[n, F, M]` log-mel.

    Returns:
      `[8 M]` float32, statistic by statistic.
    """
    steps, frames, bands = patches.shape
    flat = patches.reshape(steps * frames, bands)
    low, middle, high = np.percentile(flat, (10, 50, 90), axis=0)
    means = patches.mean(axis=1)
    time = np.linspace(-1.0, 1.0, steps) if steps > 1 else np.zeros(1)
    trend = time @ means / max(float(time @ time), 1.0)
    flux = np.abs(np.diff(patches, axis=1)).mean(axis=(0, 1))

    def level(x: np.ndarray) -> np.ndarray:
        return (x + 6.0) / 4.0  # log power of music: about -14 to 4

    statistics = (
        level(flat.mean(axis=0)),
        flat.std(axis=0) / 2.0,
        level(low),
        level(middle),
        level(high),
        flux,
        means.std(axis=0),
        trend,
    )
    return np.concatenate(statistics).astype(np.float32)


def song_features(patches: np.ndarray, config: FeatureConfig) -> SongFeatures:
    """Windows and embeddings of a song from its log-mel patches `[n, F, M]`."""
    steps = len(patches)
    starts = window_starts(steps)
    if config.embedding_per == "clip":
        stretches = [(start, start + WINDOW_STEPS) for start in starts]
    else:
        half = WINDOW_STEPS // 2
        stretches = [(max(step - half, 0), step + half) for step in range(steps)]
    embedding = np.stack([spectral_embedding(patches[first:last]) for first, last in stretches])
    return SongFeatures(patches, embedding, starts)
