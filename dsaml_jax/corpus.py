"""A prepared corpus on the device, who is held out, and windows gathered by index.

`Corpus` (numpy, from `data_prep.shards`) says what there is; :func:`held_out` deals songs and annotators
to training, validation and test; :class:`DeviceCorpus` is what a jitted step indexes. Features go to the
device once; a step receives only small integers.
"""

from __future__ import annotations

import dataclasses

import chex
import flax.struct
import jax.numpy as jnp
import numpy as np

from data_prep.base import SPLITS, split_by_rank
from data_prep.features import WINDOW_HOP
from data_prep.shards import Corpus
from dsaml_jax.base import WINDOW_STEPS, SongBatch, UsageError

ANNOTATOR_SHARES = (0.15, 0.2)
"""Shares of the annotators held out for validation and for the test."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One of training, validation and test.

    Attributes:
      songs: indices of its songs.
      ratings: indices of the ratings *of its annotators* for its songs: the `clean` protocol.
      all_ratings: indices of everybody's ratings for its songs: the `reference` protocol.
    """

    songs: np.ndarray
    ratings: np.ndarray
    all_ratings: np.ndarray


def held_out(corpus: Corpus, seed: int) -> dict[str, Part]:
    """Deals songs by the corpus's own splits, and annotators at random.

    A person is in one part only. In the test part both the songs and the annotators are unseen in
    training.

    Args:
      corpus: with its songs' splits.
      seed: of who is held out.

    Returns:
      `train`, `validation`, `test`.
    """
    people = split_by_rank(list(corpus.annotator_ids), seed, ANNOTATOR_SHARES)
    person_split = np.array([people[name] for name in corpus.annotator_ids], dtype="<U10")
    parts: dict[str, Part] = {}
    for split in SPLITS:
        of_song = (corpus.split == split)[corpus.rating_song]
        of_person = (person_split == split)[corpus.rating_annotator] if len(of_song) else of_song
        parts[split] = Part(
            songs=np.flatnonzero(corpus.split == split),
            ratings=np.flatnonzero(of_song & of_person),
            all_ratings=np.flatnonzero(of_song),
        )
    return parts


@flax.struct.dataclass
class DeviceCorpus:
    """Arrays of a :class:`data_prep.shards.Corpus` that a jitted step gathers from.

    Attributes are as there, and:
      target: `[n, 2]`, the curve DMER learns.
      per_step: whether there is one embedding per step rather than per window; static.
    """

    log_mel: chex.Array
    embedding: chex.Array
    target: chex.Array
    ratings: chex.Array
    song_start: chex.Array
    song_steps: chex.Array
    window_first: chex.Array
    window_count: chex.Array
    window_start: chex.Array
    embedding_first: chex.Array
    rating_song: chex.Array
    rating_first: chex.Array
    per_step: bool = flax.struct.field(pytree_node=False)


def to_device(corpus: Corpus, target: np.ndarray) -> DeviceCorpus:
    """Copies a corpus to the default device, with `target` `[n, 2]` as the curve of DMER."""
    names = {field.name for field in dataclasses.fields(DeviceCorpus)} - {"target", "per_step"}
    arrays = {name: jnp.asarray(getattr(corpus, name)) for name in sorted(names)}
    per_step = corpus.features.embedding_per == "step"
    return DeviceCorpus(target=jnp.asarray(target), per_step=per_step, **arrays)


def training_target(corpus: Corpus, part: Part) -> np.ndarray:
    """`[n, 2]`: the mean over the *training* annotators where they rated, else the corpus's mean.

    The corpus's own mean of a training song includes the people who are held out; learning from it
    would show them to the model.
    """
    target = corpus.mean.copy()
    for song in part.songs:
        mine = part.ratings[corpus.rating_song[part.ratings] == song]
        if len(mine):
            steps = corpus.song_steps[song]
            curves = np.stack([corpus.ratings[f : f + steps] for f in corpus.rating_first[mine]])
            known = np.isfinite(curves).any(axis=0)
            start = corpus.song_start[song]
            mean = np.where(
                known, np.nansum(curves, 0) / np.maximum(np.isfinite(curves).sum(0), 1), np.nan
            )
            target[start : start + steps] = mean
    return target


def regular_windows(corpus: Corpus) -> np.ndarray:
    """`[N]` how many of a song's windows training draws from: those on the 15 s grid.

    The last window of a song is flush with its end; where that is off the grid it overlaps its neighbour
    almost wholly, and only prediction needs it.
    """
    return np.maximum((corpus.song_steps - WINDOW_STEPS) // WINDOW_HOP + 1, 1).astype(np.int32)


def gather_windows(
    corpus: DeviceCorpus, song: chex.Array, window: chex.Array, rating: chex.Array | None = None
) -> SongBatch:
    """Windows by index, inside `jit`.

    Args:
      corpus: where from.
      song: `[B]` int32.
      window: `[B]` int32, which window of the song.
      rating: `[B]` int32, whose curve is the label; below 0 nobody's (nothing is labelled). None:
        `corpus.target`.

    Returns:
      a batch of `B` windows, features in float32.
    """
    chex.assert_rank([song, window], 1)
    start = corpus.window_start[corpus.window_first[song] + window][:, None]
    offset = start + jnp.arange(WINDOW_STEPS)[None]  # [B, T], within the song
    present = offset < corpus.song_steps[song][:, None]
    offset = jnp.where(present, offset, 0)
    rows = corpus.song_start[song][:, None] + offset
    embedding_rows = corpus.embedding_first[song][:, None]
    embedding_rows = embedding_rows + (offset if corpus.per_step else window[:, None])
    if rating is None:
        labels = corpus.target[rows]
        labelled = present
    else:
        labels = corpus.ratings[corpus.rating_first[jnp.maximum(rating, 0)][:, None] + offset]
        labelled = present & (rating >= 0)[:, None]
    finite = jnp.isfinite(labels).all(-1)
    labels = jnp.where(finite[..., None], labels, 0.0)
    return SongBatch(
        log_mel=corpus.log_mel[rows].astype(jnp.float32),
        embedding=corpus.embedding[embedding_rows],
        arousal=labels[..., 0],
        valence=labels[..., 1],
        present=present,
        labelled=labelled & finite,
    )


def require_annotators(part: Part, name: str) -> None:
    """Raises UsageError where a part has no ratings to make tasks from."""
    if not len(part.ratings):
        raise UsageError(
            f"the {name} part has no ratings by single annotators, which PDMER needs; "
            "train with --task dmer, or prepare a corpus with annotations per rater"
        )
