"""ImageBind's filter banks, audio tower and weights.

Tolerances to the published arrays: filter banks 2e-3, since the logarithm of a quiet band magnifies
the rounding of float32; embeddings 1e-4 and what the blocks give 3e-5 of the norm, for float32
through up to 12 blocks.
"""

from __future__ import annotations

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from data_prep.base import DataError
from data_prep.imagebind import AudioEncoder, Embedder, from_torch
from data_prep.imagebind.fbank import (
    clip_starts,
    cut_stretch,
    fbank,
    filled_stretch,
    mel_clips,
    stretch_clips,
)
from data_prep.imagebind.weights import digest, load, read_published, save
from data_prep.parallel import batch_sizes
from tests import recipe
from tests.golden_file import facts, like
from tests.recipe import SEED, waveform

SMALL = AudioEncoder(
    width=16, num_heads=2, num_layers=3, ffn_width=24, embedding_width=12, mel_shape=(36, 46)
)


def published_shapes(encoder=AudioEncoder()):
    """Names and shapes of the published audio tower, written out once more."""
    width, ffn = encoder.width, encoder.ffn_width
    before = "modality_preprocessors.audio."
    shapes = {
        f"{before}cls_token": (1, 1, width),
        f"{before}rgbt_stem.proj.weight": (width, 1, 16, 16),
        f"{before}rgbt_stem.norm_layer.weight": (width,),
        f"{before}rgbt_stem.norm_layer.bias": (width,),
        f"{before}pos_embedding_helper.pos_embed": (1, encoder.tokens, width),
        "modality_heads.audio.0.weight": (width,),
        "modality_heads.audio.0.bias": (width,),
        "modality_heads.audio.2.weight": (encoder.embedding_width, width),
        "modality_postprocessors.audio.1.log_logit_scale": (),
    }
    of_block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.bias_k": (1, 1, width),
        "attn.bias_v": (1, 1, width),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "norm_1.weight": (width,),
        "norm_1.bias": (width,),
        "mlp.fc1.weight": (ffn, width),
        "mlp.fc1.bias": (ffn,),
        "mlp.fc2.weight": (width, ffn),
        "mlp.fc2.bias": (width,),
        "norm_2.weight": (width,),
        "norm_2.bias": (width,),
    }
    for block in range(encoder.num_layers):
        for name, shape in of_block.items():
            shapes[f"modality_trunks.audio.blocks.{block}.{name}"] = shape
    return shapes


def published_weights(encoder=AudioEncoder(), seed=SEED + 30):
    return recipe.weights(published_shapes(encoder), seed)


def relative_error(actual, expected):
    return np.linalg.norm(like(actual, expected) - expected) / np.linalg.norm(expected)


def largest_error(actual, expected):
    return np.abs(like(actual, expected) - expected).max()


# Filter banks


@pytest.mark.parametrize(("rate", "seed"), [(16_000, SEED + 23), (44_100, SEED + 24)])
def test_fbank_matches_the_published_features(deep_golden, rate, seed):
    stored = deep_golden("imagebind_fbank")
    sound = waveform(seed, 2, rate)
    energies = fbank(sound - sound.mean(), rate)
    assert energies.dtype == np.float32 and energies.shape == (198, 128)
    assert largest_error(energies, stored[f"fbank{rate}"]) < 2e-3
    clip = mel_clips(sound, rate)[0] * 9.138 - 4.268
    assert largest_error(clip, stored[f"melspec{rate}"]) < 2e-3


def test_clips_match_the_published_features(deep_golden):
    stored = deep_golden("imagebind_fbank")
    clips = mel_clips(waveform(SEED + 25, 30, 44_100), 44_100)
    assert largest_error(clips[None], stored["clips_x30_44k"]) < 2e-3
    for seed, rate, name in (
        (SEED + 20, 44_100, "clips_x5_44k_inplace_mean"),
        (SEED + 26, 16_000, "clips_x5_16k"),
    ):
        sound = waveform(seed, 5, rate)
        kept = sound.copy()
        clips = mel_clips(sound, rate, in_place_mean=True)
        assert largest_error(clips[None], stored[name]) < 2e-3
        np.testing.assert_array_equal(sound, kept)
        # A few entries tell that the published mean is taken in place, and the sample may miss them.
        assert np.abs(mel_clips(sound, rate) - clips).max() > 5e-3
    for seconds in (30, 5):
        starts = stored[f"clip_times_{seconds}"][:, 0]
        np.testing.assert_allclose(clip_starts(seconds), starts, atol=1e-9)  # float64


def test_short_sounds_are_filled_with_zero_frames():
    sound = waveform(0, 1, 16_000)
    clips = mel_clips(sound, 16_000)
    assert clips.shape == (3, 1, 128, 204)
    np.testing.assert_array_equal(clips[0], clips[2])
    np.testing.assert_allclose(clips[..., 98:], 4.268 / 9.138, rtol=1e-6)  # float32
    # float32: scaled and back, numbers up to 16.
    np.testing.assert_allclose(
        clips[0, 0, :, :98].T * 9.138 - 4.268, fbank(sound - sound.mean(), 16_000), atol=1e-4
    )
    assert clip_starts(1.0) == clip_starts(2.0) == (0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="25 ms"):
        mel_clips(sound[:399], 16_000)


def test_silence_is_the_logarithm_of_epsilon():
    energies = fbank(np.zeros(8_000, np.float32), 16_000)
    np.testing.assert_allclose(energies, np.log(np.finfo(np.float32).eps))  # one constant


@pytest.mark.parametrize(
    ("name", "clip", "stretches"),
    [
        ("seg_noclip_5s", (0, 8), [(-2.5, 2.5), (-2, 3), (0, 5), (2.9, 7.9), (4, 9), (5, 10)]),
        ("seg_clip_1_7", (1, 7), [(0, 2), (1, 3), (5.5, 7.5)]),
        ("seg_clip_1_end", (1, 8), [(0.5, 2.5), (7, 9)]),
    ],
)
def test_stretches_are_filled_like_the_published_ones(deep_golden, name, clip, stretches):
    song = np.arange(8_000, dtype=np.float32)[1000 * clip[0] : 1000 * clip[1]] / np.float32(8_000)
    samples = [[round(1000 * (second - clip[0])) for second in stretch] for stretch in stretches]
    filled = np.stack([filled_stretch(song, first, last) for first, last in samples])
    expected = deep_golden("music_segmentation")[name]
    np.testing.assert_array_equal(like(filled, expected), expected)


def test_the_published_clip_hides_what_is_before_it(deep_golden):
    ramp = np.arange(50_000) / 50_000
    filled = filled_stretch(ramp[15_000:45_000], -15_000, 15_000)
    expected = deep_golden("music_segmentation")["seg_global_0_30_quirk"]
    assert largest_error(filled[None, ::50], expected) < 1e-6  # float32


def test_stretches_that_leave_a_short_song():
    song = np.arange(10)
    np.testing.assert_array_equal(cut_stretch(song, -5, 4), song[:4])
    np.testing.assert_array_equal(cut_stretch(song, 6, 15), song[6:])
    np.testing.assert_array_equal(filled_stretch(song, -15, 25), np.tile(song, 3))


def test_stretch_clips_are_clips_of_each_stretch():
    song = waveform(1, 7, 16_000)
    clips = stretch_clips(song, 16_000, [(-4, 3), (2, 6), (5, 20)])
    for got, (first, last) in zip(clips, [(0, 3), (2, 6), (5, 7)], strict=True):
        np.testing.assert_array_equal(got, mel_clips(song[16_000 * first : 16_000 * last], 16_000))
    song = waveform(1, 4, 44_100)
    published = stretch_clips(song, 44_100, [(-1, 3)], published=True)
    filled = filled_stretch(song, -44_100, 3 * 44_100)
    np.testing.assert_array_equal(published[0], mel_clips(filled, 44_100, in_place_mean=True))
    with pytest.raises(DataError, match="no sound"):
        stretch_clips(song, 44_100, [(9, 12)])


def test_filter_banks_do_without_jax():
    code = "import sys, data_prep.imagebind.fbank; assert not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# The tower


@pytest.fixture(scope="module")
def tower():
    return from_torch(published_weights())


@pytest.fixture(scope="module")
def mel():
    return mel_clips(waveform(SEED + 25, 30, 44_100), 44_100)


@pytest.fixture(scope="module")
def encoded(tower, mel):
    """Embeddings of the three clips, and what the tower computes on the way."""

    @jax.jit
    def run(variables, mel):
        return AudioEncoder().apply(
            variables,
            mel,
            capture_intermediates=lambda module, _: module.name in ("stem_norm", "blocks", "head"),
            mutable=["intermediates"],
        )

    return run(tower, mel)


def test_the_tower_matches_the_published_one(deep_golden, tower, encoded):
    stored = deep_golden("imagebind_audio")
    per_clip, captured = encoded
    assert per_clip.dtype == jnp.float32
    assert relative_error(per_clip, stored["embedding_per_clip"]) < 1e-4
    assert relative_error(per_clip.mean(axis=0, keepdims=True), stored["embedding_mean"]) < 1e-4
    np.testing.assert_allclose(np.linalg.norm(per_clip, axis=-1), 20.0, rtol=1e-5)  # float32
    captured = captured["intermediates"]
    (head,) = captured["head"]["__call__"]
    assert relative_error(head, stored["head_out"]) < 1e-4
    (patches,) = captured["stem_norm"]["__call__"]
    params = tower["params"]
    tokens = np.concatenate([params["class_token"][None], patches[0]]) + params["position"]
    assert relative_error(tokens, stored["tokens_clip0"]) < 3e-5
    (blocks,) = captured["blocks"]["__call__"]
    for block in (0, 1, 11):
        expected = stored[f"block{block}_clip0_every4th_token"]
        assert relative_error(blocks[block, 0, ::4], expected) < 3e-5
    assert jax.tree.reduce(lambda n, x: n + x.size, tower, 0) == 86_235_649  # the scale too


def test_bfloat16_stays_near_float32(tower, mel, encoded):
    encoder = AudioEncoder(dtype=jnp.bfloat16)
    per_clip = jax.jit(encoder.apply)(tower, mel)
    assert per_clip.dtype == jnp.float32
    assert relative_error(per_clip, encoded[0]) < 0.06  # measured: 0.011; 8 bits, 12 blocks


@pytest.fixture(scope="module")
def small():
    return from_torch(published_weights(SMALL), SMALL)


def test_converted_weights_have_the_form_of_fresh_ones(small):
    mel = jnp.zeros((1, 1, *SMALL.mel_shape))
    fresh = jax.eval_shape(SMALL.init, jax.random.key(0), mel)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), fresh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), small) == shapes


@pytest.mark.parametrize("windows", [0, 1, 7])
def test_batches_of_windows_equal_one_by_one(small, windows):
    random = np.random.RandomState(0)
    clips = random.standard_normal((windows, 3, 1, *SMALL.mel_shape)).astype(np.float32)
    embedder = Embedder(small, SMALL, max_windows=4)
    embedded = embedder.embed(clips)
    assert embedded.shape == (windows, 12) and embedded.dtype == np.float32
    encode = jax.jit(SMALL.apply)
    for window, actual in zip(clips, embedded, strict=True):
        expected = np.mean([encode(small, clip[None])[0] for clip in window], axis=0)
        # float32 in batches of another size; the norm is 20.
        np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_batch_sizes_are_few_powers_of_two():
    assert list(batch_sizes(13, 8)) == [8, 4, 1]
    assert list(batch_sizes(20, 8)) == [8, 8, 4]
    assert list(batch_sizes(0, 8)) == []
    with pytest.raises(ValueError, match="power of two"):
        Embedder({}, SMALL, max_windows=3)


# Weights


def test_published_names_are_those_of_the_published_model():
    stored = facts("imagebind_audio_names")
    assert {n: tuple(x["shape"]) for n, x in stored.items()} == published_shapes()


BIAS = "modality_trunks.audio.blocks.1.attn.in_proj_bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({BIAS: None}, f"there is no {BIAS}"),
        ({BIAS: np.zeros((1, 48))}, r"has the shape \[1, 48\] instead of \[48\]"),
        ({BIAS: np.full(48, np.nan)}, "not finite"),
        ({"modality_trunks.audio.blocks.3.norm_1.bias": np.zeros(16)}, r"has no .*blocks\.3"),
    ],
)
def test_wrong_weights_are_refused(change, message):
    tensors = {**published_weights(SMALL), **change}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    with pytest.raises(DataError, match=message):
        from_torch(tensors, SMALL)


def test_only_the_audio_tower_is_read_from_a_checkpoint(tmp_path, small):
    torch = pytest.importorskip("torch")
    audio = published_weights(SMALL)
    everything = {**audio, "modality_trunks.vision.blocks.0.norm_1.bias": np.ones(4, np.float32)}
    path = tmp_path / "imagebind_huge.pth"
    torch.save({name: torch.from_numpy(np.asarray(x)) for name, x in everything.items()}, path)
    tensors = read_published(path)
    assert set(tensors) == set(audio)
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, SMALL), small)


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["pickle", "zip", "text", "cut", "other", "no audio", "missing"])
def test_bad_checkpoints_are_one_clear_line(tmp_path, kind):
    torch = pytest.importorskip("torch")
    path, harmed = tmp_path / "imagebind_huge.pth", tmp_path / "harmed"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"modality_heads.audio.0.bias": Harm(harmed)}))
    elif kind == "zip":
        torch.save({"modality_heads.audio.0.bias": Harm(harmed)}, path)
    elif kind == "text":
        path.write_text("I am no checkpoint.\n" * 100)
    elif kind == "cut":
        torch.save({"modality_heads.audio.0.bias": torch.zeros(10_000)}, path)
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "other":
        torch.save([1, 2, 3], path)
    elif kind == "no audio":
        torch.save({"modality_heads.vision.0.bias": torch.zeros(4)}, path)
    with pytest.raises(DataError) as error:
        read_published(path)
    assert not harmed.exists()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_without_pytorch_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DataError, match=r"pip install 'dsaml_jax\[torch\]'"):
        read_published(tmp_path / "imagebind_huge.pth")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "audio.safetensors"
    save(path, published_weights(SMALL), "imagebind_huge.pth", SMALL)
    return path


def test_saved_weights_come_back(saved, small):
    variables, metadata = load(saved, SMALL)
    jax.tree.map(np.testing.assert_array_equal, variables, small)
    assert metadata["licence"] == "CC-BY-NC 4.0"
    assert metadata["source"].endswith("ImageBind, imagebind_huge.pth")
    assert "Girdhar" in metadata["citation"] and "2305.05665" in metadata["citation"]
    assert len(digest(saved)) == 8
    other = saved.with_name("other.safetensors")
    save(other, published_weights(SMALL, seed=1), "imagebind_huge.pth", SMALL)
    assert digest(other) != digest(saved)
    kept = safetensors.numpy.load_file(saved)
    jax.tree.map(np.testing.assert_array_equal, kept, published_weights(SMALL))


def spoil(path, kind):
    content = path.read_bytes()
    tensors = published_weights(SMALL)
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[:-100])
    elif kind == "longer":
        path.write_bytes(content + bytes(100))
    elif kind == "huge header":
        path.write_bytes((2**60).to_bytes(8, "little") + content[8:])
    elif kind == "foreign":
        safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    elif kind == "half":
        halves = {name: np.asarray(array, np.float16) for name, array in tensors.items()}
        safetensors.numpy.save_file(halves, path, {"format": "imagebind-audio-1"})
    elif kind == "sizes":
        save(path, published_weights(SMALL.clone(width=32)), "x.pth", SMALL.clone(width=32))


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "cut", "longer", "huge header", "foreign", "half", "sizes"]
)
def test_bad_weight_files_are_one_clear_line(saved, kind):
    spoil(saved, kind)
    with pytest.raises(DataError) as error:
        load(saved, SMALL)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_left_of_a_refused_save(tmp_path):
    with pytest.raises(DataError, match="there is no"):
        save(tmp_path / "audio.safetensors", {}, "imagebind_huge.pth", SMALL)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="no such file"):
        digest(tmp_path / "audio.safetensors")
