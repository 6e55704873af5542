"""A song as patches of three seconds, listened to once, and what stretches of it are embedded as."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from data_prep.musicnn.spectrogram import HOP, SAMPLE_RATE
from data_prep.parallel import batch_sizes

PATCH_FRAMES = 187
"""Frames that the network hears at once: 3 s."""

PATCH_HOP = 94
"""Frames between patches: 1.5 s, so that each moment is in the middle half of one."""

MAX_PATCHES = 32
"""Patches that are listened to at once; a power of two. Bounds the memory of activations."""


@dataclasses.dataclass(frozen=True)
class MusicnnInput:
    """What MSD_musicnn hears of a song.

    Attributes:
      log_mel: `[frames, 96]`.
      stretches: first and last second of the stretch behind each embedding; may reach outside.
    """

    log_mel: np.ndarray
    stretches: tuple[tuple[float, float], ...]

    def embed(self, embed: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`[e, E]`: each stretch's mean over the patches whose middle is in it, or over the nearest one.

        Every patch is listened to once, however many stretches it is in.
        """
        first = patch_starts(len(self.log_mel))
        frames = np.resize(self.log_mel, (max(len(self.log_mel), PATCH_FRAMES), self.log_mel.shape[1]))  # fmt: skip
        patches = frames[first[:, None] + np.arange(PATCH_FRAMES)]
        found = embed(patches)
        middle = (first + PATCH_FRAMES / 2) * HOP / SAMPLE_RATE
        rows = []
        for begin, end in self.stretches:
            inside = (middle >= begin) & (middle < end)
            if not inside.any():
                inside = np.arange(len(middle)) == np.abs(middle - (begin + end) / 2).argmin()
            rows.append(found[inside].mean(axis=0))
        return np.stack(rows)


def patch_starts(frames: int) -> np.ndarray:
    """First frame of each patch: every :data:`PATCH_HOP`, and one flush with the end. `[p]`."""
    last = max(frames - PATCH_FRAMES, 0)
    return np.unique(np.append(np.arange(0, last + 1, PATCH_HOP), last))


@lru_cache(maxsize=1)
def embedder() -> Callable[[np.ndarray], np.ndarray]:
    """Patches `[p, 187, 96]` to `[p, E]`, compiled once for each of a few batch sizes."""
    import jax

    from data_prep.musicnn.network import Musicnn, embedding
    from data_prep.musicnn.weights import load

    @jax.jit
    def listen(variables: Any, patches: jax.Array) -> jax.Array:
        out: Any = Musicnn().apply(variables, patches)
        return embedding(out)

    weights = jax.device_put(load())

    def embed(patches: np.ndarray) -> np.ndarray:
        parts, first = [], 0
        for size in batch_sizes(len(patches), MAX_PATCHES):
            parts.append(listen(weights, patches[first : first + size]))
            first += size
        return np.concatenate(jax.device_get(parts))

    return embed
