"""MSD_musicnn: the published network, and how a song is cut for it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data_prep.analysis import analyse, embedder, finish
from data_prep.audio import resample
from data_prep.features import MUSICNN_WIDTH, TINY, FeatureConfig
from data_prep.musicnn import spectrogram, weights
from data_prep.musicnn.network import Musicnn, embedding
from data_prep.musicnn.patches import (
    PATCH_FRAMES,
    MusicnnInput,
    patch_starts,
)
from data_prep.parallel import batch_sizes
from tests.conftest import SHARED

MUSICNN = FeatureConfig(**{**vars(TINY), "embedding": "musicnn"})
SONGS = ("1001", "1500", "2010")


@pytest.fixture(scope="module")
def whole():
    path = SHARED / "golden" / "musicnn.npz"
    if not path.is_file():
        pytest.skip(f"compared with one patch only: {path} is not there")
    return dict(np.load(path))


def close_to(out, theirs):
    """Float32 in another order of sums: 9e-7 of the tags, 3e-5 of the largest of each other array were seen."""
    np.testing.assert_allclose(out.tags, theirs["tags"], atol=1e-5)
    for name in ("penultimate", "mean_pool", "max_pool"):
        largest = np.abs(theirs[name]).max()
        np.testing.assert_allclose(getattr(out, name), theirs[name], atol=1e-4 * largest, rtol=1e-4)


def test_the_published_network(golden):
    stored = golden("musicnn")
    log_mel = np.log10(10_000 * stored["power"].astype(np.float32) + 1)
    out = Musicnn().apply(weights.load(), log_mel[None])
    close_to(out, {name: array[None] for name, array in stored.items()})


@pytest.mark.parametrize("song", SONGS)
def test_the_published_network_on_whole_excerpts(whole, song):
    out = Musicnn().apply(weights.load(), whole[f"{song}:log_mel"])
    close_to(out, {name: whole[f"{song}:{name}"] for name in ("tags", "penultimate", "mean_pool", "max_pool")})  # fmt: skip


def test_the_published_spectrogram(whole):
    ours = spectrogram.log_mel(whole["1001:waveform_16k"])
    # Rounding to float16 may fall to either side, by a thousandth of the power.
    np.testing.assert_allclose(ours[:PATCH_FRAMES], whole["1001:log_mel"][0], atol=2e-2)
    assert ours.shape == (193, 96)


def test_loud_music_does_not_overflow():
    """A full-scale square wave has a power that float16 times 10,000 cannot hold."""
    loud = np.sign(np.sin(np.arange(16_000) / 5)).astype(np.float32)
    found = spectrogram.log_mel(loud)
    assert np.isfinite(found).all() and found.max() > 4.0
    assert np.isfinite(spectrogram.log_mel(32_767 * loud)).all()  # integers as they are


def test_every_weight_is_used_once():
    variables = weights.load()
    like = jax.eval_shape(Musicnn().init, jax.random.key(0), np.zeros((1, PATCH_FRAMES, 96)))
    assert jax.tree.structure(like) == jax.tree.structure(variables)
    assert jax.tree.map(np.shape, like) == jax.tree.map(np.shape, variables)
    out = Musicnn().apply(variables, np.zeros((2, PATCH_FRAMES, 96), np.float32))
    assert embedding(out).shape == (2, MUSICNN_WIDTH)


@given(st.integers(1, 5000))
def test_patches_reach_every_frame(frames):
    starts = patch_starts(frames)
    assert starts[0] == 0 and (np.diff(starts) > 0).all()
    assert starts[-1] == max(frames - PATCH_FRAMES, 0)
    assert (np.diff(starts) <= PATCH_FRAMES // 2 + 1).all()


@given(st.integers(0, 200), st.sampled_from([1, 2, 32]))
def test_batches_are_powers_of_two(count, limit):
    sizes = list(batch_sizes(count, limit))
    assert sum(sizes) == count and all(x & (x - 1) == 0 and x <= limit for x in sizes)


def test_a_stretch_is_the_mean_of_its_patches_and_each_is_heard_once():
    frames = 187 + 5 * 94
    log_mel = np.repeat(np.arange(frames, dtype=np.float32)[:, None], 96, axis=1)
    heard = []

    def embed(patches):
        heard.append(len(patches))
        return patches[:, 0, :1]  # the number of the first frame

    second = spectrogram.HOP / spectrogram.SAMPLE_RATE
    whole, early, outside = MusicnnInput(
        log_mel, ((0.0, frames * second), (0.0, (94 + 187 / 2 + 1) * second), (-9.0, -8.0))
    ).embed(embed)
    assert heard == [6]
    assert whole == pytest.approx(np.mean(np.arange(6) * 94)) and early == pytest.approx(47.0)
    assert outside == 0.0  # the nearest


@pytest.mark.parametrize("per", ["clip", "step"])
def test_features_of_a_song(per, tmp_path):
    config = FeatureConfig(**{**vars(MUSICNN), "embedding_per": per})
    waveform = 0.1 * np.random.RandomState(0).standard_normal(44_100 * 40).astype(np.float32)
    features = finish(analyse(waveform, 44_100, config), embedder(config, None))
    assert features.embedding.shape == (2 if per == "clip" else 80, MUSICNN_WIDTH)
    assert np.isfinite(features.embedding).all()
    shifted = finish(analyse(waveform, 44_100, config, start=5.0, steps=20), embedder(config, None))
    assert len(shifted.log_mel) == 20
    short = finish(analyse(waveform[:30_000], 44_100, config), embedder(config, None))
    assert np.isfinite(short.embedding).all()  # shorter than one patch


@pytest.mark.parametrize("per", ["clip", "step"])
def test_both_embeddings_stand_side_by_side(per):
    waveform = 0.1 * np.random.RandomState(0).standard_normal(16_000 * 20).astype(np.float32)
    both, musicnn, spectral = (
        finish(analyse(waveform, 16_000, config), embedder(config, None)).embedding
        for name in ("musicnn-spectral", "musicnn", "spectral")
        for config in [FeatureConfig(**{**vars(MUSICNN), "embedding": name, "embedding_per": per})]
    )
    np.testing.assert_array_equal(both, np.concatenate([musicnn, spectral], axis=-1))


def test_what_is_heard_does_not_depend_on_the_rate():
    """A tone at 44.1 and at 16 kHz is the same tone."""
    time = np.arange(44_100 * 5) / 44_100
    tone = (0.2 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    low = resample(tone, 44_100, 16_000)
    found = [
        finish(analyse(x, rate, MUSICNN), embedder(MUSICNN, None)).embedding
        for x, rate in ((tone, 44_100), (low, 16_000))
    ]
    # Resampling the tone twice or once differs by 1e-3 in its spectrum's quiet bands.
    np.testing.assert_allclose(*found, atol=0.05 * np.abs(found[0]).max())


@pytest.mark.slow
def test_prepared_trained_and_used(tmp_path, small_data):
    """The whole way with nothing downloaded."""
    from data_prep.deam import read_deam
    from data_prep.prepare import prepare
    from data_prep.shards import read_corpus
    from dsaml_jax.config import preset, with_settings
    from dsaml_jax.listener import predict_file
    from dsaml_jax.runs import load_model
    from dsaml_jax.training import train
    from tests.conftest import SMALL_DMER

    prepare(read_deam(small_data[0], name="synthetic"), tmp_path / "data", MUSICNN, limit=12)
    corpus = read_corpus(tmp_path / "data")
    assert corpus.embedding.shape[1] == MUSICNN_WIDTH
    train(with_settings(preset("tiny"), [*SMALL_DMER, "training.steps=2", "training.validate_every=2"]), corpus, tmp_path / "run")  # fmt: skip
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16_000 * 6) / 9), 16_000)
    assert np.isfinite(predict_file(load_model(tmp_path / "run"), tmp_path / "a.wav")).all()
