"""Whether a PyTorch peer computes our loss and meta-gradient: asked before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from torch_peers import Batch, Gradients, Plain, Strong, meta_gradient

from dsaml_jax import DSAML, ModelConfig, meta
from dsaml_jax.convert import to_torch
from dsaml_jax.losses import dsaml_loss


def reference_gradient(
    config: ModelConfig, variables: Mapping[str, Any], support: Batch, query: Batch
) -> tuple[float, Gradients]:
    """Our loss and meta-gradient after two inner steps, by the reference's names; arguments as in :func:`check_equal`."""
    model = DSAML(config)

    def loss_fn(params: Any, batch: Batch) -> jax.Array:
        everything = {"params": params, "batch_stats": variables["batch_stats"]}
        out: Any = model.apply(everything, batch.log_mel, batch.embedding, batch_norm=True)
        return dsaml_loss(out, batch.arousal, batch.valence, config=config)[0]

    algorithm = meta.algorithm("fomaml", steps=2, learning_rate=5e-3)
    # In full float32: what is checked is the mathematics, not an accelerator's rounding.
    with jax.default_matmul_precision("highest"):
        value, gradient = jax.jit(
            lambda *arguments: meta.meta_gradient(loss_fn, *arguments, algorithm=algorithm)
        )(variables["params"], support, query)
    return float(value), to_torch({"params": jax.device_get(gradient)}, config)


def check_equal(
    peer: Plain | Strong,
    variables: Mapping[str, Any],
    support: Batch,
    query: Batch,
    reference: tuple[float, Gradients] | None = None,
) -> float:
    """Compares a peer's meta-gradient after two inner steps with ours.

    Args:
      peer: made with `dsaml_jax.convert.to_torch(variables, config)`.
      variables: of :class:`dsaml_jax.DSAML`.
      support: numpy arrays with a leading task axis.
      query: likewise.
      reference: :func:`reference_gradient` of the same, so that several peers share it; None: computed here.

    Returns:
      the largest relative error of a tensor's gradient (L2).

    Raises:
      AssertionError: the loss differs by 1e-5, the whole gradient by 1e-3 of its norm, a tensor's by 1e-2 (in the front
        end one maximum that goes the other way after rounding can cost 3e-3), or, where the true gradient is 0
        (convolutions in front of a BatchNorm, keys: their biases), by 1e-5.
    """
    value, wanted = reference or reference_gradient(peer.config, variables, support, query)
    loss, gradients = meta_gradient(peer, support, query, steps=2, learning_rate=5e-3)
    assert abs(loss - value) < 1e-5, (loss, value)
    assert set(gradients) == set(wanted), set(gradients) ^ set(wanted)
    worst, squares = 0.0, np.zeros(2)
    for name, want in wanted.items():
        difference = gradients[name] - want
        squares += np.sum(np.square(difference)), np.sum(np.square(want))
        if name.endswith(("key.bias", ".conv.bias")):
            assert np.abs(difference).max() < 1e-5, (name, np.abs(difference).max())
            continue
        error = float(np.linalg.norm(difference) / np.linalg.norm(want))
        assert error < 1e-2, (name, error)
        worst = max(worst, error)
    whole = float(np.sqrt(squares[0] / squares[1]))
    assert whole < 1e-3, whole
    return worst
