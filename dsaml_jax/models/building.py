"""The network of a configuration: DSAML, or one of the user's own."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax

from dsaml_jax.base import ModelConfig, ModelOutput
from dsaml_jax.errors import UsageError
from dsaml_jax.models.dsaml import DSAML


@runtime_checkable
class Network(Protocol):
    """What training, evaluation and prediction ask of a network: a Flax module made from a :class:`ModelConfig` alone.

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


def build_model(config: ModelConfig) -> Any:
    """The network that a configuration names.

    Raises:
      UsageError: `class_` names no Flax module that can be imported and made from a configuration.
    """
    if not config.class_:
        return DSAML(config)
    module, colon, name = config.class_.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"model.class {config.class_}: cannot be imported ({error}); write package.module:Class"
        ) from None
    if not (colon and inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UsageError(f"model.class {config.class_}: is no flax.linen module")
    try:
        return found(config)
    except TypeError as error:
        raise UsageError(
            f"model.class {config.class_}: is not made from a ModelConfig alone ({error})"
        ) from None


def is_split(model: nn.Module) -> bool:
    """Whether a network has a front end of its own, `encode`, and the rest, `predict`."""
    return hasattr(model, "encode") and hasattr(model, "predict")


def knows_batch_norm(model: nn.Module) -> bool:
    """Whether `__call__` lets the caller choose BatchNorm's statistics apart from `train`, as DSAML does."""
    return "batch_norm" in inspect.signature(type(model).__call__).parameters
