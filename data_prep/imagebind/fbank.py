"""Waveforms to the filter-bank clips that ImageBind's audio tower reads.

A clip is two seconds of sound as `[1, 128, 204]`: one channel, 128 mel bands from 20 Hz to half the
sampling rate, 204 frames of 10 ms (198 of sound and 6 of zeros). A stretch of sound is read as three
clips, whose embeddings the encoder averages (Girdhar et al. 2023, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data_prep.audio import resample
from data_prep.base import DataError

MEL_BANDS = 128
CLIP_FRAMES = 204
CLIP_SECONDS = 2
CLIPS = 3

FRAME_SECONDS = 0.025
HOP_SECONDS = 0.01
LOWEST_HZ = 20.0
PRE_EMPHASIS = 0.97

CLIP_MEAN = -4.268
CLIP_SCALE = 9.138
"""Mean and twice the standard deviation of log energies over ImageBind's training sounds."""

TRAINING_RATE = 16_000
"""Hz; the rate of the sounds that ImageBind was trained on."""

PUBLISHED_RATE = 44_100
"""Hz; the rate at which the published DSAML implementation feeds it."""


def fbank(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Log mel filter-bank energies as Kaldi computes them, without dither.

    Frames of 25 ms every 10 ms, whole ones only. Each is freed of its mean, pre-emphasised
    (`x[i] - 0.97 x[i - 1]`, the first sample standing in for the one before it), weighted by a
    symmetric Hann window and padded with zeros to a power of two. The power spectrum, without its
    Nyquist bin, goes through triangles that are straight on the mel scale `1127 ln(1 + f / 700)`.

    Args:
      waveform: `[n]`, any scale; ImageBind expects samples in [-1, 1] freed of their mean.
      sample_rate: Hz.

    Returns:
      `[frames, 128]` float32, natural logarithm, not below that of float32's epsilon.

    Raises:
      DataError: shorter than one frame.
    """
    import scipy.fft

    frame, hop = int(sample_rate * FRAME_SECONDS), int(sample_rate * HOP_SECONDS)
    if len(waveform) < frame:
        raise DataError(f"less than {1000 * FRAME_SECONDS:g} ms of sound")
    window, triangles = _window_and_triangles(sample_rate, frame)
    waveform = np.asarray(waveform, np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, frame)[::hop]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    emphasised = (frames - np.float32(PRE_EMPHASIS) * before) * window
    spectrum = scipy.fft.rfft(emphasised, n=2 * len(triangles), axis=1)[:, :-1]
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return np.log(np.maximum(power @ triangles, np.finfo(np.float32).eps))


@lru_cache(maxsize=4)
def _window_and_triangles(sample_rate: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric Hann window `[frame]` and mel triangles `[fft // 2, 128]`, both float32."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    fft = 1 << (frame - 1).bit_length()
    edges = np.linspace(mel(LOWEST_HZ), mel(sample_rate / 2), MEL_BANDS + 2)
    bins = mel(np.arange(fft // 2) * sample_rate / fft)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    triangles = np.maximum(np.minimum(rising, falling), 0.0)
    return np.hanning(frame).astype(np.float32), triangles.astype(np.float32)


def clip_starts(seconds: float) -> tuple[float, ...]:
    """Start times of the three clips over a sound of `seconds`, in seconds.

    They lie a third of the free time apart, so the last one does not end with the sound. A sound that
    is no longer than a clip is read from 0 three times.
    """
    free = max(seconds - CLIP_SECONDS, 0.0)
    return tuple(index * free / CLIPS for index in range(CLIPS))


def mel_clips(waveform: np.ndarray, sample_rate: int, *, in_place_mean: bool = False) -> np.ndarray:
    """Three clips of a sound.

    Each clip is freed of its mean and turned to filter-bank energies; frames of zeros fill it up to
    204 (six of them, or more where the sound is shorter than a clip), and only then come mean and
    scale of ImageBind's training sounds, so that the filling is not zero in the result.

    Args:
      waveform: `[n]`; left as it is.
      sample_rate: Hz.
      in_place_mean: keeps a quirk of the published reader, which takes each clip's mean off the sound
        itself. Where clips overlap (sounds below 8 s), later ones then see what earlier ones did.

    Returns:
      `[3, 1, 128, 204]` float32.

    Raises:
      DataError: no sound, or less than one frame of 25 ms.
    """
    if not len(waveform):
        raise DataError("no sound")
    waveform = np.array(waveform, np.float32)
    clips = np.zeros((CLIPS, CLIP_FRAMES, MEL_BANDS), np.float32)
    for clip, start in zip(clips, clip_starts(len(waveform) / sample_rate), strict=True):
        first = int(start * sample_rate + 1e-6)  # rounded down, but not by the error of a third
        sound = waveform[first : first + CLIP_SECONDS * sample_rate]
        if not in_place_mean:
            sound = sound.copy()
        sound -= sound.mean()
        energies = fbank(sound, sample_rate)[:CLIP_FRAMES]
        clip[: len(energies)] = energies
    normalised = (clips - np.float32(CLIP_MEAN)) / np.float32(CLIP_SCALE)
    return np.ascontiguousarray(normalised.transpose(0, 2, 1)[:, None])


def stretch_clips(
    waveform: np.ndarray,
    sample_rate: int,
    stretches: Sequence[tuple[float, float]],
    *,
    published: bool = False,
) -> np.ndarray:
    """Clips of several stretches of a song, which may overlap.

    The song is resampled once, to the rate ImageBind was trained at, and stretches end where the song
    does.

    Args:
      waveform: `[n]`, the song.
      sample_rate: Hz.
      stretches: first and last second of each, which may lie outside the song.
      published: as the published DSAML implementation does it instead: at 44.1 kHz, with the quirk of
        `in_place_mean`, and with :func:`filled_stretch` for what lies outside the song.

    Returns:
      `[w, 3, 1, 128, 204]` float32, 313 kB a stretch.

    Raises:
      DataError: a stretch holds less than 25 ms of the song.
    """
    rate = PUBLISHED_RATE if published else TRAINING_RATE
    cut = filled_stretch if published else cut_stretch
    song = resample(np.asarray(waveform, np.float32), sample_rate, rate)
    clips = np.empty((len(stretches), CLIPS, 1, MEL_BANDS, CLIP_FRAMES), np.float32)
    for index, (first, last) in enumerate(stretches):
        sound = cut(song, round(first * rate), round(last * rate))
        clips[index] = mel_clips(sound, rate, in_place_mean=published)
    return clips


def cut_stretch(song: np.ndarray, first: int, last: int) -> np.ndarray:
    """Samples `[first, last)` of a song, as far as it has them."""
    return song[max(first, 0) : max(last, 0)]


def filled_stretch(song: np.ndarray, first: int, last: int) -> np.ndarray:
    """Samples `[first, last)` of a song, with repeats for what lies outside.

    As the published implementation fills them: k samples missing in front are the song's first k, k
    samples missing at the end are its last k; a song that has fewer gives what it has, once.
    """
    head = song[: max(-first, 0)]
    tail = song[len(song) - min(max(last - len(song), 0), len(song)) :]
    return np.concatenate([head, cut_stretch(song, first, last), tail])
