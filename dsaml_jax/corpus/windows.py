"""Which windows of a curve training and adaptation may draw: one rule for a corpus and for anybody's own songs."""

from __future__ import annotations

import numpy as np

from data_prep.base import WINDOW_STEPS
from data_prep.features import WINDOW_HOP
from data_prep.shards import Corpus
from dsaml_jax.base import MIN_LABELLED_STEPS


def labelled_windows(
    corpus: Corpus, song: np.ndarray, first: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Which windows training and adaptation may draw of each of K curves; see :func:`windows_to_draw`.

    Args:
      corpus: whose songs.
      song: `[K]`.
      first: `[K]` first row of each curve in `values`.
      values: `[*, 2]` arousal and valence, NaN where unlabelled.

    Returns:
      `[K, W]` bool, W the most windows that any song has.
    """
    return windows_to_draw(corpus.song_steps[song], first, values, int(corpus.window_count.max()))


def windows_to_draw(
    steps: np.ndarray, first: np.ndarray, values: np.ndarray, windows: int
) -> np.ndarray:
    """Which windows of songs training and adaptation may draw, of a corpus or of anybody's own.

    Those on the 15 s grid with at least :data:`~dsaml_jax.base.MIN_LABELLED_STEPS` steps that are labelled
    in either dimension (or all, in a shorter song). The last window of a song is flush with its end; where
    that is off the grid it overlaps its neighbour almost wholly, so it is drawn only where no other can be.

    Args:
      steps: `[K]` of the songs.
      first: `[K]` first row of each curve in `values`.
      values: `[*, 2]` arousal and valence, NaN where unlabelled.
      windows: `W`, at least as many as any song has.

    Returns:
      `[K, W]` bool.
    """
    until = np.concatenate([[0], np.cumsum(np.isfinite(values).any(axis=-1))])
    window, steps = np.arange(windows)[None], steps[:, None]
    on_grid = np.maximum((steps - WINDOW_STEPS) // WINDOW_HOP + 1, 1)
    flush = (window == on_grid) & (steps > (on_grid - 1) * WINDOW_HOP + WINDOW_STEPS)
    begin = np.minimum(window * WINDOW_HOP, steps)
    begin = np.where(flush, steps - WINDOW_STEPS, begin)
    end = np.minimum(begin + WINDOW_STEPS, steps)
    labelled = until[first[:, None] + end] - until[first[:, None] + begin]
    enough = (labelled >= np.minimum(MIN_LABELLED_STEPS, end - begin)) & (labelled > 0)
    drawn = (window < on_grid) & enough
    return drawn | (flush & enough & ~drawn.any(axis=1, keepdims=True))
