"""DSAML as a meta-learning problem: the inner and outer losses of one task, and adapting to one listener.

BatchNorm and dropout, explicitly. Inside the losses BatchNorm normalises by the statistics of the batch or
by the running ones, as `MetaConfig.batch_norm` says; the running ones are an argument and never change
within a task. The outer loss returns what its query would have made of them; the trainer averages that over
tasks and keeps it. Dropout masks come from the key each call is given; `key=None` means no dropout, which is
what adapting for a reported number always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax

from dsaml_jax import losses, meta
from dsaml_jax.base import PyTree, SongBatch
from dsaml_jax.config import MetaConfig
from dsaml_jax.meta.adapt import LossFn
from dsaml_jax.models.dsaml import DSAML

Terms = dict[str, jax.Array]


def inner_algorithm(config: MetaConfig) -> meta.Algorithm:
    """The algorithm object of a configuration."""
    prefix = config.adapts

    def adapts(name: str) -> bool:
        return f"{name}/".startswith(f"{prefix}/")

    return meta.algorithm(
        config.algorithm,
        steps=config.steps,
        learning_rate=config.learning_rate,
        adapts=None if prefix == "all" else adapts,
    )


def apply_batch(
    model: DSAML,
    params: PyTree,
    batch_stats: PyTree,
    batch: SongBatch,
    *,
    key: chex.PRNGKey | None,
    batch_norm: bool,
) -> tuple[Any, PyTree]:
    """Output for a batch, and the running statistics it would leave behind."""
    out, updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        batch.log_mel,
        batch.embedding,
        key is not None,
        present=batch.present,
        batch_norm=batch_norm,
        mutable=["batch_stats"],
        rngs=None if key is None else {"dropout": key},
    )
    return out, updates["batch_stats"]


def support_loss(model: DSAML, config: MetaConfig, batch_stats: PyTree) -> LossFn:
    """Inner loss `(params, batch, key=None) -> scalar`."""

    def loss(params: PyTree, batch: SongBatch, key: chex.PRNGKey | None = None) -> jax.Array:
        out, _ = apply_batch(
            model, params, batch_stats, batch, key=key, batch_norm=config.batch_norm == "batch"
        )
        if config.inner_loss == "squared_error":
            return losses.squared_error(out, batch.arousal, batch.valence, batch.labelled)
        value, _ = losses.dsaml_loss(
            out, batch.arousal, batch.valence, config=model.config, mask=batch.labelled
        )
        return value

    return loss


def query_loss(
    model: DSAML, batch_stats: PyTree, *, batch_norm: bool
) -> Callable[..., tuple[jax.Array, tuple[Terms, PyTree]]]:
    """Outer loss `(params, batch, key=None) -> (scalar, (terms, running statistics))`."""

    def loss(
        params: PyTree, batch: SongBatch, key: chex.PRNGKey | None = None
    ) -> tuple[jax.Array, tuple[Terms, PyTree]]:
        out, stats = apply_batch(model, params, batch_stats, batch, key=key, batch_norm=batch_norm)
        value, terms = losses.dsaml_loss(
            out, batch.arousal, batch.valence, config=model.config, mask=batch.labelled
        )
        return value, (terms, stats)

    return loss


def adapt_to_listener(
    model: DSAML, config: MetaConfig, variables: Mapping[str, Any], support: SongBatch
) -> dict[str, Any]:
    """Variables after the inner steps on one listener's annotated windows, without dropout."""
    loss = support_loss(model, config, variables["batch_stats"])
    adapted = inner_algorithm(config).adapt(loss, variables["params"], support)
    return {"params": adapted, "batch_stats": variables["batch_stats"]}
