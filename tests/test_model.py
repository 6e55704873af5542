"""The model's own promises: masks, per-step embeddings, ablations, dropout, shapes.

Tolerances of 1e-6 to 1e-4: float32 in programs of other shapes, whose sums have another order.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import DSAML, ModelConfig, UsageError
from dsaml_jax.models.attention import context_mask, skew
from dsaml_jax.models.spectrogram import CPU_BLOCK, SpectrogramBranch

CONFIG = ModelConfig(
    width=16, num_heads=2, num_layers=1, ffn_width=16, dropout=0.0, local_context=2,
    global_context=4, max_position=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def data():
    random = np.random.RandomState(0)
    mel = jnp.asarray(random.randn(2, 9, 5, 8), jnp.float32)
    embedding = jnp.asarray(random.randn(2, 1, 16), jnp.float32)
    return mel, embedding


@pytest.fixture(scope="module")
def variables(data):
    return jax.jit(DSAML(CONFIG).init)(jax.random.key(0), *data)


def test_shapes(data, variables):
    out = jax.jit(DSAML(CONFIG).apply)(variables, *data)
    assert out.arousal.shape == out.valence.shape == (2, 9)
    assert out.attention.shape == (2, 2, 1, 2, 9, 9)
    np.testing.assert_allclose(out.attention.sum(-1), 1.0, atol=1e-5)
    seen = np.asarray(out.attention).max(axis=(0, 2, 3)) > 0
    np.testing.assert_array_equal(seen[0], context_mask(9, 2))
    np.testing.assert_array_equal(seen[1], context_mask(9, 4))


@pytest.mark.parametrize("train", [False, True])
def test_absent_steps_change_nothing(data, variables, train):
    """Six steps, and six steps padded to nine with rubbish, give the same curves and statistics."""
    mel, embedding = data
    model = DSAML(CONFIG)

    @jax.jit
    def apply(mel, present=None):
        return model.apply(
            variables, mel, embedding, train, present=present, mutable=["batch_stats"]
        )

    short, short_stats = apply(mel[:, :6])
    padded = mel.at[:, 6:].set(100.0)
    present = jnp.broadcast_to(jnp.arange(9)[None] < 6, (2, 9))
    long, long_stats = apply(padded, present=present)
    np.testing.assert_allclose(long.arousal[:, :6], short.arousal, atol=1e-5)
    np.testing.assert_allclose(long.valence[:, :6], short.valence, atol=1e-5)
    for a, b in zip(jax.tree.leaves(long_stats), jax.tree.leaves(short_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_embedding_per_step(data, variables):
    mel, embedding = data
    apply = jax.jit(DSAML(CONFIG).apply)
    one = apply(variables, mel, embedding)
    repeated = apply(variables, mel, jnp.repeat(embedding, 9, axis=1))
    np.testing.assert_allclose(one.arousal, repeated.arousal, atol=1e-6)


def test_embedding_of_another_width(data):
    config = dataclasses.replace(CONFIG, embedding_width=5)
    mel = data[0]
    variables = jax.eval_shape(DSAML(config).init, jax.random.key(0), mel, jnp.ones((2, 1, 5)))
    assert variables["params"]["adapter"]["embedding"]["kernel"].shape == (5, 16)
    with pytest.raises(AssertionError):
        jax.eval_shape(DSAML(config).apply, variables, mel, jnp.ones((2, 1, 16)))


@pytest.mark.parametrize(
    ("change", "scales"),
    [
        ({"use_local": False}, 1),
        ({"use_global": False}, 1),
        ({"use_adapter": False}, 2),
        ({"use_local": False, "use_global": False}, 0),
    ],
)
def test_ablations(data, variables, change, scales):
    config = dataclasses.replace(CONFIG, **change)
    mel, embedding = data
    apply = jax.jit(DSAML(config).apply)
    out, other = (apply(variables, mel, embedding + more) for more in (0.0, 1.0))
    assert out.attention.shape[1] == scales
    read = bool(np.abs(np.asarray(out.arousal - other.arousal)).max() > 1e-6)  # above rounding
    assert read == config.use_adapter


def test_dropout_follows_its_key(data, variables):
    model = DSAML(dataclasses.replace(CONFIG, dropout=0.5))

    @jax.jit
    def run(seed):
        rngs = {"dropout": jax.random.key(seed)}
        out, _ = model.apply(variables, *data, True, rngs=rngs, mutable=["batch_stats"])
        return out.arousal

    np.testing.assert_array_equal(run(1), run(1))
    assert np.abs(np.asarray(run(1) - run(2))).max() > 1e-3  # far above rounding
    np.testing.assert_array_equal(
        jax.jit(model.apply)(variables, *data).arousal,
        jax.jit(DSAML(CONFIG).apply)(variables, *data).arousal,
    )


def test_running_statistics_move_only_when_mutable(data, variables):
    model = DSAML(CONFIG)
    _, updated = jax.jit(partial(model.apply, mutable=["batch_stats"]))(variables, *data)
    before, after = variables["batch_stats"], updated["batch_stats"]
    assert not np.allclose(
        after["spectrogram"]["norm0"]["mean"], before["spectrogram"]["norm0"]["mean"]
    )
    # Immutable: batch statistics used, none kept.
    out = jax.jit(partial(model.apply, train=True))(variables, *data)
    assert np.isfinite(out.arousal).all()


def layer_by_layer(variables, patches, mask, use_batch_statistics):
    """The spectrogram branch as the paper's layers, in NumPy's and XLA's own words."""
    params, stats = variables["params"], variables["batch_stats"]
    x = np.asarray(patches)[..., None]
    for block, padding in enumerate(((2, 1), (1, 1))):
        conv, norm = params[f"conv{block}"], params[f"norm{block}"]
        x = jax.lax.conv_general_dilated(
            x, conv["kernel"], (1, 1), [(p, p) for p in padding], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )  # fmt: skip
        x = np.asarray(x) + np.asarray(conv["bias"])
        running = stats[f"norm{block}"]
        counted = x[mask].reshape(-1, x.shape[-1])
        mean, var = (
            (counted.mean(0), counted.var(0))
            if use_batch_statistics
            else (np.asarray(running["mean"]), np.asarray(running["var"]))
        )
        x = (x - mean) / np.sqrt(var + 1e-5) * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
        x = jax.lax.reduce_window(
            np.maximum(x, 0.0), -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1),
            ((0, 0), (1, 1), (1, 1), (0, 0)),
        )  # fmt: skip
    out = params["conv_out"]
    return (np.asarray(x) @ np.asarray(out["kernel"][0, 0]) + np.asarray(out["bias"])).reshape(
        len(x), -1
    )


@pytest.mark.parametrize("use_batch_statistics", [True, False])
@pytest.mark.parametrize(
    ("size", "count"), [((51, 128), 3), ((4, 7), 3), ((11, 32), CPU_BLOCK + 5)]
)
def test_spectrogram_branch_is_its_layers(size, count, use_batch_statistics):
    """Windows, masks, moments from the input and blocks change nothing."""
    random = np.random.RandomState(0)
    patches = jnp.asarray(random.randn(count, *size) * 3 - 5, jnp.float32)
    mask = np.arange(count) != 1
    branch = SpectrogramBranch()
    init = partial(branch.init, use_batch_statistics=True)
    shapes = jax.eval_shape(init, jax.random.key(0), patches[:2])
    variables = jax.tree.map(
        lambda x: jnp.asarray(0.5 + random.rand(*x.shape) * random.choice([-1, 1], x.shape), x.dtype),
        shapes["params"],
    )  # fmt: skip
    stats = jax.tree.map(
        lambda x: jnp.asarray(1.0 + random.rand(*x.shape), x.dtype), shapes["batch_stats"]
    )
    variables = {"params": variables, "batch_stats": stats}
    apply = jax.jit(partial(branch.apply, use_batch_statistics=use_batch_statistics))
    actual = apply(variables, patches, mask=jnp.asarray(mask))
    expected = layer_by_layer(variables, patches, mask, use_batch_statistics)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frame", [7, 8])
@pytest.mark.parametrize("band", [20, 21])
def test_a_nan_passes_through_pooling(frame, band):
    branch = SpectrogramBranch()
    patches = jnp.zeros((2, 51, 128)).at[1, frame, band].set(jnp.nan)
    init, apply = (
        jax.jit(partial(do, use_batch_statistics=False)) for do in (branch.init, branch.apply)
    )
    out = apply(init(jax.random.key(0), patches), patches)
    assert jnp.isnan(out[1]).any() and not jnp.isnan(out[0]).any()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_skew_is_the_gather_it_replaces(steps):
    rows = jnp.asarray(np.random.RandomState(0).randn(3, steps, 2 * steps - 1), jnp.float32)
    i, j = np.indices((steps, steps))
    np.testing.assert_array_equal(skew(rows), np.asarray(rows)[:, i, steps - 1 - i + j])


def test_full_size_has_the_published_number_of_parameters():
    shapes = jax.eval_shape(
        DSAML(ModelConfig()).init,
        jax.random.key(0),
        jnp.zeros((1, 2, 51, 128)),
        jnp.zeros((1, 1, 1024)),
    )
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 29_692_723


@pytest.mark.parametrize(
    "settings",
    [{"width": 10}, {"position": "rotary"}, {"dropout": 1.0},
     {"num_heads": 0}, {"num_layers": 0},
     {"local_context": -1}],
)  # fmt: skip
def test_bad_configurations(settings):
    with pytest.raises(UsageError):
        ModelConfig(**settings)
