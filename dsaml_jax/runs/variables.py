"""A model's variables: what they have to look like, and a model that has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from data_prep.features import FeatureConfig
from dsaml_jax.adaptation import to_learned, to_variables
from dsaml_jax.base import ModelConfig
from dsaml_jax.config import RunConfig
from dsaml_jax.errors import UsageError
from dsaml_jax.models import build_model
from dsaml_jax.runs.info import RunInfo
from dsaml_jax.runs.listeners import Listeners, Person


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict.

    Attributes:
      model: the network.
      variables: `params`, `batch_stats` and, where they were learned, the inner `rates`.
      info: of the run it came from.
      step: of the checkpoint.
      listeners: how single people differ from its curves, where that is known.
      person: of a personal model that was made by that.
    """

    model: nn.Module
    variables: dict[str, Any]
    info: RunInfo
    step: int
    listeners: Listeners | None = None
    person: Person | None = None


def initial_variables(model: nn.Module, features: FeatureConfig, key: jax.Array) -> dict[str, Any]:
    """Freshly drawn `params` and `batch_stats` for these features."""
    log_mel = jax.numpy.zeros((1, 2, features.frames, features.mel_bands))
    width = model.config.embedding_width or model.config.width
    embedding = jax.numpy.zeros((1, 1, width))
    return {"batch_stats": {}, **model.init(key, log_mel, embedding)}


def require_variables(
    variables: Mapping[str, Any], model: ModelConfig, features: FeatureConfig, where: str
) -> None:
    """Raises UsageError unless these are finite numbers in the shapes of the model's `params` and `batch_stats`."""

    def init() -> dict[str, Any]:
        return initial_variables(build_model(model), features, jax.random.key(0))

    expected = traverse_util.flatten_dict(jax.eval_shape(init), sep="/")
    found = traverse_util.flatten_dict(dict(variables), sep="/")
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found:
            what = "is missing" if name in expected else "is not of this model"
            raise UsageError(f"{where}: {name!r} {what}")
        if tuple(found[name].shape) != expected[name].shape:
            raise UsageError(
                f"{where}: {name!r} has the shape {list(found[name].shape)} instead of "
                f"{list(expected[name].shape)}"
            )
        if not np.isfinite(found[name]).all():
            raise UsageError(f"{where}: {name!r} holds numbers that are not finite")


def variables_like(config: RunConfig, features: FeatureConfig, model: nn.Module) -> dict[str, Any]:
    """Shapes of the variables that a run's checkpoints hold."""

    def make() -> dict[str, Any]:
        variables = initial_variables(model, features, jax.random.key(0))
        if config.training.task == "dmer":
            return variables
        return to_variables(to_learned(config.meta, variables), variables["batch_stats"])

    return jax.eval_shape(make)
