"""ImageBind embeddings through the whole way: weights, shards, training, prediction. Real sizes, drawn weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from data_prep import analysis
from data_prep.analysis import analyse, finish
from data_prep.audio import load_audio
from data_prep.base import DataError
from data_prep.deam import read_deam
from data_prep.features import TINY, FeatureConfig
from data_prep.imagebind import Embedder, weights
from data_prep.imagebind.fbank import stretch_clips
from data_prep.prepare import prepare
from data_prep.shards import find_dataset, read_corpus, read_facts
from dsaml_jax import DSAML
from dsaml_jax.cli import main
from dsaml_jax.config import preset, with_settings
from dsaml_jax.runs import RunInfo, initial_variables, save_model
from dsaml_jax.training.start import fit_config
from tests.conftest import SMALL_DMER
from tests.deam_files import AUDIO, make_deam
from tests.test_imagebind import published_weights


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_deam(tmp_path_factory.mktemp("deam"), {str(i): (60, 60) for i in range(2, 5)})


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "audio.safetensors"
    weights.save(path, published_weights(), source="drawn")
    return path


@pytest.fixture(scope="module")
def data(root, weights_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    arguments = ["prepare", "deam", "--root", root, "--out", out, "--features", "tiny", "--quiet",
                 "--embedding", "imagebind", "--imagebind-weights", weights_file]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.mark.slow
def test_shards_hold_the_mean_over_three_clips_of_each_window(root, weights_file, data):
    corpus = read_corpus(data)
    assert corpus.embedding.shape == (3, 1024)
    embed = Embedder(weights.load(weights_file)[0]).embed
    for song, embedding in zip(corpus.song_ids, corpus.embedding, strict=True):
        waveform, rate = load_audio(root / AUDIO / f"{song}.wav")
        clips = stretch_clips(waveform, rate, [(15.0, 45.0)])
        # float32 in batches of another size.
        np.testing.assert_allclose(embedding, embed(clips)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_weights_are_named_wherever_features_are(weights_file, data):
    facts = read_facts(find_dataset(data))
    digest = weights.digest(weights_file)
    assert facts["features"]["weights"] == digest
    assert f"-imagebind-{digest}-clip-" in str(find_dataset(data))
    assert "CC-BY-NC" in (find_dataset(data) / "card" / "README.md").read_text()


@pytest.mark.slow
def test_predict_asks_for_the_same_weights(root, weights_file, data, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    corpus = read_corpus(data)
    config = fit_config(with_settings(preset("tiny"), SMALL_DMER), corpus)
    variables = initial_variables(DSAML(config.model), corpus.features, jax.random.key(0))
    save_model(run, variables, RunInfo(config, corpus.features, "imagebind"))
    predict = ["predict", "--checkpoint", run, root / AUDIO / "2.wav", "--out", out]
    assert main([str(argument) for argument in predict]) == 2
    assert "--imagebind-weights" in capsys.readouterr().err
    predict += ["--imagebind-weights", weights_file]
    assert main([str(argument) for argument in predict]) == 0
    assert len((out / "2.csv").read_text().splitlines()) == 1 + 92
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights_file.read_bytes()[:-4] + bytes(4))
    assert main([str(argument) for argument in [*predict[:-1], other]]) == 2
    assert "other weights" in capsys.readouterr().err


def test_missing_weights_are_asked_for(root, tmp_path, capsys):
    arguments = ["prepare", "deam", "--root", root, "--out", tmp_path, "--embedding", "imagebind"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "dsaml convert imagebind" in capsys.readouterr().err
    with pytest.raises(DataError, match="belong to the ImageBind embeddings"):
        FeatureConfig(embedding="imagebind")


@pytest.mark.parametrize(("per", "rows"), [("clip", 2), ("step", 61)])
def test_only_what_the_model_reads_is_embedded(per, rows):
    """One stretch per window or per step, where it belongs in the file."""
    config = FeatureConfig(16_000, 60, 50, 8, "imagebind", per, weights="0" * 8)
    waveform = np.random.RandomState(0).randn(16_000 * 50).astype(np.float32) * 0.1
    read = []
    made = finish(analyse(waveform, 16_000, config, start=15.0, steps=61), remembering(read))
    first = {"clip": (15.0, 45.0), "step": (0.0, 30.0)}[per]
    last = {"clip": (15.5, 45.5), "step": (30.0, 60.0)}[per]
    clips = np.concatenate(read)
    assert clips.shape == (rows, 3, 1, 128, 204) and made.embedding.shape == (rows, 1024)
    assert max(map(len, read)) <= 8
    np.testing.assert_array_equal(clips[[0, -1]], stretch_clips(waveform, 16_000, [first, last]))


def test_the_published_reading_knows_the_annotated_stretch_only():
    """The file is cut to it first, and windows that reach out of it are filled from it."""
    config = FeatureConfig(16_000, 60, 50, 8, "imagebind-reference", "step", weights="0" * 8)
    waveform = np.random.RandomState(0).randn(16_000 * 60).astype(np.float32) * 0.1
    read = []
    finish(analyse(waveform, 16_000, config, start=15.0, steps=60), remembering(read))
    expected = stretch_clips(waveform[16_000 * 15 : 16_000 * 45], 16_000, [(-15, 15), (14.5, 44.5)],
                             published=True)  # fmt: skip
    np.testing.assert_array_equal(np.concatenate(read)[[0, -1]], expected)


def remembering(read):
    def embed(clips):
        read.append(clips)
        return np.zeros((len(clips), 1024), np.float32)

    return embed


@pytest.mark.slow
def test_interrupted_embedding_goes_on(root, weights_file, tmp_path, monkeypatch):
    """A shard that is done is not embedded again, and a song whose sound did not change neither."""
    digest = weights.digest(weights_file)
    config = FeatureConfig(**{**vars(TINY), "embedding": "imagebind", "weights": digest})
    embedded = []
    original = analysis.embedder(config, weights_file)
    monkeypatch.setattr(
        "data_prep.writing.embedder",
        lambda *_: lambda clips: (embedded.append(len(clips)), original(clips))[1],
    )
    annotated = read_deam(root)
    prepare(annotated, tmp_path, config, weights=weights_file, workers=1)
    assert embedded == [1, 1, 1]
    extra = make_deam(tmp_path / "more", {str(i): (60, 60) for i in range(2, 6)})
    for name in ("2", "3", "4"):
        (extra / AUDIO / f"{name}.wav").write_bytes((root / AUDIO / f"{name}.wav").read_bytes())
    prepare(read_deam(extra), tmp_path, config, weights=weights_file, workers=1)
    assert embedded == [1, 1, 1, 1]
