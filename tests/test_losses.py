"""The loss against numpy, with masks and missing labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import ModelConfig, ModelOutput, losses

CONFIG = ModelConfig(width=8, num_heads=2, num_layers=2)


def make_output(batch=3, steps=7, seed=0):
    random = np.random.RandomState(seed)
    attention = jax.nn.softmax(
        jnp.asarray(random.randn(batch, 2, 2, 2, steps, steps), jnp.float32), axis=-1
    )
    arousal, valence = random.randn(2, batch, steps).astype(np.float32)
    return ModelOutput(
        arousal=jnp.asarray(arousal), valence=jnp.asarray(valence), attention=attention
    )


def test_diagonal_loss_by_hand():
    out = make_output()
    maps = np.asarray(out.attention)[:, :, -1].mean(axis=(0, 2))
    expected = sum(
        np.mean((np.diagonal(maps[scale]) - target) ** 2) for scale, target in enumerate((0.9, 0.1))
    )
    assert losses.diagonal_attention_loss(out.attention, CONFIG) == pytest.approx(
        expected, abs=1e-6
    )


def test_masked_steps_do_not_count():
    """A batch padded by two steps and one sample gives the loss of what is real."""
    small, big = make_output(), make_output(batch=4, steps=9, seed=1)
    big = ModelOutput(
        arousal=big.arousal.at[:3, :7].set(small.arousal),
        valence=big.valence.at[:3, :7].set(small.valence),
        attention=big.attention.at[:3, ..., :7, :7].set(small.attention),
    )
    labels = np.random.RandomState(2).uniform(-1, 1, (2, 3, 7)).astype(np.float32)
    padded = np.full((2, 4, 9), np.nan, np.float32)
    padded[:, :3, :7] = labels
    mask = jnp.isfinite(jnp.asarray(padded[0]))
    expected, terms = losses.dsaml_loss(small, *map(jnp.asarray, labels), config=CONFIG)
    actual, padded_terms = losses.dsaml_loss(
        big, *map(jnp.asarray, padded), config=CONFIG, mask=mask
    )
    for name, value in terms.items():
        np.testing.assert_allclose(padded_terms[name], value, atol=1e-6, err_msg=name)
    assert actual == pytest.approx(float(expected), abs=1e-6)


def test_everything_masked_is_finite():
    out = make_output()
    nothing = jnp.zeros((3, 7), bool)
    labels = jnp.full((3, 7), jnp.nan)

    def loss(arousal):
        return losses.dsaml_loss(
            out.replace(arousal=arousal), labels, labels, config=CONFIG, mask=nothing
        )[0]

    value, gradient = jax.value_and_grad(loss)(out.arousal)
    assert np.isfinite(value) and not np.asarray(gradient).any()


def test_ablations():
    out = make_output()
    one_scale = ModelConfig(width=8, num_heads=2, use_local=False)
    only_global = losses.diagonal_attention_loss(out.attention[:, 1:], one_scale)
    diagonal = np.diagonal(np.asarray(out.attention)[:, 1, -1].mean(axis=(0, 1)))
    assert only_global == pytest.approx(np.mean((diagonal - 0.1) ** 2), abs=1e-6)
    without = ModelConfig(width=8, num_heads=2, diagonal_weight=0.0)
    labels = jnp.zeros((3, 7))
    loss, terms = losses.dsaml_loss(out, labels, labels, config=without)
    assert loss == terms["score_loss"]


def test_squared_error_by_hand():
    out = make_output()
    labels = jnp.zeros((3, 7))
    mask = jnp.arange(7)[None] < jnp.array([7, 3, 0])[:, None]
    kept = np.asarray(mask)
    expected = (np.asarray(out.arousal)[kept] ** 2 + np.asarray(out.valence)[kept] ** 2).mean()
    assert losses.squared_error(out, labels, labels, mask) == pytest.approx(expected, abs=1e-6)
