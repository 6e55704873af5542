"""Meta-gradients: closed forms, finite differences, independence of tasks, memory, traces.

Tolerances from 1e-6 to 1e-4, relative: float32 sums over tasks in another order, carried through
the inner steps.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import UsageError, meta
from tests.problems import deep_loss, mlp, mlp_loss, quadratic, quadratic_tasks


@partial(jax.jit, static_argnums=0, static_argnames="algorithm")
def meta_gradient(loss_fn, params, support, query, *, algorithm):
    return meta.meta_gradient(loss_fn, params, support, query, algorithm=algorithm)


@pytest.fixture
def tasks():
    return quadratic_tasks()


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_closed_form_on_a_quadratic(tasks, name, steps):
    params, support, query = tasks
    rate = 0.1
    algorithm = meta.algorithm(name, steps=steps, learning_rate=rate)
    value, gradient = meta_gradient(quadratic, params, support, query, algorithm=algorithm)
    values, gradients = [], []
    for matrix, near, far in zip(
        np.asarray(support["matrix"], np.float64), support["centre"], query["centre"], strict=True
    ):
        contraction = np.linalg.matrix_power(np.eye(4) - rate * matrix, steps)
        adapted = near + contraction @ (params - near)
        values.append(0.5 * (adapted - far) @ matrix @ (adapted - far))
        outer = matrix @ (adapted - far)
        gradients.append(contraction.T @ outer if name == "maml" else outer)
    assert value == pytest.approx(np.mean(values), rel=1e-5)
    np.testing.assert_allclose(gradient, np.mean(gradients, axis=0), rtol=1e-4, atol=1e-5)


def test_finite_differences_in_float64():
    with jax.enable_x64(True):
        params, support, query = mlp(np.float64)
        algorithm = meta.algorithm("maml", steps=3, learning_rate=0.1)

        def value_of(params):
            return meta_gradient(mlp_loss, params, support, query, algorithm=algorithm)

        gradient = value_of(params)[1]
        random = np.random.RandomState(2)
        direction = jax.tree.map(lambda p: jnp.asarray(random.randn(*p.shape)), params)
        size = 1e-6
        ahead, behind = (
            value_of(jax.tree.map(lambda p, d, s=sign: p + s * size * d, params, direction))[0]
            for sign in (1, -1)
        )
        slope = sum(
            jnp.vdot(g, d)
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        # Differences of a value near 1 over 2e-6 have an error of 1e-10.
        assert (ahead - behind) / (2 * size) == pytest.approx(float(slope), rel=1e-7)


@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_mean_over_tasks(name):
    params, support, query = mlp()
    algorithm = meta.algorithm(name, steps=2, learning_rate=0.1)
    value, gradient = meta_gradient(mlp_loss, params, support, query, algorithm=algorithm)
    alone = [
        meta_gradient(
            mlp_loss,
            params,
            *jax.tree.map(lambda x, i=i: x[i : i + 1], (support, query)),
            algorithm=algorithm,
        )
        for i in range(3)
    ]
    assert value == pytest.approx(float(np.mean([v for v, _ in alone])), rel=1e-6)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *[g for _, g in alone])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_first_order_reads_nothing_through_the_inner_steps():
    """The first-order result is the plain gradient at the adapted parameters."""
    params, support, query = mlp(tasks=1)
    one = jax.tree.map(lambda x: x[0], (support, query))
    adapted = meta.adapt(mlp_loss, params, one[0], steps=4, learning_rate=0.1)
    expected = jax.grad(mlp_loss)(adapted, one[1])
    algorithm = meta.algorithm("fomaml", steps=4, learning_rate=0.1)
    _, actual = meta_gradient(mlp_loss, params, support, query, algorithm=algorithm)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_keys_reach_every_step_and_repeat():
    def noisy(params, batch, key):
        return jnp.sum(params * jax.random.normal(key, params.shape)) + 0.0 * jnp.sum(batch)

    params, batch, key = jnp.zeros(3), jnp.zeros(2), jax.random.key(3)
    adapted = meta.adapt(noisy, params, batch, steps=2, learning_rate=1.0, key=key)
    drawn = [jax.random.normal(jax.random.fold_in(key, k), (3,)) for k in range(2)]
    np.testing.assert_allclose(adapted, -(drawn[0] + drawn[1]), rtol=1e-6)


def test_has_aux_keeps_the_task_axis():
    params, support, query = mlp()
    (value, aux), _ = meta.meta_gradient(
        mlp_loss,
        params,
        support,
        query,
        algorithm=meta.algorithm("maml", steps=1, learning_rate=0.1),
        query_loss_fn=lambda p, b: (mlp_loss(p, b), mlp_loss(p, b)),
        has_aux=True,
    )
    assert aux.shape == (3,)
    assert value == pytest.approx(float(aux.mean()), rel=1e-6)


def temporaries(name, steps):
    params, batch = jnp.eye(32), jnp.ones((2, 512, 32))
    algorithm = meta.algorithm(name, steps=steps, learning_rate=0.1)

    def run(params, support, query):
        return meta.meta_gradient(deep_loss, params, support, query, algorithm=algorithm)

    analysis = jax.jit(run).lower(params, batch, batch).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_memory_does_not_grow_with_the_inner_graph():
    """8 more steps cost 8 more copies of the parameters, not 8 more sets of activations."""
    more = temporaries("maml", 10) - temporaries("maml", 2)
    parameters = 2 * 8 * 32 * 32 * 4
    activations = 2 * 8 * 6 * 512 * 32 * 4
    assert more < 4 * parameters  # the compiler may keep some twice
    assert more < activations / 10


def test_one_trace_per_shape():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return mlp_loss(params, batch)

    algorithm = meta.algorithm("maml", steps=3, learning_rate=0.1)
    step = jax.jit(lambda p, s, q: meta.meta_gradient(counted, p, s, q, algorithm=algorithm)[1])
    params, support, query = mlp()
    params = step(params, support, query)
    first = len(traces)
    for _ in range(3):
        params = step(params, support, query)
    assert len(traces) == first
    assert first <= 4  # scan body, its transpose and the query; never one per step


def test_bad_arguments():
    with pytest.raises(UsageError, match="unknown algorithm 'mamal'"):
        meta.algorithm("mamal", steps=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="order is 1 or 2"):
        meta.adapt(mlp_loss, *mlp()[:2], steps=1, learning_rate=0.1, order=3)


@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_only_what_the_filter_names_adapts(name):
    """The frozen part stays, and the meta-gradient is that of adapting a function of the rest."""
    params, support, query = mlp()
    head = meta.algorithm(
        name, steps=3, learning_rate=0.1, adapts=lambda path: path.startswith("w2")
    )
    one = jax.tree.map(lambda x: x[0], support)
    adapted = head.adapt(mlp_loss, params, one)
    for frozen in ("w1", "b1"):
        np.testing.assert_array_equal(adapted[frozen], params[frozen])
    assert not np.allclose(adapted["w2"], params["w2"])

    def outer(params, support, query):
        frozen = {"w1": params["w1"], "b1": params["b1"]}
        inner = frozen if name == "maml" else jax.lax.stop_gradient(frozen)
        chosen = meta.adapt(
            lambda w2, batch: mlp_loss(inner | {"w2": w2}, batch),
            params["w2"], support, steps=3, learning_rate=0.1, order=head.order,
        )  # fmt: skip
        return mlp_loss(frozen | {"w2": chosen}, query)

    expected = jax.grad(lambda p: jnp.mean(jax.vmap(outer, (None, 0, 0))(p, support, query)))(
        params
    )
    _, actual = meta_gradient(mlp_loss, params, support, query, algorithm=head)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="lets no parameter adapt"):
        meta.adapt(mlp_loss, params, one, steps=1, learning_rate=0.1, adapts=lambda path: False)
