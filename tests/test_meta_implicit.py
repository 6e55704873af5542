"""Implicit gradients: solvers, what they report, damping and negative curvature. In float64, 1e-8 where nothing else is said."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsaml_jax import UsageError, meta
from dsaml_jax.meta.solvers import conjugate_gradients, neumann
from tests.problems import mlp, mlp_loss, quadratic, quadratic_tasks, relative_error


def system(seed, smallest=0.5, size=5):
    """(symmetric matrix with eigenvalues from `smallest` to 3, right-hand side)."""
    random = np.random.RandomState(seed)
    rotation, _ = np.linalg.qr(random.randn(size, size))
    return rotation @ np.diag(np.linspace(smallest, 3.0, size)) @ rotation.T, random.randn(size)


@settings(deadline=None, max_examples=20)  # each compiles nothing, but the machine may be busy
@given(seed=st.integers(0, 10**6))
def test_conjugate_gradients_solve(seed):
    """In as many steps as there are unknowns; what they say of themselves is true."""
    with jax.enable_x64(True):
        matrix, b = system(seed)
        found = conjugate_gradients(
            lambda x: {"x": jnp.asarray(matrix) @ x["x"]}, {"x": jnp.asarray(b)}, steps=5, tolerance=1e-12
        )  # fmt: skip
        np.testing.assert_allclose(found.x["x"], np.linalg.solve(matrix, b), rtol=1e-8, atol=1e-8)
        assert found.residual < 1e-8
        assert 0.5 - 1e-9 <= found.curvature <= 3.0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_fewer_steps_leave_the_residual_they_say(steps):
    with jax.enable_x64(True):
        matrix, b = system(0)
        found = conjugate_gradients(lambda x: jnp.asarray(matrix) @ x, jnp.asarray(b), steps=steps, tolerance=0.0)  # fmt: skip
        rest = matrix @ np.asarray(found.x) - b
        assert found.residual == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(b), rel=1e-8)
        assert found.residual > 1e-3


def test_a_tolerance_ends_it_early():
    with jax.enable_x64(True):
        matrix, b = system(0)
        run = lambda tolerance, steps: conjugate_gradients(  # noqa: E731
            lambda x: jnp.asarray(matrix) @ x, jnp.asarray(b), steps=steps, tolerance=tolerance
        )
        residuals = [float(run(0.0, steps).residual) for steps in (1, 2, 3)]
        early = run(1.01 * residuals[1], 5)
        assert float(early.residual) == pytest.approx(residuals[1])


@pytest.mark.parametrize("where", ["first", "later"])
def test_negative_curvature_ends_it(where):
    """With what it has; nothing that grows."""
    with jax.enable_x64(True):
        matrix = np.diag([2.0, 1.0, -1.0])
        b = np.array([0.0, 0.0, 1.0]) if where == "first" else np.array([1.0, 1.0, 0.05])
        found = conjugate_gradients(lambda x: jnp.asarray(matrix) @ x, jnp.asarray(b), steps=50, tolerance=0.0)  # fmt: skip
        assert found.curvature < 0
        assert np.linalg.norm(found.x) <= 10.0
        assert np.any(found.x) == (where == "later")


def test_neumann_is_its_series():
    with jax.enable_x64(True):
        matrix, b = system(1)
        found = neumann(lambda x: jnp.asarray(matrix) @ x, jnp.asarray(b), steps=4, rate=0.3)
        powers = [np.linalg.matrix_power(np.eye(5) - 0.3 * matrix, k) for k in range(5)]
        np.testing.assert_allclose(found.x, 0.3 * sum(powers) @ b, rtol=1e-8)
        rest = matrix @ np.asarray(found.x) - b
        assert found.residual == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(b), rel=1e-8)
        many = neumann(lambda x: jnp.asarray(matrix) @ x, jnp.asarray(b), steps=300, rate=0.3)
        np.testing.assert_allclose(many.x, np.linalg.solve(matrix, b), rtol=1e-8)


def run(algorithm, problem=None, loss=quadratic):
    params, support, query = problem or quadratic_tasks(np.float64)
    judge = lambda p, b: (loss(p, b), jnp.zeros(()))  # noqa: E731
    return jax.jit(
        lambda p: meta.meta_gradient(
            loss, p, support, query, algorithm=algorithm, query_loss_fn=judge, has_aux=True
        )
    )(params)


def made(**options):
    options = {"steps": 400, "learning_rate": 0.15, "cg_steps": 10, "tolerance": 1e-12} | options
    return meta.algorithm("imaml", **options)


def test_solvers_and_modes_agree():
    with jax.enable_x64(True):
        _, expected = run(made())
        for options in ({"solver": "neumann", "cg_steps": 400}, {"memory": "remat"}):
            assert relative_error(run(made(**options))[1], expected) < 1e-8


def test_damping_solves_the_damped_system():
    """`(I + (H + damping) / proximal)^-1`."""
    with jax.enable_x64(True):
        params, support, query = quadratic_tasks(np.float64)
        _, gradient = run(made(damping=1.5))
        expected = []
        for matrix, near, far in zip(*map(np.asarray, (support["matrix"], support["centre"], query["centre"])), strict=True):  # fmt: skip
            adapted = np.linalg.solve(matrix + 2 * np.eye(4), matrix @ near + 2 * np.asarray(params))  # fmt: skip
            bar = matrix @ (adapted - far)
            expected.append(2.0 * np.linalg.solve(matrix + 3.5 * np.eye(4), bar))
        np.testing.assert_allclose(gradient, np.mean(expected, axis=0), rtol=1e-8)


def test_the_report():
    """Far from the minimum, few solver steps, and neither; aux keeps what the loss returned."""
    with jax.enable_x64(True):
        (_, (aux, good)), gradient = run(made(report=True))
        assert aux.shape == good.slope.shape == (5,)
        assert np.all(good.slope < 1e-8)
        assert np.all(good.residual < 1e-8)
        assert np.all(good.curvature >= 2.0)
        (_, (_, far)), _ = run(made(report=True, steps=2))
        assert np.all(far.slope > 1e-2)
        (_, (_, short)), _ = run(made(report=True, cg_steps=1))
        assert np.all(short.residual > 1e-2)
        assert relative_error(gradient, run(made())[1]) < 1e-12


def saddle(params, batch):
    return quadratic(params, batch) - 3.0 * params[0] ** 2


@pytest.mark.parametrize("proximal", [2.0, 20.0])
@pytest.mark.parametrize(("solver", "damping"), [("cg", 0.0), ("cg", 20.0), ("neumann", 20.0)])
def test_negative_curvature_is_reported(proximal, solver, damping):
    """Where the pull is weaker than the loss bends down; a stronger one cures it, and damping does not hide it.

    The gradient stays finite.
    """
    with jax.enable_x64(True):
        options = {"steps": 10, "learning_rate": 0.02, "solver": solver, "damping": damping}
        algorithm = made(proximal=proximal, report=True, **options)
        (_, (_, report)), gradient = run(algorithm, loss=saddle)
        assert np.any(report.curvature < 0) == (proximal == 2.0)
        assert np.all(np.isfinite(gradient))


def test_negative_curvature_at_once_leaves_first_order():
    """The solver has nothing then, and a gradient of zero would say that nothing matters."""
    params, tasks = jnp.ones(3), jnp.ones((1, 3))
    down = lambda p, b: -4.0 * jnp.sum(jnp.square(p)) + jnp.sum(p * b)  # noqa: E731
    outer = lambda p, b: jnp.sum(p * b)  # noqa: E731
    algorithm = meta.algorithm("imaml", steps=1, learning_rate=0.01, proximal=2.0)
    _, gradient = meta.meta_gradient(
        down, params, tasks, tasks, algorithm=algorithm, query_loss_fn=outer
    )
    np.testing.assert_allclose(gradient, np.ones(3), rtol=1e-6)


def test_of_a_network():
    """Both solvers against each other where nothing is quadratic; 1e-4, as far as 400 terms come."""
    with jax.enable_x64(True):
        problem = mlp(np.float64)
        options = {"proximal": 4.0, "learning_rate": 0.05}
        _, expected = run(made(cg_steps=60, **options), problem, mlp_loss)
        _, series = run(made(solver="neumann", cg_steps=400, **options), problem, mlp_loss)
        assert relative_error(series, expected) < 1e-4


def test_bad_options():
    with pytest.raises(UsageError, match="solver is cg or neumann, not 'newton'"):
        made(solver="newton")
    with pytest.raises(UsageError, match="proximal is above 0"):
        made(proximal=0.0)
    for option, value in (
        ("tolerance", 1.0),
        ("tolerance", -1e-3),
        ("damping", -0.1),
        ("damping", np.nan),
    ):
        with pytest.raises(UsageError, match=f"{option} is 0 or more.*, not {value}"):
            made(**{option: value})
    for steps in (-1, 2.5):
        with pytest.raises(ValueError, match="steps"), jax.enable_x64(True):
            run(made(steps=steps))
