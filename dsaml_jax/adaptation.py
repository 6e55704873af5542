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
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from dsaml_jax import losses, meta
from dsaml_jax.base import PyTree, SongBatch
from dsaml_jax.config import MetaConfig
from dsaml_jax.errors import UsageError
from dsaml_jax.meta import LossFn
from dsaml_jax.models import knows_batch_norm

Terms = dict[str, jax.Array]


HEAD = "predictor/out"
"""The last layer: what ANIL adapts and BOIL does not, unless the configuration names another head."""

CONTEXT = f"{HEAD}/bias"
"""The offsets of both curves: the context of CAVIA, unless the configuration names another."""


def inner_algorithm(config: MetaConfig) -> meta.Algorithm:
    """The algorithm object of a configuration."""
    prefix = config.adapts
    if prefix == "all":
        prefix = {"anil": HEAD, "boil": HEAD, "cavia": CONTEXT}.get(config.algorithm, prefix)

    def adapts(name: str) -> bool:
        return f"{name}/".startswith(f"{prefix}/")

    transforms = {
        "sgd": None,
        "momentum": optax.trace(0.9),
        "adam": optax.scale_by_adam(eps_root=1e-8),  # sqrt has no derivative at 0
    }
    options = {
        "adapts": None if prefix == "all" else adapts,
        "transform": transforms[config.inner_optimizer],
        "memory": config.memory,
        "multi_step_until": config.multi_step_until,
        "first_order_until": config.first_order_until,
        "proximal": config.proximal,
        "cg_steps": config.cg_steps,
        "tolerance": config.tolerance,
        "damping": config.damping,
        "solver": config.solver,
    }
    known = meta.algorithm_options(config.algorithm)
    return meta.algorithm(
        config.algorithm,
        steps=config.steps,
        learning_rate=config.learning_rate,
        **{name: value for name, value in options.items() if name in known},
    )


def adapting_names(config: MetaConfig, variables: Mapping[str, Any]) -> list[str]:
    """Paths of the parameters that adapt."""
    adapts = inner_algorithm(config).adapting
    names = ("/".join(path) for path in flatten_dict(dict(variables["params"])))
    return [name for name in names if adapts(name)]


def to_learned(config: MetaConfig, variables: Mapping[str, Any]) -> PyTree:
    """What the meta-learner learns, from a model's variables; rates that are not there begin at `learning_rate`.

    Raises:
      UsageError: nothing adapts, or what does moves nothing.
    """
    names = adapting_names(config, variables)
    if names == [f"{HEAD}/bias"] and "level" in variables["params"]:
        raise UsageError(
            f"meta.adapts={config.adapts} moves nothing in a model with model.level_centres: level/bias says how high its "
            "curves lie"
        )
    if not names:
        some = ", ".join(sorted(variables["params"]))
        raise UsageError(
            f"meta.adapts={config.adapts}: no parameter is called so; there are {some}"
        )
    learned = inner_algorithm(config).init(variables["params"])
    if isinstance(learned, meta.LearnedRates) and "rates" in variables:
        return meta.LearnedRates(learned.params, variables["rates"])
    return learned


def to_variables(learned: PyTree, batch_stats: PyTree) -> dict[str, Any]:
    """`params`, `batch_stats` and, where they are learned, `rates`: what a checkpoint holds."""
    if isinstance(learned, meta.LearnedRates):
        return {"params": learned.params, "batch_stats": batch_stats, "rates": learned.rates}
    return {"params": learned, "batch_stats": batch_stats}


LEVEL_BIASES = (("level", "bias"), ("predictor", "out", "bias"))
"""What is added to both curves: of a model with a head for levels, and of one without."""


def level_bias(params: PyTree) -> Any | None:
    """`[2]` what a network adds to both curves; None of one of somebody's own."""
    place = _level_bias_place(params)
    return None if place is None else flatten_dict(dict(params))[place]


def with_level_bias(variables: Mapping[str, Any], bias: chex.Array) -> dict[str, Any]:
    """The same variables with another :func:`level_bias`."""
    place = _level_bias_place(variables["params"])
    assert place is not None
    flat = flatten_dict(dict(variables["params"]))
    return {
        **variables,
        "params": unflatten_dict({**flat, place: jnp.asarray(bias, flat[place].dtype)}),
    }


def _level_bias_place(params: PyTree) -> tuple[str, ...] | None:
    flat = flatten_dict(dict(params))
    places = (place for place in LEVEL_BIASES if place in flat and np.shape(flat[place]) == (2,))
    return next(places, None)


def apply_batch(
    model: nn.Module,
    params: PyTree,
    batch_stats: PyTree,
    batch: SongBatch,
    *,
    key: chex.PRNGKey | None,
    batch_norm: bool,
) -> tuple[Any, PyTree]:
    """Output for a batch, and the running statistics it would leave behind."""
    statistics: dict[str, Any] = {"batch_norm": batch_norm} if knows_batch_norm(model) else {}
    out, updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        batch.log_mel,
        batch.embedding,
        key is not None,
        present=batch.present,
        mutable=["batch_stats"],
        rngs=None if key is None else {"dropout": key},
        **statistics,
    )
    return out, updates.get("batch_stats", batch_stats)


def support_loss(model: nn.Module, config: MetaConfig, batch_stats: PyTree) -> LossFn:
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
    model: nn.Module, batch_stats: PyTree, *, batch_norm: bool, **weights: float
) -> Callable[..., tuple[jax.Array, tuple[Terms, PyTree]]]:
    """Outer loss `(params, batch, key=None) -> (scalar, (terms, running statistics))`.

    Args:
      model: the network.
      batch_stats: its running statistics.
      batch_norm: whether BatchNorm uses the statistics of the batch.
      weights: of :func:`dsaml_jax.losses.dsaml_loss`, for what is added to the loss of the paper.
    """

    def loss(
        params: PyTree, batch: SongBatch, key: chex.PRNGKey | None = None
    ) -> tuple[jax.Array, tuple[Terms, PyTree]]:
        out, stats = apply_batch(model, params, batch_stats, batch, key=key, batch_norm=batch_norm)
        value, terms = losses.dsaml_loss(
            out, batch.arousal, batch.valence, config=model.config, mask=batch.labelled, **weights
        )
        return value, (terms, stats)

    return loss


def adapt_to_listener(
    model: nn.Module, config: MetaConfig, variables: Mapping[str, Any], support: SongBatch
) -> dict[str, Any]:
    """Variables after the inner steps on one listener's annotated windows, without dropout.

    They are the share `config.strength` of the way from where they began to where the steps led.
    """
    loss = support_loss(model, config, variables["batch_stats"])
    adapted = inner_algorithm(config).adapt(loss, to_learned(config, variables), support)
    return part_of_the_way(variables, adapted, config.strength)


def part_of_the_way(
    variables: Mapping[str, Any], adapted: PyTree, strength: chex.Numeric
) -> dict[str, Any]:
    """Variables whose parameters have gone the share `strength` of the way to the adapted ones."""

    def between(old: jax.Array, new: jax.Array) -> jax.Array:
        # What did not move stays the same to the bit, and so does all of the way.
        return jnp.where(strength == 1.0, new, old + strength * (new - old))

    return {**variables, "params": jax.tree.map(between, variables["params"], adapted)}
