"""The model, its loss and its meta-gradients against the published implementation's arrays."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import DSAML, ModelConfig, convert, losses, meta
from tests.conftest import SHARED
from tests.recipe import inputs, weights


@pytest.fixture(scope="session")
def settings(golden):
    stored = json.loads((SHARED / "golden" / "config.json").read_text())
    cfg = stored["cfg"]
    config = ModelConfig(
        width=cfg["D"],
        num_heads=cfg["H"],
        num_layers=cfg["L"],
        local_context=cfg["lc"],
        global_context=cfg["gc"],
        ffn_width=stored["ffn"],
        dropout=0.0,
    )
    return stored["seed"], config


@pytest.fixture(scope="session")
def state_dict(golden):
    return golden("state_dict")


@pytest.fixture(scope="session")
def variables(state_dict, settings):
    return convert.from_torch(state_dict, settings[1])


@pytest.fixture(scope="session")
def query(settings):
    seed, config = settings
    return inputs(seed + 1, 2, 60, config.width)


def close(actual, expected, tolerance):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


def run(variables, config, mel, embedding, train=False):
    """Forward pass with intermediate results."""
    return DSAML(config).apply(
        variables,
        mel,
        embedding,
        train,
        mutable=["batch_stats", "intermediates"] if train else ["intermediates"],
        capture_intermediates=True,
    )


def attention_maps(out):
    """Ours [B, S, L, H, T, T] as the stored [1, S * L, H, T, T] of sample 0."""
    maps = np.asarray(out.attention[:1])
    return maps.reshape(1, -1, *maps.shape[3:])


def test_forward_eval(golden, variables, settings, query):
    expected = golden("forward_eval")
    out, state = run(variables, settings[1], *query[:2])
    close(out.arousal, expected["arousal"], 2e-5)
    close(out.valence, expected["valence"], 2e-5)
    close(attention_maps(out), expected["attention_maps"], 2e-5)
    inside = state["intermediates"]
    hidden = inside["encoder"]["__call__"][0][0]
    close(hidden[0], expected["local_last_hidden"], 5e-6)
    close(hidden[1], expected["global_last_hidden"], 5e-6)
    close(jax.nn.sigmoid(hidden.sum(0)), expected["transformer_out"], 2e-5)
    close(inside["adapter"]["__call__"][0], expected["fused"], 2e-5)
    close(inside["predictor"]["bilstm"]["__call__"][0], expected["bilstm_out"], 2e-5)
    features = inside["spectrogram"]["__call__"][0].reshape(2, 60, -1)
    close(features, expected["spectrogram_feature"], 2e-5)


def test_shorter_window(golden, variables, settings, query):
    expected = golden("forward_eval_T23")
    out, _ = run(variables, settings[1], query[0][:, :23], query[1])
    close(out.arousal, expected["arousal"], 2e-5)
    close(attention_maps(out), expected["attention_maps"], 2e-5)


@pytest.mark.parametrize("position", ["absolute", "relative_key_query"])
def test_position_types(golden, state_dict, settings, query, position):
    seed, config = settings
    config = dataclasses.replace(config, position=position)
    shapes = {k: v.shape for k, v in state_dict.items()}
    if position == "absolute":
        shapes = {k: v for k, v in shapes.items() if "distance_embedding" not in k}
    variables = convert.from_torch(weights(shapes, seed), config)
    expected = golden(f"forward_eval_pos_{position}")
    out, _ = run(variables, config, *query[:2])
    close(out.arousal, expected["arousal"], 2e-5)
    close(out.valence, expected["valence"], 2e-5)


def test_forward_train_and_running_statistics(golden, variables, settings, query):
    expected = golden("forward_train")
    out, state = run(variables, settings[1], *query[:2], train=True)
    close(out.arousal, expected["arousal"], 2e-5)
    close(out.valence, expected["valence"], 2e-5)
    for block in range(2):
        stats = state["batch_stats"]["spectrogram"][f"norm{block}"]
        close(stats["mean"], expected[f"bn{block}_running_mean_after"], 2e-5)
        close(stats["var"], expected[f"bn{block}_running_var_after"], 2e-5)


def loss_of(config, batch_stats, train=True):
    """The reference's loss as a function of parameters and (mel, embedding, arousal, valence)."""

    def loss_fn(params, batch):
        mel, embedding, arousal, valence = batch
        out = DSAML(config).apply(
            {"params": params, "batch_stats": batch_stats}, mel, embedding, batch_norm=train
        )
        return losses.dsaml_loss(out, arousal, valence, config=config)

    return loss_fn


def scalar_loss(config, batch_stats):
    full = loss_of(config, batch_stats)
    return lambda params, batch: full(params, batch)[0]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_loss_terms(golden, variables, settings, query, mode):
    config = settings[1]
    expected = golden(f"loss_{mode}")
    loss_fn = loss_of(config, variables["batch_stats"], mode == "train")
    loss, terms = jax.jit(loss_fn)(variables["params"], query)
    close(loss, expected["total_loss"], 1e-5)
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


def assert_gradients(actual_params, expected, prefix, config, relative=1e-3):
    """Per tensor: 1e-3 relative in L2; tensors whose true gradient is 0 are compared absolutely."""
    actual = convert.to_torch({"params": actual_params}, config)
    compared = 0
    for name, value in actual.items():
        no_gradient = name.endswith("key.bias") or (
            "feature_extractor." in name and name.endswith("conv.bias")
        )
        if f"{prefix}:{name}" in expected:
            want = expected[f"{prefix}:{name}"]
            if no_gradient:
                np.testing.assert_allclose(value, want, rtol=0, atol=1e-5, err_msg=name)
            else:
                error = np.linalg.norm(value - want) / np.linalg.norm(want)
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


def test_loss_gradient(golden, variables, settings, query):
    config = settings[1]
    grads = jax.jit(jax.grad(scalar_loss(config, variables["batch_stats"])))(
        variables["params"], query
    )
    assert assert_gradients(grads, golden("loss_train"), "grad", config) > 40


@pytest.fixture(scope="session")
def support(golden):
    stored = golden("inputs")
    names = ("log_mel", "global", "arousal", "valence")
    return tuple(stored[f"support_{name}"] for name in names)


def test_inner_steps(golden, variables, settings, support):
    config = settings[1]
    expected = golden("inner_sgd")
    loss_fn = scalar_loss(config, variables["batch_stats"])
    for steps in (1, 3):
        adapted = jax.jit(
            lambda params, batch, steps=steps: meta.adapt(
                loss_fn, params, batch, steps=steps, learning_rate=5e-3
            )
        )(variables["params"], support)
        ours = convert.to_torch({"params": adapted}, config)
        before = convert.to_torch({"params": variables["params"]}, config)
        for name, value in ours.items():
            if f"step{steps}:{name}" in expected:
                close(value, expected[f"step{steps}:{name}"], 2e-5)
            moved = np.linalg.norm(value - before[name])
            want = expected[f"deltanorm{steps}:{name}"]
            assert abs(moved - want) < 1e-3 * want + 2e-5, name
        if steps == 3:
            loss = jax.jit(loss_fn)(adapted, support)
            close(loss, expected["losses"][3], 2e-5)


@pytest.mark.parametrize(
    ("name", "file", "memory"),
    # The other modes are compared to these in test_meta_memory.py.
    [("fomaml", "first", "plain"), ("maml", "second", "plain"), ("maml", "second", "mixed")],
)
def test_meta_gradient(golden, variables, settings, support, query, name, file, memory):
    config = settings[1]
    loss_fn = scalar_loss(config, variables["batch_stats"])
    algorithm = meta.algorithm(name, steps=2, learning_rate=5e-3, memory=memory)
    one_task = jax.tree.map(lambda x: jnp.asarray(x)[None], (support, query))
    value, grads = jax.jit(
        lambda params, support, query: meta.meta_gradient(
            loss_fn, params, support, query, algorithm=algorithm
        )
    )(variables["params"], *one_task)
    expected = golden(f"meta_{file}_order")
    close(value, expected["query_loss"], 1e-5)
    assert assert_gradients(grads, expected, "metagrad", config) > 40


def test_full_size(golden):
    names = json.loads((SHARED / "golden" / "full_1024_names.json").read_text())
    stored = json.loads((SHARED / "golden" / "config.json").read_text())
    seed, cfg = stored["seed"], stored["cfg"]
    config = ModelConfig(local_context=cfg["lc"], global_context=cfg["gc"], dropout=0.0)
    variables = convert.from_torch(weights(names, seed + 10), config)
    batch = inputs(seed + 11, 2, 60, 1024)
    expected = golden("full_1024")
    out, _ = run(variables, config, *batch[:2])
    close(out.arousal, expected["eval_arousal"], 2e-5)
    maps = attention_maps(out).mean(2)
    close(maps, expected["eval_attention_mean_over_heads"], 2e-5)
    loss_fn = scalar_loss(config, variables["batch_stats"])
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(variables["params"], batch)
    close(loss, expected["train_total_loss"], 1e-5)
    ours = convert.to_torch({"params": grads}, config)
    for name, value in ours.items():
        if name.endswith("key.bias") or ("extractor." in name and name.endswith("conv.bias")):
            continue
        want = expected[f"gradnorm:{name}"]
        np.testing.assert_allclose(np.linalg.norm(value), want, rtol=2e-3, err_msg=name)


def test_conversion_is_one_to_one(state_dict, settings):
    config = settings[1]
    back = convert.to_torch(convert.from_torch(state_dict, config), config)
    kept = {k for k in state_dict if not k.endswith("num_batches_tracked")}
    assert set(back) == kept
    for name in kept:
        np.testing.assert_array_equal(back[name], state_dict[name])
