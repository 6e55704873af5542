"""The meta-learning algorithms: one smoke test for all, closed forms, groups of tasks, errors.

Tolerances from 1e-6 to 1e-4, relative: float32 through a few steps, summed in another order. The
closed forms are in float64, where 1e-10 is rounding through a few steps.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsaml_jax import UsageError, meta
from dsaml_jax.meta.base import LearnedRates
from tests.problems import along, directions, mlp, mlp_loss, quadratic, quadratic_tasks, slope

NAMES = meta.algorithm_names()
OPTIONS = {
    "anil": {"adapts": lambda name: name == "w2"},
    "boil": {"adapts": lambda name: name == "w2"},
    "cavia": {"adapts": lambda name: name == "b1"},
    "maml++": {"multi_step_until": 10, "first_order_until": 5},
}


def test_names():
    assert set(NAMES) == {
        "maml", "fomaml", "anil", "boil", "reptile", "meta-sgd", "maml++", "meta-curvature", "cavia", "imaml"
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_learns(name):
    """30 steps of Adam make adapting worth more; one trace; gradients structured as what is learned."""
    params, support, query = mlp(tasks=4)
    make = lambda: meta.algorithm(name, steps=3, learning_rate=0.02, **OPTIONS.get(name, {}))  # noqa: E731
    algorithm = make()
    assert algorithm == make()
    assert hash(algorithm) == hash(make())
    learned = algorithm.init(params)
    assert algorithm.params(learned) is (learned if name == "cavia" else params)
    optimizer = optax.adam(0.03)
    traces = []

    @jax.jit
    def train_step(learned, state, step):
        traces.append(1)
        value, gradient = meta.meta_gradient(
            mlp_loss, learned, support, query, algorithm=algorithm, step=step
        )
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is float ** int
            updates, state = optimizer.update(gradient, state, learned)
        return optax.apply_updates(learned, updates), state, value, gradient

    @jax.jit
    def query_loss(learned):
        adapt = lambda batch: algorithm.adapt(mlp_loss, learned, batch)  # noqa: E731
        return jnp.mean(jax.vmap(lambda s, q: mlp_loss(adapt(s), q))(support, query))

    before, state = query_loss(learned), optimizer.init(learned)
    for step in range(30):
        learned, state, value, gradient = train_step(learned, state, jnp.asarray(step))
        assert jax.tree.structure(gradient) == jax.tree.structure(algorithm.init(params))
        for leaf, like in zip(jax.tree.leaves(gradient), jax.tree.leaves(learned), strict=True):
            assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
            assert np.isfinite(leaf).all()
            assert np.any(leaf) or (name == "cavia" and leaf.shape == params["b1"].shape)
        assert np.isfinite(value)
        if step == 0 and name not in ("reptile", "maml++"):
            assert value == pytest.approx(float(before), rel=1e-5)
    assert len(traces) == 1
    assert query_loss(learned) < 0.7 * before  # measured: 0.65 at most


class Quadratic:
    """Tasks on `{"a": [2], "b": [2]}` whose matrices, other in support and query, couple the two blocks."""

    rate = 0.1

    def __init__(self):
        x, support, query = quadratic_tasks(np.float64, same_matrix=False)
        self.params = {"a": x[:2], "b": x[2:]}
        self.support, self.query = support, query
        self.x = np.asarray(x)
        sets = [np.asarray(v) for s in (support, query) for v in (s["matrix"], s["centre"])]
        self.tasks = list(zip(*sets, strict=True))

    @staticmethod
    def loss(params, batch):
        return quadratic(jnp.concatenate([params["a"], params["b"]]), batch)

    def meta_gradient(self, algorithm, learned=None, **options):
        learned = algorithm.init(self.params) if learned is None else learned
        return meta.meta_gradient(
            self.loss, learned, self.support, self.query, algorithm=algorithm, **options
        )

    def path(self, matrix, centre, rates):
        """Parameters before and after each step, `x <- x - rates[k] * A (x - c)` with `rates` [K, 4]."""
        xs = [self.x]
        for rate in rates:
            xs.append(xs[-1] - rate * (matrix @ (xs[-1] - centre)))
        return xs

    def expect(self, rates, *, weights=None, order=2):
        """(value, by parameters [4], by rates [K, 4]), each the mean over tasks, from matrix products."""
        rates = np.asarray(rates)
        steps = len(rates)
        weights = np.eye(steps)[-1] if weights is None else weights
        values, by_x, by_rates = [], [], []
        for matrix, centre, outer, target in self.tasks:
            xs = self.path(matrix, centre, rates)
            jacobians = [np.eye(4) - (order == 2) * rate[:, None] * matrix for rate in rates]
            value, x_bar, r_bar = 0.0, np.zeros(4), np.zeros((steps, 4))
            for last, weight in enumerate(weights):
                away = xs[last + 1] - target
                value += weight * 0.5 * away @ outer @ away
                bar = weight * outer @ away
                for k in range(last, -1, -1):
                    r_bar[k] -= bar * (matrix @ (xs[k] - centre))
                    bar = jacobians[k].T @ bar
                x_bar += bar
            values.append(value)
            by_x.append(x_bar)
            by_rates.append(r_bar)
        return np.mean(values), np.mean(by_x, 0), np.mean(by_rates, 0)


@pytest.fixture
def problem():
    with jax.enable_x64(True):
        yield Quadratic()


def flat(params):
    return np.concatenate([params["a"], params["b"]])


def same(actual, expected, rtol=1e-10):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-12)


BLOCK_A, BLOCK_B = np.array([1.0, 1, 0, 0]), np.array([0.0, 0, 1, 1])


@pytest.mark.parametrize(
    ("name", "options", "order", "moves"),
    [
        ("maml", {}, 2, BLOCK_A + BLOCK_B),
        ("fomaml", {}, 1, BLOCK_A + BLOCK_B),
        ("maml", {"adapts": lambda name: name == "a"}, 2, BLOCK_A),
        ("anil", {"adapts": lambda name: name == "b"}, 2, BLOCK_B),
        ("anil", {"adapts": lambda name: name == "b", "order": 1}, 1, BLOCK_B),
        ("boil", {"adapts": lambda name: name == "b"}, 2, BLOCK_A),
    ],
)
def test_gradient_descent(problem, name, options, order, moves):
    algorithm = meta.algorithm(name, steps=3, learning_rate=0.1, **options)
    value, gradient = problem.meta_gradient(algorithm)
    expected, by_x, _ = problem.expect(0.1 * np.tile(moves, (3, 1)), order=order)
    same(value, expected)
    same(flat(gradient), by_x)


def test_reptile(problem):
    """Steps on the mean of the two losses; where the query's has a matrix of its own."""
    algorithm = meta.algorithm("reptile", steps=4, learning_rate=0.1)
    value, gradient = problem.meta_gradient(algorithm)
    values, ways = [], []
    for matrix, centre, outer, target in problem.tasks:
        x = problem.x
        for _ in range(4):
            x = x - 0.1 * 0.5 * (matrix @ (x - centre) + outer @ (x - target))
        values.append(0.5 * (x - target) @ outer @ (x - target))
        ways.append((problem.x - x) / 0.1)
    same(value, np.mean(values))
    same(flat(gradient), np.mean(ways, axis=0))
    one = jax.tree.map(lambda x: x[0], problem.support)
    adapted = algorithm.adapt(problem.loss, problem.params, one)
    same(flat(adapted), problem.path(*problem.tasks[0][:2], np.full((4, 4), 0.1))[-1])


@pytest.mark.parametrize("order", [1, 2])
def test_meta_sgd(problem, order):
    """A rate for each number, one of them negative; the gradient by rates too."""
    algorithm = meta.algorithm("meta-sgd", steps=3, learning_rate=0.1, order=order)
    first = algorithm.init(problem.params)
    assert isinstance(first, LearnedRates)
    same(flat(first.rates), np.full(4, 0.1))
    rates = np.array([0.2, 0.05, -0.1, 0.15])
    learned = dataclasses.replace(
        first, rates={"a": jnp.asarray(rates[:2]), "b": jnp.asarray(rates[2:])}
    )
    value, gradient = problem.meta_gradient(algorithm, learned)
    expected, by_x, by_rates = problem.expect(np.tile(rates, (3, 1)), order=order)
    same(value, expected)
    same(flat(gradient.params), by_x)
    same(flat(gradient.rates), by_rates.sum(0))


def test_meta_sgd_of_a_block(problem):
    algorithm = meta.algorithm("meta-sgd", steps=3, learning_rate=0.1, adapts=lambda n: n == "a")
    learned = algorithm.init(problem.params)
    assert set(learned.rates) == {"a"}
    value, gradient = problem.meta_gradient(algorithm, learned)
    expected, by_x, by_rates = problem.expect(0.1 * np.tile(BLOCK_A, (3, 1)))
    same(value, expected)
    same(flat(gradient.params), by_x)
    same(gradient.rates["a"], by_rates.sum(0)[:2])


@pytest.mark.parametrize(
    ("step", "order", "weights"),
    [
        (0, 1, [0.25, 0.25, 0.25, 0.25]),
        (5, 1, [0.125, 0.125, 0.125, 0.625]),
        (6, 2, [0.1, 0.1, 0.1, 0.7]),
        (10, 2, [0, 0, 0, 1]),
        (99, 2, [0, 0, 0, 1]),
    ],
)
def test_maml_plus_plus(problem, step, order, weights):
    """A rate for each tensor and step; multi-step weights until step 10; first order until step 6."""
    algorithm = meta.algorithm(
        "maml++", steps=4, learning_rate=0.1, multi_step_until=10, first_order_until=6
    )
    first = algorithm.init(problem.params)
    same(first.rates["a"], np.full(4, 0.1))
    a, b = np.array([0.1, 0.2, -0.05, 0.12]), np.array([0.05, 0.15, 0.1, 0.2])
    learned = dataclasses.replace(first, rates={"a": jnp.asarray(a), "b": jnp.asarray(b)})
    value, gradient = problem.meta_gradient(algorithm, learned, step=jnp.asarray(step))
    rates = a[:, None] * BLOCK_A + b[:, None] * BLOCK_B
    expected, by_x, by_rates = problem.expect(rates, weights=weights, order=order)
    same(value, expected)
    same(flat(gradient.params), by_x)
    same(gradient.rates["a"], by_rates[:, :2].sum(1))
    same(gradient.rates["b"], by_rates[:, 2:].sum(1))


def test_maml_plus_plus_without_annealing(problem):
    """Always the last step and second order, at step 0 too."""
    algorithm = meta.algorithm("maml++", steps=3, learning_rate=0.1)
    value, gradient = problem.meta_gradient(algorithm, step=jnp.asarray(0))
    expected, by_x, _ = problem.expect(np.full((3, 4), 0.1))
    same(value, expected)
    same(flat(gradient.params), by_x)


def test_maml_plus_plus_reports_the_last_step(problem):
    """aux is that of the last inner step, whatever the weights, and keeps the task axis."""
    algorithm = meta.algorithm("maml++", steps=3, learning_rate=0.1, multi_step_until=10)
    judge = lambda params, batch: (problem.loss(params, batch), (flat_jax(params), batch["centre"]))  # noqa: E731
    (_, (adapted, centre)), _ = problem.meta_gradient(
        algorithm, step=jnp.asarray(2), query_loss_fn=judge, has_aux=True
    )
    for task, (matrix, near, _, far) in enumerate(problem.tasks):
        same(adapted[task], problem.path(matrix, near, np.full((3, 4), 0.1))[-1])
        same(centre[task], far)


def flat_jax(params):
    return jnp.concatenate([params["a"], params["b"]])


def test_cavia(problem):
    """From zero, whatever was there; only the rest is learned."""
    algorithm = meta.algorithm("cavia", steps=3, learning_rate=0.1, adapts=lambda name: name == "a")
    problem.x = problem.x * BLOCK_B
    expected, by_x, _ = problem.expect(0.1 * np.tile(BLOCK_A, (3, 1)))
    for learned in (algorithm.init(problem.params), problem.params):
        value, gradient = problem.meta_gradient(algorithm, learned)
        same(value, expected)
        same(gradient["a"], np.zeros(2))
        same(gradient["b"], by_x[2:])


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_meta_curvature(problem, order):
    """`x <- x - rate * M A (x - c)`, M of two blocks: the gradient by `x`, and by M against differences."""
    algorithm = meta.algorithm("meta-curvature", steps=3, learning_rate=0.1, order=order)
    first = algorithm.init(problem.params)
    assert {name: rate.shape for name, rate in first.rates.items()} == {"a/0": (2, 2), "b/0": (2, 2)}  # fmt: skip
    plain = meta.algorithm("maml" if order == 2 else "fomaml", steps=3, learning_rate=0.1)
    same(flat(problem.meta_gradient(algorithm)[1].params), flat(problem.meta_gradient(plain)[1]))
    random = np.random.RandomState(3)
    blocks = np.eye(2) + 0.3 * random.randn(2, 2, 2)
    whole = np.zeros((4, 4))
    whole[:2, :2], whole[2:, 2:] = blocks
    learned = dataclasses.replace(
        first, rates={"a/0": jnp.asarray(blocks[0]), "b/0": jnp.asarray(blocks[1])}
    )
    value, gradient = problem.meta_gradient(algorithm, learned)
    values, by_x = [], []
    for matrix, centre, outer, target in problem.tasks:
        contraction = np.linalg.matrix_power(np.eye(4) - 0.1 * whole @ matrix, 3)
        away = centre + contraction @ (problem.x - centre) - target
        values.append(0.5 * away @ outer @ away)
        by_x.append((contraction if order == 2 else np.eye(4)).T @ outer @ away)
    same(value, np.mean(values))
    same(flat(gradient.params), np.mean(by_x, axis=0))
    if order == 1:
        assert all(np.any(leaf) for leaf in gradient.rates.values())
        return
    for direction in directions(learned.rates):

        def moved(rates):
            return problem.meta_gradient(algorithm, dataclasses.replace(learned, rates=rates))[0]

        expected = slope(moved, learned.rates, direction, 1e-5)
        assert along(gradient.rates, direction) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (2, 3, 4), (5, 2, 3, 4)])
def test_curvature_of_every_shape(shape):
    """A matrix for each axis; the leading ones of a convolution are one. In numpy, as a product with their Kronecker product."""
    random = np.random.RandomState(4)
    gradient = jnp.asarray(random.randn(*shape), jnp.float32)
    algorithm = meta.algorithm("meta-curvature", steps=1, learning_rate=1.0)
    params = {"w": jnp.zeros(shape)}
    learned = algorithm.init(params)
    sizes = [m.shape[0] for m in learned.rates.values()]
    assert sizes == {0: [1], 4: [10, 3, 4]}.get(len(shape), list(shape))
    matrices = {n: jnp.asarray(random.randn(*m.shape), m.dtype) for n, m in learned.rates.items()}
    adapted = algorithm.adapt(
        lambda p, g: jnp.sum(p["w"] * g), dataclasses.replace(learned, rates=matrices), gradient
    )
    whole = np.ones((1, 1))
    for matrix in matrices.values():
        whole = np.kron(whole, matrix)
    expected = -(whole @ np.ravel(gradient)).reshape(shape)
    np.testing.assert_allclose(adapted["w"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="matrices and adapting parameters differ in w/0"):
        algorithm.adapt(mlp_loss, dataclasses.replace(learned, rates={}), gradient)


@pytest.mark.parametrize("block", ["all", "a"])
def test_imaml(problem, block):
    """The exact minimum, and (I + A / lambda)^-1; coordinates that do not adapt pass through the same equation."""
    strength = 2.0
    moves = np.arange(4 if block == "all" else 2)
    algorithm = meta.algorithm(
        "imaml", steps=600, learning_rate=0.15, proximal=strength, cg_steps=10,
        adapts=None if block == "all" else lambda name: name == "a",
    )  # fmt: skip
    value, gradient = problem.meta_gradient(algorithm)
    values, gradients = [], []
    for matrix, centre, outer, target in problem.tasks:
        chosen = np.ix_(moves, moves)
        shifted = matrix[chosen] + strength * np.eye(len(moves))
        adapted = problem.x.copy()
        force = -(matrix @ (problem.x - centre))[moves]
        adapted[moves] += np.linalg.solve(shifted, force)
        values.append(0.5 * (adapted - target) @ outer @ (adapted - target))
        bar = outer @ (adapted - target)
        solved = np.linalg.solve(np.eye(len(moves)) + matrix[chosen] / strength, bar[moves])
        frozen = bar - matrix[:, moves] @ solved / strength
        frozen[moves] = solved
        gradients.append(frozen)
    same(value, np.mean(values))
    same(flat(gradient), np.mean(gradients, axis=0), rtol=1e-4)  # CG stops at 1e-5


def test_imaml_with_keys_and_integers():
    """One key serves all steps: the minimum is that of one function."""

    def loss(params, batch, key):
        shift = jax.random.normal(key, (3,))
        return jnp.sum(jnp.square(params - batch["x"][batch["order"]] - shift))

    batch = {"x": jnp.arange(3.0)[None], "order": jnp.asarray([[2, 0, 1]])}
    algorithm = meta.algorithm("imaml", steps=100, learning_rate=0.1, proximal=2.0)
    params, key = jnp.asarray([0.5, -1.0, 2.0]), jax.random.key(7)
    value, gradient = meta.meta_gradient(loss, params, batch, batch, algorithm=algorithm, key=key)
    keys = jax.random.split(key, (1, 2))[0]
    near, far = (np.array([2.0, 0, 1]) + np.asarray(jax.random.normal(k, (3,))) for k in keys)
    adapted = (np.asarray(params) + near) / 2
    assert value == pytest.approx(float(np.sum(np.square(adapted - far))), rel=1e-5)
    np.testing.assert_allclose(gradient, adapted - far, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "together"),
    [
        ("meta-sgd", 2),
        *(pytest.param("maml", n, marks=pytest.mark.slow) for n in (1, 2, 4)),
    ],
)
def test_tasks_at_once(name, together):
    """The same value, gradient and order of aux, with each task's own key."""
    params, support, query = mlp(tasks=4)
    algorithm = meta.algorithm(name, steps=2, learning_rate=0.1)
    learned = algorithm.init(params)

    def noisy(params, batch, key):
        x, y = batch
        return mlp_loss(params, (x + 0.5 * jax.random.normal(key, x.shape), y))

    def judge(params, batch, key):
        loss = noisy(params, batch, key)
        return loss, {"loss": loss, "first": batch[0][:2], "draw": jax.random.normal(key, (2,))}

    def run(**options):
        return meta.meta_gradient(
            noisy, learned, support, query, algorithm=algorithm, query_loss_fn=judge, has_aux=True,
            key=jax.random.key(1), **options,
        )  # fmt: skip

    (value, aux), gradient = jax.jit(lambda: run(tasks_at_once=together))()
    (expected, expected_aux), expected_gradient = jax.jit(run)()
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert value == pytest.approx(float(np.mean(aux["loss"])), rel=1e-6)
    assert jax.tree.structure(gradient) == jax.tree.structure(learned)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
    np.testing.assert_array_equal(aux["first"], query[0][:, :2])
    np.testing.assert_allclose(aux["draw"], expected_aux["draw"], rtol=1e-6)
    np.testing.assert_allclose(aux["loss"], expected_aux["loss"], rtol=1e-5)
    assert len(set(np.asarray(aux["draw"][:, 0]).tolist())) == 4


@pytest.mark.parametrize("together", [-1, 0, 3, 8])
def test_tasks_at_once_divides(together):
    params, support, query = mlp(tasks=4)
    with pytest.raises(ValueError, match=f"tasks_at_once {together} does not divide 4 tasks"):
        meta.meta_gradient(
            mlp_loss, params, support, query, tasks_at_once=together,
            algorithm=meta.algorithm("fomaml", steps=1, learning_rate=0.1),
        )  # fmt: skip


def test_unknown_options_are_named():
    for name in NAMES:
        with pytest.raises(
            UsageError, match=f"{name.replace('+', '.')} has no momentun, rat; it has"
        ):
            meta.algorithm(name, steps=1, learning_rate=0.1, momentun=0.9, rat=1)
    with pytest.raises(UsageError, match="fomaml has no order"):
        meta.algorithm("fomaml", steps=1, learning_rate=0.1, order=2)
    with pytest.raises(UsageError, match="unknown algorithm 'mamal'; there are maml, fomaml"):
        meta.algorithm_options("mamal")
    assert set(meta.algorithm_options("imaml")) == {
        "steps", "learning_rate", "proximal", "cg_steps", "tolerance", "damping", "solver", "memory", "report", "adapts",
        "transform", "optimizer",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["anil", "boil", "cavia"])
def test_a_head_must_be_named(name):
    with pytest.raises(UsageError, match=f"{name} needs `adapts`"):
        meta.algorithm(name, steps=1, learning_rate=0.1)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "boil"])
def test_something_must_adapt(name):
    params, support, query = mlp()
    algorithm = meta.algorithm(name, steps=1, learning_rate=0.1, adapts=lambda path: False)
    with pytest.raises(ValueError, match="the filter lets no parameter adapt"):
        meta.meta_gradient(mlp_loss, algorithm.init(params), support, query, algorithm=algorithm)


def test_bad_arguments():
    params, support, _ = mlp()
    one = jax.tree.map(lambda x: x[0], support)

    def adapt(**options):
        options = {"steps": 1, "learning_rate": 0.1} | options
        return meta.adapt(mlp_loss, params, one, **options)

    with pytest.raises(ValueError, match="memory is one of mixed, .*, not 'remat_sqrt'"):
        adapt(memory="remat_sqrt")
    with pytest.raises(ValueError, match="memory is one of mixed, .*, not 'remat_sqrt'"):
        meta.algorithm("maml", steps=1, learning_rate=0.1, memory="remat_sqrt").adapt(
            mlp_loss, params, one
        )
    with pytest.raises(ValueError, match="steps is 0 or more, not -1"):
        adapt(steps=-1)
    with pytest.raises(ValueError, match="rates and adapting parameters differ in b1, w9"):
        adapt(learning_rate={"w1": 0.1, "w2": 0.1, "w9": 0.1})
    with pytest.raises(ValueError, match="rates and adapting parameters differ in b1, w2"):
        adapt(
            learning_rate=dict.fromkeys(("w1", "b1", "w2"), 0.1), adapts=lambda name: name == "w1"
        )
    with pytest.raises(UsageError, match="maml.. needs at least one inner step"):
        meta.algorithm("maml++", steps=0, learning_rate=0.1)
    with pytest.raises(UsageError, match="are 0 or more"):
        meta.algorithm("maml++", steps=1, learning_rate=0.1, first_order_until=-1)
    wrong = meta.algorithm("maml++", steps=2, learning_rate=0.1).init(params)
    with pytest.raises(ValueError, match="b1 has shape .2,. .* has no leading axis of 3 steps"):
        meta.algorithm("maml++", steps=3, learning_rate=0.1).adapt(mlp_loss, wrong, one)
