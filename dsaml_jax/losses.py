"""The loss of DSAML (section 3.5), and the bounded one the inner loop may use instead."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from dsaml_jax import metrics
from dsaml_jax.base import ModelConfig, ModelOutput

Terms = dict[str, jax.Array]


def dsaml_loss(
    out: ModelOutput,
    arousal: jax.Array,
    valence: jax.Array,
    *,
    config: ModelConfig,
    mask: jax.Array | None = None,
    squared_error_weight: float = 0.0,
) -> tuple[jax.Array, Terms]:
    """`1 - score + diagonal_weight * diagonal attention loss + squared_error_weight * squared error`.

    The score is the mean over {arousal, valence} of (CCC, PCC, 1 - RMSE), each per sample over `T`
    and averaged over the samples that have a labelled step.

    Args:
      out: the model's output for `B` windows.
      arousal: `[B, T]` labels; may be NaN where masked.
      valence: `[B, T]` likewise.
      config: which scales exist, and the diagonal loss's targets and weight.
      mask: `[B, T]` bool, the steps that count; None counts all.
      squared_error_weight: what :func:`squared_error` counts; 0 in the paper.

    Returns:
      the scalar loss, and its terms: `arousal_ccc`, `arousal_pcc`, `arousal_rmse`, the same of
      valence, `score`, `score_loss`, `attention_loss`, `squared_error` where it counts, `total_loss`.
    """
    chex.assert_equal_shape([out.arousal, out.valence, arousal, valence])
    chex.assert_rank(arousal, 2)
    if mask is None:
        mask = jnp.ones(arousal.shape, bool)
    chex.assert_equal_shape([arousal, mask])
    counted = jnp.any(mask, -1).astype(out.arousal.dtype)
    samples = jnp.maximum(jnp.sum(counted), 1.0)

    terms: Terms = {}
    curves = {"arousal": (out.arousal, arousal), "valence": (out.valence, valence)}
    for name, (prediction, target) in curves.items():
        for metric in (metrics.ccc, metrics.pcc, metrics.rmse):
            values = metric(prediction, target, mask)
            terms[f"{name}_{metric.__name__}"] = jnp.sum(values * counted) / samples
    score = sum(
        terms[f"{name}_ccc"] + terms[f"{name}_pcc"] + 1.0 - terms[f"{name}_rmse"] for name in curves
    )
    terms["score"] = jnp.asarray(score) / 6.0
    terms["score_loss"] = 1.0 - terms["score"]
    terms["attention_loss"] = diagonal_attention_loss(out.attention, config, mask)
    terms["total_loss"] = terms["score_loss"] + config.diagonal_weight * terms["attention_loss"]
    if squared_error_weight:
        terms["squared_error"] = squared_error(out, arousal, valence, mask)
        terms["total_loss"] += squared_error_weight * terms["squared_error"]
    return terms["total_loss"], terms


def diagonal_attention_loss(
    attention: jax.Array, config: ModelConfig, mask: jax.Array | None = None
) -> jax.Array:
    """Sum over scales of the mean squared distance of the last map's diagonal to its target.

    The map is averaged over heads and batch *before* the distance is taken, as in the reference.

    Args:
      attention: `[B, S, L, H, T, T]`.
      config: gives each scale's target.
      mask: `[B, T]` bool, the steps that count; None counts all.
    """
    chex.assert_rank(attention, 6)
    batch, _, _, _, steps, _ = attention.shape
    last = attention[:, :, -1].mean(axis=2)
    diagonal = jnp.diagonal(last, axis1=-2, axis2=-1)  # [B, S, T]
    weights = jnp.ones((batch, steps)) if mask is None else mask.astype(attention.dtype)
    samples = jnp.sum(weights, 0)  # [T], how many samples have each step
    mean = jnp.einsum("bst,bt->st", diagonal, weights) / jnp.maximum(samples, 1.0)[None]
    target = jnp.asarray(config.diagonal_targets, mean.dtype)[:, None]
    counted = (samples > 0.0).astype(mean.dtype)[None]
    error = jnp.sum(jnp.square(mean - target) * counted, -1)
    return jnp.sum(error) / jnp.maximum(jnp.sum(counted), 1.0)


def squared_error(
    out: ModelOutput, arousal: jax.Array, valence: jax.Array, mask: jax.Array
) -> jax.Array:
    """Mean squared error over all counted steps, arousal and valence summed.

    CCC and PCC do not change when both curves shrink, so their gradients grow as the prediction's
    variance falls; this loss is smooth and its gradient vanishes with the error, which is what a
    few steps of gradient descent on one song need.

    Args:
      out: the model's output.
      arousal: `[B, T]` labels.
      valence: `[B, T]` labels.
      mask: `[B, T]` bool.
    """
    chex.assert_equal_shape([out.arousal, arousal, valence, mask])
    error = jnp.square(out.arousal - jnp.where(mask, arousal, 0.0))
    error = error + jnp.square(out.valence - jnp.where(mask, valence, 0.0))
    weights = mask.astype(error.dtype)
    return jnp.sum(error * weights) / jnp.maximum(jnp.sum(weights), 1.0)
