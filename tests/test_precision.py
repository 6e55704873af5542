"""bfloat16 activations: what stays float32, and how far the results move."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import DSAML, ModelConfig, UsageError, losses, meta
from dsaml_jax.config import RunConfig, from_json, preset, to_json, with_settings
from tests.problems import equations
from tests.recipe import inputs

FULL = ModelConfig(
    width=16, num_heads=2, num_layers=1, ffn_width=24, dropout=0.0, local_context=2,
    global_context=8, max_position=32, position="relative_key_query", embedding_width=12,
)  # fmt: skip
HALF = dataclasses.replace(FULL, activations="bfloat16")


@pytest.fixture(scope="module")
def data():
    return tuple(map(jnp.asarray, inputs(1, 4, 12, 12)))


@pytest.fixture(scope="module")
def variables(data):
    return jax.jit(DSAML(HALF).init)(jax.random.key(1), *data[:2])


def loss_and_output(params, data, config, stats):
    mel, embedding, arousal, valence = data
    out, updates = DSAML(config).apply(
        {"params": params, "batch_stats": stats}, mel, embedding, True, mutable=["batch_stats"]
    )
    value, _ = losses.dsaml_loss(out, arousal, valence, config=config)
    return value, (out, updates["batch_stats"])


@pytest.fixture(scope="module")
def both(variables, data):
    """`((loss, (output, statistics)), gradient)` of each."""

    def run(config):
        def loss(params):
            return loss_and_output(params, data, config, variables["batch_stats"])

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    return run(FULL), run(HALF)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def cosine(a, b):
    a, b = flat(a), flat(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def all_float32(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_what_stays_float32(both, variables):
    _, ((loss, (out, stats)), gradient) = both
    for tree in (variables, loss, out, stats, gradient):
        assert all_float32(tree)


@pytest.mark.slow
def test_output_is_close(both):
    """Measured: curves within 0.0015, maps within 0.001, the loss and running statistics within 0.0008.

    Several times that is allowed: bfloat16 rounds by 0.004, and compilers round at other places.
    """
    ((loss, (out, stats)), _), ((near_loss, (near, near_stats)), _) = both
    assert near_loss == pytest.approx(float(loss), abs=5e-3)
    for name in ("arousal", "valence", "attention"):
        np.testing.assert_allclose(getattr(near, name), getattr(out, name), atol=5e-3)
    np.testing.assert_allclose(near.attention.sum(-1), 1.0, atol=1e-5)  # float32
    np.testing.assert_allclose(flat(near_stats), flat(stats), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_gradient_has_the_same_direction(both):
    """Measured over four draws: cosine 0.9983 to 0.9999; 0.992 in the front end, most of which BatchNorm cancels."""
    (_, gradient), (_, near) = both
    assert cosine(gradient, near) > 0.99  # here 0.9987
    for module in gradient:
        assert cosine(gradient[module], near[module]) > 0.97, module  # here 0.9956


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_meta_gradient_has_the_same_direction(name, variables, data):
    """Measured: cosine 0.997 to 0.9999 in both orders over seven draws; 0.95 in an eighth."""
    tasks = jax.tree.map(lambda x: x.reshape(2, 1, 2, *x.shape[1:]), data)
    support, query = (jax.tree.map(lambda x, i=i: x[:, :, i], tasks) for i in range(2))
    algorithm = meta.algorithm(name, steps=2, learning_rate=0.01)

    def run(config):
        def loss(params, batch):
            return loss_and_output(params, batch, config, variables["batch_stats"])[0]

        def gradient(params):
            return meta.meta_gradient(loss, params, support, query, algorithm=algorithm)[1]

        return jax.jit(gradient)(variables["params"])

    full, half = run(FULL), run(HALF)
    assert all_float32(half)
    assert cosine(full, half) > 0.99  # here 0.998


def dtypes(equation):
    return {str(x.aval.dtype) for x in (*equation.invars, *equation.outvars)}


def traced(config, variables, data, *, train):
    """Equations of a gradient by the parameters; without `train` there are no moments and no losses."""

    def value(params):
        if train:
            return loss_and_output(params, data, config, variables["batch_stats"])[0]
        out = DSAML(config).apply(variables | {"params": params}, *data[:2])
        return jnp.sum(jnp.square(out.arousal - out.valence))

    found = equations(jax.make_jaxpr(jax.grad(value))(variables["params"]).jaxpr)
    return [equation for equation, _ in found]


def test_float32_has_no_bfloat16(variables, data):
    assert not any("bfloat16" in dtypes(x) for x in traced(FULL, variables, data, train=True))


def test_products_are_of_bfloat16_and_sums_of_float32(variables, data):
    products = [
        dtypes(equation)
        for equation in traced(HALF, variables, data, train=False)
        if equation.primitive.name == "dot_general"
    ]
    assert products.count({"float32"}) == 3  # the last layer: forward, and backward by both factors
    assert products.count({"bfloat16"}) == len(products) - 3 > 40
    for equation in traced(HALF, variables, data, train=True):
        if equation.primitive.name.startswith("reduce_sum") and "bfloat16" in dtypes(equation):
            terms = equation.invars[0].aval.size / equation.outvars[0].aval.size
            assert terms <= 2  # two scales that share keys and values
        if equation.primitive.name in ("reduce_max", "rsqrt", "sqrt", "tanh"):
            assert "bfloat16" not in dtypes(equation)


HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def products(config, variables, data, *, train=True):
    """Precision of each product of a gradient, with the shapes of its factors."""
    return [
        (equation.params["precision"], [x.aval.shape for x in equation.invars])
        for equation in traced(config, variables, data, train=train)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]


@pytest.mark.parametrize("config", [FULL, HALF])
def test_the_last_layer_and_the_losses_are_exact(config, variables, data):
    """Forward, and backward by both factors; nothing else is, but the moments of BatchNorm."""
    found = products(config, variables, data, train=False)
    assert [precision for precision, _ in found].count(HIGHEST) == 3
    assert {precision for precision, _ in found} == {HIGHEST, None}
    of_output = [precision for precision, shapes in found if any(2 in shape[-1:] for shape in shapes)]  # fmt: skip
    assert of_output and set(of_output) == {HIGHEST}
    attention = jnp.full((2, 2, 1, 2, 12, 12), 0.5)
    loss = jax.make_jaxpr(lambda x: losses.diagonal_attention_loss(x, config))(attention)
    exact = [e.params["precision"] for e, _ in equations(loss.jaxpr) if e.primitive.name == "dot_general"]  # fmt: skip
    assert exact == [HIGHEST]


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_precision_of_every_product(precision, variables, data):
    """Of the gradient too, scans included."""
    config = dataclasses.replace(FULL, precision=precision)
    wanted = {HIGHEST, (getattr(jax.lax.Precision, precision.upper()),) * 2}
    assert {found for found, _ in products(config, variables, data)} == wanted


def test_default_precision_is_what_is_around(variables, data):
    with jax.default_matmul_precision("high"):
        found = {precision for precision, _ in products(FULL, variables, data)}
    assert found == {HIGHEST, (jax.lax.Precision.HIGH,) * 2}


def test_precision_of_the_level_head(data):
    config = dataclasses.replace(FULL, standardize=True, level_centres=8)
    variables = jax.eval_shape(DSAML(config).init, jax.random.key(0), *data[:2])
    jaxpr = jax.make_jaxpr(DSAML(config).apply)(variables, *data[:2]).jaxpr
    found = [
        e.params["precision"] for e, _ in equations(jaxpr) if e.primitive.name == "dot_general"
    ]
    assert found.count(HIGHEST) == 5  # distances, their weights, twice; and how curves move


def test_precision_as_a_setting():
    config = with_settings(preset("tiny"), ["model.precision=highest"])
    assert config.model.precision == "highest"
    before = to_json(RunConfig())
    del before["model"]["precision"]
    assert from_json(before, "run.json") == RunConfig()
    with pytest.raises(UsageError, match="model.precision"):
        with_settings(preset("tiny"), ["model.precision=exact"])


def test_as_a_setting():
    config = with_settings(preset("tiny"), ["model.activations=bfloat16"])
    assert config.model.activations == "bfloat16"
    assert from_json(to_json(config), "run.json") == config
    before = to_json(RunConfig())
    del before["model"]["activations"]
    assert from_json(before, "run.json") == RunConfig()
    with pytest.raises(UsageError, match="model.activations"):
        with_settings(preset("tiny"), ["model.activations=float16"])
