"""Wide tables of one dimension, as TenseMusic has them: what is read, and what is said when something is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.base import DataError
from data_prep.card import read_card
from data_prep.convention import Convention
from data_prep.shards import find_dataset, read_corpus
from data_prep.wide import read_table, read_wide
from dsaml_jax.cli import main
from tests.deam_files import almost_csv
from tests.sound_files import write_sound

FUZZ = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAN = np.nan


def make_wide(root, tables, audio=()):
    """Writes tables of these lines, and empty sound files of these ids."""
    for folder in ("ratings", "audio"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for song, lines in tables.items():
        (root / "ratings" / f"{song}.csv").write_text("\n".join(lines))
    for song in audio:
        (root / "audio" / f"{song}.wav").touch()
    return root


RAW = [
    "time,rating1,rating2,rating3,piece",
    "0.0,,,,music/Mozart.wav",
    *(f"{0.02 * i!r},{i / 100},{-i / 100},{0.5 if i < 51 else ''},music/Mozart.wav" for i in range(1, 101)),
]  # fmt: skip
"""As in TenseMusic's `data_raw`: 50 Hz, times that arithmetic has blurred, a first row without ratings."""

FILTERED = [
    ",time,rating1,rating2,piece,mean_tension",
    *(f"{i},1970-01-01 00:00:{(i + 1) / 10:06.3f},{i / 40},0.25,music/Mozart.wav,9.5" for i in range(21)),
]  # fmt: skip
"""As in its filtered tables: an index, times of pandas, and a mean that is nobody's."""


def test_a_table_at_50_hz(tmp_path):
    root = make_wide(tmp_path / "Tense", {"Mozart": RAW, "10": FILTERED, "9": FILTERED}, ["Mozart"])
    corpus = read_wide(root)
    assert (corpus.name, [song.song_id for song in corpus.songs]) == ("tense", ["9", "10", "Mozart"])  # fmt: skip
    song = corpus.songs[-1]
    assert song.audio.name == "Mozart.wav" and song.raters == ("rating1", "rating2", "rating3")
    # float32.
    np.testing.assert_allclose(song.ratings[0].arousal, [NAN, 0.25, 0.5, 0.75, 1], atol=1e-6)
    np.testing.assert_allclose(song.ratings[2].arousal, [NAN, 0.5, 0.5, NAN, NAN], atol=1e-6)
    np.testing.assert_allclose(song.arousal, [NAN, 0.5 / 3, 0.5 / 3, 0, 0], atol=1e-6)
    assert np.isnan(song.valence).all() and not np.isfinite(song.ratings[0].valence).any()
    assert corpus.notes == (f"{3 + 50} ratings are empty or nan: unlabelled",)
    assert corpus.drawn.points == 3 * 101 + 2 * 2 * 21


def test_times_of_pandas_an_index_and_a_mean(tmp_path):
    traces = read_table(make_wide(tmp_path, {"s": FILTERED}) / "ratings" / "s.csv", "s", "valence", Convention())  # fmt: skip
    assert list(traces) == ["rating1", "rating2"]
    np.testing.assert_allclose(traces["rating1"][:3, 0], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(traces["rating1"][:3, 2], [0, 0.025, 0.05])
    assert np.isnan(traces["rating1"][:, 1]).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["time,a", "0,2.4", "1,0.1"], r"line 2: arousal 2.4 is not from -1 to 1.*--scale"),
        (["time,a", "0,0.1", "1,x"], r"line 3: a 'x' is not a number"),
        (["time,a", "0,0.1", "0,0.2"], r"line 3: a, has 0 s already on line 2"),
        (["time,a", "soon,0.1"], r"line 2: time 'soon' is not a number"),
        (["time,a", "-1,0.1"], r"line 2: time -1"),
        (["a,b", "0,0.1"], r"needs one column 'time'"), (["time,Time,a", "0,1,0.1"], r"needs one column 'time'"),
        (["time,piece", "0,music"], r"no column of a rater holds a number"), (["time,mean_x", "0,1"], r"no column of a rater"),
        (["time"], "no column of a rater"), ([""], "needs one column"), (["time,a,a", "0,0.1,0.2"], "more than one column 'a'"),
        (["time,a/b", "0,0.1"], "the rater 'a/b' is not a plain name"),
    ],
)  # fmt: skip
def test_bad_tables_are_said_in_one_line(tmp_path, lines, message):
    root = make_wide(tmp_path, {"song": lines})
    with pytest.raises(DataError, match=message) as error:
        read_wide(root, "x")
    assert "\n" not in str(error.value) and "song.csv" in str(error.value)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_wide(tmp_path / "nowhere")
    for folder in ("", "ratings", "audio"):
        (tmp_path / folder).mkdir(exist_ok=True)
        with pytest.raises(DataError, match="needs a folder ratings with a table song_id.csv"):
            read_wide(tmp_path)
    with pytest.raises(DataError, match="cannot be a corpus's name"):
        read_wide(tmp_path, "vgmidi")
    make_wide(tmp_path, {"song": ["time,a", "0.3,0.1", "5.8,0.2"]})
    with pytest.raises(DataError, match="no song has an annotation that reaches"):
        read_wide(tmp_path)


@FUZZ
@given(almost_csv(["time", "a", "b"], ["1", "0.5", "0"]))
def test_any_bytes_give_a_table_or_a_clear_error(tmp_path, data):
    root = make_wide(tmp_path, {"song": []})
    (root / "ratings" / "song.csv").write_bytes(data)
    try:
        songs = read_wide(root, "x").songs
    except DataError as error:
        assert "\n" not in str(error)
    else:
        for song in songs:
            assert (np.isnan(song.arousal) | (np.abs(song.arousal) <= 1)).all()


@FUZZ
@given(
    st.lists(st.lists(st.none() | st.floats(-1, 1), min_size=3, max_size=3), min_size=2, max_size=9),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_what_was_written_is_read(tmp_path, table, random):
    """On half seconds nothing is between points; rows and columns in any order."""
    names = ["time", "anna", "ben", "cleo"]
    order = random.sample(range(4), 4)
    rows = [[repr(k / 2), *("" if x is None else repr(x) for x in row)] for k, row in enumerate(table)]  # fmt: skip
    random.shuffle(rows)
    lines = [",".join(row[i] for i in order) for row in [names, *rows]]
    root = make_wide(tmp_path, {"song": lines})
    values = np.array([[NAN if x is None else x for x in row] for row in table])
    there = np.isfinite(values).any(axis=0)
    if not there.any():
        return
    traces = read_table(root / "ratings" / "song.csv", "song", "arousal", Convention())
    assert set(traces) == {name for name, some in zip(names[1:], there, strict=True) if some}
    for name, trace in traces.items():
        np.testing.assert_array_equal(trace[:, 0], np.arange(len(table)) / 2)
        np.testing.assert_array_equal(trace[:, 1], values[:, names.index(name) - 1])


def test_the_command_prepares_a_study_of_one_dimension(tmp_path, capsys):
    root = make_wide(tmp_path / "Tense", {})
    moments = np.arange(0, 20, 0.1)
    for song in range(4):
        lines = ["time,p1,p2", *(f"{t:.1f},{50 + 40 * np.sin(t + song):.2f},{60:.1f}" for t in moments)]  # fmt: skip
        (root / "ratings" / f"s{song}.csv").write_text("\n".join(lines))
        write_sound(root / "audio" / f"s{song}.wav")
    words = ["prepare", "wide", "--root", str(root), "--out", str(tmp_path / "out"), "--features", "tiny"]  # fmt: skip
    words += ["--embedding", "spectral", "--workers", "1"]
    assert main(words) == 2
    assert "--scale 0 100" in capsys.readouterr().err
    assert main([*words, "--scale", "0", "100", "--dimension", "valence"]) == 0
    corpus = read_corpus(tmp_path / "out")
    assert (corpus.name, corpus.annotator_ids) == ("tense", ("p1", "p2"))
    assert np.isnan(corpus.ratings[:, 0]).all() and np.isfinite(corpus.ratings[:, 1]).any()
    assert "annotated in [0, 100]" in read_card(find_dataset(tmp_path / "out"))
    assert main(["prepare", "deam", "--root", "x", "--out", "x", "--dimension", "arousal"]) == 2
    assert "--dimension is for wide" in capsys.readouterr().err
