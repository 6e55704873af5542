"""The network of a configuration: DSAML, or one of the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax

from dsaml_jax.base import ModelConfig, ModelOutput
from dsaml_jax.errors import UsageError
from dsaml_jax.models.dsaml import DSAML


@runtime_checkable
class Network(Protocol):
    """What training, evaluation and prediction ask of a network: a Flax module made from a :class:`ModelConfig` alone, its field `config`.

    Variables are `params` and, if it has running statistics, `batch_stats`. A network that also has DSAML's `encode` and `predict`,
    which together are `__call__`, encodes each step of a long song once; any other sees every window whole.
    """

    def __call__(
        self, log_mel: jax.Array, global_embedding: jax.Array, train: bool = False, *, present: jax.Array | None = None
    ) -> ModelOutput:  # fmt: skip
        """Curves of `B` windows.

        Args:
          log_mel: `[B, T, F, M]`.
          global_embedding: `[B, 1, E]` or `[B, T, E]`.
          train: dropout on (key `dropout`), statistics of the batch.
          present: `[B, T]` bool, the steps that exist; None where all do.
        """
        ...


TRUSTED = "DSAML_NETWORKS"
"""Environment variable: networks, with commas between, that a model which is loaded may name."""


def build_model(config: ModelConfig, *, trusted: str = "") -> Any:
    """The network that a configuration names.

    Making somebody's network runs their code. So one that a file names, rather than the user, has to be named by the user too: by
    `trusted`, or in the environment variable :data:`TRUSTED`.

    Args:
      config: of the model.
      trusted: the `class_` that may be imported.

    Raises:
      UsageError: `class_` is not trusted, or no Flax module that can be imported and made from a configuration.
    """
    name = config.class_
    if not name:
        return DSAML(config)
    if name not in (trusted, *os.environ.get(TRUSTED, "").split(",")):
        raise UsageError(
            f"this model is a network of somebody's own, {name}: loading it runs that code. Where you trust it: "
            f"export {TRUSTED}={name}"
        )
    module, _, inside = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), inside)
    except Exception as error:  # whatever the user's module raises
        raise UsageError(
            f"model.class {name}: cannot be imported ({error}); write package.module:Class"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UsageError(f"model.class {name}: is no flax.linen module")
    try:
        model = found(config)
    except Exception as error:
        raise UsageError(
            f"model.class {name}: is not made from a ModelConfig alone ({error})"
        ) from error
    if getattr(model, "config", None) != config:
        raise UsageError(f"model.class {name}: does not keep its ModelConfig as `config`")
    return model


def is_split(model: nn.Module) -> bool:
    """Whether a network has a front end of its own, `encode`, and the rest, `predict`."""
    return hasattr(model, "encode") and hasattr(model, "predict")


def knows_batch_norm(model: nn.Module) -> bool:
    """Whether `__call__` lets the caller choose BatchNorm's statistics apart from `train`, as DSAML does."""
    return "batch_norm" in inspect.signature(type(model).__call__).parameters
