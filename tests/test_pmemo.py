"""PMEmo's layout: real labels, what generated tables hold, and what is said when something is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.base import DataError
from data_prep.pmemo import read_dynamic, read_pmemo
from tests.deam_files import almost_csv

COLUMNS = ["musicId", "frameTime", "Arousal(mean)", "Valence(mean)"]
HEADER = ",".join(COLUMNS)
FUZZ = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make_pmemo(root, lines, audio=()):
    """Writes a table of these lines under the real header, and empty sound files of these ids."""
    for folder in ("annotations", "chorus"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    table = root / "annotations" / "dynamic_annotations.csv"
    table.write_text("\n".join([HEADER, *lines]))
    for song in audio:
        (root / "chorus" / f"{song}.mp3").touch()
    return root


def test_the_real_labels(real, tmp_path):
    make_pmemo(tmp_path, [], audio=["1", "200", "793"])
    table = tmp_path / "annotations" / "dynamic_annotations.csv"
    table.write_bytes((real / "pmemo" / "dynamic_annotations.csv").read_bytes())
    corpus = read_pmemo(tmp_path)
    lengths = [len(song.arousal) for song in corpus.songs]
    assert (len(lengths), sum(lengths), min(lengths), max(lengths)) == (161, 7120, 2, 140)
    assert [int(song.song_id) for song in corpus.songs] == sorted(int(s.song_id) for s in corpus.songs)  # fmt: skip
    assert {song.song_id for song in corpus.songs if song.audio} == {"1", "200"}
    for song in corpus.songs:
        assert song.start == 15.5 and song.split is None and song.ratings == ()
        assert np.isfinite(song.arousal).all() and np.isfinite(song.valence).all()
    first = corpus.songs[0]
    assert first.arousal[:2] == pytest.approx([2 * 0.4376625 - 1, 2 * 0.437775 - 1])  # float32
    assert first.valence[:2] == pytest.approx([2 * 0.559975 - 1, 2 * 0.56065 - 1])
    assert "DMER" in corpus.notes[0] and "2 x - 1" in corpus.provenance.scale


def test_gaps_are_unlabelled_and_the_first_frame_is_the_start(tmp_path):
    lines = ["7,16.0,1,0", "7,15.5004,0.5,0.25", "7,18.0,0,1", "3,20.0,0.5,0.5", "3,20.5,0.5,0.5"]
    short, song = read_pmemo(make_pmemo(tmp_path, lines)).songs
    assert (short.song_id, short.start, len(short.arousal)) == ("3", 20.0, 2)
    assert (song.song_id, song.start, song.audio) == ("7", 15.5, None)
    nan = np.nan
    np.testing.assert_array_equal(song.arousal, [0, 1, nan, nan, nan, -1])
    np.testing.assert_array_equal(song.valence, [-0.5, -1, nan, nan, nan, 1])


@pytest.mark.parametrize("where", ["", "..", "annotations", "chorus"])
@pytest.mark.parametrize("folder", ["PMEmo2019", "PMEmo2019/PMEmo2019", "mine"])
def test_unpacked_one_level_up_or_down(tmp_path, where, folder):
    root = make_pmemo(tmp_path / folder, ["7,15.5,0.5,0.5"], audio=["7"])
    (song,) = read_pmemo((root / where).resolve()).songs
    assert song.audio.name == "7.mp3"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7,15.5,0.5,1.5", r"line 3: Valence\(mean\) '1.5'"), ("7,15.5,,0.5", "line 3: Arousal"),
        ("7,15.5,nan,0.5", "line 3: Arousal"), ("7,15.6,0.5,0.5", "line 3: frameTime 15.6"),
        ("7,-1,0.5,0.5", "line 3: frameTime"), ("7,1e9,0.5,0.5", "line 3: frameTime"),
        ("7,inf,0.5,0.5", "line 3: frameTime"), ("7,15.5,0.5", "line 3: 3 cells, 4"),
        (",15.5,0.5,0.5", "line 3: musicId ''"), ("1,15.0004,0.5,0.5", "line 3: song 1 has 15 s twice"),
        ('7,15.5,0.5,"a\nb"', "line 4: Valence"),
    ],
)  # fmt: skip
def test_bad_rows_are_said_in_one_line(tmp_path, line, message):
    make_pmemo(tmp_path, ["1,15.0,0.5,0.5", line])
    with pytest.raises(DataError, match=message) as error:
        read_pmemo(tmp_path)
    assert "\n" not in str(error.value) and "dynamic_annotations.csv" in str(error.value)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_pmemo(tmp_path / "nowhere")
    with pytest.raises(DataError, match="dynamic_annotations.csv' not found.*github"):
        read_pmemo(tmp_path)
    make_pmemo(tmp_path, [])
    with pytest.raises(DataError, match="no songs"):
        read_pmemo(tmp_path)
    (tmp_path / "annotations" / "dynamic_annotations.csv").write_text("musicId,frameTime\n")
    with pytest.raises(DataError, match=r"no column 'Arousal\(mean\)'"):
        read_pmemo(tmp_path)
    (tmp_path / "chorus").rmdir()
    with pytest.raises(DataError, match="folder 'chorus' with the audio not found"):
        read_pmemo(tmp_path)


@FUZZ
@given(almost_csv(COLUMNS, ["1", "0.5", "0"]))
def test_any_bytes_give_a_table_or_a_clear_error(tmp_path, data):
    make_pmemo(tmp_path, [])
    (tmp_path / "annotations" / "dynamic_annotations.csv").write_bytes(data)
    try:
        songs = read_pmemo(tmp_path).songs
    except DataError as error:
        assert "dynamic_annotations.csv" in str(error) and "\n" not in str(error)
    else:
        for song in songs:
            assert song.arousal.shape == song.valence.shape and len(song.arousal)
            for curve in (song.arousal, song.valence):
                assert np.isfinite(curve[[0, -1]]).all()
                assert (np.isnan(curve) | (np.abs(curve) <= 1)).all()


UNIT = st.floats(0, 1)
SONGS = st.dictionaries(
    st.integers(1, 999).map(str),
    st.dictionaries(st.integers(0, 60), st.tuples(UNIT, UNIT), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)


@FUZZ
@given(SONGS, st.randoms(use_true_random=False))
def test_what_was_written_is_read(tmp_path, songs, random):
    """Rows and columns in any order."""
    rows = [
        (song, step / 2, *pair) for song, steps in songs.items() for step, pair in steps.items()
    ]
    random.shuffle(rows)
    order = random.sample(range(4), 4)
    path = tmp_path / "dynamic.csv"
    table = [COLUMNS, *([str(cell) for cell in row] for row in rows)]
    path.write_text("\n".join(", ".join(row[i] for i in order) for row in table))
    assert read_dynamic(path) == {
        song: {step: (2 * arousal - 1, 2 * valence - 1) for step, (arousal, valence) in steps.items()}
        for song, steps in songs.items()
    }  # fmt: skip
