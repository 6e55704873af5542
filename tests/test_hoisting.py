"""Work that does not depend on what adapts leaves the inner loop, and changes no number.

Tolerances of 1e-5 and 1e-6: the same operations in float32, which the compiler may fuse otherwise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import meta
from dsaml_jax.meta.hoisting import hoist
from tests.problems import along, directions, equations, relative_error

X = jnp.asarray(np.random.RandomState(0).randn(4, 3), jnp.float32)
W = jnp.asarray(np.random.RandomState(1).randn(3, 3), jnp.float32)


@jax.jit
def nested(scale, x):
    return jax.jit(lambda y: jnp.tanh(y) * scale)(x) + jax.nn.gelu(x)


def with_jit(w, x):
    """Calls with known, unknown and mixed arguments; the same function twice."""
    return jnp.sum(nested(2.0, x @ w) * nested(0.5, x)) + jnp.sum(nested(w[0, 0], x))


def with_relu(w, x):
    return jnp.sum(jax.nn.relu(x @ W) @ jax.nn.relu(w)) + jnp.sum(jax.nn.relu(x @ w))


def with_scan(w, x):
    """A known scan, one whose carry is unknown, and one that reads a known array in each step."""
    start = jnp.sum(w, axis=0)
    _, known = jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c * row), jnp.zeros(3), x)
    carry, rows = jax.lax.scan(lambda c, row: (jnp.sin(c + row), c), start, known)
    return jnp.sum(carry) + jnp.sum(rows * known)


def with_where(w, x):
    mask = (x > 0) & (jnp.arange(3)[None] != 1)
    chosen = jnp.where(mask, x @ w, jnp.zeros_like(x))
    return jnp.sum(jnp.square(chosen)) + jnp.sum(jnp.where(w > 0, w, jnp.exp(w)))


def with_keys(w, x):
    key = jax.random.key(3)
    noise = jax.random.normal(key, x.shape)
    keep = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, x.shape)
    return jnp.sum(jnp.where(keep, (x + noise) @ w, jnp.zeros_like(x)) ** 2)


def with_control_flow(w, x):
    """`cond` and `while` on known and unknown values, and a function under `checkpoint`."""
    known = jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x)
    mixed = jax.lax.cond(x[1, 0] > 0, lambda w: w @ w, lambda w: w + w, w)
    return jnp.sum(jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(w, known) @ mixed)


FUNCTIONS = [with_jit, with_relu, with_scan, with_where, with_keys, with_control_flow]


def hoisted(fn):
    """The same function by way of `hoist`, made from another `w` than it is run with."""

    def run(w, x):
        rest, known = hoist(lambda w: fn(w, x), jnp.full_like(w, 7))
        return rest(known, w)

    return run


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_same_value_and_gradients(fn):
    """By what varies and by what is known, in one piece and compiled, and for a batch of tasks."""
    wanted = jax.jit(jax.value_and_grad(fn, argnums=(0, 1)))
    expected = wanted(W, X)
    eager = jax.value_and_grad(hoisted(fn), argnums=(0, 1))(W, X)
    compiled = jax.jit(jax.value_and_grad(hoisted(fn), argnums=(0, 1)))(W, X)
    for actual in (eager, compiled):
        assert relative_error(actual, expected) < 1e-5
    xs = jnp.stack([X, 0.3 - X])
    batched = jax.jit(jax.vmap(jax.value_and_grad(hoisted(fn), argnums=(0, 1)), (None, 0)))(W, xs)
    assert relative_error(jax.tree.map(lambda x: x[0], batched), expected) < 1e-5
    other = wanted(W, xs[1])
    assert relative_error(jax.tree.map(lambda x: x[1], batched), other) < 1e-5


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_same_second_derivative(fn):
    """The change of the gradient, known part by varying part: what the mixed modes take."""

    def cross(run):
        by_known = lambda w: jax.grad(run, argnums=1)(w, X)  # noqa: E731
        return jax.jvp(by_known, (W,), (jnp.ones_like(W),))[1]

    assert relative_error(cross(hoisted(fn)), cross(fn)) < 1e-5


def test_gradient_by_the_kept_values():
    """`rest` is a function of `known`, which a custom rule can differentiate by."""
    rest, known = hoist(lambda w: jnp.sum(jnp.tanh(X @ W) @ w), W)
    assert [value.shape for value in known] == [(4, 3)]
    (gradient,) = jax.grad(lambda known: rest(known, W))(known)
    np.testing.assert_allclose(gradient, np.tile(np.asarray(W).sum(1), (4, 1)), rtol=1e-5)


def test_outputs_of_all_kinds():
    """Structures, unused arguments, outputs that are known, constant, an argument, given twice, or integer."""

    def fn(w, unused, count):
        values, places = jax.lax.top_k(X @ w, 2)
        _, order = jax.lax.sort_key_val(X[:, 0], jnp.arange(4))
        return {
            "dropped": values,
            "known": jnp.tanh(X),
            "pair": (order, w, w),
            "constant": 3.0,
            "array": np.arange(2),
            "none": None,
            "empty": jnp.zeros((0, 2)),
            "count": count + places[0, 0],
            "broadcast": jnp.ones((2, 3)),
            "key": jax.random.key_data(jax.random.key(1)),
        }

    arguments = (W, jnp.zeros(5), jnp.asarray(4))
    rest, known = hoist(fn, *jax.tree.map(lambda x: x + x.dtype.type(1), arguments))
    actual, expected = rest(known, *arguments), fn(*arguments)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (jnp.shape(a), jnp.result_type(a)) == (jnp.shape(b), jnp.result_type(b))
        np.testing.assert_allclose(a, b, rtol=1e-6)
    compiled = jax.jit(rest)(known, *arguments)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_everything_known_or_nothing():
    rest, known = hoist(lambda w: jnp.tanh(X), W)
    assert len(known) == 1
    assert rest(known, W) is known[0]
    rest, known = hoist(lambda w: jnp.tanh(w), W)
    assert known == []
    np.testing.assert_array_equal(rest(known, X[:3]), jnp.tanh(X[:3]))
    rest, known = hoist(lambda: jnp.tanh(X))
    np.testing.assert_array_equal(rest(known), jnp.tanh(X))


def test_keeps_a_value_once_and_no_broadcasts():
    """What is used twice is kept once; what a broadcast makes is not kept, only its source."""

    def fn(w):
        known = jnp.tanh(X)
        wide = jnp.broadcast_to(jnp.sin(X[0, 0]), (1000, 3))
        return jnp.sum(known @ w) + jnp.sum(known * 2.0 @ w) + jnp.sum(wide * w[0][None])

    rest, known = hoist(fn, W)
    assert sorted(value.size for value in known) == [1, 12, 12]
    assert rest(known, W) == pytest.approx(float(fn(W)), rel=1e-5)


ODD = 37  # a size that nothing else has


def networks(dtype=np.float32):
    random = np.random.RandomState(2)
    shapes = {"body/w0": (6, ODD), "body/w1": (ODD, 5), "head/w": (5, 1)}
    params = {name: jnp.asarray(random.randn(*s) / 2, dtype) for name, s in shapes.items()}
    x = jnp.asarray(random.randn(2, 8, 6), dtype)
    return params, x


@jax.jit
def body_and_head(params, x):
    """As a model's `apply` often is, compiled as a whole: the body is found inside of the call."""
    hidden = jax.jit(jax.nn.relu)(x @ params["body/w0"])
    return jnp.mean(jnp.square(jnp.tanh(hidden @ params["body/w1"]) @ params["head/w"] - 1))


def products(fn, *arguments):
    """Matrix products with the odd size: (outside of every loop, inside of one)."""
    found = [
        "scan" in around or "while" in around
        for equation, around in equations(jax.make_jaxpr(fn)(*arguments).jaxpr)
        if equation.primitive.name == "dot_general"
        and any(ODD in atom.aval.shape for atom in (*equation.invars, *equation.outvars))
    ]
    return found.count(False), found.count(True)


def is_head(name):
    return name.startswith("head")


@pytest.mark.parametrize("order", [1, 2])
def test_frozen_products_leave_the_loop(order):
    """Both products of the body, once; without a filter they are all in the loop."""
    params, x = networks()

    def adapt(adapts):
        return products(
            lambda params, x: meta.adapt(
                body_and_head, params, x[0], steps=5, learning_rate=0.1, order=order, adapts=adapts
            ), params, x,
        )  # fmt: skip

    assert adapt(is_head) == (2, 0)
    outside, inside = adapt(None)
    assert outside == 0
    assert inside >= 4


@pytest.mark.parametrize("memory", meta.MEMORY_MODES)
def test_frozen_products_leave_the_backward_loop(memory):
    """Support and query forward, and their backward, all outside: 2 + 2 forward, 3 backward in each of the two."""
    params, x = networks()

    def gradient(params, x, adapts=is_head):
        algorithm = meta.algorithm("maml", steps=5, learning_rate=0.1, adapts=adapts, memory=memory)
        return meta.meta_gradient(body_and_head, params, x, x, algorithm=algorithm)[1]

    outside, inside = products(gradient, params, x)
    assert inside == 0
    assert 4 + 4 <= outside <= 4 + 6
    assert products(lambda *a: gradient(*a, adapts=None), params, x)[1] > 0


def test_frozen_work_of_the_implicit_gradient():
    params, x = networks()
    algorithm = meta.algorithm("imaml", steps=5, learning_rate=0.1, adapts=is_head)
    gradient = lambda p, x: meta.meta_gradient(body_and_head, p, x, x, algorithm=algorithm)[1]  # noqa: E731
    outside, inside = products(gradient, params, x)
    assert inside == 0
    assert outside >= 8


def test_frozen_parameters_still_get_their_gradient():
    """In float64, against finite differences: the way through the kept values is exact.

    Differences over 2e-6 of a value near 1 have an error of 1e-10.
    """
    with jax.enable_x64(True):
        params, x = networks(np.float64)
        algorithm = meta.algorithm("anil", steps=5, learning_rate=0.1, adapts=is_head)
        run = jax.jit(
            lambda p: meta.meta_gradient(body_and_head, p, x, 0.5 * x, algorithm=algorithm)
        )
        gradient = run(params)[1]
        for direction in directions(params):
            ahead, behind = (
                run(jax.tree.map(lambda p, d, s=s: p + s * 1e-6 * d, params, direction))[0]
                for s in (1, -1)
            )
            expected = float(ahead - behind) / 2e-6
            assert abs(expected) > 1e-4  # far above that error
            assert along(gradient, direction) == pytest.approx(expected, rel=1e-6)
