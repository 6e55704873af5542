"""Whole songs: blended windows, the front end once, and the published windows where they agree.

Curves within 2e-5, as in test_golden_model.py: float32 through the whole model, in other programs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.features import window_starts
from dsaml_jax import DSAML, ModelConfig
from dsaml_jax.listener import predict_song
from tests.recipe import SEED

CONFIG = ModelConfig(width=16, num_heads=2, num_layers=1, ffn_width=16, dropout=0.0)
MODEL = DSAML(CONFIG)
APPLY = jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2, 5, 8)), jnp.zeros((1, 1, 16)))


def by_hand(variables, mel, embedding, starts, per_step):
    """One window at a time through the whole model, blended by a squared sine."""
    n = len(mel)
    total, curve = np.zeros(n), np.zeros((n, 2))
    for w, start in enumerate(starts):
        rows = np.arange(start, min(start + 60, n))
        g = embedding[rows] if per_step else embedding[w : w + 1]
        out = APPLY(variables, mel[None, rows], g[None])
        weight = np.sin(np.pi * (np.arange(60) + 0.5) / 60)[: len(rows)] ** 2
        total[rows] += weight
        curve[rows] += weight[:, None] * np.stack([out.arousal[0], out.valence[0]], axis=-1)
    return curve / total[:, None]


@pytest.mark.parametrize(
    ("steps", "per_step"), [(23, False), (60, True), (61, False), (100, True), (137, False)]
)
def test_blending(variables, steps, per_step):
    random = np.random.RandomState(steps)
    mel = random.randn(steps, 5, 8).astype(np.float32)
    starts = window_starts(steps)
    embedding = random.randn(steps if per_step else len(starts), 16).astype(np.float32)
    actual = predict_song(MODEL, variables, mel, embedding, starts, per_step=per_step)
    expected = by_hand(variables, mel, embedding, starts, per_step)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_there_are_no_seams(variables):
    """Windows that disagree by 1: no step of the curve is larger than the steepest of a squared sine, pi / 60."""
    random = np.random.RandomState(0)
    mel = np.repeat(random.randn(1, 5, 8), 240, axis=0).astype(np.float32)
    starts = window_starts(240)
    embedding = np.where(np.arange(len(starts))[:, None] % 2, 3.0, -3.0) * np.ones((1, 16))
    curve = predict_song(MODEL, variables, mel, embedding.astype(np.float32), starts, per_step=False)  # fmt: skip
    alone = [
        predict_song(MODEL, variables, mel[:60], np.full((1, 16), x, np.float32), np.zeros(1, np.int32), per_step=False)
        for x in (-3.0, 3.0)
    ]  # fmt: skip
    apart = np.abs(alone[0] - alone[1]).max(axis=0)
    within = max(np.abs(np.diff(one, axis=0)).max() for one in alone)
    assert (np.abs(np.diff(curve, axis=0)).max(axis=0) <= apart * np.pi / 60 + within).all()
    assert np.abs(np.diff(curve, axis=0))[30:200].max() > 0.0


def test_one_window_equals_the_published_inference(
    golden, published_config, published_variables, query
):
    """At 60 steps the published sliding window is a single window, and so is ours."""
    expected = golden("slide_inference")
    random = np.random.RandomState(SEED + 7)
    embedding = random.standard_normal((130, published_config.width)).astype(np.float32)[:60]
    curve = predict_song(
        DSAML(published_config), published_variables, query[0][0], embedding, window_starts(60),
        per_step=True,
    )  # fmt: skip
    np.testing.assert_allclose(curve[:, 0], expected["real_eval_T60_arousal"][0], atol=2e-5)
    np.testing.assert_allclose(curve[:, 1], expected["real_eval_T60_valence"][0], atol=2e-5)
