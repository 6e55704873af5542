"""MIDI files become sound: the right notes at the right times, the same bytes again, whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import soundfile

from data_prep import midi
from data_prep.base import DataError
from data_prep.card import read_card
from data_prep.midi import find_renderer, render_songs
from data_prep.prepare import prepare
from data_prep.shards import find_dataset, read_corpus
from data_prep.vgmidi import read_vgmidi
from dsaml_jax.cli import main
from tests.test_preparing import CONFIG, contents
from tests.vgmidi_files import make_vgmidi, two_each, write_midi

NAMES = ["Dawn", "Noon", "Dusk", "Night", "Late"]


def clone(root, names=NAMES, people=10):
    return make_vgmidi(root, two_each(names, people))


def sounds(corpus):
    return {song.song_id: song.audio for song in corpus.songs}


def test_notes_sound_when_they_are_struck(tmp_path):
    corpus = render_songs(read_vgmidi(clone(tmp_path, ["Dawn", "Noon"])), tmp_path / "out", workers=1)  # fmt: skip
    for place, song in enumerate(corpus.songs):  # Dawn begins at C3, Noon half a tone higher
        wave, rate = soundfile.read(song.audio)
        assert (rate, wave.ndim) == (48_000, 1)
        assert len(wave) / rate == pytest.approx(8.0, abs=0.01)  # of a block of samples
        assert 0.01 < np.abs(wave).max() < 1
        for step in (0, 5, 11):
            heard = wave[int((step / 2 + 0.05) * rate) :][: int(0.4 * rate)]
            power = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), 8 * len(heard)))
            struck = 440 * 2 ** ((48 + place + step - 69) / 12)
            strongest = np.argmax(power) * rate / (8 * len(heard))
            harmonic = round(strongest / struck)
            # A fifth of a semitone: nothing but this note, or one of its harmonics, is the loudest.
            assert harmonic >= 1 and abs(strongest / struck / harmonic - 1) < 0.012


def test_the_same_bytes_again_whatever_the_number_of_processes(tmp_path):
    corpus = read_vgmidi(clone(tmp_path / "vgmidi", NAMES[:3]))
    one = render_songs(corpus, tmp_path / "one", workers=1)
    two = render_songs(corpus, tmp_path / "two", workers=2)
    assert one.notes == two.notes
    for first, second in zip(sounds(one).values(), sounds(two).values(), strict=True):
        assert first.name == second.name and first.read_bytes() == second.read_bytes()


def test_what_is_there_is_used_and_what_is_stale_is_not(tmp_path, monkeypatch):
    root = clone(tmp_path / "vgmidi", NAMES[:3])
    first = sounds(render_songs(read_vgmidi(root), tmp_path / "out", workers=1))
    monkeypatch.setattr(midi, "_render", lambda work: pytest.fail(f"{work} again"))
    assert sounds(render_songs(read_vgmidi(root), tmp_path / "out", workers=1)) == first
    changed = next(name for name in first if name.endswith("Noon"))
    monkeypatch.undo()
    write_midi(root / "labelled" / "midi" / f"{changed}.mid", seconds=9)
    second = sounds(render_songs(read_vgmidi(root), tmp_path / "out", workers=1))
    assert {name for name in first if first[name] != second[name]} == {changed}
    louder = tmp_path / "other.sf2"
    louder.write_bytes(find_renderer().soundfont.read_bytes() + b"\0\0")
    others = sounds(render_songs(read_vgmidi(root), tmp_path / "out", soundfont=louder, workers=1))
    assert not set(others.values()) & {*first.values(), *second.values()}
    assert all(path.is_file() for path in others.values())


def bad_midi(kind, path):
    whole = path.read_bytes()
    if kind == "without notes":
        write_midi(path, notes=False)
    elif kind == "too long":
        write_midi(path, seconds=20)
    else:
        path.write_bytes({"cut off": whole[: len(whole) // 2], "empty": b"", "something else": b"no music" * 99}[kind])  # fmt: skip


@pytest.mark.parametrize("kind", ["without notes", "cut off", "empty", "something else", "too long"])  # fmt: skip
def test_a_midi_file_that_cannot_be_played_is_named(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("DSAML_MAX_HOURS", str(12 / 3600))
    root = clone(tmp_path / "vgmidi", NAMES[:3])
    bad = root / "labelled" / "midi" / "Series_NES_The Game_Noon.mid"
    bad_midi(kind, bad)
    corpus = render_songs(read_vgmidi(root), tmp_path / "out", workers=1)
    assert [song.song_id[-4:] for song in corpus.songs if song.audio is None] == ["Noon"]
    (note,) = [note for note in corpus.notes if str(bad) in note]
    assert "\n" not in note
    assert {"without notes": "holds no notes", "too long": "lasts 20 s"}.get(kind, "no MIDI file") in note  # fmt: skip
    assert "2 songs rendered" in corpus.notes[-1]


def test_only_what_is_asked_for_is_rendered_and_failures_are_made_up_for(tmp_path):
    root = clone(tmp_path / "vgmidi")
    corpus = render_songs(read_vgmidi(root), tmp_path / "out", limit=2, workers=1)
    chosen = [song for song in corpus.songs if song.audio.suffix == ".flac"]
    assert len(chosen) == 2 == len(list((tmp_path / "out").glob("*.flac")))
    bad_midi("empty", root / "labelled" / "midi" / f"{chosen[0].song_id}.mid")
    corpus = render_songs(read_vgmidi(root), tmp_path / "out", limit=2, workers=1)
    there = [song.song_id for song in corpus.songs if song.audio and song.audio.suffix == ".flac"]
    assert len(there) == 2 and chosen[1].song_id in there and chosen[0].song_id not in there


def test_recordings_of_the_download_come_first(tmp_path, monkeypatch):
    root = clone(tmp_path / "vgmidi", NAMES[:2])
    (root / "labelled" / "audio").mkdir()
    for name in ("The_Game_Dawn", "The_Game_Noon"):
        soundfile.write(root / "labelled" / "audio" / f"{name}.wav", np.ones(8 * 4000) / 9, 4000)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail("nothing to render"))
    corpus = render_songs(read_vgmidi(root), tmp_path / "out")
    assert [path.name for path in sounds(corpus).values()] == ["The_Game_Dawn.wav", "The_Game_Noon.wav"]  # fmt: skip
    monkeypatch.undo()
    (root / "labelled" / "audio" / "The_Game_Noon.wav").unlink()
    corpus = render_songs(read_vgmidi(root), tmp_path / "out", workers=1)
    assert [path.suffix for path in sounds(corpus).values()] == [".wav", ".flac"]
    assert corpus.notes[-1] == "1 songs have a recording of the download"


def test_what_is_not_installed_or_no_soundfont_is_said(tmp_path, monkeypatch):
    corpus = read_vgmidi(clone(tmp_path / "vgmidi", NAMES[:2]))
    with pytest.raises(DataError, match=r"nowhere.sf2: the SoundFont cannot be read.*--soundfont"):
        render_songs(corpus, tmp_path / "out", soundfont=tmp_path / "nowhere.sf2")
    (tmp_path / "x.sf2").write_bytes(b"RIFF1234WAVE")
    with pytest.raises(DataError, match=r"x.sf2: no SoundFont"):
        render_songs(corpus, tmp_path / "out", soundfont=tmp_path / "x.sf2")
    (tmp_path / "x.sf2").write_bytes(b"RIFF1234sfbk")
    broken = render_songs(corpus, tmp_path / "out", soundfont=tmp_path / "x.sf2", workers=1)
    assert set(sounds(broken).values()) == {None} and "cannot be played" in broken.notes[-2]
    with filelock.FileLock(tmp_path / "out" / ".lock"), pytest.raises(DataError, match="another command"):  # fmt: skip
        render_songs(corpus, tmp_path / "out")
    for missing in ("midirenderer", "mido", "pretty_midi"):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, find=find, missing=missing: None if name == missing else find(name))  # fmt: skip
        with pytest.raises(DataError, match=r"pip install 'dsaml_jax\[midi\]'") as error:
            render_songs(corpus, tmp_path / "out")
        assert "\n" not in str(error.value)
        monkeypatch.undo()
    assert not list((tmp_path / "out").glob("*.flac"))


def test_a_real_piece(real, tmp_path):
    """As long as it is, and as loud as when its spectrogram was laid beside its notes."""
    source = real / "vgmidi" / "labelled" / "midi" / "Banjo-Kazooie_N64_Banjo-Kazooie_Motzhand.mid"
    renderer = find_renderer()
    target = renderer.target(tmp_path, source)
    assert not midi._render((source, target, renderer))
    wave, rate = soundfile.read(io.BytesIO(target.read_bytes()))
    assert len(wave) / rate == pytest.approx(24.0, abs=0.01)
    loudness = [20 * np.log10(np.sqrt(np.mean(part**2))) for part in np.array_split(wave, 8)]
    # In dB of full scale; 1 dB: what another version may do, not another SoundFont or another tempo.
    np.testing.assert_allclose(loudness, [-39.9, -39.4, -39.1, -39.1, -38.8, -39.2, -39.9, -39.5], atol=1)  # fmt: skip


# ---- The whole way.

PREPARE = """
import sys
from pathlib import Path
from data_prep.midi import render_songs
from data_prep.prepare import prepare
from data_prep.vgmidi import read_vgmidi
from tests.test_preparing import CONFIG
if __name__ == "__main__":
    out = Path(sys.argv[2])
    corpus = render_songs(read_vgmidi(Path(sys.argv[1])), out / "vgmidi" / "rendered", workers=2)
    prepare(corpus, out, CONFIG, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["rendering", "features"])
def test_a_kill_in_the_middle_leaves_nothing_half_written(tmp_path, moment):
    names = [f"Title {i}" for i in range(24)]
    root = clone(tmp_path / "vgmidi", names, people=24)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PREPARE, str(root), str(out)], cwd=Path(__file__).parent.parent)  # fmt: skip
    pattern, count = ("vgmidi/rendered/[!.]*.flac", 3) if moment == "rendering" else ("**/.preparing.*", 1)  # fmt: skip
    deadline = time.monotonic() + 300
    while len(list(out.glob(pattern))) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2.5)  # its workers end by themselves
    rendered = {path: path.read_bytes() for path in out.glob("vgmidi/rendered/*.flac")}
    assert rendered and (moment == "features" or len(rendered) < len(names))
    for path in rendered:
        if not path.name.startswith("."):
            assert len(soundfile.read(path)[0]) == pytest.approx(8 * 48_000, abs=480)
    with pytest.raises(DataError, match="no prepared dataset"):
        read_corpus(out)
    corpus = render_songs(read_vgmidi(root), out / "vgmidi" / "rendered", workers=1)
    folder = prepare(corpus, out, CONFIG, workers=1)
    after = {path: path.read_bytes() for path in out.glob("vgmidi/rendered/*.flac")}
    assert len(after) == len(names) and not any(path.name.startswith(".") for path in after)
    whole = {path: content for path, content in rendered.items() if not path.name.startswith(".")}
    assert all(after[path] == content for path, content in whole.items())
    undisturbed = render_songs(read_vgmidi(root), tmp_path / "b" / "vgmidi" / "rendered", workers=1)
    other = prepare(undisturbed, tmp_path / "b", CONFIG, workers=1)
    assert contents(folder) == contents(other)


def test_the_command_renders_prepares_and_says_what_it_found(tmp_path, capsys):
    root, out = clone(tmp_path / "vgmidi"), tmp_path / "out"
    words = ["prepare", "vgmidi", "--root", str(root), "--out", str(out), "--workers", "1"]
    words += ["--features", "tiny", "--embedding", "spectral"]
    assert main([*words, "--check"]) == 0
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "5 songs rendered from MIDI by midirenderer" in said and "10 people" in said
    card = read_card(find_dataset(out))
    assert "5 songs rendered from MIDI" in card and "joined over gaps of up to 2 s" in card
    corpus = read_corpus(out)
    assert (len(corpus.song_ids), len(corpus.annotator_ids), len(corpus.rating_song)) == (5, 10, 20)
    bad_midi("empty", root / "labelled" / "midi" / "Series_NES_The Game_Noon.mid")
    assert main([*words, "--check"]) == 2
    assert "1 of 5 annotated songs have no sound file" in capsys.readouterr().out
    for wrong in (
        ["prepare", "vgmidi", "--root", str(root), "--check"],
        ["prepare", "deam", "--root", str(root), "--out", str(out), "--soundfont", "x.sf2"],
        ["prepare", "vgmidi", "--root", str(root), "--out", str(out), "--audio-start", "3"],
        ["prepare", "vgmidi", "--root", str(root), "--out", str(out), "--max-gap", "3"],
        ["prepare", "vgmidi", "--root", str(root), "--out", str(out), "--name", "mine"],
    ):
        assert main(wrong) != 0
        error = capsys.readouterr().err.strip()
        assert "\n" not in error and error
