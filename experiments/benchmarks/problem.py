"""The meta-step that the benchmarks time: DESIGN settings of the paper, on made-up features.

16 inner SGD steps at 5e-3 on all parameters, 1 support song and 15 query songs per task, BatchNorm by the statistics of
the batch, the loss of the paper; dropout is 0, so that other implementations can be compared number by number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.base import WINDOW_STEPS
from data_prep.features import WINDOW_HOP
from dsaml_jax import DSAML, ModelConfig, meta
from dsaml_jax.adaptation import query_loss, support_loss
from dsaml_jax.base import SongBatch
from dsaml_jax.config import MetaConfig

FRAMES, BANDS = 51, 128
STEPS, RATE, QUERIES = 16, 5e-3, 15
MODELS = {
    "full size": ModelConfig(dropout=0.0),
    "width 64": ModelConfig(width=64, num_heads=4, num_layers=2, dropout=0.0),
}
META = MetaConfig(steps=STEPS, learning_rate=RATE)


def initial(config: ModelConfig) -> dict[str, Any]:
    """Freshly drawn variables."""
    log_mel = jnp.zeros((1, 2, FRAMES, BANDS))
    embedding = jnp.zeros((1, 1, config.embedding_width or config.width))
    return dict(jax.jit(DSAML(config).init)(jax.random.key(0), log_mel, embedding))


def songs(config: ModelConfig, tasks: int, count: int, seed: int) -> SongBatch:
    """`[tasks, count, ...]` windows with the mean and spread of log-mel patches, and smooth curves."""
    random = np.random.default_rng(seed)
    lead = (tasks, count)
    width = config.embedding_width or config.width
    walk = np.cumsum(random.standard_normal((2, *lead, WINDOW_STEPS)), axis=-1) / 20
    true = np.ones((*lead, WINDOW_STEPS), bool)
    return SongBatch(
        log_mel=random.standard_normal((*lead, WINDOW_STEPS, FRAMES, BANDS), np.float32) * 2.5 - 4,
        embedding=random.standard_normal((*lead, 1, width), np.float32),
        arousal=np.clip(walk[0], -1, 1).astype(np.float32),
        valence=np.clip(walk[1], -1, 1).astype(np.float32),
        present=true,
        labelled=true,
    )


def song(minutes: float, width: int = 1024) -> dict[str, np.ndarray]:
    """Made-up features of a whole song, as :func:`dsaml_jax.listener.predict_song` reads them."""
    steps = int(minutes * 120)
    random = np.random.default_rng(0)
    last = steps - WINDOW_STEPS
    starts = np.arange(0, last + 1, WINDOW_HOP)
    starts = starts if starts[-1] == last else np.append(starts, last)
    return {
        "log_mel": random.standard_normal((steps, FRAMES, BANDS), np.float32) * 2.5 - 4,
        "embedding": random.standard_normal((len(starts), width), np.float32),
        "window_start": starts.astype(np.int32),
    }


def annotated(features: dict[str, np.ndarray]) -> SongBatch:
    """All windows of such a song `[w, ...]` with a smooth curve: what one listener adapts on."""
    inside = features["window_start"][:, None] + np.arange(WINDOW_STEPS)[None]
    curve = np.sin(inside / 20).astype(np.float32)
    true = np.ones(inside.shape, bool)
    return SongBatch(
        features["log_mel"][inside], features["embedding"][:, None], curve, curve, true, true
    )


def meta_gradient_of(
    config: ModelConfig, batch_stats: Any, algorithm: meta.Algorithm, tasks_at_once: int | None
) -> Callable[..., Any]:
    """`(params, support, query) -> (loss, gradient)`, to be jitted."""
    model = DSAML(config)

    def run(params: Any, support: SongBatch, query: SongBatch) -> tuple[jax.Array, Any]:
        (value, _), gradient = meta.meta_gradient(
            support_loss(model, META, batch_stats), params, support, query, algorithm=algorithm,
            query_loss_fn=query_loss(model, batch_stats, batch_norm=True), has_aux=True,
            tasks_at_once=tasks_at_once,
        )  # fmt: skip
        return value, gradient

    return run
