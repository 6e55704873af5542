"""MERP's layout, as it is described: what is read from made-up files, and what is said when something is wrong."""

from __future__ import annotations

import builtins

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from data_prep.base import DataError
from data_prep.merp import TABLES, read_merp
from data_prep.shards import read_corpus
from dsaml_jax.cli import main
from tests.sound_files import write_sound

NAN = np.nan
FILTERED, RAW = TABLES


def make_merp(root, rows, name=FILTERED, audio=(), who="worker_id"):
    """Writes rows of song, rater, arousal, valence, and empty sound files of these ids."""
    (root / "audio").mkdir(parents=True, exist_ok=True)
    columns = {
        name: [row[i] for row in rows] for i, name in enumerate(("song_id", who, "arousal", "valence"))
    } | {"batch": [7] * len(rows)}  # fmt: skip
    parquet.write_table(pa.table(columns), root / name)
    for song in audio:
        (root / "audio" / f"{song}.wav").touch()
    return root


def ramp(low, high, count):
    return np.linspace(low, high, count).tolist()


def test_lists_at_10_hz_become_curves(tmp_path):
    rows = [
        ("00_35", "W1", ramp(0, 1, 21), ramp(0, -1, 21)), ("00_35", "W2", ramp(0, 0, 11), ramp(0.5, 0.5, 21)),
        ("deam_115", "W1", [0.1] * 6, None), ("00_35", "W1", [0.9] * 9, [0.9] * 9), ("00_35", "W3", [], []),
        ("00_35", "W4", [None] * 4, [NAN] * 4),
    ]  # fmt: skip
    corpus = read_merp(make_merp(tmp_path, rows, audio=["00_35"]))
    song, anchor = corpus.songs
    assert (song.song_id, song.audio.name, song.start) == ("00_35", "00_35.wav", 0.0)
    assert song.raters == ("W1", "W2") and anchor.audio is None
    # float32.
    np.testing.assert_allclose(song.ratings[0].arousal, [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
    np.testing.assert_allclose(song.ratings[1].arousal, [0, 0, 0, NAN, NAN], atol=1e-6)
    np.testing.assert_allclose(song.valence, [0.25, 0.125, 0, -0.125, -0.25], atol=1e-6)
    assert not np.isfinite(anchor.ratings[0].valence).any()
    assert sorted(corpus.dropped.values()) == [1, 2]
    assert corpus.notes[0] == f"ratings of {FILTERED}" and "1 songs are whole ones of DEAM's" in corpus.notes[1]  # fmt: skip


def test_what_smoothing_brought_outside_is_clipped_and_counted(tmp_path):
    (song,) = (corpus := read_merp(make_merp(tmp_path, [("s", "a", [1.2, 0.4, -1.1], [0.0, 0.1, 0.2])]))).songs  # fmt: skip
    assert song.arousal[0] == 1.0 and "2 values outside" in corpus.notes[1]
    make_merp(tmp_path, [("t", "b", [0.1], [0.2]), ("s", "a", [0.2, 57.0], [0.0, 0.1])])
    with pytest.raises(DataError, match=r"row 2: arousal 57 is not from -1 to 1"):
        read_merp(tmp_path)


def test_the_filtered_table_comes_first_and_ids_may_be_numbers(tmp_path):
    make_merp(tmp_path, [(1, 5, [0.1] * 9, [0.1] * 9)], name=RAW, who="Rater_ID")
    raw = read_merp(tmp_path)
    assert (raw.songs[0].song_id, raw.songs[0].raters) == ("1", ("5",)) and raw.notes == (f"ratings of {RAW}",)  # fmt: skip
    make_merp(tmp_path, [(2, 5, [0.1] * 9, [0.1] * 9)])
    assert [song.song_id for song in read_merp(tmp_path).songs] == ["2"]
    assert [song.song_id for song in read_merp(tmp_path / "audio" / "..").songs] == ["2"]
    make_merp(tmp_path, [(2.0, 5.0, [0.1] * 9, [0.1] * 9), (2.0, 6.5, [0.1] * 9, [0.1] * 9)])
    (song,) = read_merp(tmp_path).songs
    assert (song.song_id, song.raters) == ("2", ("5", "6.5"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("s", "a", ["x"], [0.1]), "row 1: arousal is no list of numbers"),
        (("s", "a", [[0.1]], [0.1]), "row 1: arousal is no list of numbers"),
        (("s", "a", [0.1], [float("inf")]), "row 1: valence is no list of numbers"),
        (("s", "a", 0.5, [0.1]), "row 1: arousal is no list of numbers"),
        (("../s", "a", [0.1], [0.1]), "row 1: song_id '../s' is not a plain name"),
        (("s", "", [0.1], [0.1]), "row 1: the rater '' is not a plain name"),
        (("s", None, [0.1], [0.1]), "row 1: the rater is missing"),
        ((None, "a", [0.1], [0.1]), "row 1: song_id is missing"),
        ((NAN, 3, [0.1], [0.1]), "row 1: song_id is missing"),
        (("s", "a", [], []), "no song has a rating"),
    ],
)  # fmt: skip
def test_bad_rows_are_said_in_one_line(tmp_path, row, message):
    make_merp(tmp_path, [row])
    with pytest.raises(DataError, match=message) as error:
        read_merp(tmp_path)
    assert "\n" not in str(error.value) and FILTERED in str(error.value)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such folder"):
        read_merp(tmp_path / "nowhere")
    with pytest.raises(DataError, match="annotations_filtered.parquet' not found.*huggingface"):
        read_merp(tmp_path)
    make_merp(tmp_path, [("s", "a", [0.1], [0.1])], who="someone")
    with pytest.raises(DataError, match="no column 'worker_id'; needed: song_id, one of worker_id"):
        read_merp(tmp_path)
    whole = (tmp_path / FILTERED).read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"no parquet"):
        (tmp_path / FILTERED).write_bytes(part)
        with pytest.raises(DataError, match="damaged, or no Parquet") as error:
            read_merp(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "audio").rmdir()
    with pytest.raises(DataError, match="folder 'audio' not found"):
        read_merp(tmp_path)
    (tmp_path / "audio").mkdir()
    real_import = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'dsaml_jax\[parquet\]'"):
        read_merp(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")),
        st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), min_size=1,
    )
)  # fmt: skip
def test_what_was_written_is_read(tmp_path, written):
    """Every fifth value is on the grid."""
    rows = [(song, who, values, values[::-1]) for (song, who), values in written.items()]
    songs = {song.song_id: song for song in read_merp(make_merp(tmp_path, rows)).songs}
    for (song, who), values in written.items():
        (mine,) = [x for x in songs[song].ratings if x.annotator_id == who]
        known = mine.arousal[np.isfinite(mine.arousal)]
        np.testing.assert_allclose(known, values[::5], atol=1e-6)  # interpolation rounds


def test_the_command_prepares_it(tmp_path):
    rows = []
    for song in range(4):
        write_sound(tmp_path / "MERP" / "audio" / f"00_{song}.wav")
        rows += [(f"00_{song}", f"W{who}", ramp(-who / 3, song / 4, 200), ramp(0, 1, 200)) for who in range(3)]  # fmt: skip
    root = make_merp(tmp_path / "MERP", rows)
    words = ["prepare", "merp", "--root", str(root), "--out", str(tmp_path / "out"), "--features", "tiny"]  # fmt: skip
    assert main([*words, "--embedding", "spectral", "--workers", "1"]) == 0
    corpus = read_corpus(tmp_path / "out")
    assert (corpus.name, len(corpus.rating_song), len(corpus.annotator_ids)) == ("merp", 12, 3)
