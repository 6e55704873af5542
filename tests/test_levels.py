"""Learning how high curves lie: standardised inputs, the head for levels, and a CCC over the whole batch.

Tolerances of 1e-5: float32 sums of a few hundred numbers of size 1.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.dmer
from data_prep.shards import read_corpus
from dsaml_jax import DSAML, ModelConfig, ModelOutput, UsageError, evaluate
from dsaml_jax.adaptation import adapt_to_listener, to_learned
from dsaml_jax.base import SongBatch
from dsaml_jax.cli import entry
from dsaml_jax.config import PRESETS, preset, with_settings
from dsaml_jax.corpus import Fold, consensus_target, held_out, input_statistics, song_weights
from dsaml_jax.losses import dsaml_loss
from dsaml_jax.models.levels import FARTHEST
from dsaml_jax.progress import Console
from dsaml_jax.runs import export_model, load_model, read_metrics
from dsaml_jax.training import train
from dsaml_jax.training.levels import PENALTIES, fit_levels, kernel_ridge
from tests.conftest import SMALL_DMER, SMALL_MODEL
from tests.test_metrics import reference

CONFIG = ModelConfig(
    width=16, num_heads=2, num_layers=1, ffn_width=16, dropout=0.0, max_position=16, embedding_width=6,
    standardize=True, level_centres=4, listener_centres=3,
)  # fmt: skip
LEVELS = ("model.standardize=true", "model.level_centres=8", "training.batch_ccc_weight=1")


@pytest.fixture(scope="module")
def data():
    random = np.random.RandomState(0)
    mel = 3.0 + 2.0 * random.randn(2, 9, 5, 8).astype(np.float32)
    return mel, 10.0 * random.randn(2, 1, 6).astype(np.float32)


@pytest.fixture(scope="module")
def variables(data):
    made = jax.jit(DSAML(CONFIG).init)(jax.random.key(0), *data)
    made["batch_stats"]["level"] = LEVEL
    return made


LEVEL = {
    "centres": np.random.RandomState(5).randn(4, 6).astype(np.float16),
    "weights": np.random.RandomState(6).randn(4, 2).astype(np.float32),
    "gamma": np.float32(0.02),
    "listener_centres": np.random.RandomState(7).randn(3, 6).astype(np.float16),
    "listener_weights": np.random.RandomState(8).randn(3, 2).astype(np.float32),
    "listener_gamma": np.float32(0.05),
}


@jax.jit
def apply(variables, mel, embedding):
    out = DSAML(CONFIG).apply(variables, mel, embedding)
    return jnp.stack([out.arousal, out.valence], axis=-1)


def with_inputs(variables, name, mean, spread):
    stats = {**variables["batch_stats"], name: {"mean": jnp.asarray(mean), "spread": jnp.asarray(spread)}}  # fmt: skip
    return {**variables, "batch_stats": stats}


def test_units_of_the_inputs_do_not_matter(data, variables):
    """Decibels or nepers, from 0 or from 100: where mean and spread follow, the curves are the same."""
    mel, embedding = data
    curves = apply(variables, mel, embedding)
    moved = with_inputs(variables, "log_mel_input", np.full(8, 5.0, np.float32), np.full(8, 4.0, np.float32))  # fmt: skip
    moved = with_inputs(moved, "embedding_input", np.full(6, -1.0, np.float32), np.full(6, 0.5, np.float32))  # fmt: skip
    again = apply(moved, 4.0 * mel + 5.0, 0.5 * embedding - 1.0)
    np.testing.assert_allclose(again, curves, atol=1e-5)
    assert np.abs(apply(variables, 4.0 * mel + 5.0, embedding) - curves).max() > 1e-3


def test_an_odd_song_counts_no_more_than_five_deviations(data, variables):
    mel, embedding = data
    far, farther = (np.full_like(embedding, x) for x in (FARTHEST, 1e6))
    np.testing.assert_array_equal(apply(variables, mel, far), apply(variables, mel, farther))


def test_the_head_moves_whole_curves(data, variables):
    """One embedding a window: a constant is added. One a step: what each step's says."""
    mel, embedding = data
    without = {**LEVEL, "weights": np.zeros((4, 2), np.float32), "listener_weights": np.zeros((3, 2), np.float32)}  # fmt: skip
    silent = {**variables, "batch_stats": {**variables["batch_stats"], "level": without}}
    added = apply(variables, mel, embedding) - apply(silent, mel, embedding)
    assert np.abs(added).max() > 1e-3
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1], added.shape), atol=1e-5)
    per_step = np.repeat(embedding, 9, axis=1)
    np.testing.assert_allclose(apply(variables, mel, per_step), apply(variables, mel, embedding), atol=1e-5)  # fmt: skip


def test_parts_apart_are_the_whole(data, variables):
    mel, embedding = data
    model = DSAML(CONFIG)
    features = model.apply(variables, mel, method="encode")
    out = model.apply(variables, features, embedding, method="predict")
    np.testing.assert_allclose(out.arousal, apply(variables, mel, embedding)[..., 0], atol=1e-5)


def test_the_published_model_has_neither():
    defaults = ModelConfig()
    assert not defaults.standardize and not defaults.level_centres
    published = preset("reference").training
    assert published.squared_error_weight == published.batch_ccc_weight == 0.0


@pytest.mark.parametrize(
    "setting", ["model.level_centres=-1", "model.level_centres=99999999", "model.level_centres=8", "model.listener_centres=0", "model.dropout=1",
                "training.folds=1:training.song_folds=5", "training.batch_ccc_weight=-1", "training.squared_error_weight=nan"],
)  # fmt: skip
def test_settings_that_are_none(setting):
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        with_settings(preset("tiny"), setting.split(":"))


def test_what_cannot_move_the_level_is_refused(variables):
    """In training, and where a person's song is adapted to: by a model of everyone too."""
    config = with_settings(
        preset("tiny"), ["model.standardize=true", "model.level_centres=4", "training.task=dmer"]
    )
    with pytest.raises(UsageError, match="level/bias"):
        to_learned(config.meta, {"params": variables["params"]})


def test_the_preset_is_what_the_experiment_compares():
    made = with_settings(preset("tiny"), experiments.dmer.LEVELS)
    assert made == preset("levels")
    assert set(PRESETS) == {
        *entry._parser()._subparsers._group_actions[0].choices["train"]._option_string_actions["--preset"].choices
    }  # fmt: skip


def output(arousal, valence):
    return ModelOutput(arousal=jnp.asarray(arousal), valence=jnp.asarray(valence))


batch_loss = jax.jit(partial(dsaml_loss, config=ModelConfig(), batch_ccc_weight=2.0))


def test_the_batch_is_one_curve():
    random = np.random.RandomState(1)
    prediction, target = random.randn(2, 2, 4, 7).astype(np.float32)
    mask = random.rand(4, 7, 2) < 0.6
    _, terms = batch_loss(output(*prediction), *jnp.asarray(target), mask=jnp.asarray(mask))
    expected = np.mean(
        [reference("ccc", prediction[i][mask[..., i]], target[i][mask[..., i]]) for i in range(2)]
    )
    assert terms["batch_ccc"] == pytest.approx(expected, abs=1e-5)
    assert terms["total_loss"] == pytest.approx(
        float(terms["score_loss"]) + 2.0 * (1.0 - expected), abs=1e-5
    )


def test_it_sees_which_song_lies_higher():
    """Two songs whose levels are exchanged: what each curve does within itself is perfect, and the batch knows better."""
    shape = np.sin(np.arange(8.0)).astype(np.float32)
    low, high = 0.01 * shape - 0.5, 0.01 * shape + 0.5
    target = np.stack([low, high])
    _, right = batch_loss(output(target, target), target, target)
    exchanged = target[::-1].copy()
    _, wrong = batch_loss(output(exchanged, exchanged), target, target)
    assert right["batch_ccc"] == pytest.approx(1.0, abs=1e-5) and wrong["batch_ccc"] < -0.9
    assert wrong["arousal_pcc"] == pytest.approx(1.0, abs=1e-3)


def test_a_dimension_without_labels_is_left_out():
    prediction = np.random.RandomState(2).randn(2, 3, 5).astype(np.float32)
    mask = np.stack([np.ones((3, 5), bool), np.zeros((3, 5), bool)], axis=-1)
    _, terms = batch_loss(output(*prediction), *prediction, mask=jnp.asarray(mask))
    assert terms["batch_ccc"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_statistics_are_those_of_training_and_stay(small_data, tmp_path):
    """Over training from scratch, over meta-training from that, and in what is kept."""
    corpus = read_corpus(small_data[1])
    dmer = with_settings(preset("tiny"), [*SMALL_DMER, *LEVELS, "training.steps=2", "training.validate_every=2"])  # fmt: skip
    train(dmer, corpus, tmp_path / "dmer")
    begun = f"training.init_from={tmp_path / 'dmer'}"
    pdmer = with_settings(preset("tiny"), [*SMALL_MODEL, *LEVELS[:2], "meta.adapts=level/bias", begun, "training.steps=2", "training.validate_every=2"])  # fmt: skip
    train(pdmer, corpus, tmp_path / "pdmer")
    part = held_out(corpus)["train"]
    steps = [np.arange(corpus.song_steps[song]) + corpus.song_start[song] for song in part.songs]
    frames = corpus.log_mel[np.concatenate(steps)].astype(np.float64).reshape(-1, 32)
    for run in ("dmer", "pdmer"):
        kept = load_model(tmp_path / run).variables["batch_stats"]
        np.testing.assert_allclose(kept["log_mel_input"]["mean"], frames.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(kept["log_mel_input"]["spread"], frames.std(axis=0), rtol=1e-5)
        assert kept["embedding_input"]["spread"].shape == (256,)
    both = (load_model(tmp_path / run).variables["batch_stats"] for run in ("dmer", "pdmer"))
    jax.tree.map(
        np.testing.assert_array_equal,
        *(
            {name: stats[name] for name in ("log_mel_input", "embedding_input", "level")}
            for stats in both
        ),
    )


@pytest.mark.parametrize("most", [8, 100])
def test_levels_are_kernel_ridge_regression_on_the_songs_of_training(small_data, most):
    """Against scikit-learn's, with a penalty for each song; a person who is held out has no say."""
    from sklearn.kernel_ridge import KernelRidge

    corpus = read_corpus(small_data[1])
    part = held_out(corpus)["train"]
    songs = part.songs if most > len(part.songs) else part.songs[np.linspace(0, len(part.songs) - 1, most).astype(int)]  # fmt: skip
    mean, spread = input_statistics(corpus, part.songs)["embedding"]
    target = consensus_target(corpus, part)
    fitted = fit_levels(corpus, part, target, (mean, spread), most, 5)
    assert fitted["centres"].shape == (most, 256) and fitted["centres"].dtype == np.float16
    first, count = corpus.embedding_first[songs], corpus.window_count[songs]
    raw = [corpus.embedding[a : a + n].mean(axis=0) for a, n in zip(first, count, strict=True)]
    x = np.clip((np.stack(raw) - mean) / spread, -FARTHEST, FARTHEST)
    # A thousandth of a number up to 5.
    np.testing.assert_allclose(fitted["centres"][: len(songs)], x, atol=3e-3)
    assert not fitted["weights"][len(songs) :].any()
    assert fitted["listener_centres"].shape == (5, 256) and not fitted["listener_weights"].any()
    assert fitted["listener_gamma"] == pytest.approx(3 * fitted["gamma"])
    levels = np.stack([np.nanmean(target[corpus.song_start[s] :][: corpus.song_steps[s]], axis=0) for s in songs])  # fmt: skip
    share = song_weights(corpus, part, songs)
    bias = np.average(levels, axis=0, weights=share)
    np.testing.assert_allclose(fitted["bias"], bias, rtol=1e-5)
    for dimension in range(2):
        found = [
            KernelRidge(alpha=penalty, kernel="rbf", gamma=float(fitted["gamma"]))
            .fit(
                fitted["centres"][: len(songs)].astype(float), (levels - bias)[:, dimension], share
            )
            .dual_coef_
            for penalty in PENALTIES
        ]
        weights = fitted["weights"][: len(songs), dimension]
        assert min(np.abs(weights - other).max() for other in found) < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_is_the_one_that_leaving_out_one_finds(seed):
    """By doing so."""
    random = np.random.RandomState(seed)
    x, counted = random.randn(30, 3), random.uniform(0.3, 1.0, 30)
    kernel = np.exp(-0.1 * np.square(x[:, None] - x).sum(-1))
    y = np.sin(2 * x[:, 0]) + (0.1, 0.5, 2.0)[seed] * random.randn(30)

    def weights(penalty, kept):
        ridge = kernel[np.ix_(kept, kept)] + np.diag(penalty / counted[kept])
        return np.linalg.solve(ridge, y[kept])

    def error(penalty):
        kept = [np.delete(np.arange(30), i) for i in range(30)]
        errors = [y[i] - kernel[i, k] @ weights(penalty, k) for i, k in enumerate(kept)]
        return np.average(np.square(errors), weights=counted)

    expected = weights(min(PENALTIES, key=error), np.arange(30))
    np.testing.assert_allclose(kernel_ridge(kernel, y, counted), expected, atol=1e-8)


def test_the_head_says_what_was_fitted(data, variables):
    """The formula in float64; float32 of numbers up to 1, seven of them."""
    mel, embedding = data
    x = np.clip(embedding[:, 0].astype(np.float64), -FARTHEST, FARTHEST)
    expected = np.zeros((2, 2))
    for of in ("", "listener_"):
        squares = np.square(x[:, None] - LEVEL[f"{of}centres"].astype(np.float64)).sum(-1)
        expected += np.exp(-LEVEL[f"{of}gamma"] * squares) @ LEVEL[f"{of}weights"]
    np.testing.assert_allclose(apply(variables, mel, embedding).mean(axis=1), expected, atol=1e-5)


def test_an_input_that_never_moves_is_no_division_by_zero(small_data):
    corpus = read_corpus(small_data[1])
    constant = dataclasses.replace(corpus, store=_Constant(corpus))
    for mean, spread in input_statistics(constant, np.arange(3)).values():
        np.testing.assert_array_equal(mean, 2.0)
        np.testing.assert_array_equal(spread, 1.0)


class _Constant:
    """Features that are 2 everywhere."""

    def __init__(self, corpus):
        self.corpus = corpus

    def read(self, songs):
        config = self.corpus.features
        return [
            (
                np.full((self.corpus.song_steps[song], config.frames, config.mel_bands), 2.0),
                np.full((self.corpus.window_count[song], config.embedding_width), 2.0),
            )
            for song in songs
        ]


def test_the_best_checkpoint_may_be_that_of_the_least_error(small_data, tmp_path):
    config = with_settings(preset("tiny"), [*SMALL_DMER, "training.steps=4", "training.validate_every=2", "training.choose_by=rmse"])  # fmt: skip
    train(config, read_corpus(small_data[1]), tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "validation"]
    for line in lines:
        assert line["score"] == pytest.approx(1 - (line["arousal_rmse"] + line["valence_rmse"]) / 2)
    assert load_model(tmp_path / "run").step == max(lines, key=lambda line: line["score"])["step"]


def test_nothing_is_held_out_of_a_model_to_pass_on(small_data, tmp_path, capsys):
    corpus = read_corpus(small_data[1])
    fold = Fold(1)
    assert len(held_out(corpus, fold)["train"].songs) == len(corpus.song_ids)
    assert len(held_out(corpus, fold)["train"].ratings) == len(corpus.rating_song)
    settings = [*SMALL_DMER, "training.folds=1", "training.steps=4", "training.validate_every=2"]
    train(with_settings(preset("levels"), settings), corpus, tmp_path / "run", Console())
    assert load_model(tmp_path / "run").step == 4
    assert "nothing and nobody is held out" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
    with pytest.raises(UsageError, match="no song|no test|has no"):
        evaluate(load_model(tmp_path / "run"), corpus)


def test_a_model_that_knows_levels_can_be_passed_on(small_data, tmp_path):
    """Numbers that have no axis keep none."""
    settings = [*SMALL_DMER, *LEVELS, "training.steps=2", "training.validate_every=2"]
    train(with_settings(preset("tiny"), settings), read_corpus(small_data[1]), tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    export_model(loaded, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)
    assert again.variables["batch_stats"]["level"]["gamma"] > 0.0


def test_adapting_by_the_preset_is_a_share_of_the_mean_error(data):
    """All the way, it takes the mean error of the song away, in each dimension by itself."""
    config = preset("levels")
    mel, embedding = data
    model = DSAML(CONFIG)
    known = jax.jit(model.init)(jax.random.key(1), *data)
    labelled = np.random.RandomState(3).rand(2, 9, 2) < 0.7
    labels = np.random.RandomState(4).uniform(-1, 1, (2, 9, 2)).astype(np.float32)
    batch = SongBatch(mel, embedding, labels[..., 0], labels[..., 1], np.ones((2, 9), bool), labelled)  # fmt: skip
    before = apply(known, mel, embedding)
    for strength in (1.0, config.meta.strength):
        meta = dataclasses.replace(config.meta, strength=strength)
        after = apply(
            jax.jit(partial(adapt_to_listener, model, meta))(known, batch), mel, embedding
        )
        for i in range(2):
            error = np.mean((labels - before)[..., i][labelled[..., i]])
            np.testing.assert_allclose((after - before)[..., i], strength * error, atol=1e-5)
