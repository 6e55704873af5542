"""What is learned and what counts: `meta_loss`, filters and trees of any kind, weights and masks of tasks.

Tolerance 1e-5, relative, where nothing else is said: the same float32 operations in another program.
"""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dsaml_jax import meta
from tests.problems import Upstream, mlp, mlp_loss, relative_error

PARAMS, SUPPORT, QUERY = mlp(tasks=4)
MAML = meta.algorithm("maml", steps=3, learning_rate=0.05)
QUICK = ("maml", "meta-sgd", "reptile")
NAMES = [
    n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in meta.algorithm_names()
]
HEADS = {"anil": "w2", "boil": "w2", "cavia": "b1"}


def made(name, **options):
    head = {"adapts": lambda path: path == HEADS[name]} if name in HEADS else {}
    return meta.algorithm(name, steps=3, learning_rate=0.05, **head, **options)


def of_some(name, gradient):
    """Without CAVIA's context, whose gradient is zero."""
    return meta.partition(gradient, lambda path: name != "cavia" or path != "b1")[0]


def jitted(call, *arguments, **options):
    return jax.jit(partial(call, mlp_loss, **options))(*arguments)


# meta_loss


@pytest.mark.parametrize("together", [None, 2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_meta_loss_is_the_meta_gradient(name, together):
    algorithm = made(name)
    learned = algorithm.init(PARAMS)
    value, gradient = jitted(
        meta.meta_gradient, learned, SUPPORT, QUERY, algorithm=algorithm, tasks_at_once=together
    )

    def loss(learned):
        return meta.meta_loss(
            mlp_loss, learned, SUPPORT, QUERY, algorithm=algorithm, tasks_at_once=together
        )

    expected, expected_gradient = jax.jit(jax.value_and_grad(loss))(learned)
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert relative_error(of_some(name, gradient), of_some(name, expected_gradient)) < 1e-5


def test_meta_loss_by_data_and_closures():
    """One reverse pass reaches what made the batch and what the loss closes over."""
    problem = Upstream(meta.algorithm("maml", steps=3, learning_rate=0.1), dropout=True)

    def value(theta, groups):
        return meta.meta_loss(
            problem.loss_fn(theta["closed"]), theta["learned"], *problem.batches(theta["encoder"]),
            algorithm=problem.algorithm, key=problem.key, tasks_at_once=groups,
        )  # fmt: skip

    expected = jax.jit(jax.value_and_grad(problem.value))(problem.theta)
    for groups in (None, 1):
        actual = jax.jit(jax.value_and_grad(partial(value, groups=groups)))(problem.theta)
        assert relative_error(actual, expected) < 1e-5


def test_meta_loss_keeps_aux():
    judge = lambda p, b: (mlp_loss(p, b), b[0][:2])  # noqa: E731
    for together in (None, 2):
        value, aux = meta.meta_loss(
            mlp_loss, PARAMS, SUPPORT, QUERY, algorithm=MAML, query_loss_fn=judge, has_aux=True, tasks_at_once=together
        )  # fmt: skip
        np.testing.assert_array_equal(aux, QUERY[0][:, :2])
        assert value.shape == ()


# What is learned


@pytest.mark.parametrize("together", [None, 2])
@pytest.mark.parametrize("name", NAMES)
def test_learns_some_of_it(name, together):
    """The gradient of what is learned is the same, and of the rest there is none; rates have paths too."""
    algorithm = made(name)
    learned = algorithm.init(PARAMS)
    learns = lambda path: "w1" in path  # noqa: E731
    _, whole = jitted(meta.meta_gradient, learned, SUPPORT, QUERY, algorithm=algorithm)
    _, some = jitted(
        meta.meta_gradient, learned, SUPPORT, QUERY, algorithm=algorithm, learns=learns, tasks_at_once=together
    )  # fmt: skip
    expected, _ = meta.partition(whole, learns)
    assert jax.tree.structure(some) == jax.tree.structure(expected)
    assert relative_error(some, expected) < 1e-5
    rates = {"meta-sgd": 1, "maml++": 1, "meta-curvature": 2}.get(name, 0)
    assert len(jax.tree.leaves(some)) == 1 + rates


@flax.struct.dataclass
class Layer:
    """As modules of Equinox are: a tree with arrays, numbers, integers and functions in it."""

    weight: jax.Array
    bias: jax.Array
    activation: object
    count: jax.Array
    factor: float

    def __call__(self, x):
        return self.activation(x @ self.weight + self.bias[None]) * self.factor


def layers():
    random = np.random.RandomState(3)
    draw = lambda *shape: jnp.asarray(random.randn(*shape), jnp.float32)  # noqa: E731
    first = Layer(draw(2, 5), draw(5), jnp.tanh, jnp.asarray(3), 0.5)
    return [first, Layer(draw(5, 1), draw(1), lambda x: x, jnp.asarray(4), 1.0)]


def layers_loss(layers, batch):
    x, y = batch
    return jnp.mean(jnp.square(layers[1](layers[0](x)) - y))


@pytest.mark.parametrize("name", NAMES)
def test_trees_of_anything(name):
    """Integers, numbers and functions are neither adapted nor learned, and optax sees what is."""
    model = layers()
    head = {"adapts": lambda path: path.startswith("1/")} if name in HEADS else {}
    algorithm = meta.algorithm(name, steps=3, learning_rate=0.05, **head)
    learned, rest = meta.partition(algorithm.init(model))
    optimizer = optax.sgd(0.1)

    @jax.jit
    def train_step(learned, state):
        value, gradient = meta.meta_gradient(
            layers_loss, meta.combine(learned, rest), SUPPORT, QUERY, algorithm=algorithm
        )
        updates, state = optimizer.update(gradient, state, learned)
        return value, optax.apply_updates(learned, updates), state

    state = optimizer.init(learned)
    first, learned, state = train_step(learned, state)
    second, learned, _ = train_step(learned, state)
    assert second != first
    after = algorithm.params(meta.combine(learned, rest))
    assert after[0].activation is jnp.tanh
    assert (after[0].count, after[0].factor) == (3, 0.5)
    assert not np.array_equal(after[0].weight, model[0].weight)


def test_paths():
    model = layers()
    assert meta.parameter_names(model)[:3] == ["0/weight", "0/bias", "0/activation"]
    learned, rest = meta.partition(model, lambda path: path.endswith("weight"))
    assert (learned[0].bias, learned[0].activation) == (None, None)
    assert (rest[0].weight, rest[1].factor) == (None, 1.0)
    assert meta.combine(learned, rest)[1].weight is model[1].weight
    with pytest.raises(ValueError, match="nothing is learned: `learns` names no float array"):
        meta.meta_gradient(layers_loss, model, SUPPORT, QUERY, algorithm=MAML, learns=lambda p: p == "0/count")  # fmt: skip
    with pytest.raises(ValueError, match="lets no parameter adapt; only float arrays can"):
        meta.adapt(layers_loss, model, None, steps=1, learning_rate=0.1, adapts=lambda p: p == "0/count")  # fmt: skip


@pytest.mark.slow
def test_flax_nnx():
    """The state of a module, split from its graph, and the module itself: a path ends in `value`."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(2, 5, rngs=rngs)
            self.out = nnx.Linear(5, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.hidden(x)))

    model = Model(nnx.Rngs(0))
    graph, state = nnx.split(model)

    def loss(model, batch):
        return jnp.mean(jnp.square(model(batch[0]) - batch[1]))

    head = meta.algorithm("anil", steps=2, learning_rate=0.1, adapts=lambda p: p.startswith("out/"))
    value, gradient = meta.meta_gradient(
        lambda state, batch: loss(nnx.merge(graph, state), batch), state, SUPPORT, QUERY,
        algorithm=head, learns=lambda path: path == "hidden/kernel/value",
    )  # fmt: skip
    again, same = meta.meta_gradient(
        loss, model, SUPPORT, QUERY, algorithm=head, learns=lambda path: path == "hidden/kernel/value"
    )  # fmt: skip
    assert value == again
    assert len(jax.tree.leaves(gradient)) == len(jax.tree.leaves(same)) == 1
    np.testing.assert_array_equal(jax.tree.leaves(gradient)[0], jax.tree.leaves(same)[0])


# Weights and masks


@pytest.mark.parametrize(
    "name",
    [
        "maml",
        *(pytest.param(n, marks=pytest.mark.slow) for n in meta.algorithm_names() if n != "maml"),
    ],
)
def test_weights(name):
    """The weighted mean of the tasks' values and gradients, whatever the scale of the weights."""
    algorithm = made(name)
    learned = algorithm.init(PARAMS)
    run = jax.jit(partial(meta.meta_gradient, mlp_loss, algorithm=algorithm))
    weights = jnp.asarray([2.0, 0.5, 1.0, 0.5])
    alone = [run(learned, *jax.tree.map(lambda x, i=i: x[i : i + 1], (SUPPORT, QUERY))) for i in range(4)]  # fmt: skip
    expected = jax.tree.map(lambda *x: sum(w * y for w, y in zip(weights / 4, x, strict=True)), *alone)  # fmt: skip
    for together in (None, 2):
        actual = jax.jit(
            partial(meta.meta_gradient, mlp_loss, algorithm=algorithm, tasks_at_once=together)
        )(learned, SUPPORT, QUERY, weights=3 * weights)
        assert actual[0] == pytest.approx(float(expected[0]), rel=1e-5)
        assert relative_error(of_some(name, actual[1]), of_some(name, expected[1])) < 1e-4


@pytest.mark.parametrize(("together", "first"), [(None, True), (1, False)])
def test_a_masked_task_is_not_read(together, first):
    """Not a number in its data, indices that are out of range: value and gradient are those of the other tasks."""

    def loss(params, batch):
        x, y, rows = batch
        return mlp_loss(params, (x[rows], y))

    rows = jnp.tile(jnp.arange(8), (4, 1))
    masked = jnp.asarray([0, 3] if first else [2, 3])
    broken = [(x.at[masked].set(jnp.nan), y.at[masked].set(jnp.inf), rows.at[masked].set(99)) for x, y in (SUPPORT, QUERY)]  # fmt: skip
    weights = jnp.ones(4).at[masked].set(0.0)
    kept = np.flatnonzero(np.asarray(weights))
    whole = [(x[kept], y[kept], rows[kept]) for x, y in (SUPPORT, QUERY)]
    run = jax.jit(partial(meta.meta_gradient, loss, algorithm=MAML), static_argnames="tasks_at_once")  # fmt: skip
    expected = run(PARAMS, *whole)
    mask = weights > 0 if first else weights
    actual = run(PARAMS, *broken, weights=mask, tasks_at_once=together)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("together", [None, 2])
@pytest.mark.parametrize("data", [0.0, np.nan])
def test_no_task_counts(together, data):
    """As on a device that has nothing but padding: value and gradient are 0, not 0 / 0."""
    unread = jax.tree.map(lambda x: jnp.full_like(x, data), (SUPPORT, QUERY))
    found = meta.meta_gradient(
        mlp_loss, PARAMS, *unread, algorithm=MAML, weights=jnp.zeros(4), tasks_at_once=together
    )
    assert all(not x.any() for x in jax.tree.leaves(found))


def test_weights_that_are_none():
    """Below 0 is masked; another number of weights than tasks is refused."""
    run = partial(meta.meta_gradient, mlp_loss, PARAMS, SUPPORT, QUERY, algorithm=MAML)
    below, masked = (run(weights=jnp.asarray([1.0, 2.0, x, 1.0])) for x in (-3.0, 0.0))
    assert relative_error(below, masked) < 1e-6
    with pytest.raises(ValueError, match=r"shape \(3,\), and there are 4 tasks"):
        run(weights=jnp.ones(3))


def test_weights_can_be_learned():
    """The derivative by a weight: how much worse than the mean its task is."""

    @jax.jit
    def value(weights):
        return meta.meta_loss(mlp_loss, PARAMS, SUPPORT, QUERY, algorithm=MAML, weights=weights)

    losses = jnp.stack([value(row) for row in jnp.eye(4)])
    weights = jnp.asarray([1.0, 2.0, 0.5, 0.5])
    expected = (losses - value(weights)) / weights.sum()
    np.testing.assert_allclose(jax.grad(value)(weights), expected, rtol=1e-4, atol=1e-6)
