"""Sound files in, curves out; and one annotated song to a model of one listener."""

from __future__ import annotations

import dataclasses
import unicodedata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.analysis import Embed, SongFeatures, analyse, embedder, finish
from data_prep.audio import load_audio, without_suffix
from data_prep.base import (
    DIMENSIONS,
    MIN_SECONDS,
    STEPS_PER_SECOND,
    WINDOW_STEPS,
    DataError,
    printable,
    replacing,
)
from data_prep.convention import Convention
from data_prep.curves import MAX_GAP_SECONDS, on_grid
from data_prep.features import FeatureConfig, window_starts
from data_prep.reading import any_number, csv_records, empty_cells, in_time, rated
from dsaml_jax import metrics
from dsaml_jax.adaptation import adapt_to_listener
from dsaml_jax.base import MIN_LABELLED_STEPS, SongBatch
from dsaml_jax.corpus import evenly_spread, windows_to_draw
from dsaml_jax.errors import UsageError
from dsaml_jax.listener.curves import Variables, predict_song
from dsaml_jax.runs import LoadedModel, save_model


@dataclasses.dataclass(frozen=True)
class Personalized:
    """What came of personalising.

    Attributes:
      variables: adapted.
      labelled_seconds: how much of the song was annotated.
      before, after: RMSE on the annotated song, `[2]` arousal and valence; NaN where it was not annotated.
      empty_cells: of the table, in the dimensions that it holds; not adapted to.
      leaves_gaps: whether most points of the table are too far apart to be joined.
      convention: how the table was meant.
    """

    variables: Variables
    labelled_seconds: float
    before: np.ndarray
    after: np.ndarray
    empty_cells: int = 0
    leaves_gaps: bool = False
    convention: Convention = Convention()


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


def _of_learned(loaded: LoadedModel, curve: np.ndarray) -> np.ndarray:
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
    return _of_learned(loaded, curve)


COLUMNS = ("time", *DIMENSIONS)
OF_A_STUDY = ("song_id", "annotator_id")
"""Columns of a whole study's table, which says whose a row is and of what song."""


def read_annotations(
    path: Path, song: Path | None = None, convention: Convention = Convention()
) -> np.ndarray:
    """`[n, 3]` time in seconds, arousal, valence from a CSV with those columns, in the order of time.

    One of arousal and valence may be absent as a column, and either may be empty or `nan` in a row: NaN. Other columns are
    ignored. Of a table of several songs (`song_id`, with or without the file's suffix) the rows of one are taken.

    Args:
      path: the table.
      song: its sound file, for a table of several songs.
      convention: what the table's numbers mean.

    Raises:
      DataError: missing, empty, ragged, not numbers, numbers that mean something else, two ratings at one time, several
        people, or nothing of the song.
    """
    rows: list[tuple[float, float, float, int]] = []
    places: dict[tuple[str, str], list[int]] = {}
    for line, (time, arousal, valence, song_id, person) in csv_records(
        path, (*COLUMNS, *OF_A_STUDY), _parse, optional=DIMENSIONS, absent=OF_A_STUDY
    ):
        places.setdefault((song_id, person), []).append(len(rows))
        rows.append((time, arousal, valence, line))
    if not rows:
        raise DataError(f"{path}: no annotations below the header")
    mine = {
        key: rows_of for key, rows_of in places.items()
        if song is None or not key[0] or _is_named(song, key[0])
    }  # fmt: skip
    if not mine and song:
        raise DataError(
            f"{path}: no annotation of {song_name(song)} among those of "
            f"{_few({without_suffix(song_id) for song_id, _ in places})}"
        )
    people = {person for _, person in mine}
    if len(people) > 1:
        raise DataError(f"{path}: annotations of {len(people)} people ({_few(people)}); keep one's")
    points = convention.apply(path, np.array(rows), places)
    return in_time(path, "the annotation", points[[row for of in mine.values() for row in of]])


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _is_named(audio: Path, song_id: str) -> bool:
    """Whether a table's id means this sound file: its name with or without suffix, or that of another file of the song."""
    stem = song_name(audio)
    return (
        song_id in (stem, unicodedata.normalize("NFC", audio.name))
        or without_suffix(song_id) == stem
    )


def song_name(audio: Path) -> str:
    """What a table calls the song of a sound file, without suffix and in Unicode's composed form."""
    return unicodedata.normalize("NFC", audio.stem)


def _parse(
    time: str, arousal: str, valence: str, song: str, person: str
) -> tuple[float, float, float, str, str]:
    return (
        any_number("time", time),
        rated("arousal", arousal),
        rated("valence", valence),
        unicodedata.normalize("NFC", song),
        person,
    )


def personalize(
    loaded: LoadedModel,
    audio: Path,
    annotations: Path,
    weights: Path | None = None,
    convention: Convention = Convention(),
) -> Personalized:
    """Adapts a model to the listener who annotated a song.

    Args:
      loaded: the general model; its own inner steps and rate are used.
      audio: the song.
      annotations: CSV, see :func:`read_annotations`.
      weights: of ImageBind, if the model was trained on its embeddings.
      convention: what the table's numbers mean, and how far apart points are joined.

    Raises:
      DataError: bad files, or annotations that do not belong to the song.
      UsageError: adapting does not end in finite numbers.
    """
    drawn = read_annotations(annotations, audio, convention)
    config = loaded.info.features
    features = features_of_file(audio, config, embedder(config, weights))
    steps = len(features.log_mel)
    seconds = steps / STEPS_PER_SECOND
    latest = drawn[-1, 0] - 1.0
    if latest > seconds:
        fits = convention.time_unit is None and latest <= 1000 * seconds
        mend = "; if times are milliseconds give --time-unit ms" if fits else ""
        raise DataError(
            f"{annotations}: annotated up to {drawn[-1, 0]:.1f} s, but {audio} ends at {seconds:.1f} s{mend}"
        )
    labels = on_grid(drawn, steps, max_gap=convention.max_gap)
    result = personalize_on(
        loaded, features, labels, what=str(annotations), max_gap=convention.max_gap
    )
    return dataclasses.replace(
        result,
        empty_cells=empty_cells([drawn]),
        leaves_gaps=convention.leaves_gaps([drawn]),
        convention=convention,
    )


def personalize_on(
    loaded: LoadedModel,
    features: SongFeatures,
    labels: np.ndarray,
    *,
    what: str,
    max_gap: float | None = None,
) -> Personalized:
    """The same from features and a curve on the grid.

    Args:
      loaded: the general model.
      features: of the song, n steps.
      labels: `[n, 2]` arousal and valence, NaN where unlabelled.
      what: the annotations, for messages.
      max_gap: see :func:`require_enough`.

    Raises:
      DataError: too little is labelled.
      UsageError: adapting does not end in finite numbers.
    """
    labels = _of_learned(loaded, labels)
    labelled = require_enough(labels, what, max_gap)
    support = support_batch(features, labels, per_step=loaded.info.features.embedding_per == "step")
    adapted = jax.jit(adapt_to_listener, static_argnums=(0, 1))(
        loaded.model, loaded.info.config.meta, loaded.variables, support
    )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(adapted))):
        raise UsageError("adapting diverged; train with a smaller meta.learning_rate")

    mask = np.isfinite(labels).T
    target = np.nan_to_num(labels).T

    def error(variables: Variables) -> np.ndarray:
        curve = np.nan_to_num(predict_features(loaded, variables, features))
        found = metrics.rmse(jnp.asarray(curve.T), jnp.asarray(target), jnp.asarray(mask))
        return np.where(mask.any(axis=1), found, np.nan)

    return Personalized(
        adapted, labelled / STEPS_PER_SECOND, error(loaded.variables), error(adapted)
    )


def require_enough(labels: np.ndarray, what: str, max_gap: float | None = None) -> int:
    """How many steps of `[n, 2]` are labelled.

    Args:
      labels: NaN where unlabelled.
      what: they are, for the message.
      max_gap: seconds up to which points were joined, where people can choose it by `--max-gap`.

    Raises:
      DataError: too few to adapt to.
    """
    labelled = int(np.isfinite(labels).any(axis=1).sum())
    if not len(support_windows(labels)):
        gap = f"{MAX_GAP_SECONDS:g} s" if max_gap is None else f"{max_gap:g} s (--max-gap)"
        raise DataError(
            f"{what}: {labelled / STEPS_PER_SECOND:g} s of arousal or valence are annotated without gaps of more than "
            f"{gap}; at least {MIN_LABELLED_STEPS / STEPS_PER_SECOND:g} s within 30 s are needed"
        )
    return labelled


def support_windows(labels: np.ndarray) -> np.ndarray:
    """Indices of the windows that adaptation reads of a song labelled `[n, 2]`; see :func:`windows_to_draw`."""
    windows = len(window_starts(len(labels)))
    (drawn,) = windows_to_draw(np.array([len(labels)]), np.zeros(1, int), labels, windows)
    there = np.flatnonzero(drawn)
    return there[evenly_spread(np.array(len(there)))] if len(there) else there


def support_batch(features: SongFeatures, labels: np.ndarray, *, per_step: bool) -> SongBatch:
    """Windows of an annotated song, the same that an evaluation adapts to.

    Args:
      features: of the song, n steps.
      labels: `[n, 2]`, NaN where unlabelled.
      per_step: which kind of embedding the features hold.
    """
    windows = support_windows(labels)
    inside = features.window_start[windows][:, None] + np.arange(WINDOW_STEPS)[None]
    present = inside < len(features.log_mel)
    rows = np.minimum(inside, len(features.log_mel) - 1)
    labelled = present[..., None] & np.isfinite(labels[rows])  # [w, T, 2]
    values = np.nan_to_num(labels)[rows]
    embedding = features.embedding[rows] if per_step else features.embedding[windows][:, None]
    return SongBatch(
        log_mel=jnp.asarray(features.log_mel[rows]),
        embedding=jnp.asarray(embedding),
        arousal=jnp.asarray(values[..., 0]),
        valence=jnp.asarray(values[..., 1]),
        present=jnp.asarray(present),
        labelled=jnp.asarray(labelled),
    )


def save_personalized(
    directory: Path, loaded: LoadedModel, result: Personalized, song: str
) -> None:
    """Writes the personalised model; see :func:`dsaml_jax.runs.save_model`."""
    note = f"personalised on {result.labelled_seconds:g} s of {printable(song)}"
    if result.convention != Convention():
        note += (
            f", {result.convention.meaning()}, joined over up to {result.convention.max_gap:g} s"
        )
    info = dataclasses.replace(loaded.info, note=note)
    save_model(directory, result.variables, info, step=loaded.step)


def write_curve(path: Path, curve: np.ndarray) -> None:
    """Writes :func:`curve_table`."""
    with replacing(path) as temporary:
        temporary.write_text(curve_table(curve))


def curve_table(curve: np.ndarray) -> str:
    """CSV of `[n, 2]`: `time, arousal, valence`, one line per half second: the format `personalize` reads.

    A cell that is NaN is empty, a step without a number left out, and so is the column of a dimension without one.
    Values are clipped to [-1, 1], the range of the scale.
    """
    known = np.isfinite(curve)
    columns = np.flatnonzero(known.any(axis=0)) if known.any() else np.arange(2)
    lines = [",".join(["time", *(("arousal", "valence")[column] for column in columns)])]
    for step in np.flatnonzero(known.any(axis=1)):
        values = np.clip(curve[step, columns], -1.0, 1.0)
        cells = (f"{value:.5f}" if np.isfinite(value) else "" for value in values)
        lines.append(",".join([f"{step / STEPS_PER_SECOND:.1f}", *cells]))
    return "\n".join(lines) + "\n"
