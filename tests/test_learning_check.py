"""Training as the published implementation trains: its settings, its weights, its task, through our own step.

The reference has stored one task: the losses of its inner steps, its first-order meta-gradient and its loss on the
query. Here the step that `dsaml train --preset reference` runs takes the same task from a corpus on the device.

Where the two drift apart later: Adam divides a gradient by its own size, so parameters whose gradient is rounding noise
(biases in front of BatchNorm, biases of attention keys) move by a full step in a direction that float32 decides. The
loss does not see them. What it does see agrees to the noise of the meta-gradient (1e-3 a tensor).

Losses have the tolerances of test_golden_model.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsaml_jax import DSAML, convert
from dsaml_jax.adaptation import inner_algorithm, support_loss
from dsaml_jax.base import SongBatch
from dsaml_jax.config import preset
from dsaml_jax.corpus import DeviceCorpus, TaskArrays, gather_windows
from dsaml_jax.meta import InnerState, unroll
from dsaml_jax.training import TrainState, make_optimizer, make_pdmer_step
from tests.golden_file import like

STEPS = 60


@pytest.fixture(scope="module")
def config(published_config):
    """The reference's settings, with the two inner steps that it has stored a meta-gradient of, and one task."""
    reference = preset("reference")
    return dataclasses.replace(
        reference,
        model=published_config,
        meta=dataclasses.replace(reference.meta, steps=2, tasks=1, query_songs=2),
    )


@pytest.fixture(scope="module")
def corpus(support, query):
    """Song 0 is the support, songs 1 and 2 are the query; one window and one rating each."""
    mel, embedding, arousal, valence = (
        np.concatenate([np.asarray(a), np.asarray(b)]) for a, b in zip(support, query, strict=True)
    )
    labels = np.stack([arousal, valence], axis=-1).reshape(-1, 2).astype(np.float32)
    index = np.arange(3, dtype=np.int32)
    return jax.device_put(
        DeviceCorpus(
            log_mel=mel.reshape(-1, *mel.shape[2:]), embedding=embedding[:, 0],
            target=labels, ratings=labels,
            feature_start=index * STEPS, song_start=index * STEPS, song_steps=np.full(3, STEPS, np.int32),
            window_first=index, window_count=np.ones(3, np.int32), window_start=np.zeros(3, np.int32),
            embedding_first=index, rating_song=index, rating_first=index * STEPS, per_step=False,
        )
    )  # fmt: skip


def drawn():
    """A step's only task."""
    zero, asked = np.zeros((1, 1, 1), np.int32), np.array([[[1, 2]]], np.int32)
    return TaskArrays(zero, zero, zero, asked, asked, np.zeros_like(asked))


@pytest.mark.slow
def test_inner_losses_are_those_of_the_reference(golden, published_variables, config, corpus):
    algorithm = inner_algorithm(config.meta)
    batch = gather_windows(corpus, *(jnp.zeros(1, jnp.int32) for _ in range(3)))
    assert isinstance(batch, SongBatch) and bool(batch.labelled.all())
    loss = support_loss(DSAML(config.model), config.meta, published_variables["batch_stats"])
    adapt = jax.jit(
        lambda params: unroll(
            loss, InnerState(params), batch, steps=3, learning_rate=algorithm.learning_rate, visit=lambda p: loss(p, batch)
        )[1]
    )  # fmt: skip
    expected = golden("inner_sgd")["losses"]
    np.testing.assert_allclose(
        adapt(published_variables["params"]), expected[1:], rtol=0, atol=2e-5
    )
    assert (np.diff(expected) < 0).all()  # there is something to follow


@pytest.fixture(scope="module")
def first_steps(published_variables, config, corpus):
    """The losses of five steps, and how the first moved the parameters."""
    model, optimizer = DSAML(config.model), make_optimizer(config.training)
    step = make_pdmer_step(model, config, optimizer)
    before = published_variables["params"]
    params, batch_stats = jax.tree.map(jnp.array, (before, published_variables["batch_stats"]))
    state = TrainState(params, batch_stats, optimizer.init(params), True)
    losses, moved = [], {}
    for number in range(1, 6):
        state, terms = step(state, corpus, drawn(), np.int32(number), np.uint32(0))
        losses.append(float(terms["total_loss"][0]))
        if number == 1:
            change = jax.tree.map(lambda a, b: np.asarray(a) - b, state.learned, before)
            moved = convert.to_torch({"params": change}, config.model)
    return losses, moved


@pytest.mark.slow
def test_the_first_steps_follow_the_reference(deep_golden, config, first_steps):
    expected = deep_golden("meta_first_order")
    losses, moved = first_steps
    assert losses[0] == pytest.approx(float(expected["query_loss"]), abs=1e-5)

    # Adam's first step is the rate times the sign of the gradient, wherever that is no rounding noise.
    rate = config.training.learning_rate
    agreeing = []
    for name, change in moved.items():
        gradient = expected.get(f"metagrad:{name}")
        if gradient is not None:
            clear = np.abs(gradient) > 1e-3 * np.abs(gradient).max() + 1e-6
            step = like(change, gradient)[clear]
            agreeing.append(np.sign(step) == -np.sign(gradient[clear]))
            # Adam's epsilon is 1 % of the smallest; differences of float32 parameters are coarse.
            np.testing.assert_allclose(np.abs(step), rate, rtol=0.05)
    assert len(agreeing) > 40 and np.concatenate(agreeing).mean() > 0.9999  # noise may turn a few

    # The loss falls as steeply as the gradient says, to first order: by the rate times its L1 norm. Of some matrices
    # only the L2 norm is stored, or a sample besides, which bounds it.
    assert (np.diff(losses) < 0).all()
    least = most = 0.0
    for name, change in moved.items():
        gradient = expected.get(f"metagrad:{name}", np.zeros(0))
        known = np.abs(gradient).sum()
        bound = np.sqrt(change.size) * float(expected[f"metagradnorm:{name}"])
        least += rate * known
        most += rate * (known if gradient.size == change.size else bound)
    assert least < losses[0] - losses[1] < most
