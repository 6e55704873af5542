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
    batch_ccc_weight: float = 0.0,
) -> tuple[jax.Array, Terms]:
    """`1 - score + diagonal_weight * diagonal attention loss`, the loss of the paper, and what may be added to it.

    The score is the mean over {arousal, valence} of (CCC, PCC, 1 - RMSE), each per sample over `T`
    and averaged over the samples that have a step labelled in that dimension. A dimension that no
    sample is labelled in is left out of the mean.

    Args:
      out: the model's output for `B` windows.
      arousal: `[B, T]` labels; may be NaN where masked.
      valence: `[B, T]` likewise.
      config: which scales exist, and the diagonal loss's targets and weight.
      mask: `[B, T, 2]` bool, the steps whose arousal and valence count; `[B, T]` is for both; None
        counts all.
      squared_error_weight: what :func:`squared_error` counts; 0 in the paper.
      batch_ccc_weight: what `1 - CCC` over all steps of all samples together counts, the mean of both dimensions; 0 in the
        paper. A sample hardly moves, so that the score sees little but noise; how samples differ in level shows here.

    Returns:
      the scalar loss, and its terms: `arousal_ccc`, `arousal_pcc`, `arousal_rmse`, the same of
      valence, `score`, `score_loss`, `attention_loss`, `squared_error` and `batch_ccc` where they count, `total_loss`.
    """
    chex.assert_equal_shape([out.arousal, out.valence, arousal, valence])
    chex.assert_rank(arousal, 2)
    by_dimension = _by_dimension(mask, arousal)

    terms: Terms = {}
    curves = (("arousal", out.arousal, arousal), ("valence", out.valence, valence))
    total = dimensions = jnp.zeros((), out.arousal.dtype)
    for (name, prediction, target), known in zip(curves, by_dimension, strict=True):
        counted = jnp.any(known, -1).astype(out.arousal.dtype)
        samples = jnp.sum(counted)
        for metric in (metrics.ccc, metrics.pcc, metrics.rmse):
            values = metric(prediction, target, known)
            mean = jnp.sum(values * counted) / jnp.maximum(samples, 1.0)
            terms[f"{name}_{metric.__name__}"] = mean
        there = (samples > 0.0).astype(out.arousal.dtype)
        good = terms[f"{name}_ccc"] + terms[f"{name}_pcc"] + 1.0 - terms[f"{name}_rmse"]
        total, dimensions = total + there * good, dimensions + there
    terms["score"] = total / (3.0 * jnp.maximum(dimensions, 1.0))
    terms["score_loss"] = 1.0 - terms["score"]
    steps = jnp.logical_or(*by_dimension)
    terms["total_loss"] = terms["score_loss"]
    if out.attention is not None:
        terms["attention_loss"] = diagonal_attention_loss(out.attention, config, steps)
        terms["total_loss"] += config.diagonal_weight * terms["attention_loss"]
    if squared_error_weight:
        terms["squared_error"] = squared_error(out, arousal, valence, mask)
        terms["total_loss"] += squared_error_weight * terms["squared_error"]
    if batch_ccc_weight:
        whole = [
            metrics.ccc(prediction.reshape(-1), target.reshape(-1), known.reshape(-1))
            for (_, prediction, target), known in zip(curves, by_dimension, strict=True)
        ]
        terms["batch_ccc"] = sum(whole) / jnp.maximum(dimensions, 1.0)  # 0 of an unlabelled one
        terms["total_loss"] += batch_ccc_weight * (1.0 - terms["batch_ccc"])
    return terms["total_loss"], terms


def _by_dimension(mask: jax.Array | None, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which steps count in arousal, and which in valence: `[B, T]` each."""
    if mask is None:
        mask = jnp.ones(like.shape, bool)
    if mask.ndim == like.ndim:
        chex.assert_equal_shape([like, mask])
        return mask, mask
    chex.assert_shape(mask, (*like.shape, 2))
    return mask[..., 0], mask[..., 1]


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
    # A mean, for which a product with its weights is only the way: not to be rounded as products are.
    total = jnp.einsum("bst,bt->st", diagonal, weights, precision=jax.lax.Precision.HIGHEST)
    mean = total / jnp.maximum(samples, 1.0)[None]
    target = jnp.asarray(config.diagonal_targets, mean.dtype)[:, None]
    counted = (samples > 0.0).astype(mean.dtype)[None]
    error = jnp.sum(jnp.square(mean - target) * counted, -1)
    return jnp.sum(error) / jnp.maximum(jnp.sum(counted), 1.0)


def squared_error(
    out: ModelOutput, arousal: jax.Array, valence: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Mean squared error over the counted steps of each dimension, arousal and valence summed.

    CCC and PCC do not change when both curves shrink, so their gradients grow as the prediction's
    variance falls; this loss is smooth and its gradient vanishes with the error, which is what a
    few steps of gradient descent on one song need.

    Args:
      out: the model's output.
      arousal: `[B, T]` labels.
      valence: `[B, T]` labels.
      mask: `[B, T, 2]` bool, or `[B, T]` for both; None counts all.
    """
    chex.assert_equal_shape([out.arousal, arousal, valence])
    total = jnp.zeros((), out.arousal.dtype)
    curves = ((out.arousal, arousal), (out.valence, valence))
    for (prediction, target), known in zip(curves, _by_dimension(mask, arousal), strict=True):
        weights = known.astype(prediction.dtype)
        error = jnp.square(prediction - jnp.where(known, target, 0.0)) * weights
        total = total + jnp.sum(error) / jnp.maximum(jnp.sum(weights), 1.0)
    return total
