"""Inner steps in full: going on, a batch and a state for each step, what is seen on the way, where derivatives are cut.

Tolerance 1e-5, relative, where nothing else is said: the same float32 operations in another program.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsaml_jax import UsageError, meta
from dsaml_jax.meta import InnerState
from tests.problems import along, directions, mlp, mlp_loss, relative_error, slope

PARAMS, SUPPORT, QUERY = mlp()
ONE, JUDGED = (jax.tree.map(lambda x: x[0], batch) for batch in (SUPPORT, QUERY))
STEPS, RATE = 5, 0.05


def batches():
    """`[steps, ...]`: another batch for every step."""
    scale = jnp.linspace(0.5, 1.5, STEPS)[:, None, None]
    return jax.tree.map(lambda x: scale * x[None], ONE)


def stateful(params, batch, state):
    """A normalised hidden layer whose running mean moves the loss; the mean follows the batch, and so the parameters."""
    x, y = batch
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    mean = 0.9 * state["mean"] + 0.1 * hidden.mean(axis=0)
    error = (hidden - mean[None]) @ params["w2"] - y
    return jnp.mean(jnp.square(error)), {"mean": mean, "count": state["count"] + 1}


START = {"mean": jnp.full(16, 0.1), "count": jnp.asarray(0)}
PER_STEP = {
    "mean": jnp.linspace(0.0, 0.3, 16 * STEPS).reshape(STEPS, 16),
    "count": jnp.arange(STEPS),
}


def loop(loss, params, *, batch=None, state=None, per_step=False, order=2, cut=0, batched=False):
    """The definition, as a Python loop: `(params, state)`."""
    states = []
    for k in range(STEPS):
        now = jax.tree.map(lambda x, k=k: x[k], batch) if batched else batch
        here = jax.tree.map(lambda x, k=k: x[k], state) if per_step else state
        constant = jax.lax.stop_gradient if order == 1 or k < cut else lambda x: x
        at, now, here = constant((params, now, here))
        if state is None:
            gradient = jax.grad(loss)(at, now)
        else:
            gradient, left = jax.grad(loss, has_aux=True)(at, now, here)
            states.append(left)
            state = state if per_step else left
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    if per_step:
        state = jax.tree.map(lambda *x: jnp.stack(x), *states)
    return params, state


def unroll(loss, params, batch, state=None, **options):
    options = {"steps": STEPS, "learning_rate": RATE, "order": 2} | options
    after, _ = meta.unroll(loss, InnerState(params, state=state), batch, **options)
    return after.params, after.state


def judged(after):
    """A number that the parameters and the state after the steps both decide."""
    params, state = after
    value = mlp_loss(params, JUDGED)
    return value if state is None else value + jnp.sum(jnp.square(state["mean"]))


CASES = {
    "plain": (mlp_loss, ONE, None, {}, {}),
    "batch per step": (mlp_loss, batches(), None, {"batch_per_step": True}, {"batched": True}),
    "state": (stateful, ONE, START, {}, {}),
    "state per step": (stateful, ONE, PER_STEP, {"state_per_step": True}, {"per_step": True}),
    "both per step": (
        stateful, batches(), PER_STEP, {"state_per_step": True, "batch_per_step": True},
        {"per_step": True, "batched": True},
    ),
    "first order": (stateful, ONE, START, {"order": 1}, {"order": 1}),
    "cut": (mlp_loss, batches(), None, {"first_order_steps": 2, "batch_per_step": True}, {"cut": 2, "batched": True}),
    "state, cut": (stateful, ONE, START, {"first_order_steps": 3}, {"cut": 3}),
    "state per step, cut": (stateful, ONE, PER_STEP, {"first_order_steps": 3, "state_per_step": True}, {"cut": 3, "per_step": True}),
}  # fmt: skip


@pytest.mark.parametrize(
    "memory",
    ["mixed"]
    + [pytest.param(m, marks=pytest.mark.slow) for m in meta.MEMORY_MODES if m != "mixed"],
)
@pytest.mark.parametrize("case", CASES)
def test_equals_a_python_loop(case, memory):
    """Parameters, state, and the derivative of both by parameters, batch and first state."""
    loss, batch, state, ours, theirs = CASES[case]

    def theta_of(run):
        def value(theta):
            floats = theta["state"]
            now = None if state is None else {**state, "mean": floats}
            after = run(theta["params"], theta["batch"], now)
            return judged(after), after

        return jax.jit(jax.value_and_grad(value, has_aux=True))

    theta = {"params": PARAMS, "batch": batch, "state": None if state is None else state["mean"]}
    mine = theta_of(lambda p, b, s: unroll(loss, p, b, s, memory=memory, **ours))(theta)
    (value, after), gradient = mine
    (expected, expected_after), expected_gradient = theta_of(
        lambda p, b, s: loop(loss, p, batch=b, state=s, **theirs)
    )(theta)
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert relative_error(after, expected_after) < 1e-5
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * np.abs(b).max())


TRANSFORM = {"transform": optax.scale_by_adam(eps_root=1e-8), "learning_rate": 0.01}


@pytest.mark.parametrize(
    "options",
    [{}, TRANSFORM, {"optimizer": optax.adam(0.01, eps_root=1e-8), "learning_rate": None}],
)
def test_goes_on_where_it_stopped(options):  # fmt: skip
    """2 and 3 steps are 5: parameters, moments of Adam, state of the loss, keys."""

    def noisy(params, batch, state, key):
        x, y = batch
        return stateful(params, (x + 0.1 * jax.random.normal(key, x.shape), y), state)

    settings = {"learning_rate": RATE, "key": jax.random.key(3)} | options
    run = functools.partial(meta.unroll, noisy, batch=ONE, **settings)
    whole, _ = run(inner=InnerState(PARAMS, state=START), steps=5)
    half, _ = run(inner=InnerState(PARAMS, state=START), steps=2)
    again, _ = run(inner=half, steps=3)
    assert jax.tree.structure(again) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert int(again.step) == 5
    nothing, seen = run(inner=half, steps=0)
    assert nothing is half
    assert seen is None


def test_truncated_backpropagation():
    """`stop_gradient` in between: the derivative by a rate is that of the last steps alone."""

    def value(rate, cut):
        half, _ = meta.unroll(mlp_loss, InnerState(PARAMS), ONE, steps=3, learning_rate=rate, order=2)  # fmt: skip
        half = jax.lax.stop_gradient(half) if cut else half
        after, _ = meta.unroll(mlp_loss, half, ONE, steps=2, learning_rate=rate, order=2)
        return mlp_loss(after.params, JUDGED)

    whole, cut = (jax.grad(value)(jnp.asarray(RATE), cut) for cut in (False, True))
    half = jax.lax.stop_gradient(meta.adapt(mlp_loss, PARAMS, ONE, steps=3, learning_rate=RATE))
    expected = jax.grad(
        lambda rate: mlp_loss(
            meta.adapt(mlp_loss, half, ONE, steps=2, learning_rate=rate, order=2), JUDGED
        )
    )(jnp.asarray(RATE))
    assert cut == pytest.approx(float(expected), rel=1e-5)
    assert abs(cut - whole) > 0.01 * abs(whole)


@pytest.mark.parametrize("cut", [0, 3])
def test_the_trajectory_is_seen_and_differentiated(cut):
    """Parameters after each step; a loss of all of them has an exact derivative."""

    def seen(params):
        _, visited = meta.unroll(
            mlp_loss, InnerState(params), ONE, steps=STEPS, learning_rate=RATE, order=2, first_order_steps=cut,
            visit=lambda params: (params, mlp_loss(params, JUDGED)),
        )  # fmt: skip
        return visited

    trajectory, losses = jax.jit(seen)(PARAMS)
    for steps in range(1, STEPS + 1):
        expected = meta.adapt(mlp_loss, PARAMS, ONE, steps=steps, learning_rate=RATE)
        now = jax.tree.map(lambda x, k=steps: x[k - 1], trajectory)
        assert relative_error(now, expected) < 1e-5
        assert losses[steps - 1] == pytest.approx(float(mlp_loss(expected, JUDGED)), rel=1e-5)
    if cut:
        return
    with jax.enable_x64(True):
        params, support, query = mlp(np.float64)
        one, judged = (jax.tree.map(lambda x: x[0], batch) for batch in (support, query))
        value = jax.jit(
            lambda p: meta.unroll(
                mlp_loss, InnerState(p), one, steps=STEPS, learning_rate=RATE, order=2,
                visit=lambda p: mlp_loss(p, judged),
            )[1].sum()
        )  # fmt: skip
        gradient = jax.grad(value)(params)
        for direction in directions(params):
            # Differences over 2e-5 of a value near 1 have an error of 1e-10.
            expected = slope(value, params, direction, 1e-5)
            assert along(gradient, direction) == pytest.approx(expected, rel=1e-6)


def test_per_step_axes_are_checked():
    wrong = jax.tree.map(lambda x: x[:2], batches())
    with pytest.raises(ValueError, match="batch_per_step: an array of shape .* of 5 steps"):
        unroll(mlp_loss, PARAMS, wrong, batch_per_step=True)
    with pytest.raises(ValueError, match="state_per_step: an array of shape .* of 5 steps"):
        unroll(stateful, PARAMS, ONE, START, state_per_step=True)
    with pytest.raises(ValueError, match="first_order_steps is 0 or more"):
        unroll(mlp_loss, PARAMS, ONE, first_order_steps=-1)


# Algorithms


def shared(loss, state, query, **options):
    """`meta_gradient` with a state, and the same by hand: a loop over tasks and steps."""
    algorithm = meta.algorithm("maml", steps=STEPS, learning_rate=RATE, **options)
    return jax.jit(
        lambda p: meta.meta_gradient(
            loss, p, SUPPORT, query, algorithm=algorithm, state=state,
            query_loss_fn=lambda p, b, s: (loss(p, b, s)[0], ({"seen": s["count"]}, loss(p, b, s)[1])), has_aux=True,
        )
    )(PARAMS)  # fmt: skip


@pytest.mark.parametrize("per_step", [False, True])
def test_states_of_tasks(per_step):
    """Each task begins with the same; the query reads what the last step left, and leaves its own."""
    state = PER_STEP if per_step else START
    (value, (aux, left)), gradient = shared(stateful, state, QUERY, state_per_step=per_step)

    def by_hand(params):
        total, states = 0.0, []
        for task in range(3):
            support, query = (jax.tree.map(lambda x, i=task: x[i], b) for b in (SUPPORT, QUERY))
            adapted, after = loop(stateful, params, batch=support, state=state, per_step=per_step)
            last = jax.tree.map(lambda x: x[-1], after) if per_step else after
            loss, end = stateful(adapted, query, last)
            if per_step:
                end = jax.tree.map(lambda x, new: x.at[-1].set(new), after, end)
            total, states = total + loss / 3, [*states, end]
        return total, jax.tree.map(lambda *x: jnp.stack(x), *states)

    (expected, ends), expected_gradient = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(PARAMS)
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert relative_error(left, ends) < 1e-5
    assert relative_error(gradient, expected_gradient) < 1e-4
    assert aux["seen"].shape == (3,)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("multi_step", [0, 10])
def test_states_of_maml_plus_plus(per_step, multi_step):
    """As running statistics for each step: those of the last, and of a query after every step, are exact."""
    algorithm = meta.algorithm(
        "maml++", steps=STEPS, learning_rate=RATE, multi_step_until=multi_step, state_per_step=per_step
    )  # fmt: skip
    state = PER_STEP if per_step else START
    value, (aux, left) = jax.jit(
        lambda learned: meta.meta_loss(
            stateful, learned, SUPPORT, QUERY, algorithm=algorithm, state=state, step=jnp.asarray(0)
        )
    )(algorithm.init(PARAMS))
    assert aux is None
    ours = jax.tree.map(lambda x: x[0], left)
    adapted, after = loop(stateful, PARAMS, batch=ONE, state=state, per_step=per_step)
    last = jax.tree.map(lambda x: x[-1], after) if per_step else after
    loss, end = stateful(adapted, JUDGED, last)
    np.testing.assert_allclose(
        ours["mean"][-1] if per_step else ours["mean"], end["mean"], rtol=1e-5, atol=1e-6
    )
    counts = np.asarray(PER_STEP["count"]) + 1
    if per_step:
        counts = counts + 1 if multi_step else counts + np.eye(STEPS, dtype=int)[-1]
        np.testing.assert_array_equal(ours["count"], counts)
    else:
        assert ours["count"] == STEPS + 1


def test_per_step_parameters_by_an_index_in_the_state():
    """Weights of BatchNorm for each step: the state says which step it is."""

    def loss(params, batch, state):
        scale = params["scale"][state["step"]]
        rest = {name: p for name, p in params.items() if name != "scale"}
        return scale * mlp_loss(rest, batch), state

    params = PARAMS | {"scale": jnp.linspace(0.5, 1.5, STEPS)}
    rest = lambda name: name != "scale"  # noqa: E731
    after, _ = unroll(
        loss, params, ONE, {"step": jnp.arange(STEPS)}, state_per_step=True, adapts=rest
    )
    expected = meta.adapt(
        mlp_loss, PARAMS, ONE, steps=STEPS, learning_rate=RATE * params["scale"],
        rates_per_step=True,
    )  # fmt: skip
    assert relative_error({k: v for k, v in after.items() if k != "scale"}, expected) < 1e-5


@pytest.mark.parametrize("name", ["imaml", "reptile"])
def test_who_takes_no_state(name):
    algorithm = meta.algorithm(name, steps=1, learning_rate=0.1)
    with pytest.raises(UsageError, match=f"{name} takes no state"):
        meta.meta_loss(stateful, PARAMS, SUPPORT, QUERY, algorithm=algorithm, state=START)
