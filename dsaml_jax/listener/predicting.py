"""Sound files in, curves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.analysis import Embed, SongFeatures, analyse, embedder, finish
from data_prep.audio import load_audio
from data_prep.base import DIMENSIONS, MIN_SECONDS, STEPS_PER_SECOND, DataError, replacing
from data_prep.features import FeatureConfig
from dsaml_jax.listener.curves import Variables, predict_song
from dsaml_jax.runs import LoadedModel

Band = tuple[np.ndarray, np.ndarray]
"""Lower and upper bound of a curve, `[n, 2]` each; NaN where there is none."""


def features_of_file(path: Path, config: FeatureConfig, embed: Embed | None) -> SongFeatures:
    """Features of a whole sound file, step 0 at its beginning.

    Args:
      path: the file.
      config: how features are made.
      embed: the network behind the embedding, where there is one.

    Raises:
      DataError: unreadable, or shorter than :data:`~data_prep.base.MIN_SECONDS`.
    """
    waveform, rate = load_audio(path)
    if len(waveform) < MIN_SECONDS * rate:
        raise DataError(
            f"{path}: {len(waveform) / rate:.1f} s of sound; at least {MIN_SECONDS:g} s are needed"
        )
    return finish(analyse(waveform, rate, config), embed)


def predict_file(loaded: LoadedModel, path: Path | str, weights: Path | None = None) -> np.ndarray:
    """`[n, 2]` arousal and valence of a sound file, one row per half second; NaN in what was not learned.

    Args:
      loaded: the model.
      path: the sound file.
      weights: of ImageBind, if the model was trained on its embeddings.
    """
    config = loaded.info.features
    features = features_of_file(Path(path), config, embedder(config, weights))
    return predict_features(loaded, loaded.variables, features)


def of_learned(loaded: LoadedModel, curve: np.ndarray) -> np.ndarray:
    """`[n, 2]` without the dimension, if there is one, that the model was not trained in."""
    learned = [name in loaded.info.dimensions for name in DIMENSIONS]
    return np.where(learned, curve, np.nan).astype(np.float32)


def predict_features(
    loaded: LoadedModel, variables: Variables, features: SongFeatures
) -> np.ndarray:
    """`[n, 2]` arousal and valence of a song by these variables of a model; NaN in what was not learned."""
    curve = predict_song(
        loaded.model,
        variables,
        features.log_mel,
        features.embedding,
        features.window_start,
        per_step=loaded.info.features.embedding_per == "step",
    )
    return of_learned(loaded, curve)


def band_of(loaded: LoadedModel, curve: np.ndarray) -> Band | None:
    """The band around a predicted curve that is meant to hold 80 % of what people draw; None of a model that does not say.

    Of a personal model: of what this person draws.

    Args:
      loaded: the model.
      curve: `[n, 2]`.
    """
    if loaded.listeners is None:
        return None
    known = loaded.person.counts() if loaded.person else (0, 0)
    return loaded.listeners.band(curve, known)


def write_curve(path: Path, curve: np.ndarray, band: Band | None = None) -> None:
    """Writes :func:`curve_table`."""
    with replacing(path) as temporary:
        temporary.write_text(curve_table(curve, band))


def curve_table(curve: np.ndarray, band: Band | None = None) -> str:
    """CSV of `[n, 2]`: `time, arousal, valence`, one line per half second: the format `personalize` reads.

    A cell that is NaN is empty, a step without a number left out, and so is the column of a dimension without one.
    Values are clipped to [-1, 1], the range of the scale.

    Args:
      curve: predicted.
      band: its bounds, which go into the columns `arousal_low`, `arousal_high`, `valence_low`, `valence_high`.
    """
    known = np.isfinite(curve)
    there = known.any(axis=0) if known.any() else np.ones(2, bool)
    names = [name for name, kept in zip(DIMENSIONS, there, strict=True) if kept]
    columns = [curve[:, there]]
    if band is not None:
        names += [f"{name}_{bound}" for name in names for bound in ("low", "high")]
        columns += [np.stack(band, axis=-1)[:, there].reshape(len(curve), -1)]
    table = np.clip(np.concatenate(columns, axis=1), -1.0, 1.0)
    lines = [",".join(["time", *names])]
    for step in np.flatnonzero(known.any(axis=1)):
        values = table[step]
        cells = (f"{value:.5f}" if np.isfinite(value) else "" for value in values)
        lines.append(",".join([f"{step / STEPS_PER_SECOND:.1f}", *cells]))
    return "\n".join(lines) + "\n"
