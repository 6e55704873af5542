"""Decoding, resampling, log-mel patches and the spectral embedding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import soundfile

from data_prep.analysis import analyse, finish
from data_prep.audio import load_audio, resample
from data_prep.base import DataError
from data_prep.features import TINY, FeatureConfig, log_mel, spectral_embedding, window_starts
from tests.golden_file import like
from tests.recipe import SEED, waveform


def test_log_mel_matches_the_published_features(deep_golden):
    stored = deep_golden("audio_logmel")
    actual = log_mel(waveform(SEED + 20, 5, 44_100), 44_100)
    assert actual.shape == (10, 51, 128)
    expected = stored["log_mel_x5"]
    power = np.exp(expected)
    # float32: the logarithm of a power far below the peak is that of rounding errors.
    heard = power > 1e-6 * power.max()
    np.testing.assert_allclose(like(actual[None], expected)[heard], expected[heard], atol=2e-3)
    # float32: one logarithm.
    silence = log_mel(np.zeros(22_050, np.float32), 44_100)
    expected = stored["log_mel_silence"]
    np.testing.assert_allclose(like(silence, expected), expected, atol=1e-5)


def test_resampling_matches_the_published_reader(deep_golden):
    channels = [waveform(SEED + seed, 1, 48_000) for seed in (21, 22)]
    stereo = np.stack(channels, axis=1)
    mono = stereo.mean(axis=1)
    actual = resample(mono, 48_000, 44_100)
    expected = deep_golden("audio_logmel")["read_stereo48k"]
    # Filters in float32.
    np.testing.assert_allclose(like(actual[None], expected), expected, atol=1e-4)
    np.testing.assert_array_equal(log_mel(stereo, 48_000), log_mel(mono, 48_000))


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 96_000])
def test_resampling_keeps_a_tone(rate):
    time = np.arange(2 * rate) / rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    out = resample(tone, rate, 44_100)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(out)) / 44_100)
    assert len(out) == 88_200
    # The filter's ripple; at the ends it has less than it needs.
    np.testing.assert_allclose(out[2000:-2000], expected[2000:-2000], atol=5e-3)


def test_incomplete_tail_is_dropped():
    assert log_mel(np.ones(22_050 * 2 + 22_049, np.float32), 44_100).shape[0] == 2
    with pytest.raises(DataError, match="less than half a second"):
        log_mel(np.ones(100, np.float32), 44_100)


@pytest.mark.parametrize(
    "config", [TINY, FeatureConfig(embedding="spectral", embedding_per="step", mel_bands=16)]
)
def test_feature_shapes(config):
    waveform = np.random.RandomState(0).randn(44_100 * 34).astype(np.float32)
    made = finish(analyse(waveform, 44_100, config), None)
    assert made.log_mel.shape == (68, config.frames, config.mel_bands)
    rows = 68 if config.embedding_per == "step" else 2
    assert made.embedding.shape == (rows, config.embedding_width)
    np.testing.assert_array_equal(made.window_start, [0, 8])
    assert np.isfinite(made.embedding).all()


@pytest.mark.parametrize("per", ["clip", "step"])
def test_features_of_a_stretch_of_a_file(per):
    """Patches are those of the stretch; an embedding per step looks 15 s beyond its ends."""
    config = dataclasses.replace(TINY, sample_rate=8000, mel_bands=8, embedding_per=per)
    waveform = np.random.RandomState(0).randn(8000 * 80).astype(np.float32)
    whole = log_mel(waveform, 8000, config)
    made = finish(analyse(waveform, 8000, config, start=20.0, steps=61), None)
    np.testing.assert_array_equal(made.log_mel, whole[40:101])
    np.testing.assert_array_equal(made.window_start, [0, 1])
    stretch = whole[45:105] if per == "step" else whole[41:101]
    row = 35 if per == "step" else 1
    np.testing.assert_array_equal(made.embedding[row], spectral_embedding(stretch))
    if per == "step":
        early = analyse(waveform, 8000, config, start=2.0, steps=61)
        np.testing.assert_array_equal(early.embedding[0], spectral_embedding(whole[:34]))


@pytest.mark.parametrize("rate", [11_025, 22_051, 8_000])
@pytest.mark.parametrize("start", [0.0, 1.5, 15.0, 15.5])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_step_is_there_at_any_rate(rate, start, steps):
    waveform = np.random.RandomState(0).randn(rate * 20).astype(np.float32)
    assert len(analyse(waveform, rate, TINY, start=start, steps=steps).log_mel) == steps


def test_sound_that_ends_before_the_annotations():
    with pytest.raises(DataError, match="ends before"):
        analyse(np.ones(8000 * 15, np.float32), 8000, TINY, start=15.0, steps=60)


def test_windows_cover_every_step():
    for steps in (1, 59, 60, 61, 89, 90, 91, 250, 1225):
        starts = window_starts(steps)
        covered = np.zeros(steps, bool)
        for start in starts:
            covered[start : start + 60] = True
        assert covered.all() and starts[0] == 0 and len(set(starts)) == len(starts)


def test_spectral_embedding_is_eight_statistics():
    patches = np.random.RandomState(0).randn(60, 11, 32).astype(np.float32)
    embedding = spectral_embedding(patches).reshape(8, 32)
    flat = patches.reshape(-1, 32)
    # float32: moments of 660 numbers.
    np.testing.assert_allclose(embedding[0], (flat.mean(0) + 6) / 4, atol=1e-5)
    np.testing.assert_allclose(embedding[1], flat.std(0) / 2, atol=1e-5)
    np.testing.assert_allclose(embedding[3], (np.median(flat, 0) + 6) / 4, atol=1e-5)


def test_every_setting_is_in_the_name():
    names = {
        FeatureConfig(**change).name
        for change in (
            {},
            {"mel_bands": 64},
            {"hop_ms": 20},
            {"frame_ms": 40},
            {"sample_rate": 48_000},
            {"embedding_per": "step"},
            {"dtype": "float32"},
        )  # fmt: skip
    }
    assert len(names) == 7


@pytest.mark.parametrize(
    "settings", [{"hop_ms": 7}, {"embedding": "imagebund"}, {"embedding_per": "song"}]
)
def test_bad_feature_settings(settings):
    with pytest.raises(DataError):
        FeatureConfig(**settings)


def test_channels_are_averaged_and_peaks_kept(tmp_path):
    path = tmp_path / "x.wav"
    stereo = np.stack([np.full(1000, 1.5), np.full(1000, 0.5)], axis=1)
    soundfile.write(path, stereo, 8_000, subtype="FLOAT")
    waveform, rate = load_audio(path)
    assert rate == 8_000
    np.testing.assert_allclose(waveform, 1.0)  # exact in float32


def make_bad(path, kind):
    if kind == "text":
        path.write_text("I am no music.\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), 44_100, format="WAV")
    elif kind == "nan":
        soundfile.write(path, np.full(1000, np.nan), 44_100, format="WAV", subtype="FLOAT")
    elif kind == "rate":
        soundfile.write(path, np.zeros(1000), 1, format="WAV")
    elif kind == "long":
        soundfile.write(path, np.zeros(50_000), 8_000, format="WAV")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("text", "not a sound file"), ("empty", "not a sound file"), ("no samples", "no samples"),
     ("nan", "not numbers"), ("rate", "1 Hz"), ("long", "longer than"), ("missing", "no such")],
)  # fmt: skip
def test_bad_sound_is_one_clear_line(tmp_path, kind, message, monkeypatch):
    monkeypatch.setenv("DSAML_MAX_HOURS", str(3 / 3600))
    path = tmp_path / "song.mp3"
    make_bad(path, kind)
    with pytest.raises(DataError, match=message) as error:
        load_audio(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
