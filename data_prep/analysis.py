"""A song's sound to its features, in two halves: what any process can compute, and what a network adds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.audio import resample
from data_prep.base import STEPS_PER_SECOND, WINDOW_STEPS, DataError
from data_prep.features import (
    WINDOW_HOP,
    FeatureConfig,
    log_mel,
    spectral_embedding,
    window_starts,
)
from data_prep.musicnn import spectrogram
from data_prep.musicnn.patches import MusicnnInput
from data_prep.musicnn.patches import embedder as musicnn_embedder

Embed = Callable[[np.ndarray], np.ndarray]
"""Clips `[e, 3, 1, 128, 204]` of ImageBind, or patches `[p, 187, 96]` of musicnn, to embeddings."""

_STRETCHES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class ImageBindInput:
    """What ImageBind reads of a song.

    Attributes:
      waveform: `[samples]`.
      rate: Hz.
      stretches: first and last second of the stretch behind each embedding; may reach outside.
      published: whether to read them as published, see :func:`data_prep.imagebind.fbank.stretch_clips`.
    """

    waveform: np.ndarray
    rate: int
    stretches: tuple[tuple[float, float], ...]
    published: bool

    def embed(self, embed: Embed) -> np.ndarray:
        """`[e, E]`; clips of a few stretches at a time are in memory."""
        from data_prep.imagebind.fbank import stretch_clips

        parts = []
        for first in range(0, len(self.stretches), _STRETCHES_AT_ONCE):
            some = self.stretches[first : first + _STRETCHES_AT_ONCE]
            clips = stretch_clips(self.waveform, self.rate, some, published=self.published)
            parts.append(embed(clips))
        return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class SongAnalysis:
    """Features of one song of n steps, before any neural network.

    Attributes:
      log_mel: `[n, F, M]`, float32 or as it will be stored.
      window_start: `[w]` int32, first step of each window of :data:`WINDOW_STEPS`.
      embedding: `[e, E]`, or of it what no network makes, the last numbers; None where networks make all of it.
      heard: what the network reads; None where there is nothing left for one to do.
    """

    log_mel: np.ndarray
    window_start: np.ndarray
    embedding: np.ndarray | None
    heard: ImageBindInput | MusicnnInput | None


@dataclasses.dataclass(frozen=True)
class SongFeatures:
    """Features of one song of n steps.

    Attributes:
      log_mel: `[n, F, M]`, float32 or as stored.
      embedding: `[w, E]`, one per window, or `[n, E]`, one per step.
      window_start: `[w]` int32, first step of each window of :data:`WINDOW_STEPS`.
    """

    log_mel: np.ndarray
    embedding: np.ndarray
    window_start: np.ndarray


def analyse(
    waveform: np.ndarray,
    sample_rate: int,
    config: FeatureConfig,
    *,
    start: float = 0.0,
    steps: int | None = None,
) -> SongAnalysis:
    """Everything the model reads of a song, but for what a neural network has to make of it.

    Args:
      waveform: `[samples]` of the whole file.
      sample_rate: Hz.
      config: how features are made.
      start: seconds of step 0.
      steps: n at most; None takes all that follows `start`.

    Raises:
      DataError: less than one step of sound after `start`.
    """
    first = round(start * STEPS_PER_SECOND)  # in steps of the file
    if len(waveform) < math.ceil((first + 1) * sample_rate / STEPS_PER_SECOND):
        raise DataError(f"the sound ends before the first half second at {start:g} s is over")
    # An embedding per step describes the 15 s before the first step and after the last one too.
    spectral = "spectral" in config.embedding_parts
    margin = WINDOW_HOP if config.embedding_per == "step" and spectral else 0
    before = min(first, margin)
    count = None if steps is None else before + steps + margin
    patches = log_mel(waveform[_samples(first - before, count, sample_rate)], sample_rate, config)
    own = patches[before:][:steps]
    starts = window_starts(len(own))
    stretches = _stretches(len(own), starts, config)
    embedding, heard = None, None
    if spectral:
        embedding = np.stack(
            [spectral_embedding(patches[max(a + before, 0) : b + before]) for a, b in stretches]
        )
    if config.embedding_parts.keys() - {"spectral"}:
        heard = _heard(waveform, sample_rate, config, first, len(own), stretches)
    return SongAnalysis(own, starts, embedding, heard)


def _heard(
    waveform: np.ndarray,
    sample_rate: int,
    config: FeatureConfig,
    first: int,
    steps: int,
    stretches: Sequence[tuple[int, int]],
) -> ImageBindInput | MusicnnInput:
    """Cuts out of the file what a network is to hear: the song, and per step also 15 s around it.

    The published code of DSAML knows nothing but the song.
    """
    from data_prep.imagebind.fbank import PUBLISHED_RATE, TRAINING_RATE

    published = config.embedding == "imagebind-reference"
    margin = WINDOW_HOP if config.embedding_per == "step" and not published else 0
    before = min(first, margin)
    part = waveform[_samples(first - before, before + steps + margin, sample_rate)]
    seconds = tuple(
        ((a + before) / STEPS_PER_SECOND, (b + before) / STEPS_PER_SECOND) for a, b in stretches
    )
    if "musicnn" in config.embedding_parts:
        sound = resample(np.asarray(part, np.float32), sample_rate, spectrogram.SAMPLE_RATE)
        return MusicnnInput(spectrogram.log_mel(sound), seconds)
    rate = PUBLISHED_RATE if published else TRAINING_RATE
    heard = resample(np.asarray(part, np.float32), sample_rate, rate)
    return ImageBindInput(heard, rate, seconds, published)


def _samples(first: int, steps: int | None, sample_rate: int) -> slice:
    """Samples of a file that hold `steps` whole steps from step `first` on; None: all that follow."""
    begin = round(first / STEPS_PER_SECOND * sample_rate)
    if steps is None:
        return slice(begin, None)
    return slice(begin, begin + math.ceil(steps / STEPS_PER_SECOND * sample_rate))


def _stretches(steps: int, starts: np.ndarray, config: FeatureConfig) -> list[tuple[int, int]]:
    """First and last step of the sound behind each embedding; may reach beyond the song."""
    if config.embedding_per == "clip":
        return [(int(start), int(start) + min(WINDOW_STEPS, steps)) for start in starts]
    return [(step - WINDOW_HOP, step + WINDOW_HOP) for step in range(steps)]


def finish(analysis: SongAnalysis, embed: Embed | None) -> SongFeatures:
    """Adds what a network makes of the clips.

    Args:
      analysis: of a song.
      embed: from :func:`embedder`.
    """
    parts = [] if analysis.embedding is None else [analysis.embedding]
    if analysis.heard is not None:
        assert embed is not None
        parts.insert(0, analysis.heard.embed(embed))
    embedding = np.concatenate(parts, axis=-1)
    return SongFeatures(analysis.log_mel, embedding, analysis.window_start)


@lru_cache(maxsize=1)
def embedder(config: FeatureConfig, weights: Path | None) -> Embed | None:
    """The network behind the global embedding, loaded once a process; None where there is none.

    Args:
      config: says which embedding.
      weights: file of ImageBind's weights, as `dsaml convert imagebind` writes it.

    Raises:
      DataError: the weights are needed and not there, or not those that `config` names.
    """
    if "musicnn" in config.embedding_parts:
        return musicnn_embedder()
    if not config.uses_imagebind:
        return None
    if weights is None:
        raise DataError(
            "these features need ImageBind's weights: name the file that 'dsaml convert imagebind' wrote "
            "by --imagebind-weights or in $DSAML_IMAGEBIND"
        )
    from data_prep.imagebind import AudioEncoder, Embedder
    from data_prep.imagebind.weights import digest, load

    if digest(weights) != config.weights:
        raise DataError(
            f"{weights}: other weights ({digest(weights)}) than these features were made with "
            f"({config.weights})"
        )
    variables, _ = load(weights)
    return Embedder(variables, AudioEncoder(dtype=config.embedding_dtype)).embed
