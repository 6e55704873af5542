"""A prepared corpus on the device, and windows gathered by index.

:class:`DeviceCorpus` is what a jitted step indexes. Features go to the device once; a step receives only small integers. Where they
are too large for that, `dsaml_jax.corpus.batches` makes a small `DeviceCorpus` for every step.
"""

from __future__ import annotations

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from data_prep.base import WINDOW_STEPS
from data_prep.shards import Corpus, features_of
from dsaml_jax.base import SongBatch


@flax.struct.dataclass
class DeviceCorpus:
    """Arrays of a :class:`data_prep.shards.Corpus` that a jitted step gathers from.

    Attributes are as there, and:
      target: `[n, 2]`, the curve DMER learns.
      feature_start: `[N]` first row of each song in `log_mel`: `song_start`, unless only some songs'
        features are here.
      per_step: whether there is one embedding per step rather than per window; static.
      window_steps: `T`, see :func:`window_steps`; static.
    """

    log_mel: chex.Array
    embedding: chex.Array
    target: chex.Array
    ratings: chex.Array
    feature_start: chex.Array
    song_start: chex.Array
    song_steps: chex.Array
    window_first: chex.Array
    window_count: chex.Array
    window_start: chex.Array
    embedding_first: chex.Array
    rating_song: chex.Array
    rating_first: chex.Array
    per_step: bool = flax.struct.field(pytree_node=False)
    window_steps: int = flax.struct.field(pytree_node=False, default=WINDOW_STEPS)


def window_steps(corpus: Corpus) -> int:
    """`T`: the steps of a window, or of the longest song where all are shorter, as excerpts are."""
    return min(WINDOW_STEPS, int(corpus.song_steps.max()))


_SHARED = ("ratings", "song_start", "song_steps", "window_first", "window_count", "window_start",
           "rating_song", "rating_first")  # fmt: skip


def to_device(corpus: Corpus, target: np.ndarray, songs: np.ndarray | None = None) -> DeviceCorpus:
    """Copies a corpus to the default device.

    Args:
      corpus: where from.
      target: `[n, 2]`, the curve of DMER.
      songs: indices of the songs whose features are needed, for a corpus whose features are on disk. Of
        the others nothing must be gathered. None: all.
    """
    features = vars(
        features_of(corpus, np.arange(len(corpus.song_ids)) if songs is None else songs)
    )
    arrays = {name: getattr(corpus, name) for name in _SHARED} | features | {"target": target}
    per_step = corpus.features.embedding_per == "step"
    return DeviceCorpus(
        per_step=per_step, window_steps=window_steps(corpus), **jax.device_put(arrays)
    )


def gather_windows(
    corpus: DeviceCorpus, song: chex.Array, window: chex.Array, rating: chex.Array | None = None
) -> SongBatch:
    """Windows by index, inside `jit`.

    Args:
      corpus: where from.
      song: `[B]` int32.
      window: `[B]` int32, which window of the song.
      rating: `[B]` int32, whose curve is the label; below 0 marks padding (nothing is present). None:
        `corpus.target`.

    Returns:
      a batch of `B` windows, features in float32.
    """
    chex.assert_rank([song, window], 1)
    start = corpus.window_start[corpus.window_first[song] + window][:, None]
    offset = start + jnp.arange(corpus.window_steps)[None]  # [B, T], within the song
    present = offset < corpus.song_steps[song][:, None]
    offset = jnp.where(present, offset, 0)
    embedding_rows = corpus.embedding_first[song][:, None]
    embedding_rows = embedding_rows + (offset if corpus.per_step else window[:, None])
    if rating is None:
        labels = corpus.target[corpus.song_start[song][:, None] + offset]
        labelled = present
    else:
        labels = corpus.ratings[corpus.rating_first[jnp.maximum(rating, 0)][:, None] + offset]
        present = present & (rating >= 0)[:, None]  # padding must not reach BatchNorm either
        labelled = present
    finite = jnp.isfinite(labels)
    labels = jnp.where(finite, labels, 0.0)
    return SongBatch(
        log_mel=corpus.log_mel[corpus.feature_start[song][:, None] + offset].astype(jnp.float32),
        embedding=corpus.embedding[embedding_rows],
        arousal=labels[..., 0],
        valence=labels[..., 1],
        present=present,
        labelled=labelled[..., None] & finite,
    )
