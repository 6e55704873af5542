"""Preparing: it goes on after a kill, decodes nothing twice, is the same on any engine, and describes itself."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import filelock
import numpy as np
import pytest

from data_prep import audio, card, examples
from data_prep.base import DataError, Song
from data_prep.deam import read_deam
from data_prep.features import FeatureConfig
from data_prep.parallel import parallel_map
from data_prep.prepare import prepare
from data_prep.shards import read_corpus, read_facts
from data_prep.statistics import cronbach_alpha, describe_songs, pairwise_correlation, rater_spread
from data_prep.validation import check
from tests.deam_files import AUDIO, AVERAGED, make_deam

CONFIG = FeatureConfig(sample_rate=8000, hop_ms=50, mel_bands=8)


def names(count, first=2):
    return {str(i): (60, 60) for i in range(first, first + count)}


def contents(folder):
    """Every file of a dataset with its bytes; of shards the songs, for a record's map has no order."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".array_record" not in path.name
    }
    corpus = read_corpus(folder)
    return files | {"log_mel": corpus.log_mel.tobytes(), "embedding": corpus.embedding.tobytes()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_deam(tmp_path_factory.mktemp("deam"), names(40), raters=4)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    return prepare(read_deam(root), tmp_path_factory.mktemp("whole"), CONFIG, workers=1)


@pytest.fixture
def decoded(monkeypatch):
    """Counts the sound files that are decoded in this process."""
    files = []

    def counting(path, **options):
        files.append(path.name)
        return audio.load_audio(path, **options)

    monkeypatch.setattr(examples, "load_audio", counting)
    return files


# ---- Going on.


def test_a_kill_in_the_middle_loses_at_most_a_shard(root, whole, tmp_path, decoded):
    command = [sys.executable, "-c",
               "import sys; from pathlib import Path; from tests.test_preparing import CONFIG;"
               "from data_prep.deam import read_deam; from data_prep.prepare import prepare;"
               "prepare(read_deam(Path(sys.argv[1])), Path(sys.argv[2]), CONFIG, workers=1)",
               str(root), str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, cwd=os.path.dirname(os.path.dirname(__file__)))
    deadline = time.monotonic() + 120
    while not (marks := list(tmp_path.rglob("*.done"))) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert marks, "it ended before it could be killed"
    with pytest.raises(DataError, match="no prepared dataset"):
        read_corpus(tmp_path)
    finished = {
        song
        for mark in tmp_path.rglob("*.done")
        for song in json.loads(mark.read_text())["written"]
    }
    folder = prepare(read_deam(root), tmp_path, CONFIG, workers=1)
    assert 16 <= len(finished) < 40
    assert {name.removesuffix(".wav") for name in decoded} == set(
        read_corpus(whole).song_ids
    ) - finished
    assert contents(folder) == contents(whole)


def test_finished_is_found(root, whole, decoded):
    before = contents(whole)
    assert prepare(read_deam(root), whole.parents[2], CONFIG, workers=1) == whole
    assert not decoded and contents(whole) == before


def test_a_grown_corpus_decodes_only_what_is_new(tmp_path, decoded):
    root = make_deam(tmp_path / "deam", names(5))
    first = prepare(read_deam(root), tmp_path / "out", CONFIG, limit=4, workers=1)
    old = read_corpus(first)
    decoded.clear()
    labels = root / AVERAGED / "arousal.csv"
    labels.write_text(labels.read_text().replace("0.0", "0.1", 1))  # corrected labels, same sound
    folder = prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1)
    new = read_corpus(folder)
    assert len(decoded) == 1 and folder == first
    assert set(new.song_ids) == set(old.song_ids) | {decoded[0].removesuffix(".wav")}
    assert new.fingerprint != old.fingerprint
    for index, song in enumerate(old.song_ids):
        for now, before in zip(
            new.store.read([new.song_ids.index(song)])[0], old_features(old, index), strict=True
        ):
            np.testing.assert_array_equal(now, before)


def old_features(corpus, index):
    start, first = corpus.song_start[index], corpus.embedding_first[index]
    return (
        corpus.log_mel[start : start + corpus.song_steps[index]],
        corpus.embedding[first : first + corpus.window_count[index]],
    )


def test_a_smaller_request_does_not_replace_a_larger_dataset(root, whole):
    with pytest.raises(DataError, match="holds 36 songs that are not asked for now"):
        prepare(read_deam(root), whole.parents[2], CONFIG, limit=4, workers=1)
    assert len(read_corpus(whole).song_ids) == 40


def test_other_sound_under_the_same_name_is_noticed(tmp_path, decoded):
    root = make_deam(tmp_path / "deam", names(4))
    before = read_facts(prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1))
    sound = root / AUDIO / "3.wav"
    data = bytearray(sound.read_bytes())
    data[-1] ^= 1  # same size
    sound.write_bytes(data)
    decoded.clear()
    after = read_facts(prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1))
    assert decoded == ["3.wav"] and before["fingerprint"] != after["fingerprint"]


def test_two_at_once(root, tmp_path):
    folder = tmp_path / "deam" / CONFIG.name
    folder.mkdir(parents=True)
    with (
        filelock.FileLock(folder / ".lock"),
        pytest.raises(DataError, match="another command is preparing this"),
    ):
        prepare(read_deam(root), tmp_path, CONFIG, workers=1)


# ---- Engines.


def test_processes_write_the_same_files(root, whole, tmp_path):
    folder = prepare(read_deam(root), tmp_path, CONFIG, workers=2)
    assert contents(folder) == contents(whole)


@pytest.mark.filterwarnings("default")  # Beam's own
@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs the extra [beam]")
def test_beam_with_two_workers_writes_the_same_files(root, whole, tmp_path):
    from data_prep.beam import beam_engine

    engine = beam_engine("DirectRunner", workers=2)
    folder = prepare(read_deam(root), tmp_path, CONFIG, workers=1, engine=engine)
    assert contents(folder) == contents(whole)


def test_the_map_does_not_run_ahead_of_its_reader():
    started = []

    def items():
        for i in range(100):
            started.append(i)
            yield i

    results = parallel_map(abs, items(), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()


# ---- Checking.


def test_damaged_and_missing_sound_is_listed_before_the_work(tmp_path):
    root = make_deam(tmp_path / "deam", names(8), seconds=46)
    sounds = root / AUDIO
    (sounds / "3.wav").unlink()
    (sounds / "4.wav").write_text("no sound")
    (sounds / "5.wav").write_bytes(b"")
    make_deam(tmp_path / "short", names(1), seconds=15.2)
    shutil.copy(tmp_path / "short" / AUDIO / "2.wav", sounds / "6.wav")
    corpus = read_deam(root)
    checked = check(corpus, workers=1)
    assert [song.song_id for song in checked.songs] == ["2", "7", "8", "9"]
    assert checked.missing == ("3",)
    assert len(checked.damaged) == 3 and len(checked.lines()) == 4
    for line, what in zip(
        checked.damaged, ("not a sound file", "not a sound", "begin at 15 s"), strict=True
    ):
        assert what in line
    folder = prepare(corpus, tmp_path / "out", CONFIG, workers=1)
    assert read_facts(folder)["left_out"] == checked.lines()
    assert "4.wav" in card.read_card(folder)


def test_a_truncated_mp3_is_noticed_by_its_end(real, tmp_path):
    whole = (real / "deam" / "audio" / "3.mp3").read_bytes()
    path = tmp_path / "3.mp3"
    song = Song("3", path, 15.0, np.zeros(60, np.float32), np.zeros(60, np.float32))
    corpus = read_deam(make_deam(tmp_path / "deam", names(3)))
    for data, problems in ((whole, 0), (whole[: len(whole) // 2], 1)):
        path.write_bytes(data)
        mine = dataclasses.replace(corpus, songs=(song,))
        assert len(check(mine, workers=1).damaged) == problems


def test_damage_inside_a_file_is_found_by_a_thorough_check(real, tmp_path):
    data = bytearray((real / "deam" / "audio" / "3.mp3").read_bytes())
    data[200_000:300_000] = bytes(100_000)
    path = tmp_path / "3.mp3"
    path.write_bytes(data)
    song = Song("3", path, 15.0, np.zeros(60, np.float32), np.zeros(60, np.float32))
    corpus = read_deam(make_deam(tmp_path / "deam", names(3)))
    mine = dataclasses.replace(corpus, songs=(song,))
    assert len(check(mine, thorough=True, workers=1).damaged) == 1


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path):
    root = make_deam(tmp_path / "deam", names(4))
    for path in (root / AUDIO).iterdir():
        path.write_text("no sound")
    with pytest.raises(DataError, match="not a sound file"):
        prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1)
    assert not (tmp_path / "out").exists()


# ---- Statistics and the card.


def test_agreement_by_hand():
    traces = np.array([[0.0, 0.1, 0.2, 0.3], [0.0, 0.2, 0.4, 0.6], [0.3, 0.2, 0.1, 0.0]])
    k, variances = 3, traces.var(axis=1, ddof=1)
    alpha = k / (k - 1) * (1 - variances.sum() / traces.sum(axis=0).var(ddof=1))
    assert cronbach_alpha(traces) == pytest.approx(alpha)
    assert pairwise_correlation(traces) == pytest.approx((1 - 1 - 1) / 3)
    assert rater_spread(traces) == pytest.approx(np.std(traces, axis=0, ddof=1).mean())
    assert cronbach_alpha(np.tile(traces[:1], (4, 1))) == pytest.approx(1.0)
    gaps = traces.copy()
    gaps[0, 1] = np.nan
    assert pairwise_correlation(gaps) == pytest.approx(-1 / 3)
    assert np.isnan(cronbach_alpha(traces[:1])) and np.isnan(rater_spread(traces[:1]))
    assert np.isnan(cronbach_alpha(np.zeros((3, 4)))) and np.isnan(pairwise_correlation(traces[:1]))


def test_the_card_says_what_is_there(root, whole):
    text = card.read_card(whole)
    facts = read_facts(whole)
    statistics = describe_songs(read_deam(root).songs)
    assert facts["statistics"] == json.loads(json.dumps(statistics))
    assert statistics["songs"] == 40 and statistics["ratings"] == 160
    assert statistics["arousal"]["points"] == 2400
    for phrase in ("| songs", "2,400", "Cronbach", "spectral", "float16"):
        assert phrase in text
    pictures = {path.name for path in (whole / card.CARD_FOLDER).glob("*.png")}
    assert pictures == {"labels.png", "plane.png", "raters.png"}
    assert all(f"({name})" in text for name in pictures)


def test_names_cannot_break_the_card(whole):
    facts = read_facts(whole)
    facts["notes"] = ["<script>alert(1)</script>\n# big"]
    facts["provenance"]["citation"] = "a | b"
    text = card.card_text(facts)
    assert "<script>" not in text and "\n# big" not in text and "a \\| b" in text
