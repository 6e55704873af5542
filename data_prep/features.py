"""Waveforms to what the model reads: log-mel patches and a global embedding."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from data_prep.audio import RATES, resample
from data_prep.base import STEPS_PER_SECOND, WINDOW_STEPS, DataError
from data_prep.parallel import available_cores

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LOG_OFFSET = 1e-6
WINDOW_HOP = WINDOW_STEPS // 2
SPECTRAL_STATISTICS = 8
IMAGEBIND_WIDTH = 1024
MUSICNN_WIDTH = 953

Embedding = Literal["spectral", "musicnn", "musicnn-spectral", "imagebind", "imagebind-reference"]
EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)


def needs_imagebind(embedding: Embedding) -> bool:
    """Whether an embedding comes from ImageBind, which needs its weights."""
    return embedding.startswith("imagebind")


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """How features are made. The defaults are the paper's; `tiny` makes a CPU's day.

    Attributes:
      sample_rate: Hz, of the log-mel patches.
      frame_ms: length of the Hann window and of the FFT.
      hop_ms: between frames; must divide the half second of a step.
      mel_bands: `M`.
      embedding: `spectral`, eight statistics of every mel band: nothing learned.
        `musicnn`, what a tagger that has heard a million songs makes of it; its weights come with this package.
        `musicnn-spectral`, both, one behind the other: what tells most of real music without a download.
        `imagebind`, the audio tower of ImageBind at the rate it was trained on. `imagebind-reference`,
        the same read as the published implementation of DSAML does: at 44.1 kHz, only the annotated
        stretch of the file, repeated at its edges.
      embedding_per: `clip`, one embedding for each window of 30 s, or `step`, one for the 30 s
        around each step's start.
      embedding_dtype: in which ImageBind computes; bfloat16 is faster on accelerators and 1 % off.
      weights: digest of the ImageBind weights; empty for the others.
      dtype: of the log-mel patches in the shards.
    """

    sample_rate: int = 44_100
    frame_ms: int = 60
    hop_ms: int = 10
    mel_bands: int = 128
    embedding: Embedding = "musicnn-spectral"
    embedding_per: Literal["clip", "step"] = "clip"
    embedding_dtype: Literal["float32", "bfloat16"] = "float32"
    weights: str = ""
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if not RATES[0] <= self.sample_rate <= RATES[1]:
            raise DataError(f"sample_rate {self.sample_rate} is not from {RATES[0]} to {RATES[1]}")
        for name, most in (("frame_ms", 500), ("hop_ms", 500), ("mel_bands", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise DataError(f"{name} {getattr(self, name)} is not from 1 to {most}")
        if self.step_samples * STEPS_PER_SECOND != self.sample_rate:
            raise DataError(f"sample_rate {self.sample_rate} must be even")
        if self.step_samples % self.hop:
            raise DataError(f"hop_ms {self.hop_ms} must divide half a second into whole samples")
        if self.embedding not in EMBEDDINGS:
            raise DataError(
                f"embedding {self.embedding!r} is unknown; there are: {', '.join(EMBEDDINGS)}"
            )
        if bool(self.weights) != self.uses_imagebind:
            raise DataError("weights belong to the ImageBind embeddings, and these need them")
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
    def uses_imagebind(self) -> bool:
        """Whether the embedding comes from ImageBind, see :func:`needs_imagebind`."""
        return needs_imagebind(self.embedding)

    @property
    def embedding_parts(self) -> dict[str, int]:
        """What the embedding is made of, in order, and how many numbers each part has."""
        if self.uses_imagebind:
            return {self.embedding: IMAGEBIND_WIDTH}
        widths = {"musicnn": MUSICNN_WIDTH, "spectral": SPECTRAL_STATISTICS * self.mel_bands}
        return {part: widths[part] for part in self.embedding.split("-")}

    @property
    def embedding_width(self) -> int:
        """`E`."""
        return sum(self.embedding_parts.values())

    @property
    def name(self) -> str:
        """TFDS config name: every setting is in it, so that stale features are never read."""
        frames = f"mel{self.mel_bands}-{self.frame_ms}ms-{self.hop_ms}ms-{self.sample_rate}hz"
        embedding: str = self.embedding
        if self.uses_imagebind:
            embedding += f"-{self.weights}"
        if self.embedding_dtype != "float32":
            embedding += f"-{self.embedding_dtype}"
        return f"{frames}-{embedding}-{self.embedding_per}-{self.dtype}"


TINY = FeatureConfig(hop_ms=50, mel_bands=32, embedding="spectral")
"""11 x 32 patches, an eighteenth of the full front end's work, and no network behind them."""


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
    patches = waveform[: steps * config.step_samples].reshape(steps, config.step_samples)
    half = config.fft // 2
    padded = np.pad(patches, ((0, 0), (half, half)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.fft, axis=1)[:, :: config.hop]
    out = np.empty((steps, config.frames, config.mel_bands), np.float32)

    def fill(first: int) -> None:
        part = slice(first, first + _PATCHES_AT_ONCE)
        out[part] = _log_mel_of_frames(frames[part], config)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fill, range(0, steps, _PATCHES_AT_ONCE)))
    return out


_PATCHES_AT_ONCE = 4
"""Their spectra stay in the processor's cache."""

_THREADS = min(4, available_cores())


def _log_mel_of_frames(frames: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """`[steps, F, fft]` to `[steps, F, M]`."""
    import scipy.fft

    window, filterbank = _window_and_filterbank(config)
    spectrum = scipy.fft.rfft(frames * window, axis=-1, overwrite_x=True)
    parts = np.square(spectrum.view(np.float32))  # real and imaginary in turn
    power = (parts[..., ::2] + parts[..., 1::2]).reshape(-1, spectrum.shape[-1])
    mel = filterbank @ np.ascontiguousarray(power.T)
    mel = np.log(mel + np.float32(LOG_OFFSET))
    return mel.T.reshape(*frames.shape[:2], config.mel_bands)


@lru_cache(maxsize=8)
def _window_and_filterbank(config: FeatureConfig) -> tuple[np.ndarray, csr_array]:
    """Periodic Hann window `[fft]` and mel triangles `[M, fft // 2 + 1]`.

    A bin of the spectrum belongs to two triangles at most: a sparse product does a sixtieth of the
    work of a dense one.
    """
    import librosa
    from scipy.sparse import csr_array

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
    return window.astype(np.float32), csr_array(mel.astype(np.float32))


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
