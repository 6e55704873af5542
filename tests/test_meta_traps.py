"""What used to go wrong without a word: rates, transformations, names, batches, derivatives that do not exist.

Tolerance 1e-6, relative, where nothing else is said: the same float32 operations in another program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsaml_jax import UsageError, meta
from dsaml_jax.meta.memory import define_backward
from tests.problems import mlp, mlp_loss, quadratic, quadratic_tasks, relative_error

PARAMS, SUPPORT, QUERY = mlp()
ONE = jax.tree.map(lambda x: x[0], SUPPORT)


def adapt(params=PARAMS, batch=ONE, **options):
    options = {"steps": 3} | options
    return meta.adapt(mlp_loss, params, batch, **options)


def by_hand(update, steps=3):
    """Steps of a Python loop: `update(name, gradient, step)` is what each parameter moves by."""
    params = dict(PARAMS)
    for step in range(steps):
        gradient = jax.grad(mlp_loss)(params, ONE)
        params = {name: p + update(name, gradient[name], step) for name, p in params.items()}
    return params


# Rates


def test_rates_for_each_step():
    """One for all, one for each parameter, one for each number."""
    rates = jnp.asarray([0.1, 0.0, 0.05])
    expected = by_hand(lambda name, g, step: -rates[step] * g)
    assert relative_error(adapt(learning_rate=rates, rates_per_step=True), expected) < 1e-6
    by_name = dict.fromkeys(PARAMS, rates)
    by_name["w1"] = jnp.stack([jnp.full_like(PARAMS["w1"], rate) for rate in rates])
    assert relative_error(adapt(learning_rate=by_name, rates_per_step=True), expected) < 1e-6


@pytest.mark.parametrize("shape", [(3,), (1,), (16, 1), (2, 16, 1)])
def test_a_rate_has_no_shape_or_its_parameters(shape):
    """A leading axis that would be broadcast against the parameter is refused, whether or not it could be."""
    rates = dict.fromkeys(PARAMS, 0.1) | {"w1": jnp.full(shape, 0.1)}
    with pytest.raises(ValueError, match="rate of w1 has shape .* needs rates_per_step=True"):
        adapt(learning_rate=rates)


@pytest.mark.parametrize("shape", [(), (2,), (4, 2, 16)])
def test_a_rate_for_each_step_has_an_axis_of_steps(shape):
    rates = dict.fromkeys(PARAMS, jnp.full(3, 0.1)) | {"w1": jnp.full(shape, 0.1)}
    with pytest.raises(ValueError, match="rate of w1 has shape .* no leading axis of 3 steps"):
        adapt(learning_rate=rates, rates_per_step=True)


def test_rates_of_a_scalar_parameter():
    """The case that broadcasting hid: a rate `[steps]` and a parameter `[]`."""
    with pytest.raises(ValueError, match="needs rates_per_step=True"):
        meta.adapt(lambda p, b: p**2, jnp.asarray(1.0), None, steps=3, learning_rate=jnp.ones(3))


# Optimisers and transformations


def test_an_optimizer_has_its_own_rate_and_sign():
    expected = by_hand(lambda name, g, step: -0.1 * g)
    assert relative_error(adapt(optimizer=optax.sgd(0.1)), expected) < 1e-6
    adam = adapt(transform=optax.scale_by_adam(eps_root=1e-8), learning_rate=0.1)
    assert relative_error(adapt(optimizer=optax.adam(0.1, eps_root=1e-8)), adam) < 1e-6


@pytest.mark.parametrize("name", ["maml", "fomaml", "imaml", "reptile", "anil"])
def test_algorithms_take_an_optimizer(name):
    head = {"adapts": lambda name: name == "w2"} if name == "anil" else {}
    options = head | ({"cg_steps": 20} if name == "imaml" else {})

    def run(algorithm):
        return jax.jit(
            lambda p: meta.meta_gradient(mlp_loss, p, SUPPORT, QUERY, algorithm=algorithm)
        )(PARAMS)

    (value, gradient), (expected, expected_gradient) = (
        run(meta.algorithm(name, steps=3, **options, **how))
        for how in ({"optimizer": optax.sgd(0.05)}, {"learning_rate": 0.05})
    )
    if name == "reptile":  # an optimiser's rate is its own, so the way is not divided by it
        gradient = jax.tree.map(lambda x: x / 0.05, gradient)
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert relative_error(gradient, expected_gradient) < 1e-5


def test_rate_or_optimizer():
    sgd = optax.sgd(0.1)
    for make in (adapt, lambda **options: meta.algorithm("maml", steps=1, **options)):
        error = ValueError if make is adapt else UsageError
        with pytest.raises(error, match="give learning_rate, or an optimizer"):
            make()
        with pytest.raises(error, match="has its own rate: leave learning_rate out"):
            make(learning_rate=0.1, optimizer=sgd)
        with pytest.raises(error, match="transform or optimizer, not both"):
            make(transform=optax.trace(0.9), optimizer=sgd)
    for name in ("meta-sgd", "maml++"):
        with pytest.raises(UsageError, match="has no optimizer"):
            meta.algorithm(name, steps=1, learning_rate=0.1, optimizer=sgd)
    with pytest.raises(UsageError, match="neumann needs learning_rate"):
        meta.algorithm("imaml", steps=1, optimizer=sgd, solver="neumann")


@pytest.mark.parametrize("frozen", [None, "b1"])
def test_transformations_see_names(frozen):
    """`optax.masked` and `multi_transform` by the names of the parameters, with and without frozen ones."""
    moves = lambda name: name != frozen  # noqa: E731
    only = optax.masked(optax.scale(3.0), {"w1": True, "b1": False, "w2": False})
    factor = {"w1": 3.0, "b1": 1.0 if moves("b1") else 0.0, "w2": 1.0}
    expected = by_hand(lambda name, g, step: -0.1 * factor[name] * g)
    filtered = {"adapts": moves, "learning_rate": 0.1}
    assert relative_error(adapt(transform=only, **filtered), expected) < 1e-6

    def labels(params):
        return jax.tree.map_with_path(lambda path, _: "big" if path[-1].key == "w1" else "other", params)  # fmt: skip

    several = optax.multi_transform({"big": optax.scale(3.0), "other": optax.identity()}, labels)
    assert relative_error(adapt(transform=several, **filtered), expected) < 1e-6
    whole = optax.multi_transform({"big": optax.sgd(0.3), "other": optax.sgd(0.1)}, labels)
    assert relative_error(adapt(optimizer=whole, adapts=moves), expected) < 1e-6


# Names, numbers, batches


def test_one_path_is_one_parameter():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    loss = lambda params, batch: jnp.sum(params["a"]["b"] * params["a/b"])  # noqa: E731
    with pytest.raises(ValueError, match="two parameters have the path a/b; rename one"):
        meta.adapt(loss, params, None, steps=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="two parameters have the path a/b"):
        meta.parameter_names(params)


@pytest.mark.parametrize("steps", [2.5, 2.0, "2", None])
def test_steps_are_whole(steps):
    with pytest.raises(ValueError, match="steps is a whole number, not"):
        adapt(steps=steps, learning_rate=0.1)
    with pytest.raises(ValueError, match="steps is a whole number, not"):
        meta.algorithm("fomaml", steps=steps, learning_rate=0.1).adapt(mlp_loss, PARAMS, ONE)


def test_numpy_counts_steps_too():
    again = adapt(steps=np.int64(3), learning_rate=0.1)
    assert relative_error(again, adapt(learning_rate=0.1)) == 0


def test_reptile_divides_by_its_rate():
    with pytest.raises(UsageError, match="learning_rate, which must not be 0"):
        meta.algorithm("reptile", steps=1, learning_rate=0.0)


ALGORITHM = meta.algorithm("maml", steps=1, learning_rate=0.1)


@pytest.mark.parametrize(
    ("support", "query", "message"),
    [
        ((), QUERY, "the support holds no arrays"),
        (SUPPORT, {}, "the query holds no arrays"),
        ({"x": SUPPORT, "scale": 2.0}, QUERY, r"support\['scale'\] is 2.0, without a task axis"),
        ({"x": SUPPORT, "k": jnp.asarray(2)}, QUERY, r"support\['k'\] is .*, without a task axis"),
        (SUPPORT, tuple(x[:2] for x in QUERY), r"3 in support\[0\], 2 in query\[0\]"),
        ((SUPPORT[0], SUPPORT[1][:1]), QUERY, r"3 in support\[0\], 1 in support\[1\]"),
        (tuple(x[:0] for x in SUPPORT), tuple(x[:0] for x in QUERY), "there are no tasks"),
    ],
)
@pytest.mark.parametrize("call", [meta.meta_loss, meta.meta_gradient, meta.plan])
def test_batches_have_a_task_axis(call, support, query, message):
    with pytest.raises(ValueError, match=message):
        call(mlp_loss, PARAMS, support, query, algorithm=ALGORITHM)


def test_annealing_needs_a_step():
    for option in ("multi_step_until", "first_order_until"):
        algorithm = meta.algorithm("maml++", steps=2, learning_rate=0.1, **{option: 5})
        learned = algorithm.init(PARAMS)
        with pytest.raises(UsageError, match="needs step=, the number of the meta-step"):
            meta.meta_gradient(mlp_loss, learned, SUPPORT, QUERY, algorithm=algorithm)
        algorithm.adapt(mlp_loss, learned, ONE)  # nothing is annealed there


# Derivatives


def inner_only(params, batch):
    """A loss whose temperature only the inner steps read."""
    return jnp.exp(params["t"]) * mlp_loss({k: v for k, v in params.items() if k != "t"}, batch)


def outer_only(params, batch):
    return mlp_loss({k: v for k, v in params.items() if k != "t"}, batch)


@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_what_reaches_the_inner_loss_alone(name):
    """As the docstring says: nothing in first order, something in second."""
    params = PARAMS | {"t": jnp.asarray(0.0)}
    algorithm = meta.algorithm(name, steps=2, learning_rate=0.05, adapts=lambda n: n != "t")
    _, gradient = meta.meta_gradient(
        inner_only, params, SUPPORT, QUERY, algorithm=algorithm, query_loss_fn=outer_only
    )
    assert (gradient["t"] == 0) == (name == "fomaml")


def test_decay_counts_as_a_constant_in_first_order():
    """The adapted parameters decay; the derivative is the identity, and `1 - rate * decay` a step in second order."""
    params, support, query = quadratic_tasks(tasks=1)
    flat = jax.tree.map(jnp.zeros_like, support)  # no gradient but the decay's
    decay = optax.add_decayed_weights(0.5)
    run = {
        order: meta.MAML if order == 2 else meta.FOMAML for order in (1, 2)
    }  # fmt: skip
    matrix, centre = np.asarray(query["matrix"][0]), np.asarray(query["centre"][0])
    adapted = np.asarray(params) * 0.95**3
    outer = matrix @ (adapted - centre)
    for order, factor in ((1, 1.0), (2, 0.95**3)):
        algorithm = run[order](steps=3, learning_rate=0.1, transform=decay)
        _, gradient = meta.meta_gradient(quadratic, params, flat, query, algorithm=algorithm)
        np.testing.assert_allclose(gradient, factor * outer, rtol=1e-5)


@jax.custom_vjp
def calls_itself(x):
    return jnp.tanh(x)


def _forward(x):
    y = calls_itself(x)
    return y, y


calls_itself.defvjp(_forward, lambda y, g: (g * (1 - y**2),))


@jax.custom_vjp
def of_plain_jax(x):
    return jnp.tanh(x)


of_plain_jax.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


@jax.custom_vjp
def calls_itself_for_any_batch(x):
    """JAX from 0.12.0.1 on writes such a rule down as an operation of another kind."""
    return jnp.tanh(x)


define_backward(
    calls_itself_for_any_batch,
    lambda x: (y := calls_itself_for_any_batch(x), y),
    lambda y, g: (g * (1 - y**2),),
)


@pytest.mark.parametrize("rule", [calls_itself, calls_itself_for_any_batch, of_plain_jax])
@pytest.mark.parametrize("memory", ["mixed", pytest.param("mixed-sqrt", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "together"), [("maml", None), ("maml", 1), ("imaml", None), ("imaml", 1)]
)
def test_losses_with_a_backward_rule_of_their_own(rule, memory, name, together):
    """In the modes that differentiate forwards, which such a rule may not have: the same numbers as in reverse."""

    def loss(activation):
        def of(params, batch):
            x, y = batch
            hidden = activation(x @ params["w1"] + params["b1"][None])
            return jnp.mean(jnp.square(hidden @ params["w2"] - y))

        return of

    def run(activation, memory):
        algorithm = meta.algorithm(name, steps=4, learning_rate=0.05, memory=memory)
        return jax.jit(
            lambda p: meta.meta_gradient(
                loss(activation), p, SUPPORT, QUERY, algorithm=algorithm, tasks_at_once=together
            )
        )(PARAMS)

    expected = run(jnp.tanh, "remat")
    assert relative_error(run(rule, memory), expected) < 1e-5
    assert relative_error(run(rule, "remat"), expected) < 1e-5


def test_forward_derivatives_name_the_mode():
    """Of the result of second order: `remat` has them, the mixed modes say so."""

    def along(memory):
        run = lambda p: adapt(p, order=2, learning_rate=0.05, memory=memory)  # noqa: E731
        return jax.jvp(run, (PARAMS,), (PARAMS,))[1]

    with pytest.raises(TypeError, match="no forward derivative .* set memory='remat'"):
        along("mixed")
    with pytest.raises(TypeError, match="forward-mode .* custom_vjp"):  # as the docstring says
        jax.jvp(jax.jit(lambda p: adapt(p, order=2, learning_rate=0.05)), (PARAMS,), (PARAMS,))
    tangent = along("remat")
    ahead, behind = (
        adapt(jax.tree.map(lambda p, s=s: p * (1 + s * 1e-3), PARAMS), learning_rate=0.05)
        for s in (1, -1)
    )
    slope = jax.tree.map(lambda a, b: (a - b) / 2e-3, ahead, behind)
    assert relative_error(tangent, slope) < 1e-2  # float32 differences


# Narrow parameters


@pytest.mark.parametrize("name", ["maml", "meta-sgd", "maml++", "reptile"])
def test_bfloat16_parameters(name):
    """Rates and meta-gradients are float32, and the gradient is summed over tasks in it.

    Tolerance: bfloat16 rounds by 2^-9, and the products of a batch of tasks round elsewhere than those of one. Summed in
    bfloat16, 600 equal terms would stop growing at 2^8 times the first: an error of a half.
    """
    params, support, query = mlp(tasks=1)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    data = jax.tree.map(lambda x: jnp.repeat(x, 600, axis=0), (support, query))

    def loss(params, batch):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return mlp_loss(wide, batch)

    algorithm = meta.algorithm(name, steps=2, learning_rate=0.05)
    learned = algorithm.init(narrow)
    if name in ("meta-sgd", "maml++"):
        assert {rate.dtype for rate in learned.rates.values()} == {jnp.dtype("float32")}

    @jax.jit
    def meta_gradient(learned, support, query):
        return meta.meta_gradient(loss, learned, support, query, algorithm=algorithm)[1]

    gradient = meta_gradient(learned, *data)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    adapted = algorithm.adapt(loss, learned, ONE)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapted)} == {jnp.dtype("bfloat16")}
    alone = meta_gradient(learned, support, query)
    assert relative_error(gradient, alone) < 0.05
