"""Annotated songs of one listener, and a model of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.analysis import SongFeatures, embedder
from data_prep.base import STEPS_PER_SECOND, WINDOW_STEPS, DataError, printable
from data_prep.convention import Convention
from data_prep.curves import MAX_GAP_SECONDS, labelled_mean, on_grid
from data_prep.features import window_starts
from data_prep.reading import empty_cells
from dsaml_jax.adaptation import adapt_to_listener, level_bias, with_level_bias
from dsaml_jax.base import MIN_LABELLED_STEPS, SongBatch
from dsaml_jax.corpus import evenly_spread, windows_to_draw
from dsaml_jax.errors import UsageError
from dsaml_jax.listener.annotations import read_annotations
from dsaml_jax.listener.curves import Variables, blended
from dsaml_jax.listener.predicting import features_of_file, of_learned, predict_features
from dsaml_jax.listener.suggesting import song_embedding
from dsaml_jax.models import listener_places, listener_weights, song_space, with_listener
from dsaml_jax.runs import LoadedModel, Person, save_model

Adapting = Literal["prior", "steps"]
"""How a model becomes a person's: by what is known of listeners in general, or by the inner steps of meta-learning."""

DIGEST_DIGITS = 16
"""Of the SHA-256 of a sound file."""


@dataclasses.dataclass(frozen=True)
class AnnotatedSong:
    """A song, and what a person drew for it.

    Attributes:
      name: for people.
      digest: of its sound file, :data:`DIGEST_DIGITS` digits: the same song is known again by it.
      labels: `[n, 2]` arousal and valence, NaN where unlabelled.
      features: of the song.
      curve: `[n, 2]` that everyone's model says of it, where that is known already.
      empty_cells: of the table, in the dimensions that it holds; not adapted to.
      leaves_gaps: whether most points of the table are too far apart to be joined.
    """

    name: str
    digest: str
    labels: np.ndarray
    features: SongFeatures
    curve: np.ndarray | None = None
    empty_cells: int = 0
    leaves_gaps: bool = False


@dataclasses.dataclass(frozen=True)
class Personalized:
    """What came of personalising.

    Attributes:
      loaded: the model, adapted; with what is kept of the person where that was not by inner steps.
      labelled_seconds: how much of the songs was annotated.
      before, after: RMSE on the annotated songs, `[2]` arousal and valence, the mean over songs; NaN where nothing was
        annotated.
    """

    loaded: LoadedModel
    labelled_seconds: float
    before: np.ndarray
    after: np.ndarray


def annotated_song(
    loaded: LoadedModel,
    audio: Path,
    annotations: Path,
    weights: Path | None = None,
    convention: Convention = Convention(),
) -> AnnotatedSong:
    """Reads a song and what a person drew for it.

    Args:
      loaded: the model that will adapt.
      audio: the song.
      annotations: CSV, see :func:`~dsaml_jax.listener.annotations.read_annotations`.
      weights: of ImageBind, if the model was trained on its embeddings.
      convention: what the table's numbers mean, and how far apart points are joined.

    Raises:
      DataError: bad files, annotations that do not belong to the song, or too few.
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
    labels = of_learned(loaded, on_grid(drawn, steps, max_gap=convention.max_gap))
    require_enough(labels, str(annotations), convention.max_gap)
    return AnnotatedSong(
        audio.name,
        sound_digest(audio),
        labels,
        features,
        empty_cells=empty_cells([drawn]),
        leaves_gaps=convention.leaves_gaps([drawn]),
    )


def sound_digest(audio: Path) -> str:
    """By which a song is known again: of the bytes of its file."""
    with audio.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_DIGITS]


def personalize(
    loaded: LoadedModel, songs: Sequence[AnnotatedSong], by: Adapting | None = None
) -> Personalized:
    """Adapts a model to the listener who annotated these songs.

    By `prior` the curves move by what the mean differences between what the person drew and everyone's curves tell of
    further songs, as listeners in general bear it out (:meth:`dsaml_jax.runs.Listeners.told`): a constant in each dimension
    and, in a model with a head for levels, more on songs that are like those that were drawn. Songs that a personal model
    knows already count too, a song that comes again by what is drawn now; the order makes no difference. By `steps` the
    model takes the inner steps of its meta-learning on all songs together.

    Args:
      loaded: the general model, or a personal one, which then learns these songs besides.
      songs: one or more.
      by: None: :func:`default_adapting`.

    Raises:
      DataError: too little is labelled.
      UsageError: adapting does not end in finite numbers, or `by` does not fit the model.
    """
    songs = [dataclasses.replace(song, labels=of_learned(loaded, song.labels)) for song in songs]
    labelled = sum(require_enough(song.labels, song.name) for song in songs)
    adapted = _by_prior if (by or default_adapting(loaded)) == "prior" else _by_steps
    personal, curves = adapted(loaded, songs)
    errors = [
        [_error(curve, song.labels) for curve in pair]
        for song, pair in zip(songs, curves, strict=True)
    ]
    before, after = labelled_mean(np.array(errors))
    return Personalized(personal, labelled / STEPS_PER_SECOND, before, after)


def default_adapting(loaded: LoadedModel) -> Adapting:
    """By `prior` where the model knows how listeners differ, else by `steps`."""
    known = loaded.listeners is not None and level_bias(loaded.variables["params"]) is not None
    return "prior" if known else "steps"


BeforeAfter = tuple[np.ndarray, np.ndarray]
"""Two curves of a song, `[n, 2]` each."""


def _by_prior(
    loaded: LoadedModel, songs: Sequence[AnnotatedSong]
) -> tuple[LoadedModel, list[BeforeAfter]]:
    bias = level_bias(loaded.variables["params"])
    if bias is None:
        raise UsageError("this network has no bias of its level: it adapts by steps alone")
    if loaded.listeners is None:
        raise UsageError("this model does not know how listeners differ: it adapts by steps alone")
    first, second = np.asarray(bias, np.float64).tolist()
    person = loaded.person or Person((first, second))
    base, space = np.array(person.base), song_space(loaded.variables)
    places: dict[str, np.ndarray] = {}
    if space is not None:
        places = dict(zip(person.songs, listener_places(loaded.variables), strict=False))
        places |= {x.digest: space.place(song_embedding(x.features)).astype(np.float16) for x in songs}  # fmt: skip
    everyone = _moved(loaded, base)
    curves = [_predicted(loaded, everyone, x) if x.curve is None else x.curve for x in songs]
    for song, curve in zip(songs, curves, strict=True):
        difference = song.labels.astype(np.float64) - curve.clip(-1.0, 1.0)
        person = person.with_song(song.digest, labelled_mean(difference))

    here = likeness = None
    if space is not None:
        here = np.array([places[digest] for digest in person.songs])
        likeness = space.likeness(here, here)
    told = loaded.listeners.told(person.differences, likeness)
    variables = _moved(loaded, base + told.level, here, told.weights)
    moved = [
        tuple(curve + _shift(x, base, song.features) for x in (loaded.variables, variables))
        for song, curve in zip(songs, curves, strict=True)
    ]
    return _personal(loaded, variables, person.after(told)), moved


def _moved(
    loaded: LoadedModel,
    bias: np.ndarray,
    places: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Variables:
    """Variables whose curves lie otherwise: by what is added to all, and by songs of a listener; without these, none."""
    variables = with_level_bias(loaded.variables, bias)
    if song_space(variables) is None:
        return variables
    if places is None or weights is None:
        places, weights = listener_places(variables)[:0], np.zeros((0, 2))
    return with_listener(variables, places, weights)


def _shift(variables: Variables, base: np.ndarray, features: SongFeatures) -> np.ndarray:
    """`[n or 1, 2]` how far a personal model's curves of a song lie from everyone's, as it predicts them."""
    level = np.asarray(level_bias(variables["params"]), np.float64) - base
    space = song_space(variables)
    if space is None:
        return level[None]
    alike = space.likeness(space.place(features.embedding), listener_places(variables))
    more = alike @ listener_weights(variables)
    steps = len(features.log_mel)
    if len(more) == len(features.window_start) != steps:  # one for each window
        more = blended(more, features.window_start, steps)
    return level + more


def _personal(loaded: LoadedModel, variables: Variables, person: Person | None) -> LoadedModel:
    """The model with other variables, whose listener may have more songs than there was room for."""
    found = dataclasses.replace(loaded, variables=dict(variables), person=person)
    if song_space(variables) is None:
        return found
    config = dataclasses.replace(loaded.info.config.model, listener_centres=len(listener_places(variables)))  # fmt: skip
    if config == loaded.info.config.model:
        return found
    run = dataclasses.replace(loaded.info.config, model=config)
    info = dataclasses.replace(loaded.info, config=run)
    return dataclasses.replace(found, model=loaded.model.clone(config=config), info=info)


def _by_steps(
    loaded: LoadedModel, songs: Sequence[AnnotatedSong]
) -> tuple[LoadedModel, list[BeforeAfter]]:
    if loaded.person is not None:
        raise UsageError(
            "a personal model takes no further inner steps; begin with everyone's model, and all songs"
        )
    per_step = loaded.info.features.embedding_per == "step"
    support = jax.tree.map(
        lambda *parts: jnp.concatenate(parts),
        *(support_batch(song.features, song.labels, per_step=per_step) for song in songs),
    )
    adapted = jax.jit(adapt_to_listener, static_argnums=(0, 1))(
        loaded.model, loaded.info.config.meta, loaded.variables, support
    )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(adapted))):
        raise UsageError("adapting diverged; train with a smaller meta.learning_rate")
    curves = [
        (_predicted(loaded, loaded.variables, song), _predicted(loaded, adapted, song))
        for song in songs
    ]
    return _personal(loaded, adapted, None), curves


def _predicted(loaded: LoadedModel, variables: Variables, song: AnnotatedSong) -> np.ndarray:
    return predict_features(loaded, variables, song.features)


def _error(curve: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`[2]` RMSE of a curve; NaN where nothing is annotated."""
    return np.sqrt(labelled_mean(np.square(labels - curve, dtype=np.float64)))


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
    directory: Path,
    result: Personalized,
    songs: Sequence[str],
    convention: Convention = Convention(),
    replace: bool = False,
) -> None:
    """Writes the personalised model; see :func:`dsaml_jax.runs.save_model`.

    Args:
      directory: new or empty.
      result: what came of it.
      songs: names of what it was adapted to now.
      convention: how their tables were meant.
      replace: the model that is there already.
    """
    person = result.loaded.person
    known = len(person.songs) if person else len(songs)
    before = f", and {known - len(songs)} before" if known > len(songs) else ""
    named = printable(", ".join(songs[:3]) + (", ..." if len(songs) > 3 else ""))
    note = f"personalised on {result.labelled_seconds:g} s of {named}{before}"
    if convention != Convention():
        note += f", {convention.meaning()}, joined over up to {convention.max_gap:g} s"
    save_model(
        directory,
        result.loaded.variables,
        dataclasses.replace(result.loaded.info, note=note),
        step=result.loaded.step,
        listeners=result.loaded.listeners,
        person=person,
        replace=replace,
    )
