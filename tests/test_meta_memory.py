"""Memory modes: the same numbers as without them, at the memory they promise; and the planner that reads it.

Modes agree within 1e-6 (values) and 1e-5 (gradients), relative: the same float32 operations, which
each program orders in its own way.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsaml_jax import DSAML, ModelConfig, losses, meta
from tests.problems import (
    Upstream,
    along,
    deep_loss,
    directions,
    mlp,
    mlp_loss,
    quadratic,
    quadratic_tasks,
    relative_error,
    slope,
)  # fmt: skip
from tests.recipe import inputs

FRUGAL = tuple(mode for mode in meta.MEMORY_MODES if mode != "plain")


def is_head(name):
    return name.startswith("head")


# Numbers of steps that are no squares; every transformation somewhere.
MOMENTUM, ADAM = optax.trace(0.9), optax.scale_by_adam(eps_root=1e-8)
SECOND_ORDER = {
    "maml": {"steps": 7, "transform": MOMENTUM},
    "anil": {"steps": 5, "transform": ADAM, "adapts": is_head},
    "boil": {"steps": 7, "adapts": is_head},
    "meta-sgd": {"steps": 5, "transform": MOMENTUM},
    "maml++": {"steps": 7},
    "meta-curvature": {"steps": 5, "transform": MOMENTUM},
}


def test_every_mode_is_tested():
    assert set(meta.MEMORY_MODES) == {"plain", "remat", "mixed", "remat-sqrt", "mixed-sqrt"}
    assert set(SECOND_ORDER) == {
        name
        for name in meta.algorithm_names()
        if "memory" in meta.algorithm_options(name)
        and name not in ("fomaml", "reptile", "imaml", "cavia")  # the last is `anil` from zero
    }


def made(name, memory, **more):
    rate = 0.03 if name == "anil" else 0.1
    return meta.algorithm(name, learning_rate=rate, memory=memory, **SECOND_ORDER[name] | more)


@functools.cache
def without_upstream(name, memory):
    problem = Upstream(made(name, memory))
    return jax.jit(jax.value_and_grad(problem.value))(problem.theta)


# Quick: MAML without the modes that segment. Of the other algorithms `mixed` meets finite differences below.
@pytest.mark.parametrize(
    "memory",
    [pytest.param(mode, marks=[pytest.mark.slow] * mode.endswith("sqrt")) for mode in FRUGAL],
)
@pytest.mark.parametrize(
    "name", [name if name == "maml" else pytest.param(name, marks=pytest.mark.slow) for name in SECOND_ORDER]
)  # fmt: skip
def test_equals_plain(name, memory):
    """Value and gradients by all that is learned, what the batch and what the loss's constants are made of."""
    value, gradient = without_upstream(name, memory)
    expected, expected_gradient = without_upstream(name, "plain")
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert set(gradient) == {"learned", "encoder", "closed"}
    assert relative_error(gradient, expected_gradient) < 1e-5


@functools.cache
def through_meta_gradient(memory):
    problem = Upstream(made("maml", memory, steps=5), dropout=True)

    def both(theta):
        value, by_learned = problem.meta_gradient(theta)
        upstream = jax.grad(lambda theta: problem.meta_gradient(theta)[0])(theta)
        return value, by_learned, upstream

    return jax.jit(both)(problem.theta)


@pytest.mark.slow
@pytest.mark.parametrize("memory", FRUGAL)
def test_upstream_of_meta_gradient(memory):
    """The value of `meta_gradient` can be differentiated once more; with keys, as dropout has them."""
    value, by_learned, upstream = through_meta_gradient(memory)
    expected, expected_by_learned, expected_upstream = through_meta_gradient("plain")
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert relative_error(by_learned, expected_by_learned) < 1e-5
    assert relative_error(upstream, expected_upstream) < 1e-5
    assert relative_error(by_learned, upstream["learned"]) < 1e-5


IMAML = {"steps": 300, "cg_steps": 60, "proximal": 3.0}


@pytest.mark.parametrize(
    ("name", "memory"),
    [("maml", "mixed")]
    + [
        pytest.param("maml", mode, marks=pytest.mark.slow)
        for mode in meta.MEMORY_MODES
        if mode != "mixed"
    ]
    + [(name, "mixed") for name in ("anil", "boil", "meta-sgd", "maml++", "meta-curvature")]
    + [("imaml", "mixed"), pytest.param("imaml", "remat", marks=pytest.mark.slow)],
)
def test_finite_differences(name, memory):
    """In float64, by every leaf of all that is learned and all that is upstream.

    Differences over 2e-5 have an error of 1e-9; iMAML is as exact as its iterations.
    """
    with jax.enable_x64(True):
        if name == "imaml":
            algorithm, tolerance = (
                meta.algorithm(name, learning_rate=0.1, memory=memory, **IMAML),
                1e-4,
            )
        else:
            algorithm, tolerance = made(name, memory), 1e-7
        problem = Upstream(algorithm, np.float64)
        value_of = jax.jit(problem.value)
        gradient = jax.jit(jax.grad(problem.value))(problem.theta)
        for direction in directions(problem.theta):
            expected = slope(value_of, problem.theta, direction, 1e-5)
            assert abs(expected) > 1e-4  # far above that error
            assert along(gradient, direction) == pytest.approx(expected, rel=tolerance)


@pytest.fixture
def real_model():
    """(loss, params, support, query) of a narrow model with real patches, in float64, BatchNorm in train mode."""
    config = ModelConfig(
        width=8, num_heads=2, num_layers=1, local_context=2, global_context=5, ffn_width=8, dropout=0.0
    )  # fmt: skip
    model = DSAML(config)
    arrays = [inputs(seed, 1, 6, config.width) for seed in (1, 2)]
    variables = jax.jit(model.init)(jax.random.key(0), *arrays[0][:2])
    with jax.enable_x64(True):
        double = lambda x: jnp.asarray(x, jnp.float64)  # noqa: E731
        support, query = jax.tree.map(lambda x: double(x)[None], arrays)
        variables = jax.tree.map(double, variables)

    def loss(params, batch):
        mel, embedding, arousal, valence = batch
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes float64 and float32
            out = model.apply(state, mel, embedding, batch_norm=True)
        return losses.dsaml_loss(out, arousal, valence, config=config)[0]

    return loss, variables["params"], support, query


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["mixed", "remat-sqrt"])
def test_finite_differences_on_the_model(real_model, memory):
    """Steps of 1e-8: larger ones meet the kinks of relu and max-pooling; rounding is 1e-8 then."""
    loss, params, support, query = real_model
    with jax.enable_x64(True):
        algorithm = meta.algorithm("maml", steps=4, learning_rate=0.05, memory=memory)

        @jax.jit
        def both(params):
            return meta.meta_gradient(loss, params, support, query, algorithm=algorithm)

        value, gradient = both(params)
        assert {leaf.dtype for leaf in jax.tree.leaves((value, gradient))} == {jnp.dtype("float64")}
        random = np.random.RandomState(3)
        direction = jax.tree.map(lambda p: jnp.asarray(random.randn(*p.shape)), params)
        expected = slope(lambda params: both(params)[0], params, direction, 1e-8)
        assert abs(expected) > 1e-3  # far above that error
        assert along(gradient, direction) == pytest.approx(expected, rel=1e-5)


def wide_loss(params, batch):
    """Many parameters, hardly any activations."""
    return jnp.sum(jnp.square(jnp.tanh(batch @ params) @ params))


WIDTH, SHORT, LONG = 128, 16, 64


@functools.cache
def temporaries(loss, memory, steps):
    params = jnp.eye(WIDTH) if loss is wide_loss else jnp.eye(32)
    batch = jnp.ones((1, 2, WIDTH) if loss is wide_loss else (1, 512, 32))
    algorithm = meta.algorithm("maml", steps=steps, learning_rate=0.1)
    found = meta.plan(loss, params, batch, batch, algorithm=algorithm, modes=[memory])
    (cost,) = found.costs
    assert cost is found.chosen
    assert (cost.memory, cost.tasks_at_once) == (memory, 1)
    return cost.temporaries


@pytest.mark.parametrize("memory", meta.MEMORY_MODES)
def test_parameters_kept(memory):
    """One copy for each step; in the -sqrt modes one for each segment and one for each step of a segment.

    That is 48 copies more, or 8; the compiler may keep some twice.
    """
    more = temporaries(wide_loss, memory, LONG) - temporaries(wide_loss, memory, SHORT)
    copies = more / (4 * WIDTH * WIDTH)
    if memory.endswith("sqrt"):
        assert 4 <= copies <= 12
    else:
        assert 0.9 * (LONG - SHORT) <= copies <= 2.5 * (LONG - SHORT)


@pytest.mark.parametrize("memory", meta.MEMORY_MODES)
def test_activations_kept(memory):
    """Only `plain` keeps them for every step."""
    more = temporaries(deep_loss, memory, LONG) - temporaries(deep_loss, memory, SHORT)
    one_step = 6 * 512 * 32 * 4
    if memory == "plain":
        assert more > (LONG - SHORT) * one_step
    else:
        assert more < one_step


@pytest.fixture(scope="module")
def planned():
    """A function that plans for the same problem, and what it found without a budget."""
    params, batch = jnp.eye(16), jnp.ones((4, 64, 16))
    algorithm = meta.algorithm("maml", steps=9, learning_rate=0.1)

    def find(params=params, batch=batch, algorithm=algorithm, **options):
        loss = functools.partial(deep_loss, layers=2)
        return meta.plan(loss, params, batch, batch, algorithm=algorithm, **options)

    return find, find(modes=("plain", "mixed"), tasks_at_once=(4, 1))


def test_plan_lists_every_way(planned):
    _, found = planned
    ways = [(cost.memory, cost.tasks_at_once) for cost in found.costs]
    assert ways == [("plain", 4), ("mixed", 4), ("plain", 1), ("mixed", 1)]
    assert found.chosen is found.costs[1]  # without a budget the algorithm's own mode
    assert found.algorithm.memory == "mixed"
    peaks = [cost.peak for cost in found.costs]
    assert peaks[0] > 2 * peaks[1]
    assert peaks[0] > 2 * peaks[2]
    inputs_and_output = 4 * (2 * 4 * 64 * 16 + 2 * 16 * 16 + 1)
    for cost in found.costs:
        # Besides, pointers to the outputs: 16 bytes, as measured.
        assert inputs_and_output <= cost.peak - cost.temporaries <= inputs_and_output + 64


@pytest.mark.parametrize("budget", ["enough", "one byte less", "nothing fits", "nothing at all"])
def test_plan_takes_the_first_that_fits(planned, budget):
    find, every = planned
    first, second = every.costs[:2]
    size = {
        "enough": first.peak,
        "one byte less": first.peak - 1,
        "nothing fits": min(first.peak, second.peak) - 1,
        "nothing at all": 0,
    }[budget]
    found = find(modes=("plain", "mixed"), tasks_at_once=(4,), budget=size)
    if budget.startswith("nothing"):
        assert found.costs == every.costs[:2]
        assert found.chosen is None
        assert found.algorithm is None
        assert "chosen" not in found.table()
        return
    tried = 1 if budget == "enough" else 2
    assert found.costs == every.costs[:tried]  # and nothing after the first that fits
    assert found.chosen is found.costs[-1]
    assert found.algorithm.memory == ("plain", "mixed")[tried - 1]
    assert found.algorithm.steps == 9


def test_plan_reads_shapes_only(planned):
    find, every = planned
    shapes = jax.eval_shape(lambda: (jnp.eye(16), jnp.ones((4, 64, 16))))
    assert find(*shapes, modes=("plain",), tasks_at_once=(4,)).costs == every.costs[:1]


def test_plan_halves_the_tasks_and_knows_algorithms_without_modes():
    algorithm = meta.algorithm("fomaml", steps=2, learning_rate=0.1)
    found = meta.plan(quadratic, *quadratic_tasks(tasks=6), algorithm=algorithm)
    assert [(cost.memory, cost.tasks_at_once) for cost in found.costs] == [
        ("", 6),
        ("", 3),
        ("", 1),
    ]
    assert found.algorithm == algorithm
    assert "| - | 3 |" in found.table()


@pytest.mark.parametrize("own", ["mixed", "remat-sqrt"])
def test_plan_without_a_budget_keeps_the_algorithms_mode(planned, own):
    """Every way is compiled, in the order that was measured; what is chosen is no mode that nobody asked for."""
    find, _ = planned
    algorithm = meta.algorithm("maml", steps=9, learning_rate=0.1, memory=own)
    found = find(algorithm=algorithm, tasks_at_once=(4,))
    assert [cost.memory for cost in found.costs] == list(meta.MEMORY_MODES)
    assert found.algorithm == algorithm
    assert found.chosen.memory == own


def test_plan_of_what_is_annealed():
    """A step makes it compile what annealing needs: every step's loss, and both orders."""
    params, batch = jnp.eye(16), jnp.ones((2, 64, 16))
    algorithm = meta.algorithm("maml++", steps=9, learning_rate=0.1, multi_step_until=5)
    learned = algorithm.init(params)
    loss = functools.partial(deep_loss, layers=2)

    def program(learned, support, query, step):
        return meta.meta_gradient(loss, learned, support, query, algorithm=algorithm, step=step)

    step = jnp.asarray(0)
    compiled = jax.jit(program).lower(learned, batch, batch, step).compile().memory_analysis()
    found = meta.plan(
        loss, learned, batch, batch, algorithm=algorithm, tasks_at_once=(2,), step=step
    )
    assert found.chosen.temporaries == compiled.temp_size_in_bytes


def test_plan_tries_the_modes_that_differ():
    algorithm = meta.algorithm("imaml", steps=2, learning_rate=0.1, memory="remat")
    found = meta.plan(quadratic, *quadratic_tasks(), algorithm=algorithm, tasks_at_once=(1,))
    assert {cost.memory for cost in found.costs} == {"mixed", "remat"}
    assert found.algorithm == algorithm


def test_plan_of_what_is_not_all_learned():
    """Functions and integers in the tree, frozen parts, a state of the loss, weights."""
    params, support, query = mlp()
    tree = {"net": params, "act": jnp.tanh, "n": jnp.asarray(1)}

    def loss(tree, batch, state):
        return mlp_loss(tree["net"], batch) * tree["n"].astype("float32") + state, state + 1.0

    def run(**options):
        found = meta.plan(
            loss, tree, support, query, algorithm=made("maml", "mixed", steps=2), modes=("mixed",), tasks_at_once=(3,),
            state=jnp.asarray(0.0), weights=jnp.ones(3), **options,
        )  # fmt: skip
        return found.chosen.peak

    assert run(learns=lambda path: path == "net/w1") < run()


def test_plan_passes_keys_and_aux():
    found = meta.plan(
        lambda p, b, key: mlp_loss(p, b), *mlp(), algorithm=made("maml", "plain", steps=2),
        query_loss_fn=lambda p, b, key: (mlp_loss(p, b), b), has_aux=True, key=jax.random.key(0),
        modes=("remat",), tasks_at_once=(1,), budget=1e9,
    )  # fmt: skip
    assert [cost.memory for cost in found.costs] == ["remat"]
    assert found.algorithm == made("maml", "remat", steps=2)


def test_table(planned):
    found = planned[1]
    lines = found.table().splitlines()
    assert lines[:2] == [
        "| memory | tasks at once | temporaries [MB] | peak [MB] | |",
        "|---|---|---|---|---|",
    ]
    cost = found.chosen
    assert (
        lines[3] == f"| mixed | 4 | {cost.temporaries / 1e6:.1f} | {cost.peak / 1e6:.1f} | chosen |"
    )
    assert [line.count("|") for line in lines] == [6] * 6
    assert [line.endswith("| chosen |") for line in lines[2:]] == [False, True, False, False]
