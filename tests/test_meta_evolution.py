"""Evolution strategies: exact where they can be, else within four standard errors of what they estimate."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsaml_jax import meta
from tests.problems import mlp, mlp_loss

START = {"x": jnp.asarray([1.0, -2.0, 0.5])}


def test_one_pair_by_hand():
    """`(loss(x + e) - loss(x - e)) e / (2 scale^2)`, and the mean of both losses; a function in the tree stays."""
    learned = START | {"act": jnp.tanh, "n": jnp.asarray(2)}
    loss = lambda p: jnp.sum(p["act"](p["x"]) ** p["n"])  # noqa: E731
    value, gradient = meta.evolution_gradient(loss, learned, jax.random.key(0), pairs=1, scale=0.1)
    move = np.asarray(gradient["x"])
    assert (gradient["act"], gradient["n"]) == (None, None)
    shape = {"x": jnp.zeros((1, 3)), "act": None, "n": None}
    drawn = optax.tree.random_like(jax.random.key(0), shape, sampler=jax.random.normal)["x"][0]
    e = 0.1 * np.asarray(drawn)
    ahead, behind = (float(loss(learned | {"x": START["x"] + s * e})) for s in (1, -1))
    np.testing.assert_allclose(move, (ahead - behind) / (2 * 0.1**2) * e, rtol=1e-3)
    assert value == pytest.approx((ahead + behind) / 2, rel=1e-5)


def errors(estimates, expected):
    """Distance of the mean from what is expected, in standard errors."""
    estimates = np.asarray(estimates)
    spread = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
    return np.abs(estimates.mean(axis=0) - expected) / spread


def test_it_is_the_gradient_of_a_quadratic():
    """Without bias, since smoothing a quadratic adds a constant."""
    matrix = jnp.asarray([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    loss = lambda p: 0.5 * p["x"] @ matrix @ p["x"]  # noqa: E731
    one = jax.jit(jax.vmap(lambda key: meta.evolution_gradient(loss, START, key, pairs=4, scale=0.5)[1]["x"]))  # fmt: skip
    estimates = one(jax.random.split(jax.random.key(1), 4000))
    assert errors(estimates, matrix @ START["x"]).max() < 4


@pytest.mark.slow
def test_of_a_meta_loss():
    """In the direction of the meta-gradient: noise of 64 parameters and 2,000 pairs leaves a cosine of 0.98."""
    params, support, query = mlp()
    algorithm = meta.algorithm("maml", steps=2, learning_rate=0.05)
    loss = lambda p: meta.meta_loss(mlp_loss, p, support, query, algorithm=algorithm)  # noqa: E731
    run = jax.jit(lambda key: meta.evolution_gradient(loss, params, key, pairs=2000, scale=1e-2)[1])
    found, exact = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (run(jax.random.key(2)), jax.grad(loss)(params))
    )
    assert found @ exact / np.linalg.norm(found) / np.linalg.norm(exact) > 0.95


WINDOWS, STEPS = 3, 2


def window(learned, inner, order=1):
    """Two steps on a quadratic by a learned rate; the loss is that after them."""
    loss = lambda p, batch: 0.5 * jnp.sum(jnp.asarray([1.0, 0.3]) * p**2)  # noqa: E731
    after, _ = meta.unroll(
        loss, inner, None, steps=STEPS, learning_rate=learned["rate"], order=order
    )
    return after, loss(after.params, None)


RATE = {"rate": jnp.asarray(0.1)}
BEGIN = meta.InnerState(jnp.asarray([1.0, 2.0]))


def whole(learned):
    inner, total = BEGIN, 0.0
    for _ in range(WINDOWS):
        inner, loss = window(learned, inner, order=2)
        total += loss
    return total


def by_windows(key, *, persist):
    """The sum of the windows' estimates; without persistence the drift is forgotten after each."""
    state, total = meta.particles(BEGIN, RATE, pairs=8), 0.0
    for k in range(WINDOWS):
        _, gradient, state = meta.persistent_gradient(
            window, RATE, state, jax.random.fold_in(key, k), scale=0.02
        )
        total = total + gradient["rate"]
        if not persist:
            state = dataclasses.replace(state, drift=jax.tree.map(jnp.zeros_like, state.drift))
    return total


@pytest.mark.slow
def test_persistent_windows_have_no_bias():
    """Against the derivative of the whole unroll; windows that forget miss most of it.

    Smoothing by 0.02 changes that derivative by less than 1 %: of its standard error, which is 2 %, not enough to see.
    """
    exact = float(jax.grad(whole)(RATE)["rate"])
    keys = jax.random.split(jax.random.key(3), 3000)
    persistent, forgetful = (
        jax.jit(jax.vmap(lambda key, p=persist: by_windows(key, persist=p)))(keys)
        for persist in (True, False)
    )
    assert errors(persistent, exact) < 4
    assert np.std(persistent) / np.sqrt(len(keys)) < 0.05 * abs(exact)
    assert errors(forgetful, exact) > 20
    assert abs(np.mean(forgetful)) < 0.6 * abs(exact)


def test_particles_go_on():
    """Each pair unrolls its own inner problem, and remembers the sum of its moves."""
    state = meta.particles(BEGIN, RATE, pairs=3)
    assert state.inner.params.shape == (3, 2, 2)
    assert not np.any(state.drift["rate"])
    value, gradient, after = meta.persistent_gradient(window, RATE, state, jax.random.key(4), scale=0.1)  # fmt: skip
    assert (value.shape, gradient["rate"].shape) == ((), ())
    assert int(after.inner.step[0, 0]) == STEPS
    for pair in range(3):
        for place, sign in enumerate((1, -1)):
            rate = {"rate": RATE["rate"] + sign * after.drift["rate"][pair]}
            expected, _ = window(rate, BEGIN)
            np.testing.assert_allclose(after.inner.params[pair, place], expected.params, rtol=1e-5)
    _, _, later = meta.persistent_gradient(window, RATE, after, jax.random.key(5), scale=0.1)
    _, _, fresh = meta.persistent_gradient(window, RATE, state, jax.random.key(5), scale=0.1)
    np.testing.assert_allclose(later.drift["rate"], after.drift["rate"] + fresh.drift["rate"], rtol=1e-5)  # fmt: skip
