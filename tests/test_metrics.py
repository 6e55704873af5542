"""Metrics: the published values, numpy's, and every way a curve can be degenerate.

Tolerances of 1e-5 and 2e-5: float32 sums of up to 60 terms, in another order than the published
ones or against float64. Gradients of nearly constant curves are large, so they are compared on
their own scale. Where none is given, the numbers are short and differ by a rounding at most.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsaml_jax import metrics

METRICS = (metrics.ccc, metrics.pcc, metrics.rmse)
VALUE_AND_GRADIENT = {metric: jax.jit(jax.value_and_grad(metric)) for metric in METRICS}
CASES = (
    "random", "equal", "negated", "offset", "scaled", "const_pred", "const_label", "both_const_diff",
    "both_const_equal", "both_zero", "tiny", "len2", "len1",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("metric", METRICS)
def test_published_values(golden, case, metric):
    stored = golden("scores")
    prediction, label = stored[f"{case}:pred"], stored[f"{case}:label"]
    value, gradient = VALUE_AND_GRADIENT[metric](jnp.asarray(prediction), jnp.asarray(label))
    expected, expected_gradient = (stored[f"{case}:{metric.__name__}{s}"] for s in ("", "_grad"))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if np.isfinite(expected):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
    if np.isfinite(expected_gradient).all():
        scale = max(1.0, np.abs(expected_gradient).max())
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=2e-5 * scale)


def reference(name, p, t):
    """Textbook formulas in float64, with the epsilon of PCC: on two steps of size 0.01 it is 2e-5."""
    p, t = p.astype(np.float64), t.astype(np.float64)
    if name == "rmse":
        return np.sqrt(np.mean((p - t) ** 2))
    covariance = np.mean((p - p.mean()) * (t - t.mean()))
    if name == "pcc":
        return len(p) * covariance / (len(p) * p.std() * t.std() + metrics.PCC_EPSILON)
    return 2 * covariance / (p.var() + t.var() + (p.mean() - t.mean()) ** 2)


def curves(length):
    values = st.floats(-1, 1, width=32).map(lambda x: round(x, 3))
    return hnp.arrays(np.float32, length, elements=values)


@settings(max_examples=60, deadline=None)
@given(curves(12), curves(12), hnp.arrays(bool, 12))
@pytest.mark.parametrize("metric", METRICS)
def test_masked_equals_the_formula_on_what_is_left(metric, prediction, target, mask):
    value, gradient = VALUE_AND_GRADIENT[metric](prediction, target, mask)
    p, t = prediction[mask], target[mask]
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~mask].any()
    if len(p) and (metric is metrics.rmse or (p.std() > 1e-2 and t.std() > 1e-2)):
        assert float(value) == pytest.approx(reference(metric.__name__, p, t), abs=2e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_masked_labels_may_be_nan(metric):
    target = jnp.array([0.1, jnp.nan, 0.3, 0.2])
    mask = jnp.isfinite(target)
    prediction = jnp.array([0.0, 0.5, 0.2, 0.4])
    value, gradient = VALUE_AND_GRADIENT[metric](prediction, target, mask)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert gradient[1] == 0.0


@pytest.mark.parametrize("level", [0.1, -0.7, 1 / 3, 1e-8])
def test_pcc_of_a_constant_is_exactly_zero(level):
    moving = jnp.sin(jnp.arange(60.0))
    constant = jnp.full(60, level)
    for pair in ((constant, moving), (moving, constant), (constant, constant)):
        value, gradient = VALUE_AND_GRADIENT[metrics.pcc](*pair)
        assert value == 0.0
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("size", [1e-5, 1e-8, 1e-10, 1e-15, 1e-18, 1e-30, 1e15])
@pytest.mark.parametrize("metric", METRICS)
def test_finite_at_any_size(metric, size):
    wave, other = jnp.sin(jnp.arange(60.0)) * size, jnp.cos(jnp.arange(60.0)) * size
    for target in (jnp.zeros(60), other, wave):
        value, gradient = VALUE_AND_GRADIENT[metric](wave, target)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("metric", METRICS)
def test_mismatched_shapes_are_refused(metric):
    with pytest.raises(AssertionError):
        metric(jnp.zeros((3, 4)), jnp.zeros(4))
    with pytest.raises(AssertionError):
        metric(jnp.zeros((3, 4)), jnp.zeros((3, 4)), jnp.ones(4, bool))


@pytest.mark.parametrize("metric", METRICS)
def test_many_curves_at_once(metric):
    random = np.random.RandomState(0)
    p, t = random.randn(2, 2, 3, 9).astype(np.float32)
    mask = random.random_sample((2, 3, 9)) < 0.6
    mask[..., 0] = [[True, False, True], [False, True, False]]
    values = metric(jnp.asarray(p), jnp.asarray(t), 2 * jnp.asarray(mask, np.int32))  # 2 is true
    expected = [
        [reference(metric.__name__, p[i, j, mask[i, j]], t[i, j, mask[i, j]]) for j in range(3)]
        for i in range(2)
    ]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_what_the_table_says_of_degenerate_curves():
    level, moving = jnp.full(5, 0.3), jnp.array([0.1, 0.4, -0.2, 0.3, 0.0])
    nothing = jnp.zeros(5, bool)

    def of(metric, *curves):
        value, gradient = VALUE_AND_GRADIENT[metric](*curves)
        return float(value), np.asarray(gradient)

    for pair in ((level, moving), (moving, level), (level, 2 * level)):
        assert of(metrics.ccc, *pair)[0] == 0.0
        value, gradient = of(metrics.pcc, *pair)
        assert value == 0.0 and not gradient.any()
    value, gradient = of(metrics.ccc, level, level)
    assert value == 0.0 and not gradient.any()
    value, gradient = of(metrics.rmse, moving, moving)
    assert value == 0.0 and not gradient.any()
    value, gradient = of(metrics.pcc, moving[:1], level[:1])
    assert value == 0.0 and not gradient.any()
    assert of(metrics.ccc, moving[:1], level[:1])[0] == 0.0
    for metric in METRICS:
        value, gradient = of(metric, moving, level, nothing)
        assert value == 0.0 and not gradient.any()


@pytest.mark.parametrize("first", [True, False])
def test_pcc_of_a_masked_constant_is_exactly_zero(first):
    mask = jnp.arange(60) % 7 > 1
    mask = mask.at[0].set(first)
    assert metrics.pcc(jnp.full(60, 1 / 3), jnp.sin(jnp.arange(60.0)), mask) == 0.0


def test_where_the_epsilon_of_pcc_shows():
    small = jnp.array([0.5, -0.5, 0.5, -0.5]) * 1e-4  # its norm is 1e-4
    assert metrics.pcc(small, small) == pytest.approx(0.5, rel=1e-3)  # 1 without it
    assert metrics.pcc(small, -small) == pytest.approx(-0.5, rel=1e-3)


def test_where_ccc_takes_curves_for_equal_constants():
    wave = jnp.array([1.0, -1.0, 1.0, -1.0])
    for spread, expected in ((1.3e-16, 1.0), (0.7e-16, 0.0)):
        curve = wave * float(np.sqrt(spread / 2))
        assert metrics.ccc(curve, curve) == pytest.approx(expected, abs=1e-3)  # it is 1 or 0


def test_one_step_and_curves_of_norm_one():
    assert metrics.rmse(jnp.array([0.5, 0.1]), jnp.array([0.2, 0.9]), jnp.array([True, False])) == pytest.approx(0.3)  # fmt: skip
    wave = jnp.array([0.5, -0.5, 0.5, -0.5])
    assert metrics.pcc(wave, wave) == pytest.approx(1.0)
    assert metrics.pcc(2 * wave, wave) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_lists_are_curves_too(metric):
    p, t = [0.0, 1.0, 0.5], [0.1, 0.9, 0.2]
    assert metric(p, t) == metric(jnp.array(p), jnp.array(t))
    assert metric(p, jnp.array(t)) == metric(jnp.array(p), t)


def slopes(metric, p, t, size=1e-6):
    """Central differences of the textbook formula, in float64."""
    p = p.astype(np.float64)
    ahead, behind = (
        [reference(metric.__name__, p + sign * size * one, t) for one in np.eye(len(p))]
        for sign in (1, -1)
    )
    return (np.array(ahead) - np.array(behind)) / (2 * size)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_those_of_the_formula(metric):
    p, t = np.random.RandomState(1).randn(2, 11).astype(np.float32)
    gradient = jax.grad(metric)(jnp.asarray(p), jnp.asarray(t))
    np.testing.assert_allclose(gradient, slopes(metric, p, t), atol=1e-5)
