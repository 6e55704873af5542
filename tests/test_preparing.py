"""Preparing: it goes on after a kill, decodes nothing twice, is the same on any engine, and describes itself.

Where no tolerance is given, statistics are float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from data_prep import audio, card, dataset, examples, writing
from data_prep.base import DataError, Song
from data_prep.deam import read_deam
from data_prep.features import FeatureConfig
from data_prep.parallel import AHEAD, parallel_map
from data_prep.prepare import prepare
from data_prep.shards import read_corpus, read_facts
from data_prep.statistics import cronbach_alpha, describe_songs, pairwise_correlation, rater_spread
from data_prep.validation import check
from tests.deam_files import AUDIO, AVERAGED, make_deam, write_static

CONFIG = FeatureConfig(sample_rate=8000, hop_ms=50, mel_bands=8, embedding="spectral")


def names(count, first=2, steps=60):
    return {str(i): (steps, steps) for i in range(first, first + count)}


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
    return make_deam(tmp_path_factory.mktemp("deam"), names(200, steps=12), raters=4, seconds=21.5)


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


@pytest.mark.slow
def test_200_songs_with_a_kill_in_the_middle(root, whole, tmp_path, decoded):
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(root), str(tmp_path)],
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("[!.]*.done"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (working,) = tmp_path.rglob(".preparing.*")
    finished = {song for result in writing.read_marks(working) for song in result.written}
    assert workers and 48 <= len(finished) < 200
    with pytest.raises(DataError, match="no prepared dataset"):
        read_corpus(tmp_path)
    folder = prepare(read_deam(root), tmp_path, CONFIG, workers=1)
    everything = set(read_corpus(whole).song_ids)
    assert {name.removesuffix(".wav") for name in decoded} == everything - finished
    assert contents(folder) == contents(whole)
    while any(map(is_alive, workers)):  # they end by themselves when their parent is gone
        assert time.monotonic() < deadline
        time.sleep(0.05)


PREPARE = """
import sys
from pathlib import Path
from data_prep.deam import read_deam
from data_prep.prepare import prepare
from tests.test_preparing import CONFIG
if __name__ == "__main__":
    prepare(read_deam(Path(sys.argv[1])), Path(sys.argv[2]), CONFIG, workers=2)
"""


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the facts", "between the renames", "before the marks go"])
def test_a_kill_at_the_end_loses_nothing(tmp_path, decoded, monkeypatch, when):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    root = make_deam(tmp_path / "deam", names(6, steps=12), seconds=21.5)
    out = tmp_path / "out"
    if when == "between the renames":  # of an earlier state
        first = prepare(read_deam(root), out, CONFIG, limit=4, workers=1)
        held = set(read_corpus(first).song_ids)
    with monkeypatch.context() as patch:
        if when == "before the facts":
            patch.setattr(dataset, "_describe", killed)
        elif when == "before the marks go":
            patch.setattr(dataset.shutil, "rmtree", killed)
            (out / "deam" / CONFIG.name / ".preparing.old").mkdir(parents=True)
        else:
            replace = os.replace
            patch.setattr(
                dataset.os, "replace",
                lambda a, b: killed() if ".preparing" in Path(a).name else replace(a, b),
            )  # fmt: skip
        with pytest.raises(Killed):
            prepare(read_deam(root), out, CONFIG, workers=1)
    if when == "between the renames":
        (old,) = (out / "deam" / CONFIG.name).glob(".replaced.*")
        assert set(read_corpus(old).song_ids) == held
    decoded.clear()
    folder = prepare(read_deam(root), out, CONFIG, workers=1)
    assert not decoded and len(read_corpus(folder).song_ids) == 6
    left = [path.name for path in folder.parent.iterdir()] + [
        path.name for path in folder.iterdir()
    ]
    assert not [name for name in left if name.startswith(".") and name != ".lock"]
    assert not [name for name in left if name.endswith((".done", ".part"))]


def test_an_interrupted_preparation_is_used_though_labels_changed(tmp_path, decoded, monkeypatch):
    root = make_deam(tmp_path / "deam", names(5, steps=12), seconds=21.5)
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1)
    labels = root / AVERAGED / "arousal.csv"
    labels.write_text(labels.read_text().replace("0.0", "0.1", 1))
    decoded.clear()
    prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1)
    assert not decoded
    assert not list(tmp_path.rglob(".preparing.*"))


@pytest.mark.parametrize("damage", ["deleted", "cut", "facts", "labels"])
def test_prepare_mends_a_damaged_dataset(tmp_path, decoded, damage):
    root = make_deam(tmp_path / "deam", names(5, steps=12), seconds=21.5)
    folder = prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1)
    before = contents(folder)
    shard = next(folder.glob("*train.array_record*"))
    if damage == "deleted":
        shard.unlink()
    else:
        path = {"cut": shard, "facts": folder / "dataset.json", "labels": folder / "labels.npz"}[
            damage
        ]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="prepare it again"):
        read_corpus(folder)
    decoded.clear()
    assert prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1) == folder
    assert contents(folder) == before
    assert len(decoded) < 5 or damage == "facts"


def test_another_corpus_of_the_same_name_is_refused(tmp_path):
    for name, seconds in (("a", 21.5), ("b", 22.0)):
        make_deam(tmp_path / name, names(3, steps=12), seconds=seconds)
    prepare(read_deam(tmp_path / "a"), tmp_path / "out", CONFIG, workers=1)
    with pytest.raises(DataError, match="other sound under the same names"):
        prepare(read_deam(tmp_path / "b"), tmp_path / "out", CONFIG, workers=1)


def test_a_subset_can_grow_and_the_card_follows_the_labels(tmp_path, decoded):
    root = make_deam(tmp_path / "deam", names(12, steps=12), seconds=21.5)
    for limit in (4, 7, None):
        folder = prepare(read_deam(root), tmp_path / "out", CONFIG, limit=limit, workers=1)
    assert len(decoded) == 12
    assert read_facts(folder)["statistics"]["arousal"]["correlation_with_static"] is None
    write_static(root, {str(i): (5 + i / 4, 5 - i / 4) for i in range(2, 14)})
    prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1)
    assert read_facts(folder)["statistics"]["arousal"]["correlation_with_static"] is not None
    assert len(decoded) == 12 and "song-level" in card.read_card(folder)


def test_a_corrected_label_leaves_the_old_state_beside(tmp_path, decoded):
    root = make_deam(tmp_path / "deam", names(5, steps=12), seconds=21.5)
    corpus = read_deam(root)
    folder = prepare(corpus, tmp_path / "out", CONFIG, workers=1)
    old, count = read_corpus(folder), len(decoded)
    first = dataclasses.replace(corpus.songs[0], arousal=-corpus.songs[0].arousal)
    corrected = dataclasses.replace(corpus, songs=(first, *corpus.songs[1:]))
    assert prepare(corrected, tmp_path / "out", CONFIG, workers=1) == folder
    assert len(decoded) == count
    new, kept = (
        read_corpus(tmp_path / "out"),
        read_corpus(folder.parent / "older" / old.fingerprint),
    )
    assert new.fingerprint != old.fingerprint == kept.fingerprint
    np.testing.assert_array_equal(kept.mean, old.mean)
    assert (new.mean != old.mean).any()
    np.testing.assert_array_equal(kept.log_mel, new.log_mel)
    prepare(corpus, tmp_path / "out", CONFIG, workers=1)  # and back again
    assert read_corpus(tmp_path / "out").fingerprint == old.fingerprint
    assert len(list((folder.parent / "older").iterdir())) == 2
    assert not list(folder.parent.glob(".replaced*"))


def test_a_second_attempt_at_a_shard_leaves_the_first_alone(whole, tmp_path):
    """Beam may run a bundle twice."""
    corpus = read_deam(make_deam(tmp_path / "deam", names(3, steps=12), seconds=21.5))
    song = corpus.songs[0]
    shard = writing.Shard(str(tmp_path / "x-00000"), (examples.Job(song, "x"),))
    writing.write_shard(shard, CONFIG, None, [examples.analyse_job((shard.jobs[0], CONFIG))])
    with pytest.raises(RuntimeError, match="out of memory"):  # and is not called a full disk
        writing.write_shard(shard, CONFIG, None, dying())
    assert len(writing.read_marks(tmp_path)) == 1 and not list(tmp_path.glob("*.part"))


def dying():
    raise RuntimeError("out of memory")
    yield


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
    with pytest.raises(DataError, match="holds 196 songs that are not asked for"):
        prepare(read_deam(root), whole.parents[2], CONFIG, limit=4, workers=1)
    assert len(read_corpus(whole).song_ids) == 200


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


@pytest.mark.slow
def test_processes_write_the_same_files(root, whole, tmp_path):
    folder = prepare(read_deam(root), tmp_path, CONFIG, workers=2)
    assert contents(folder) == contents(whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Beam's own
@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs the extra [beam]")
def test_beam_with_two_workers_writes_the_same_files(root, whole, tmp_path):
    from data_prep.beam import beam_engine

    engine = beam_engine("DirectRunner", workers=2)
    folder = prepare(read_deam(root), tmp_path, CONFIG, workers=1, engine=engine)
    assert contents(folder) == contents(whole)


def test_the_map_does_not_run_ahead_of_its_reader(tmp_path):
    results = parallel_map(Path.touch, [tmp_path / str(i) for i in range(60)], workers=2)
    for _ in range(3):
        next(results)
    time.sleep(0.5)
    assert 3 <= len(list(tmp_path.iterdir())) <= 3 + 1 + 2 * AHEAD
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
    assert len(checked.damaged) == 2 and len(checked.lines()) == 4
    for line, what in zip(
        [*checked.damaged, *checked.early],
        ("not a sound file", "not a sound", "begin at 15 s"),
        strict=True,
    ):
        assert what in line
    folder = prepare(corpus, tmp_path / "out", CONFIG, workers=1)
    assert read_facts(folder)["left_out"] == checked.lines()
    assert "4.wav" in card.read_card(folder)


def test_sound_shorter_than_its_annotations_is_told_of(tmp_path):
    root = make_deam(tmp_path / "deam", names(3), seconds=44.2)
    assert not check(read_deam(root), workers=1).lines()
    make_deam(tmp_path / "short", names(1), seconds=20.0)
    shutil.copy(tmp_path / "short" / AUDIO / "2.wav", root / AUDIO / "3.wav")
    checked = check(read_deam(root), workers=1)
    assert len(checked.songs) == 3 and len(checked.lines()) == 1
    assert "20.0 s of sound, annotated up to 45.0 s" in checked.lines()[0]
    corpus = read_corpus(prepare(read_deam(root), tmp_path / "out", CONFIG, workers=1))
    assert sorted(corpus.song_steps) == [10, 58, 58]


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
    up = np.linspace(0.0, 0.5, 24)
    traces = np.stack([up, 2 * up, 0.3 - up])
    k, variances = 3, traces.var(axis=1, ddof=1)
    alpha = k / (k - 1) * (1 - variances.sum() / traces.sum(axis=0).var(ddof=1))
    assert cronbach_alpha(traces) == pytest.approx(alpha)
    assert pairwise_correlation(traces) == pytest.approx((1 - 1 - 1) / 3)
    assert rater_spread(traces) == pytest.approx(np.std(traces, axis=0, ddof=1).mean())
    assert cronbach_alpha(np.tile(traces[:1], (4, 1))) == pytest.approx(1.0)
    assert np.isnan(cronbach_alpha(traces[:1])) and np.isnan(rater_spread(traces[:1]))
    assert np.isnan(cronbach_alpha(0 * traces)) and np.isnan(pairwise_correlation(traces[:1]))


def test_one_rater_with_gaps_does_not_spoil_the_agreement_of_the_others():
    random = np.random.RandomState(0)
    curve = np.cumsum(random.randn(60)) / 20
    traces = curve + 0.01 * random.randn(6, 60)
    whole = pairwise_correlation(traces)
    traces[0, 2:] = np.nan  # stopped after a second
    traces[1, :30] = np.nan
    # Noise of 0.01 on curves that move ten times as much; short stretches move less.
    assert whole > 0.95 and pairwise_correlation(traces) == pytest.approx(whole, abs=0.05)
    assert cronbach_alpha(traces) > 0.95 and cronbach_alpha(traces[1:]) > 0.95
    assert np.isnan(cronbach_alpha(traces[[0, 2]]))  # nothing in common


def test_the_card_says_what_is_there(root, whole):
    text = card.read_card(whole)
    facts = read_facts(whole)
    statistics = describe_songs(read_deam(root).songs)
    assert facts["statistics"] == json.loads(json.dumps(statistics))
    assert (
        statistics["songs"] == 200 and statistics["ratings"] + sum(facts["dropped"].values()) == 800
    )
    # As read means before anything is left out.
    read = {who for song in read_deam(root).songs for who in song.raters}
    assert statistics["annotators_read"] == len(read) >= statistics["annotators"]
    assert statistics["ratings_read"] == 800
    assert statistics["arousal"]["points"] == 2400
    for phrase in (
        "| songs",
        "2,400",
        "Cronbach",
        "spectral",
        "float16",
        "How personal",
        "best share",
    ):
        assert phrase in text
    without = card.card_text(facts | {"listeners": None})  # no two raters of a song
    assert "How personal" not in without and "spectral" in without
    del facts["listeners"]  # data prepared before it was told
    assert card.card_text(facts) == without
    pictures = {path.name for path in (whole / card.CARD_FOLDER).glob("*.png")}
    assert pictures == {"labels.png", "plane.png", "raters.png"}
    assert all(f"({name})" in text for name in pictures)


def test_names_cannot_break_the_card(whole):
    facts = read_facts(whole)
    facts["notes"] = ["<script>alert(1)</script>\n# big"]
    facts["provenance"]["citation"] = "a | b"
    text = card.card_text(facts)
    assert "<script>" not in text and "\n# big" not in text and "a \\| b" in text
