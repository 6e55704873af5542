"""The network of MSD_musicnn (Pons and Serra 2019, arXiv 1909.06654), in Flax."""

from __future__ import annotations

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from data_prep.musicnn.patches import PATCH_FRAMES
from data_prep.musicnn.spectrogram import MEL_BANDS

TIMBRAL = ((7, 38), (7, 67))
"""Frames and bands that the filters for timbre see."""

TEMPORAL = (128, 64, 32)
"""Frames that the filters for rhythm see, a band at a time."""

TIMBRAL_FILTERS, TEMPORAL_FILTERS, MIDDLE_FILTERS = 204, 51, 64
MIDDLE_FRAMES = 7
POOLED = 2 * TIMBRAL_FILTERS + 3 * TEMPORAL_FILTERS + 3 * MIDDLE_FILTERS
PENULTIMATE = 200
TAGS = 50
_EPSILON = 1e-3  # TensorFlow's default


@flax.struct.dataclass
class MusicnnOutput:
    """What the network makes of `N` patches.

    Attributes:
      mean_pool: `[N, 753]` means over time of all features.
      max_pool: `[N, 753]` their maxima.
      penultimate: `[N, 200]` what the tags are read from.
      tags: `[N, 50]` in [0, 1].
    """

    mean_pool: chex.Array
    max_pool: chex.Array
    penultimate: chex.Array
    tags: chex.Array


def embedding(out: MusicnnOutput) -> jax.Array:
    """`[N, 953]`: the mean pool and what the tags are read from.

    Chosen by what ridge regression tells of the level of DEAM's 1,602 excerpts from it (R² of arousal and valence, five folds of songs): 0.653
    and 0.460; from both pools and the same 0.656 and 0.464, with 1,706 numbers; from the penultimate layer alone 0.631 and 0.447, from the
    tags 0.599 and 0.404.
    """
    return jnp.concatenate([out.mean_pool, out.penultimate], axis=-1)


class Musicnn(nn.Module):
    """A tagger of music: filters as musicians think of them in front, three residual convolutions over time behind.

    Only running statistics are used: the weights are what was published, and are not trained on.
    """

    @nn.compact
    def __call__(self, log_mel: jax.Array) -> MusicnnOutput:
        """Listens to patches.

        Args:
          log_mel: `[N, 187, 96]`, see :func:`data_prep.musicnn.spectrogram.log_mel`.
        """
        chex.assert_shape(log_mel, (None, PATCH_FRAMES, MEL_BANDS))
        # Accelerators round the factors of float32 products otherwise.
        with jax.default_matmul_precision("highest"):
            return self._listen(log_mel)

    def _listen(self, log_mel: jax.Array) -> MusicnnOutput:
        x = _norm("input_norm")(log_mel[..., None])
        features = []
        for frames, bands in TIMBRAL:
            padding = ((frames // 2, frames // 2), (0, 0))
            features.append(_front(x, TIMBRAL_FILTERS, (frames, bands), padding, f"timbral{bands}"))
        for frames in TEMPORAL:
            features.append(_front(x, TEMPORAL_FILTERS, (frames, 1), "SAME", f"temporal{frames}"))
        front = jnp.concatenate(features, axis=-1)  # [N, 187, 561]
        middle = [_over_time(front, "middle0")]
        for layer in (1, 2):
            middle.append(_over_time(middle[-1], f"middle{layer}") + middle[-1])
        everything = jnp.concatenate([front, *middle], axis=-1)  # [N, 187, 753]
        highest, mean = everything.max(axis=1), everything.mean(axis=1)
        pooled = jnp.stack([highest, mean], axis=-1).reshape(len(log_mel), 2 * POOLED)
        hidden = nn.relu(nn.Dense(PENULTIMATE, name="dense")(_norm("pool_norm")(pooled)))
        penultimate = _norm("dense_norm")(hidden)
        tags = nn.sigmoid(nn.Dense(TAGS, name="tags")(penultimate))
        return MusicnnOutput(mean, highest, penultimate, tags)


def _norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, name=name)


def _front(
    x: jax.Array,
    filters: int,
    kernel: tuple[int, int],
    padding: str | tuple[tuple[int, int], ...],
    name: str,
) -> jax.Array:
    """Filters over `[N, 187, 96, 1]`, and of each the loudest band: `[N, 187, filters]`."""
    x = nn.relu(nn.Conv(filters, kernel, padding=padding, name=name)(x))
    return _norm(f"{name}_norm")(x).max(axis=2)


def _over_time(x: jax.Array, name: str) -> jax.Array:
    """A convolution over `[N, 187, features]`: `[N, 187, 64]`."""
    half = MIDDLE_FRAMES // 2
    conv = nn.Conv(MIDDLE_FILTERS, (MIDDLE_FRAMES,), padding=((half, half),), name=name)
    return _norm(f"{name}_norm")(nn.relu(conv(x)))
