"""Networks of one's own: trained, adapted, evaluated and used like DSAML."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from data_prep.shards import read_corpus
from dsaml_jax import ModelConfig, ModelOutput, UsageError
from dsaml_jax.config import preset, with_settings
from dsaml_jax.evaluation import evaluate
from dsaml_jax.listener import annotated_song, personalize, predict_file
from dsaml_jax.models import build_model
from dsaml_jax.runs import load_model
from dsaml_jax.training import train
from tests.conftest import SMALL_MODEL


class Levels(nn.Module):
    """A level of each window, from the mean of its patches and its embedding; no attention, no running statistics."""

    config: ModelConfig

    @nn.compact
    def __call__(self, log_mel, global_embedding, train=False, *, present=None):
        summary = jnp.concatenate(
            [log_mel.mean(axis=(1, 2)), global_embedding.mean(axis=1)], axis=-1
        )
        level = nn.Dense(2, name="out")(nn.tanh(nn.Dense(8)(summary)))  # [B, 2]
        curves = jnp.broadcast_to(level[:, None], (*log_mel.shape[:2], 2))
        return ModelOutput(arousal=curves[..., 0], valence=curves[..., 1])


class NotFromAConfig(nn.Module):
    """Wants two arguments."""

    config: ModelConfig
    more: int


OWN = "model.class=tests.test_networks:Levels"


@pytest.fixture
def trusted(monkeypatch):
    monkeypatch.setenv("DSAML_NETWORKS", "elsewhere:Other,tests.test_networks:Levels")


@pytest.mark.parametrize("task", ["dmer", pytest.param("pdmer", marks=pytest.mark.slow)])
def test_a_network_of_ones_own(small_data, tmp_path, task, trusted):
    corpus = read_corpus(small_data[1])
    more = ["meta.adapts=out/bias", "meta.strength=1", f"training.task={task}", "training.steps=4"]
    config = with_settings(preset("tiny"), [*SMALL_MODEL, OWN, *more])
    train(config, corpus, tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    assert isinstance(loaded.model, Levels) and loaded.variables["batch_stats"] == {}
    evaluation, _ = evaluate(loaded, corpus)
    assert all(np.isfinite(x["mean"]) for row in evaluation.summary.values() for x in row.values())
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(40 * 8000) / 5), 8000)
    curve = predict_file(loaded, tmp_path / "a.wav")
    assert curve.shape == (80, 2) and np.isfinite(curve).all()
    if task == "pdmer":
        rows = "\n".join(f"{time / 2},0.9,-0.9" for time in range(80))
        (tmp_path / "a.csv").write_text(f"time,arousal,valence\n{rows}\n")
        result = personalize(
            loaded, [annotated_song(loaded, tmp_path / "a.wav", tmp_path / "a.csv")]
        )
        assert (result.after < result.before).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Net", "cannot be imported"), ("tests.test_networks:Nothing", "cannot be imported"),
        ("tests.test_networks", "cannot be imported"), ("subprocess:Popen", "no flax.linen module"), (":Net", "cannot be imported"),
        ("tests.test_networks:NotFromAConfig", "not made from a ModelConfig alone"),
    ],
)  # fmt: skip
def test_what_is_no_network(name, message):
    with pytest.raises(UsageError, match=message):
        build_model(ModelConfig(class_=name), trusted=name)


def test_a_file_does_not_choose_what_is_imported(small_data, tmp_path):
    """Whoever passes a model on must not run code of theirs by it."""
    config = with_settings(preset("tiny"), [*SMALL_MODEL, OWN, "meta.adapts=out/bias", "training.task=dmer"])  # fmt: skip
    train(config, read_corpus(small_data[1]), tmp_path / "run")
    with pytest.raises(UsageError, match="export DSAML_NETWORKS=tests.test_networks:Levels"):
        load_model(tmp_path / "run")
    assert isinstance(load_model(tmp_path / "run", network="tests.test_networks:Levels").model, Levels)  # fmt: skip


def test_what_adapts_has_to_be_there(small_data, tmp_path):
    config = with_settings(preset("tiny"), [*SMALL_MODEL, OWN])
    with pytest.raises(UsageError, match="meta.adapts=predictor/out/bias: no parameter is called so; there are Dense_0, out"):  # fmt: skip
        train(config, read_corpus(small_data[1]), tmp_path / "run")


class WithStatistics(nn.Module):
    """BatchNorm that knows nothing but `train`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, log_mel, global_embedding, train=False, *, present=None):
        x = nn.BatchNorm(use_running_average=not train)(log_mel.mean(axis=2))
        curves = nn.Dense(2, name="out")(x)
        return ModelOutput(arousal=curves[..., 0], valence=curves[..., 1])


def test_a_network_of_ones_own_is_trained_in_train_mode(small_data, tmp_path):
    name = "tests.test_networks:WithStatistics"
    config = with_settings(preset("tiny"), [*SMALL_MODEL, f"model.class={name}", "model.dropout=0", "training.task=dmer"])  # fmt: skip
    train(config, read_corpus(small_data[1]), tmp_path / "run")
    statistics = load_model(tmp_path / "run", network=name).variables["batch_stats"]
    assert np.abs(statistics["BatchNorm_0"]["mean"]).max() > 0.01
