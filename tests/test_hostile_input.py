"""Broken and hostile input: one line that says where and what, no traceback, nothing half-written, no code run."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
import struct
import tracemalloc

import jax
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from data_prep.audio import load_audio
from data_prep.base import DataError
from data_prep.card import _list
from data_prep.deam import read_averaged, read_raters, read_static
from data_prep.features import TINY
from data_prep.imagebind import weights
from data_prep.pmemo import read_dynamic
from data_prep.shards import read_corpus
from dsaml_jax import UsageError
from dsaml_jax.base import SongBatch
from dsaml_jax.cli import main
from dsaml_jax.config import preset, with_settings
from dsaml_jax.evaluation import COLUMNS, Evaluation, ListenerCurves, write_evaluation
from dsaml_jax.listener import read_annotations
from dsaml_jax.models import build_model
from dsaml_jax.reporting import Picture, figures, write_report
from dsaml_jax.runs import (
    RUN_FILE,
    RunInfo,
    load_model,
    read_metrics,
    read_run_info,
    read_status,
    save_model,
    variables_like,
    write_run_info,
)
from dsaml_jax.training import failures
from tests.conftest import SMALL_MODEL
from tests.deam_files import almost_csv
from tests.test_cli import fails
from tests.test_folder_corpus import FUZZ

RATE = 8_000
SECONDS = 40

# ---- Sound.


def noise(seconds=SECONDS, rate=RATE):
    return (0.1 * np.random.RandomState(0).standard_normal(seconds * rate)).astype(np.float32)


def refused(path):
    """What is said of a sound file, which must be one line that names it."""
    with pytest.raises(DataError) as error:
        load_audio(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def crc(data, polynomial, bits):
    value = 0
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
    return value.to_bytes(bits // 8, "big")


def silent_flac(path, blocks, *, rate=44_100, channels=8, block=65_535):
    """Silence as FLAC stores it best: 40 bytes for a block of 65,535 frames, each channel a constant."""
    about = (rate << 44 | (channels - 1) << 41 | 15 << 36 | blocks * block).to_bytes(8, "big")
    stream = b"fLaC" + b"\x80" + (34).to_bytes(3, "big") + struct.pack(">HH", block, block)
    stream += bytes(6) + about + bytes(16)
    for number in range(blocks):
        header = b"\xff\xf8" + bytes([0x70, (channels - 1) << 4 | 8])
        header += chr(number).encode() + struct.pack(">H", block - 1)
        header += crc(header, 0x07, 8)
        frame = header + bytes(3 * channels)
        stream += frame + crc(frame, 0x8005, 16)
    path.write_bytes(stream)


def traced_peak(function):
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gigabyte_of_silence_in_a_few_kilobytes(tmp_path, monkeypatch):
    """Whole it needs no more memory than its waveform; above the limit it is refused by its header."""
    path = tmp_path / "silence.flac"
    silent_flac(path, 480)
    assert path.stat().st_size < 25_000
    monkeypatch.setenv("DSAML_MAX_GB", "1")
    message, peak = traced_peak(lambda: refused(path))
    assert "1.01 GB when decoded (8 channels" in message and "$DSAML_MAX_GB" in message
    assert peak < 1e6  # nothing is decoded
    silent_flac(path, 40)
    (waveform, rate), peak = traced_peak(lambda: load_audio(path))
    assert rate == 44_100 and len(waveform) == 40 * 65_535 and not waveform.any()
    assert peak < 4 * len(waveform) + 16e6  # where all channels at once are 84 MB


def test_limits_can_be_changed(tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(), RATE)
    for name, value, message in (
        ("DSAML_MAX_HOURS", "0.01", "40 s, longer than the limit of 36 s"),
        ("DSAML_MAX_GB", "0.001", "0.00128 GB when decoded (1 channels, 8000 Hz)"),
        ("DSAML_MAX_HOURS", "long", "must be a number above 0"),
        ("DSAML_MAX_GB", "nan", "must be a number above 0"),
    ):
        monkeypatch.setenv(name, value)
        with pytest.raises(DataError) as error:
            load_audio(path)
        assert message in str(error.value) and name in str(error.value)
        monkeypatch.delenv(name)
    monkeypatch.setenv("DSAML_MAX_HOURS", "")
    assert len(load_audio(path)[0]) == SECONDS * RATE


def test_many_channels(tmp_path):
    """A second of 1,024 channels is 33 MB; it is averaged a block at a time."""
    path = tmp_path / "x.wav"
    soundfile.write(path, np.tile(noise(1)[:, None], 64), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(path)[0], noise(1), atol=1e-6)  # float32: a mean of 64
    soundfile.write(path, np.zeros((RATE, 1024), np.int16), RATE)
    _, peak = traced_peak(lambda: load_audio(path))
    assert peak < 10e6  # all channels at once are 33 MB


@pytest.mark.parametrize("rate", [1, 1_999, 384_001, 768_000])
def test_odd_rates(tmp_path, rate):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(2 * rate), rate)
    assert f"{rate} Hz; rates from" in refused(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "not numbers"), (np.inf, "not numbers"), (-np.inf, "not numbers"), (3e38, "not numbers"),
     (1e300, "not numbers"), (-1e11, "samples up to 1e+11")],
)  # fmt: skip
def test_samples_that_are_no_sound(tmp_path, value, message):
    """One of them in two channels; a float32 of 3e38 is finite, the sum of both is not."""
    path = tmp_path / "x.wav"
    samples = np.zeros((100_000, 2))
    samples[70_000] = value
    soundfile.write(path, samples, RATE, subtype="DOUBLE" if value == 1e300 else "FLOAT")
    assert message in refused(path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au"])
def test_every_beginning_of_a_sound_file(tmp_path, suffix):
    """Cut anywhere, it is refused or gives the samples that are there: never others."""
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, noise(), RATE)
    data, whole = path.read_bytes(), load_audio(path)[0]
    for length in (0, 1, 4, 12, 44, 100, 1_000, len(data) // 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        try:
            waveform, _ = load_audio(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert len(waveform) <= len(whole)
            # In lossy codecs the last frames overlap with what is gone; before, rounding at most.
            np.testing.assert_allclose(waveform[:-2000], whole[: len(waveform)][:-2000], atol=1e-3)


def test_a_cut_mp3_is_said_to_be_cut(tmp_path):
    """Its header claims the whole: libsndfile's blocks went on with the samples of the block before."""
    path = tmp_path / "x.mp3"
    soundfile.write(path, noise(), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut off; it claims 40.0 s of sound and has 19." in refused(path)


def test_an_mp3_that_does_not_say_its_length(tmp_path):
    """Of a variable rate without a header the length is estimated, here by half too long."""
    path = tmp_path / "x.mp3"
    quiet_then_loud = np.concatenate([np.zeros(60 * RATE), noise(20), np.zeros(40 * RATE)])
    soundfile.write(path, quiet_then_loud, RATE, bitrate_mode="VARIABLE", compression_level=0.3)
    data = path.read_bytes()
    first, second = data.index(b"\xff\xe3"), data.index(b"\xff\xe3", data.index(b"Xing"))
    path.write_bytes(b"ID3\x04\x00\x00\x00\x00\x00\x64" + b"Info" * 25 + data[second:])
    with soundfile.SoundFile(path) as sound:
        claimed = sound.frames
    waveform, _ = load_audio(path)
    assert first == 0 and len(waveform) < claimed - RATE
    assert abs(len(waveform) - len(quiet_then_loud)) < RATE / 2
    assert not np.abs(waveform[85 * RATE :]).max() > 1e-3  # silence, but for the coding's noise


@pytest.mark.parametrize("suffix", ["raw", "vox", "gsm", "au", "mp3", "txt", ""])
def test_the_name_of_a_file_says_nothing(tmp_path, suffix):
    """libsndfile takes any bytes for sound where the name ends in .vox, .gsm or .au, and asks more of a .raw."""
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, noise(), RATE, format="WAV")
    assert len(load_audio(path)[0]) == SECONDS * RATE
    path.write_bytes(b"I am no music.\n" * 100)
    assert "not a sound file" in refused(path)


# ---- Tables.


@pytest.mark.parametrize(
    ("read", "header", "cells"),
    [
        (read_annotations, ["time", "arousal", "valence"], ["0.5", "1", "-1"]),
        (read_averaged, ["song_id", "sample_15000ms", "sample_15500ms"], ["1", "0.2", "-0.3"]),
        (read_raters, ["WorkerId", "sample_15000ms", "sample_15500ms"], ["1", "0.2", "-0.3"]),
        (lambda path: read_static([path]), ["song_id", "arousal_mean", "valence_mean"], ["1", "2", "9"]),
        (read_dynamic, ["musicId", "frameTime", "Arousal(mean)", "Valence(mean)"], ["1", "0.5", "0"]),
    ],
    ids=["own", "averaged", "raters", "static", "pmemo"],
)  # fmt: skip
def test_any_bytes_are_a_table_or_a_clear_error(tmp_path, read, header, cells):
    path = tmp_path / "x.csv"

    @settings(FUZZ, max_examples=60)
    @given(almost_csv(header, cells))
    def holds(data):
        path.write_bytes(data)
        try:
            read(path)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)

    holds()


# ---- Files of runs: JSON, checkpoints, bundles.


def zeros_like(config):
    return jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        variables_like(config, TINY, build_model(config.model)),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of DMER: its path, and itself."""
    config = with_settings(
        preset("tiny"), [*SMALL_MODEL, "training.task=dmer", "model.embedding_width=2"]
    )
    zeros = np.zeros((1, 60), np.float32)
    batch = SongBatch(
        log_mel=np.zeros((1, 60, TINY.frames, TINY.mel_bands), np.float32),
        embedding=np.zeros((1, 1, 2), np.float32),
        arousal=zeros, valence=zeros, present=zeros == 0, labelled=zeros == 0,
    )  # fmt: skip
    variables = zeros_like(config)
    made = failures.Bundle(
        config, 3, "songs 1", variables, None, batch, np.zeros((2, 2), np.uint32), ("1",)
    )
    path = tmp_path_factory.mktemp("bundle") / "step-3.safetensors"
    failures.write_bundle(path, made)
    return path, made


def header_of(data):
    """JSON header of a safetensors file, and the numbers after it."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, numbers):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def test_a_bundle_that_is_none(bundle, tmp_path, capsys):
    """A header of a huge length, deep JSON, other types, shapes of another model: each is one line."""
    header, numbers = header_of(bundle[0].read_bytes())

    def metadata(**values):
        return with_header(header | {"__metadata__": header["__metadata__"] | values}, numbers)

    wide = json.loads(header["__metadata__"]["config"])
    wide["model"]["width"] = 32
    half = {
        name: entry | {"dtype": "BF16", "shape": [entry["shape"][0] * 2, *entry["shape"][1:]]}
        if name == "query/arousal" else entry for name, entry in header.items()
    }  # fmt: skip
    cases = {
        "empty": b"", "short": b"\x01", "huge header": (2**62).to_bytes(8, "little") + b"{}",
        "100 MB header": (10**8).to_bytes(8, "little") + b"{" * 100, "no metadata": with_header(
            {name: entry for name, entry in header.items() if name != "__metadata__"}, numbers),
        "deep": metadata(songs="[" * 100_000), "no songs": metadata(songs="3"),
        "deep config": metadata(config="[" * 100_000), "step": metadata(step="9" * 30),
        "another width": metadata(config=json.dumps(wide)), "cut": with_header(header, numbers[:-1]),
        "bfloat16": with_header(half, numbers),
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    for name, data in cases.items():
        path.write_bytes(data)
        assert str(path) in fails(capsys, "runs", "replay", path), name


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """Folder of a model's run.json, without checkpoints."""
    folder = tmp_path_factory.mktemp("described")
    write_run_info(folder, RunInfo(preset("tiny"), TINY, "x", "note"))
    return folder


def flawed(values, place, value):
    copy = json.loads(json.dumps(values))
    inner = copy
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return copy


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_run_json_of_other_types(described, tmp_path, data):
    """Any value in any place: a configuration whose every field has its type, or one line."""
    write_run_info(described, RunInfo(preset("tiny"), TINY, "x", "note"))
    values = json.loads((described / RUN_FILE).read_text())
    places = [(name,) for name in values] + [("features", name) for name in values["features"]]
    for section, fields in values["config"].items():
        places += [("config", section), *(("config", section, name) for name in fields)]
    value = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
        | st.sampled_from([[], [1], {}, 0, -1, 2**40, 10**30, 1e308])
    )  # fmt: skip
    place = data.draw(st.sampled_from(places))
    (tmp_path / RUN_FILE).write_text(json.dumps(flawed(values, place, value)))
    try:
        info = read_run_info(tmp_path)
    except UsageError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)
    else:
        hash(info.config), hash(info.features)
        assert isinstance(info.config.meta.steps, int) and isinstance(info.config.meta.adapts, str)


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"[]", b"9" * 5000]
)
def test_run_json_that_is_none(tmp_path, capsys, text):
    """Python gives up on JSON of great depth by an error that is no ValueError."""
    (tmp_path / RUN_FILE).write_bytes(text)
    assert "damaged" in fails(capsys, "runs", "show", tmp_path)
    assert main(["runs", "ls", str(tmp_path)]) == 0


def test_what_a_run_wrote_about_itself(described, tmp_path, capsys):
    """A status or metrics of others are no word; results of others are said to be damaged."""
    shutil.copytree(described, tmp_path / "run")
    for status in ('{"state": "<b>", "step": 1, "steps": 2, "seconds": 1}', "[" * 100_000, "7"):
        (tmp_path / "run" / "status.json").write_text(status)
        assert read_status(tmp_path / "run") is None
    for line in ('{"step": 1}', '{"step": 1, "kind": "x"}', '{"step": 1, "kind": "train", "total_loss": "<b>"}',
                 '{"step": 1, "kind": ["train"]}', "[" * 100_000):  # fmt: skip
        (tmp_path / "run" / "metrics.jsonl").write_text(line + "\n")
        assert read_metrics(tmp_path / "run") == []
    for results in ("[", "[]", '{"summary": {"a": {}}, "protocol": "clean"}'):
        (tmp_path / "run" / "results.json").write_text(results)
        assert "results.json: damaged" in fails(capsys, "runs", "show", tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
    (tmp_path / "run" / "results.json").unlink()
    write_run_info(tmp_path / "run", RunInfo(preset("tiny"), TINY, "x", "a\x1b[2J<script>\x07"))
    assert main(["runs", "show", str(tmp_path / "run")]) == 0
    assert "a\\x1b[2J<script>\\x07" in capsys.readouterr().out
    assert "<script" not in (tmp_path / "run" / "report.html").read_text()


def test_a_personal_model_of_other_shapes(tmp_path, capsys):
    """run.json and checkpoint disagree: nothing is allocated in the sizes that run.json asks for."""
    config = with_settings(
        preset("tiny"), [*SMALL_MODEL, f"model.embedding_width={TINY.embedding_width}"]
    )
    variables = zeros_like(config)
    save_model(tmp_path / "m", variables, RunInfo(config, TINY, "x"))
    load_model(tmp_path / "m")
    song = tmp_path / "song.wav"
    soundfile.write(song, noise(), RATE)
    values = json.loads((tmp_path / "m" / RUN_FILE).read_text())
    for place, value in (
        (("config", "model", "width"), 2**16), (("config", "model", "embedding_width"), None),
        (("config", "model", "max_position"), 1), (("features", "mel_bands"), 4096),
        (("config", "model", "num_layers"), 10**6),
    ):  # fmt: skip
        (tmp_path / "m" / RUN_FILE).write_text(json.dumps(flawed(values, place, value)))
        said = fails(
            capsys, "predict", "--checkpoint", tmp_path / "m", song, "--out", tmp_path / "o"
        )
        assert str(tmp_path / "m") in said
    assert not (tmp_path / "o").exists()


# ---- Nothing executes what it reads.


class Trap:
    """Its pickle makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_code_is_not_run(small_data, tmp_path, capsys):
    """In every file that could hold a pickle."""
    pytest.importorskip("torch", reason="PyTorch (extra [torch]) is not installed")
    import torch

    sprung = tmp_path / "sprung"
    bare, zipped = tmp_path / "bare.pth", tmp_path / "zipped.pth"
    bare.write_bytes(pickle.dumps({"weight": Trap(sprung)}))
    torch.save({"weight": Trap(sprung)}, zipped)
    for path in (bare, zipped):
        for kind in ("reference", "imagebind"):
            said = fails(capsys, "convert", kind, path, "--out", tmp_path / "out")
            assert "not a state dict that loads safely" in said and str(path) in said
    data = shutil.copytree(small_data[1], tmp_path / "data")
    (labels,) = data.rglob("labels.npz")
    np.savez(labels, song_ids=np.array([Trap(sprung)], object))
    with pytest.raises(DataError, match="damaged dataset"):
        read_corpus(data)
    for path in (bare, zipped):
        with pytest.raises(DataError):
            weights.load(path)
        with pytest.raises(UsageError):
            failures.read_bundle(path)
    assert not sprung.exists() and not (tmp_path / "out").exists()
    pickle.loads(bare.read_bytes())["weight"].close()
    assert sprung.exists()  # the trap works


def test_state_dicts_that_are_none(tmp_path, capsys):
    """Names that are numbers; a number repeated a trillion times; no numbers at all; a layer without sizes."""
    torch = pytest.importorskip("torch", reason="PyTorch (extra [torch]) is not installed")
    name = "modality_trunks.audio.x"
    bias = "fusion_model.fusion_project.bias"
    cases = {
        "other than a state dict": {1: torch.zeros(3)}, "each stored once": {name: torch.zeros(1).expand(10**12)},
        "no plain tensor": {name: torch.zeros(3).to_sparse()}, "real numbers": {name: torch.zeros(2, dtype=torch.complex64)},
        "there is no modality": {name: torch.nn.Parameter(torch.zeros(3).bfloat16())}, "loads safely": None,
    }  # fmt: skip
    path = tmp_path / "x.pth"
    for message, state_dict in cases.items():
        torch.save(state_dict, path) if state_dict else path.write_bytes(b"PK\x03\x04" + bytes(99))
        said = fails(capsys, "convert", "imagebind", path, "--out", tmp_path / "o")
        assert message in said and str(path) in said
    torch.save({bias: torch.tensor(1.0)}, path)
    assert "no vector" in fails(capsys, "convert", "reference", path, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [({"format": "x"}, "not the format"), ({}, "not the format"),
     ({"format": weights.FORMAT}, "there is no modality_")],
)  # fmt: skip
def test_imagebind_weights_of_others(tmp_path, values, message):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path, values)
    with pytest.raises(DataError, match=message):
        weights.load(path)
    header, numbers = header_of(path.read_bytes())
    for data in (b"", b"{}", (2**63).to_bytes(8, "little"), with_header(header, numbers[:-1])):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a safetensors file"):
            weights.load(path)


# ---- Names.

NAMES = ("=1+1", "+a", "-3", "@SUM(A1)", "＝1", "<script>alert(1)</script>", "--><img src=x>", r"a$\frac$", "音楽",
         "it's \"quoted\"", "[click](javascript:alert(1))", "x" * 100)  # fmt: skip


def test_names_in_tables_and_pages(tmp_path):
    """No cell is a formula, no name becomes a tag, and each can be read back."""
    scores = dict.fromkeys(COLUMNS, 0.5)
    rows = [
        {"method": "m", "annotator": name, "support": name, "song": name} | scores for name in NAMES
    ]
    summary = {"m": {column: {"mean": 0.5, "sd": 0.1} for column in COLUMNS}}
    made = Evaluation(
        "clean", "pdmer", rows, summary, {"rows_per_method": len(rows), "corpus": NAMES[5]}
    )
    write_evaluation(made, tmp_path)
    read = list(csv.DictReader((tmp_path / "per_song.csv").open(encoding="utf-8", newline="")))
    for name, row in zip(NAMES, read, strict=True):
        assert row["song"] == row["annotator"] == row["support"]
        assert row["song"].removeprefix("'") == name and row["song"][0] not in "=+-@＝"
    curves = np.zeros((len(NAMES), 60, 2))
    shown = ListenerCurves("1", NAMES, curves, curves, curves)
    picture = Picture(NAMES[5], NAMES[6], figures.listener_curves(shown))
    write_report(tmp_path / "r.html", evaluation=made, pictures=[picture], findings=list(NAMES),
                 facts={name: name for name in NAMES} | {"bad": "\udcff"})  # fmt: skip
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page


def test_names_in_the_data_card():
    line = _list([*NAMES, r"\](x", "a\x1b[2Jb", "[x]: http://example.org"], "")
    assert "<script" not in line and "\x1b" not in line
    assert not re.search(r"(?<!\\)(\\\\)*\](?=[(\[:])", line)


def test_paths_with_anything_in_them(small_run, tmp_path, capsys):
    """Quotes, mathematics, other scripts, bytes that are no text, control characters, a long name; and `..`."""
    strange = [
        "a b",
        'it\'s "x"',
        r"a$\frac$",
        "音楽 \u202e",
        "a\x1b[2Jb\nc",
        "y" * 245,
        "-x",
        os.fsdecode(b"\xff\xfe"),
    ]
    folder = tmp_path / "sp ace 'q'"
    folder.mkdir()
    sounds = [folder / ".." / folder.name / f"{name}.wav" for name in strange]
    for path in sounds:
        soundfile.write(tmp_path / "x.wav", noise(31), RATE)
        os.replace(tmp_path / "x.wav", path)
    out = folder / ".." / "out $x$ <b>"
    assert (
        main(["predict", "--checkpoint", str(small_run), *map(str, sounds), "--out", str(out)]) == 0
    )
    assert {path.name for path in out.iterdir()} == {
        f"{n}.{x}" for n in strange for x in ("csv", "png")
    }
    drawn = tmp_path / "drawn.csv"
    personalize = ["personalize", "--checkpoint", small_run, "--annotations", drawn]
    copy = shutil.copytree(small_run, tmp_path / os.fsdecode(b"mine\xff"))
    assert "UTF-8" in fails(capsys, "predict", "--checkpoint", copy, sounds[0], "--out", out)
    long = tmp_path / ("z" * 300)
    assert "too long" in fails(capsys, "predict", "--checkpoint", small_run, long, "--out", out)
    assert "too long" in fails(capsys, *personalize, "--audio", sounds[0], "--out", long)
    assert "too long" in fails(capsys, "runs", "show", long)
    bad = folder / "a\x1b[2J\nb.wav"
    bad.write_bytes(b"")
    said = fails(capsys, "predict", "--checkpoint", small_run, bad, "--out", out)
    assert "\x1b" not in said and "not a sound file" in said
    assert not list(out.rglob(".*"))
