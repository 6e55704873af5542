"""The model, its loss and its meta-gradients against the published implementation's arrays.

Tolerances: both sides sum float32, each in its own order. 2e-5 for what the model computes, 1e-5
for losses and scores, which are means of it; 1e-3 relative for a tensor's gradient, most of which
cancels in BatchNorm; 1e-5 for gradients that are truly 0. Others have their reason beside them.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import DSAML, ModelConfig, UsageError, convert, losses, meta
from tests import golden_file
from tests.conftest import SHARED
from tests.golden_file import like
from tests.recipe import SEED, inputs, weights


def close(actual, expected, tolerance):
    np.testing.assert_allclose(like(actual, expected), expected, rtol=0, atol=tolerance)


def test_the_file_holds_what_the_whole_arrays_say():
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("the whole arrays, which the file is made from, are not on this machine")
    with np.load(golden_file.FILE, max_header_size=golden_file.HEADER) as stored:
        assert {name: stored[name].tobytes() for name in stored.files} == {
            name: array.tobytes() for name, array in golden_file.make(folder).items()
        }


# The tests below share few programs, since a program takes seconds to compile.


@functools.partial(jax.jit, static_argnums=0)
def evaluate(config, variables, batch):
    """In eval mode: the output, what every module computes, and the terms of the loss."""
    mel, embedding, arousal, valence = batch
    out, state = DSAML(config).apply(
        variables, mel, embedding, mutable=["intermediates"], capture_intermediates=True
    )
    _, terms = losses.dsaml_loss(out, arousal, valence, config=config)
    return out, state["intermediates"], terms


@functools.partial(jax.jit, static_argnums=0)
def train(config, variables, batch):
    """In train mode: the output, the running statistics afterwards, the loss's terms and gradient."""
    mel, embedding, arousal, valence = batch

    def loss_fn(params):
        out, state = DSAML(config).apply(
            {**variables, "params": params}, mel, embedding, train=True, mutable=["batch_stats"]
        )
        loss, terms = losses.dsaml_loss(out, arousal, valence, config=config)
        return loss, (out, state["batch_stats"], terms)

    grads, aux = jax.grad(loss_fn, has_aux=True)(variables["params"])
    return *aux, grads


@pytest.fixture(scope="module")
def evaluated(published_config, published_variables, query):
    return evaluate(published_config, published_variables, query)


@pytest.fixture(scope="module")
def trained(published_config, published_variables, query):
    return train(published_config, published_variables, query)


def attention_maps(out):
    """Ours [B, S, L, H, T, T] as the stored [1, S * L, H, T, T] of sample 0."""
    maps = np.asarray(out.attention[:1])
    return maps.reshape(1, -1, *maps.shape[3:])


def test_forward_eval(deep_golden, evaluated):
    expected = deep_golden("forward_eval")
    out, inside, _ = evaluated
    close(out.arousal, expected["arousal"], 2e-5)
    close(out.valence, expected["valence"], 2e-5)
    close(attention_maps(out), expected["attention_maps"], 2e-5)
    hidden = np.asarray(inside["encoder"]["__call__"][0][0])
    # Closer, since only the hidden states tell LayerNorm's epsilon and the kind of GELU.
    close(hidden[0], expected["local_last_hidden"], 5e-6)
    close(hidden[1], expected["global_last_hidden"], 5e-6)
    close(1 / (1 + np.exp(-hidden.sum(0))), expected["transformer_out"], 2e-5)
    close(inside["adapter"]["__call__"][0], expected["fused"], 2e-5)
    close(inside["predictor"]["bilstm"]["__call__"][0], expected["bilstm_out"], 2e-5)
    features = inside["spectrogram"]["__call__"][0].reshape(2, 60, -1)
    close(features, expected["spectrogram_feature"], 2e-5)


def test_shorter_window(deep_golden, published_config, published_variables, query):
    expected = deep_golden("forward_eval_T23")
    mel, embedding, arousal, valence = query
    shorter = (mel[:, :23], embedding, arousal[:, :23], valence[:, :23])
    out, _, _ = evaluate(published_config, published_variables, shorter)
    close(out.arousal, expected["arousal"], 2e-5)
    close(attention_maps(out), expected["attention_maps"], 2e-5)


@pytest.mark.parametrize("position", ["absolute", "relative_key_query"])
def test_position_types(golden, published_config, query, position):
    config = dataclasses.replace(published_config, position=position)
    shapes = golden_file.shapes("state_dict_names")
    if position == "absolute":
        shapes = {k: v for k, v in shapes.items() if "distance_embedding" not in k}
    variables = convert.from_torch(weights(shapes, SEED), config)
    expected = golden(f"forward_eval_pos_{position}")
    out, _, _ = evaluate(config, variables, query)
    close(out.arousal, expected["arousal"], 2e-5)
    close(out.valence, expected["valence"], 2e-5)


def test_forward_train_and_running_statistics(golden, trained):
    expected = golden("forward_train")
    out, batch_stats, _, _ = trained
    close(out.arousal, expected["arousal"], 2e-5)
    close(out.valence, expected["valence"], 2e-5)
    for block in range(2):
        stats = batch_stats["spectrogram"][f"norm{block}"]
        close(stats["mean"], expected[f"bn{block}_running_mean_after"], 2e-5)
        close(stats["var"], expected[f"bn{block}_running_var_after"], 2e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_loss_terms(golden, evaluated, trained, mode):
    expected = golden(f"loss_{mode}")
    terms = {"train": trained, "eval": evaluated}[mode][2]
    for name in ("score_loss", "attention_loss", "total_loss"):
        close(terms[name], expected[name], 1e-5)
    close(terms["score"], expected["average_score"], 1e-5)
    for dimension in ("arousal", "valence"):
        for metric in ("CCC", "PCC", "RMSE"):
            close(
                terms[f"{dimension}_{metric.lower()}"],
                expected[f"score_{dimension}_{metric}"],
                1e-5,
            )


def has_no_gradient(name):
    """Biases whose true gradient is 0: in front of BatchNorm, and of attention keys."""
    before_norm = "feature_extractor." in name and name.endswith("conv.bias")
    return before_norm or name.endswith("key.bias")


def assert_gradients(actual_params, expected, prefix, config, relative=1e-3):
    """Per tensor: 1e-3 relative in L2; tensors whose true gradient is 0 are compared absolutely."""
    actual = convert.to_torch({"params": actual_params}, config)
    compared = 0
    for name, value in actual.items():
        no_gradient = has_no_gradient(name)
        if f"{prefix}:{name}" in expected:
            want = expected[f"{prefix}:{name}"]
            got = like(value, want)
            if no_gradient:
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-5, err_msg=name)
            else:
                error = np.linalg.norm(got - want) / np.linalg.norm(want)
                assert error < relative, (name, error)
            compared += 1
        norm = expected[f"{prefix}norm:{name}"]
        np.testing.assert_allclose(
            np.linalg.norm(value),
            norm,
            rtol=relative,
            atol=1e-5 if no_gradient else 0,
            err_msg=name,
        )
    return compared


def test_loss_gradient(deep_golden, published_config, trained):
    grads = trained[3]
    assert assert_gradients(grads, deep_golden("loss_train"), "grad", published_config) > 40


def scalar_loss(config, batch_stats):
    """The reference's loss in train mode, of parameters and (mel, embedding, arousal, valence)."""

    def loss_fn(params, batch):
        mel, embedding, arousal, valence = batch
        out = DSAML(config).apply(
            {"params": params, "batch_stats": batch_stats}, mel, embedding, batch_norm=True
        )
        return losses.dsaml_loss(out, arousal, valence, config=config)[0]

    return loss_fn


@pytest.fixture(scope="module")
def inner_steps(published_config, published_variables, support):
    """Parameters after one and three inner steps, and the loss after three."""
    loss_fn = scalar_loss(published_config, published_variables["batch_stats"])

    @jax.jit
    def adapt(params, batch, steps):
        """`steps` counts on the device: one program for both."""
        step = lambda _, params: meta.adapt(loss_fn, params, batch, steps=1, learning_rate=5e-3)  # noqa: E731
        adapted = jax.lax.fori_loop(0, steps, step, params)
        return adapted, loss_fn(adapted, batch)

    one, three = (adapt(published_variables["params"], support, steps) for steps in (1, 3))
    return {1: one[0], 3: three[0]}, three[1]


@pytest.mark.slow
def test_inner_steps(deep_golden, published_config, published_variables, inner_steps):
    expected = deep_golden("inner_sgd")
    adapted, loss = inner_steps
    close(loss, expected["losses"][3], 2e-5)  # three steps carry rounding on
    before = convert.to_torch({"params": published_variables["params"]}, published_config)
    for steps, params in adapted.items():
        for name, value in convert.to_torch({"params": params}, published_config).items():
            if f"step{steps}:{name}" in expected:
                close(value, expected[f"step{steps}:{name}"], 2e-5)
            moved = np.linalg.norm(value - before[name])
            want = expected[f"deltanorm{steps}:{name}"]
            # 1e-3 as for gradients, and 2e-5 for the rounding of the parameters.
            assert abs(moved - want) < 1e-3 * want + 2e-5, name


@pytest.fixture(
    scope="module",
    # The other modes are compared to these in test_meta_memory.py.
    params=[
        pytest.param(("fomaml", "first", "plain"), id="fomaml-plain", marks=pytest.mark.slow),
        pytest.param(("maml", "second", "mixed"), id="maml-mixed"),
        pytest.param(("maml", "second", "plain"), id="maml-plain", marks=pytest.mark.slow),
    ],
)
def meta_gradient(request, published_config, published_variables, support, query):
    """The order of a meta-gradient, the loss on the query, and the gradient."""
    name, order, memory = request.param
    loss_fn = scalar_loss(published_config, published_variables["batch_stats"])
    algorithm = meta.algorithm(name, steps=2, learning_rate=5e-3, memory=memory)
    one_task = jax.tree.map(lambda x: jnp.asarray(x)[None], (support, query))
    value, grads = jax.jit(
        lambda params, support, query: meta.meta_gradient(
            loss_fn, params, support, query, algorithm=algorithm
        )
    )(published_variables["params"], *one_task)
    return order, value, grads


def test_meta_gradient(deep_golden, published_config, meta_gradient):
    order, value, grads = meta_gradient
    expected = deep_golden(f"meta_{order}_order")
    close(value, expected["query_loss"], 1e-5)
    assert assert_gradients(grads, expected, "metagrad", published_config) > 40


@pytest.fixture(scope="module")
def full_size(published_config):
    """Our defaults with the contexts of the others: eval output, train loss and gradient."""
    config = ModelConfig(
        local_context=published_config.local_context,
        global_context=published_config.global_context,
        dropout=0.0,
        precision="highest",
    )
    shapes = golden_file.shapes("full_1024_names")
    variables = convert.from_torch(weights(shapes, SEED + 10), config)
    batch = inputs(SEED + 11, 2, 60, config.width)
    out, _, _ = evaluate(config, variables, batch)
    _, _, terms, grads = train(config, variables, batch)
    return out, terms["total_loss"], convert.to_torch({"params": grads}, config)


@pytest.mark.slow
def test_full_size(deep_golden, full_size):
    expected = deep_golden("full_1024")
    out, loss, grads = full_size
    close(out.arousal, expected["eval_arousal"], 2e-5)
    maps = attention_maps(out).mean(2)
    close(maps, expected["eval_attention_mean_over_heads"], 2e-5)
    close(loss, expected["train_total_loss"], 1e-5)
    for name, value in grads.items():
        if not has_no_gradient(name):
            want = expected[f"gradnorm:{name}"]
            # The reference's own noise at this width is 7e-4.
            np.testing.assert_allclose(np.linalg.norm(value), want, rtol=2e-3, err_msg=name)


def test_conversion_is_one_to_one(published_config, published_variables):
    state_dict = weights(golden_file.shapes("state_dict_names"), SEED)
    back = convert.to_torch(published_variables, published_config)
    kept = {k for k in state_dict if not k.endswith("num_batches_tracked")}
    assert set(back) == kept
    for name in kept:
        np.testing.assert_array_equal(back[name], state_dict[name])


def test_what_has_no_counterpart_is_said():
    narrow = ModelConfig(width=16, num_heads=2, num_layers=1, embedding_width=8)
    with pytest.raises(UsageError, match="embedding of 8 numbers, and is 16 wide"):
        convert.to_torch({"params": {}}, narrow)
    with pytest.raises(UsageError, match="without the adapter"):
        convert.to_torch({"params": {}}, dataclasses.replace(narrow, use_adapter=False))
