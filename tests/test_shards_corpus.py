"""Shards there and back, who is held out, and windows gathered by index."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_prep.audio import load_audio
from data_prep.base import DataError, deal_splits
from data_prep.deam import read_deam
from data_prep.examples import read_examples, to_record
from data_prep.features import FeatureConfig, log_mel
from data_prep.prepare import prepare
from data_prep.shards import FACTS_FILE, VERSION, find_dataset, read_corpus
from dsaml_jax import DSAML, ModelConfig
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import (
    Fold,
    consensus_target,
    gather_windows,
    held_out,
    labelled_windows,
    to_device,
)
from dsaml_jax.corpus.batches import _draw_songs
from dsaml_jax.corpus.folds import song_weights
from tests.deam_files import AUDIO, make_deam

CONFIG = FeatureConfig(sample_rate=8000, hop_ms=50, mel_bands=8, embedding="spectral")
STEPS = {str(i): (60 + (i % 3) * 20, 60 + (i % 3) * 20) for i in range(2, 12)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_deam(tmp_path_factory.mktemp("deam"), STEPS, raters=6, seconds=70)


@pytest.fixture(scope="module")
def data(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    return prepare(read_deam(root), out, CONFIG, workers=1).parents[2]


@pytest.fixture(scope="module")
def corpus(data):
    return read_corpus(data)


def test_round_trip(root, corpus):
    annotated = {song.song_id: song for song in deal_splits(read_deam(root).songs)}
    assert set(corpus.song_ids) == set(annotated)
    for i, name in enumerate(corpus.song_ids):
        song = annotated[name]
        start, steps = corpus.song_start[i], corpus.song_steps[i]
        assert steps == len(song.arousal) and corpus.split[i] == song.split
        np.testing.assert_array_equal(corpus.mean[start : start + steps, 0], song.arousal)
        waveform, rate = load_audio(root / AUDIO / f"{name}.wav")
        expected = log_mel(waveform[15 * rate :], rate, CONFIG)[:steps]
        np.testing.assert_array_equal(
            corpus.log_mel[start : start + steps], expected.astype(np.float16)
        )
        mine = np.flatnonzero(corpus.rating_song == i)
        assert len(mine) == len(song.ratings)
        for rating, index in zip(song.ratings, mine, strict=True):
            assert corpus.annotator_ids[corpus.rating_annotator[index]] == rating.annotator_id
            first = corpus.rating_first[index]
            np.testing.assert_array_equal(corpus.ratings[first : first + steps, 1], rating.valence)


def test_shards_that_vanish_or_rot_while_they_are_streamed(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    first, second, third = (read_corpus(tmp_path / "data", stream_above_gb=0.0) for _ in range(3))
    everything = range(len(first.song_ids))
    assert len(first.store.read(everything)) == len(everything)
    shards = list((tmp_path / "data").rglob("*.array_record*"))
    for path in shards:
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="shard is missing or damaged"):
        second.store.read(everything)
    for path in shards:
        path.unlink()
    with pytest.raises(DataError, match=r"shard is missing or damaged.*prepare"):
        third.store.read(everything)


def test_a_record_has_the_same_bytes_in_every_process():
    """Protobuf shuffles the names of a map, in each process in its own way."""
    example = {
        "song_id": "1", "sound": "a@15+2", "log_mel": np.zeros((2, CONFIG.frames, CONFIG.mel_bands), CONFIG.dtype),
        "embedding": np.zeros((1, CONFIG.embedding_width), np.float32), "window_start": np.zeros(1, np.int32),
        "mean": np.zeros((2, 2), np.float32), "annotator_ids": ["x", "y"], "ratings": np.zeros((4, 2), np.float32),
    }  # fmt: skip
    record = to_record(example, CONFIG)
    assert hashlib.sha256(record).hexdigest()[:16] == "fb1ad00af497ce2b"
    (back,) = read_examples([record], CONFIG)
    assert back["song_id"] == b"1" and back["log_mel"].shape == example["log_mel"].shape


@pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # TFDS's, with some protobufs
def test_it_is_an_ordinary_tfds_dataset(data):
    builder = tfds.builder_from_directory(find_dataset(data))
    assert builder.info.splits["train"].num_examples == 7
    example = builder.as_data_source("train[:2]")[0]
    assert example["log_mel"].shape[1:] == (CONFIG.frames, CONFIG.mel_bands)


def test_no_tensorflow_and_light_imports(data):
    code = (
        "import sys, dsaml_jax; heavy = ('tensorflow', 'librosa', 'tensorflow_datasets', 'torch');"
        "assert not [m for m in heavy if m in sys.modules], 'import dsaml_jax is heavy';"
        f"from data_prep.shards import read_corpus; from pathlib import Path;"
        f"read_corpus(Path({str(data)!r})); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_data_prep_stands_alone():
    code = (
        "import sys, data_prep.shards, data_prep.synthetic, data_prep.deam;"
        "assert not [m for m in ('dsaml_jax', 'jax', 'flax') if m in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_features_of_other_settings_live_elsewhere(root, data):
    other = FeatureConfig(sample_rate=8000, hop_ms=100, mel_bands=8, embedding="spectral")
    prepare(read_deam(root), data, other, limit=3, workers=1)
    with pytest.raises(DataError, match="several datasets"):
        read_corpus(data)
    shutil.rmtree(data / "deam" / other.name)


def test_damage_is_said(data, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no prepared dataset"):
        read_corpus(tmp_path)
    folder = tmp_path / "deam" / CONFIG.name / VERSION
    folder.mkdir(parents=True)
    (folder / FACTS_FILE).write_text(json.dumps({"name": "x"}))
    with pytest.raises(DataError, match="damaged"):
        read_corpus(tmp_path)


def test_nobody_is_in_two_parts(corpus):
    parts = held_out(corpus)
    people = [set(corpus.rating_annotator[part.ratings]) for part in parts.values()]
    songs = [set(part.songs) for part in parts.values()]
    for sets in (people, songs):
        assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    for part in parts.values():
        assert set(corpus.rating_song[part.ratings]) <= set(part.songs)
        assert set(part.ratings) <= set(part.all_ratings)


def test_held_out_people_do_not_decide_a_target(corpus):
    """Curves of held-out people are poisoned; neither target changes."""
    parts = held_out(corpus)
    poisoned = corpus.ratings.copy()
    people = {name: set(corpus.rating_annotator[part.ratings]) for name, part in parts.items()}
    allowed = {"train": people["train"], "validation": people["train"] | people["validation"]}
    for name, who in allowed.items():
        part = parts[name]
        for rating in part.all_ratings:
            if corpus.rating_annotator[rating] not in who:
                first = corpus.rating_first[rating]
                poisoned[first : first + corpus.song_steps[corpus.rating_song[rating]]] = 9.0
    other = dataclasses.replace(corpus, ratings=poisoned)
    for name in allowed:
        part = parts[name]
        clean, dirty = consensus_target(corpus, part), consensus_target(other, part)
        for song in part.songs:
            rows = slice(corpus.song_start[song], corpus.song_start[song] + corpus.song_steps[song])
            np.testing.assert_array_equal(clean[rows], dirty[rows])
            mine = part.consensus[corpus.rating_song[part.consensus] == song]
            curves = [
                corpus.ratings[f:][: corpus.song_steps[song]] for f in corpus.rating_first[mine]
            ]
            # float32: means of a few curves.
            np.testing.assert_allclose(clean[rows], np.mean(curves, axis=0), atol=1e-6)


def test_songs_without_ratings_keep_the_corpus_mean(corpus):
    unrated = dataclasses.replace(
        corpus,
        rating_song=corpus.rating_song[:0],
        rating_annotator=corpus.rating_annotator[:0],
        rating_first=corpus.rating_first[:0],
    )
    # All were left out in reading, and some of them may be held out here.
    part = held_out(unrated)["train"]
    assert (unrated.raters > 0).all() and np.isnan(consensus_target(unrated, part)).all()
    unknown = dataclasses.replace(unrated, raters=np.zeros_like(corpus.raters))
    np.testing.assert_array_equal(consensus_target(unknown, part), corpus.mean)
    assert (song_weights(unknown, part, part.songs) == 1.0).all()


def test_where_nobody_is_held_out_the_published_mean_is_the_target(corpus):
    for fold in (Fold(everyone=True), Fold(3, 0, 1, everyone=True)):
        for part in held_out(corpus, fold).values():
            np.testing.assert_array_equal(consensus_target(corpus, part), corpus.mean)
            assert (song_weights(corpus, part, part.songs) == 1.0).all()
    tests = [held_out(corpus, Fold(3, 0, fold, everyone=True))["test"].songs for fold in range(3)]
    assert sorted(np.concatenate(tests)) == list(range(len(corpus.song_ids)))


def test_a_song_counts_by_how_many_raters_are_in_its_target(corpus):
    part = held_out(corpus)["train"]
    part = dataclasses.replace(part, consensus=part.consensus[2:])
    count = np.bincount(corpus.rating_song[part.consensus], minlength=len(corpus.song_ids))
    weights = song_weights(corpus, part, part.songs)
    np.testing.assert_allclose(weights, count[part.songs] / (count[part.songs] + 3.0))
    assert len(set(count[part.songs])) > 1


def test_songs_are_drawn_in_proportion_to_their_weight():
    """In every epoch of 5 songs of weight 1, 1, 1, 3, 4 the last come once to three times, the others at most once."""
    config = with_settings(preset("tiny"), ["training.task=dmer", "training.batch_songs=5"])
    songs, weights = np.array([7, 8, 9, 3, 4]), np.array([1.0, 1.0, 1.0, 3.0, 4.0])
    windows, counts = np.zeros((5, 1), int), np.ones(5, int)
    drawn = [
        _draw_songs(songs, windows, counts, np.cumsum(weights) / 10, config, step).song
        for step in range(1, 401)
    ]
    for epoch in drawn:
        times = {song: int((epoch == song).sum()) for song in songs.tolist()}
        assert times[3] in (1, 2) and times[4] in (2, 3)
        assert max(times[song] for song in (7, 8, 9)) <= 1
    share = np.array([(np.concatenate(drawn) == song).mean() for song in songs])
    np.testing.assert_allclose(share, weights / 10, atol=0.03)  # four standard errors of 400 epochs
    alike = [
        _draw_songs(songs, windows, counts, np.arange(1, 6) / 5, config, step).song
        for step in range(1, 20)
    ]
    assert all(sorted(epoch) == sorted(songs) for epoch in alike)


@pytest.mark.slow
def test_padding_reaches_nothing(corpus):
    """A padded slot changes neither the curves nor the running statistics.

    It changes the order in which float32 is summed.
    """
    device = to_device(corpus, corpus.mean)
    model = DSAML(
        ModelConfig(
            width=8, num_heads=2, num_layers=1, ffn_width=8, dropout=0.0, embedding_width=64
        )
    )
    index = lambda *values: np.array(values, np.int32)  # noqa: E731
    real = gather_windows(device, index(1), index(0), index(0))
    padded = gather_windows(device, index(1, 0, 0), index(0, 0, 0), index(0, -1, -1))
    assert not np.asarray(padded.present[1:]).any()
    variables = jax.jit(model.init)(jax.random.key(0), real.log_mel, real.embedding)
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    results = [apply(variables, b.log_mel, b.embedding, present=b.present) for b in (real, padded)]
    np.testing.assert_allclose(results[0][0].arousal[0], results[1][0].arousal[0], atol=1e-5)
    for a, b in zip(*(jax.tree.leaves(stats) for _, stats in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_windows_by_index(corpus):
    device = to_device(corpus, corpus.mean)
    long = int(np.argmax(corpus.song_steps))  # 100 steps: windows at 0, 30, 40
    rating = int(np.flatnonzero(corpus.rating_song == long)[1])
    drawable = labelled_windows(corpus, corpus.rating_song, corpus.rating_first, corpus.ratings)[
        rating
    ]
    assert drawable.tolist() == [True, True, False]
    index = lambda *values: np.array(values, np.int32)  # noqa: E731
    batch = jax.jit(gather_windows)(device, index(long, long), index(0, 2), index(rating, -1))
    start, first = corpus.song_start[long], corpus.rating_first[rating]
    np.testing.assert_array_equal(batch.log_mel[1], corpus.log_mel[start + 40 : start + 100])
    np.testing.assert_array_equal(batch.arousal[0], corpus.ratings[first : first + 60, 0])
    np.testing.assert_array_equal(
        batch.embedding[1, 0], corpus.embedding[corpus.embedding_first[long] + 2]
    )
    assert np.asarray(batch.labelled[0]).all() and not np.asarray(batch.labelled[1]).any()
    mean = gather_windows(device, index(long), index(1))
    np.testing.assert_array_equal(mean.valence[0], corpus.mean[start + 30 : start + 90, 1])
