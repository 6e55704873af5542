"""Waveforms to what MSD_musicnn listens to."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SAMPLE_RATE = 16_000
FFT = 512
HOP = 256
MEL_BANDS = 96


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram as the network was trained on it.

    Hann frames of 512 samples every 256, the first centred on the first sample; power; 96 of librosa's mel bands (Slaney's scale
    and norm) up to 8 kHz; rounded to float16; `log10(10000 x + 1)`. The published extractor computes the last step in
    float16 too, which overflows where music is loud; here it is float32.

    Args:
      waveform: `[n]` at 16 kHz, in [-1, 1].

    Returns:
      `[1 + n // 256, 96]` float32.
    """
    import scipy.fft

    window, filterbank = _window_and_filterbank()
    padded = np.pad(np.asarray(waveform, np.float32), FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP]
    mel = np.empty((len(frames), MEL_BANDS), np.float32)
    for first in range(0, len(frames), _FRAMES_AT_ONCE):
        part = slice(first, first + _FRAMES_AT_ONCE)
        power = np.square(np.abs(scipy.fft.rfft(frames[part] * window, axis=-1)))
        mel[part] = power @ filterbank.T
    # Sound that is not scaled to [-1, 1] is louder than float16 can say.
    rounded = np.minimum(mel, np.finfo(np.float16).max).astype(np.float16).astype(np.float32)
    return np.log10(np.float32(10_000.0) * rounded + np.float32(1.0))


_FRAMES_AT_ONCE = 4096
"""A minute: an hour of music does not fill the memory."""


@lru_cache(maxsize=1)
def _window_and_filterbank() -> tuple[np.ndarray, np.ndarray]:
    """`[512]` and `[96, 257]`."""
    import librosa

    window = librosa.filters.get_window("hann", FFT, fftbins=True).astype(np.float32)
    return window, librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FFT, n_mels=MEL_BANDS)
