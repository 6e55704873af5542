"""The loss against numpy, with masks and missing labels.

Tolerances: float32 means of a few dozen numbers of size 1 (1e-6); through the metrics, which divide
(1e-5).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import ModelConfig, ModelOutput, losses
from tests.test_metrics import reference

CONFIG = ModelConfig(width=8, num_heads=2, num_layers=3)
dsaml_loss = jax.jit(losses.dsaml_loss, static_argnames=("config", "squared_error_weight"))
diagonal_attention_loss = jax.jit(losses.diagonal_attention_loss, static_argnames="config")
squared_error = jax.jit(losses.squared_error)


def make_output(batch=3, steps=7, seed=0):
    random = np.random.RandomState(seed)
    attention = jax.nn.softmax(
        jnp.asarray(random.randn(batch, 2, 3, 2, steps, steps), jnp.float32), axis=-1
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
    assert diagonal_attention_loss(out.attention, CONFIG) == pytest.approx(expected, abs=1e-6)


def part_labelled():
    """Output, labels that are NaN where nobody labelled, and where that is: all, some and none of a sample's steps."""
    out = make_output()
    labels = np.random.RandomState(2).uniform(-1, 1, (2, 3, 7)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]], bool)
    labels[:, ~mask] = np.nan
    return out, labels, mask


def test_every_term_by_hand():
    out, labels, mask = part_labelled()
    config = dataclasses.replace(CONFIG, diagonal_weight=0.3)
    loss, terms = dsaml_loss(out, *map(jnp.asarray, labels), config=config, mask=jnp.asarray(mask))
    expected = {}
    for name, target in zip(("arousal", "valence"), labels, strict=True):
        prediction = np.asarray(getattr(out, name))
        for metric in ("ccc", "pcc", "rmse"):
            values = [reference(metric, prediction[i, mask[i]], target[i, mask[i]]) for i in (0, 1)]
            expected[f"{name}_{metric}"] = np.mean(values)
    good = [value if "rmse" not in name else 1 - value for name, value in expected.items()]
    expected["score"] = np.mean(good)
    expected["score_loss"] = 1 - np.mean(good)
    diagonals = np.diagonal(np.asarray(out.attention)[:, :, -1].mean(2), axis1=-2, axis2=-1)
    labelled = mask.any(0)
    means = np.stack([diagonals[mask[:, t], :, t].mean(0) for t in np.flatnonzero(labelled)], -1)
    apart = (means - np.array([[0.9], [0.1]])) ** 2
    expected["attention_loss"] = apart.mean(-1).sum()
    expected["total_loss"] = expected["score_loss"] + 0.3 * expected["attention_loss"]
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, abs=1e-5), name
    assert loss == terms["total_loss"]


def test_one_sample_alone_counts_whole():
    out, labels, _ = part_labelled()
    alone, twice = (jax.tree.map(lambda x, n=n: jnp.repeat(x[:1], n, axis=0), out) for n in (1, 2))
    expected = dsaml_loss(twice, *np.repeat(labels[:, :1], 2, axis=1), config=CONFIG)[1]
    terms = dsaml_loss(alone, *labels[:, :1], config=CONFIG)[1]
    for name, value in expected.items():
        assert terms[name] == pytest.approx(float(value), abs=1e-6), name


def test_one_step_alone_counts_whole():
    out, labels, _ = part_labelled()
    mask = jnp.zeros((3, 7), bool).at[1, 2].set(True)
    places = np.asarray(out.attention)[1, :, -1, :, 2, 2].mean(-1)
    expected = (places[0] - 0.9) ** 2 + (places[1] - 0.1) ** 2
    loss = diagonal_attention_loss(out.attention, CONFIG, mask)
    assert loss == pytest.approx(expected, abs=1e-6)
    error = squared_error(out, *map(jnp.asarray, labels), mask)
    expected = (out.arousal[1, 2] - labels[0, 1, 2]) ** 2 + (out.valence[1, 2] - labels[1, 1, 2]) ** 2  # fmt: skip
    assert error == pytest.approx(float(expected), abs=1e-6)


def test_steps_that_nobody_labelled_have_no_diagonal():
    attention = make_output().attention
    mask = jnp.ones((3, 7), bool).at[:, 5:].set(False)
    inside = diagonal_attention_loss(attention[..., :5, :5], CONFIG)
    assert diagonal_attention_loss(attention, CONFIG, mask) == pytest.approx(
        float(inside), abs=1e-6
    )


def test_mismatched_shapes_are_refused():
    out, labels = make_output(), jnp.zeros((3, 7))
    mask = jnp.ones((3, 7), bool)
    for arousal, valence, counted in (
        (labels[:1], labels, mask), (labels, labels[:1], mask), (labels, labels, mask[:1])
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            dsaml_loss(out, arousal, valence, config=CONFIG, mask=counted)
        with pytest.raises(AssertionError):
            squared_error(out, arousal, valence, counted)
    one = ModelOutput(arousal=labels[0], valence=labels[0], attention=out.attention)
    with pytest.raises(AssertionError):
        dsaml_loss(one, labels[0], labels[0], config=CONFIG)
    with pytest.raises(AssertionError):
        diagonal_attention_loss(out.attention[0], CONFIG)


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
    expected, terms = dsaml_loss(small, *map(jnp.asarray, labels), config=CONFIG)
    actual, padded_terms = dsaml_loss(big, *map(jnp.asarray, padded), config=CONFIG, mask=mask)
    for name, value in terms.items():
        np.testing.assert_allclose(padded_terms[name], value, atol=1e-6, err_msg=name)
    assert actual == pytest.approx(float(expected), abs=1e-6)


def test_everything_masked_is_finite():
    out = make_output()
    nothing = jnp.zeros((3, 7), bool)
    labels = jnp.full((3, 7), jnp.nan)

    def loss(arousal):
        return dsaml_loss(
            out.replace(arousal=arousal), labels, labels, config=CONFIG, mask=nothing
        )[0]

    value, gradient = jax.value_and_grad(loss)(out.arousal)
    assert np.isfinite(value) and not np.asarray(gradient).any()


def test_ablations():
    out = make_output()
    one_scale = ModelConfig(width=8, num_heads=2, use_local=False)
    only_global = diagonal_attention_loss(out.attention[:, 1:], one_scale)
    diagonal = np.diagonal(np.asarray(out.attention)[:, 1, -1].mean(axis=(0, 1)))
    assert only_global == pytest.approx(np.mean((diagonal - 0.1) ** 2), abs=1e-6)
    without = ModelConfig(width=8, num_heads=2, diagonal_weight=0.0)
    labels = jnp.zeros((3, 7))
    loss, terms = dsaml_loss(out, labels, labels, config=without)
    assert loss == terms["score_loss"]


def test_squared_error_by_hand():
    out = make_output()
    labels = jnp.zeros((3, 7))
    mask = jnp.arange(7)[None] < jnp.array([7, 3, 0])[:, None]
    kept = np.asarray(mask)
    expected = (np.asarray(out.arousal)[kept] ** 2 + np.asarray(out.valence)[kept] ** 2).mean()
    assert squared_error(out, labels, labels, mask) == pytest.approx(expected, abs=1e-6)
    out, labels, mask = part_labelled()
    apart = [(np.asarray(x)[mask] - y[mask]) ** 2 for x, y in zip((out.arousal, out.valence), labels, strict=True)]  # fmt: skip

    def loss(out, mask):
        return squared_error(out, *map(jnp.asarray, labels), mask)

    value, gradient = jax.value_and_grad(loss)(out, jnp.asarray(mask))
    assert value == pytest.approx((apart[0] + apart[1]).mean(), abs=5e-6)  # near 3
    for side in (gradient.arousal, gradient.valence):
        assert np.isfinite(side).all() and not np.asarray(side)[~mask].any()
    assert loss(out, jnp.zeros((3, 7), bool)) == 0.0


def test_squared_error_counts_as_much_as_it_is_told():
    random = np.random.RandomState(3)
    out, (arousal, valence) = make_output(2, 5), jnp.asarray(random.randn(2, 2, 5), jnp.float32)
    mask = jnp.asarray(random.rand(2, 5) > 0.3)
    plain, terms = dsaml_loss(out, arousal, valence, config=CONFIG, mask=mask)
    assert "squared_error" not in terms
    more, terms = dsaml_loss(
        out, arousal, valence, config=CONFIG, mask=mask, squared_error_weight=0.5
    )
    want = squared_error(out, arousal, valence, mask)
    assert float(more - plain) == pytest.approx(0.5 * float(want), abs=1e-6)
    assert float(terms["squared_error"]) == float(want)


def test_each_dimension_has_labels_of_its_own():
    """Sample 0 in arousal alone, sample 1 in valence alone, sample 2 in both with gaps of their own."""
    out, labels = make_output(), np.random.RandomState(4).uniform(-1, 1, (2, 3, 7))
    mask = np.zeros((3, 7, 2), bool)
    mask[0, :, 0] = mask[1, 2:, 1] = mask[2, :5, 0] = mask[2, 3:, 1] = True
    labels = np.where(np.moveaxis(mask, -1, 0), labels, np.nan).astype(np.float32)
    loss, terms = dsaml_loss(out, *map(jnp.asarray, labels), config=CONFIG, mask=jnp.asarray(mask))
    good, squares = [], []
    for i, (name, samples) in enumerate((("arousal", (0, 2)), ("valence", (1, 2)))):
        prediction = np.asarray(getattr(out, name))
        for metric in ("ccc", "pcc", "rmse"):
            values = [
                reference(metric, prediction[k, mask[k, :, i]], labels[i, k, mask[k, :, i]])
                for k in samples
            ]
            assert terms[f"{name}_{metric}"] == pytest.approx(np.mean(values), abs=1e-5)
            good.append(1 - np.mean(values) if metric == "rmse" else np.mean(values))
        squares.append(np.mean((prediction - labels[i])[mask[..., i]] ** 2))
    assert terms["score"] == pytest.approx(np.mean(good), abs=1e-5)
    error = squared_error(out, *map(jnp.asarray, labels), jnp.asarray(mask))
    assert error == pytest.approx(sum(squares), abs=1e-5)
    assert np.isfinite(loss)


def test_a_dimension_that_nobody_labelled_is_left_out():
    out, labels = make_output(), np.random.RandomState(4).uniform(-1, 1, (3, 7))
    nothing = jnp.full((3, 7), jnp.nan)
    mask = jnp.stack([jnp.ones((3, 7), bool), jnp.zeros((3, 7), bool)], axis=-1)
    arousal = jnp.asarray(labels, jnp.float32)

    def loss(out):
        value, terms = dsaml_loss(out, arousal, nothing, config=CONFIG, mask=mask)
        return value + squared_error(out, arousal, nothing, mask), terms

    (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(out)
    expected = (terms["arousal_ccc"] + terms["arousal_pcc"] + 1 - terms["arousal_rmse"]) / 3
    assert terms["score"] == pytest.approx(float(expected), abs=1e-6)
    assert np.asarray(gradient.arousal).any() and not np.asarray(gradient.valence).any()
