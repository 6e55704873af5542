"""The model that comes with the package: it is there, says what it learned from, and knows loud from soft."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import soundfile

import dsaml_jax
from data_prep.audio import files_below
from dsaml_jax import UsageError
from dsaml_jax.cli import main
from dsaml_jax.cli.predict import _apart, _songs
from dsaml_jax.pretrained import EXAMPLE, MODEL


def test_it_is_small_and_says_what_it_is():
    assert MODEL.stat().st_size < 8e6
    loaded = dsaml_jax.load_model(MODEL)
    assert "DEAM" in loaded.info.note and loaded.info.features.embedding == "musicnn-spectral"
    card = (MODEL.parent / "MODEL_CARD.md").read_text()
    assert "non-commercial" in card and "cross-validation" in card


def test_the_example_is_short():
    assert EXAMPLE.stat().st_size <= 500_000
    assert soundfile.info(EXAMPLE).duration <= 45.0


def curve_of(path):
    with path.open() as file:
        return np.array([[float(row["arousal"]), float(row["valence"])] for row in csv.DictReader(file)])  # fmt: skip


def test_predict_needs_no_checkpoint(tmp_path, capsys):
    """Brahms beside a soft low tone: the dance is more arousing throughout, and does not sit at zero."""
    time = np.arange(44_100 * 20) / 44_100
    soft = 0.01 * np.sin(2 * np.pi * 110 * time) * (1 - np.cos(np.pi * time / 10)) / 2
    soundfile.write(tmp_path / "soft.wav", soft, 44_100)
    out = tmp_path / "out"
    assert main(["predict", "--example", str(tmp_path / "soft.wav"), "--out", str(out)]) == 0
    assert "DEAM" in capsys.readouterr().out
    dance, tone = curve_of(out / f"{EXAMPLE.stem}.csv"), curve_of(out / "soft.csv")
    assert len(dance) == 90 and np.ptp(dance[:, 0]) > 0.1
    assert dance[:, 0].mean() > tone[:, 0].mean() + 0.2
    assert (out / f"{EXAMPLE.stem}.png").is_file()


@pytest.fixture
def folder(tmp_path):
    """Two songs, one of them deeper; and what is none."""
    root = tmp_path / "songs"
    (root / "a" / "b").mkdir(parents=True)
    (root / ".cache").mkdir()
    for place in ("one.ogg", "a/b/two.ogg", ".cache/three.ogg", ".four.ogg"):
        shutil.copy(EXAMPLE, root / place)
    (root / "notes.txt").write_text("no sound")
    (root / "link.ogg").symlink_to(root / "one.ogg")
    (root / "away").symlink_to(tmp_path)
    return root


def test_what_is_hidden_or_linked_is_left_alone(folder):
    assert [str(path.relative_to(folder)) for path in files_below(folder)] == ["a/b/two.ogg", "one.ogg"]  # fmt: skip


def test_a_folder_keeps_its_structure(folder, small_run, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(folder), "--checkpoint", str(small_run), "--out", str(out)]) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.csv"))
    assert written == ["a/b/two.csv", "one.csv"]


def test_songs_of_one_name(tmp_path):
    """In one folder their suffixes tell them apart; a file that is named twice is one; else it is said which two."""
    for place in ("a/x.ogg", "a/x.mp3", "b/x.ogg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    a, b = tmp_path / "a", tmp_path / "b"
    names = [str(name) for _, name in _apart(_songs([a, a / "x.ogg"]))]
    assert sorted(names) == ["x.mp3", "x.ogg"]
    with pytest.raises(UsageError, match=r"two songs, .*a/x.ogg and .*b/x.ogg, .*x.ogg.csv"):
        _apart(_songs([a, b]))


def test_nothing_to_predict(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in (([], "--example"), ([str(tmp_path / "empty")], "no sound files")):
        assert main(["predict", *arguments, "--out", str(tmp_path / "out")]) != 0
        assert message in capsys.readouterr().err
