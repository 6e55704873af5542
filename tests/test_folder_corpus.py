"""A lab's own folder: what is read from it, and what is said when something is wrong.

Curves within 1e-6: they are kept in float32.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.base import DataError, FlatTraces
from data_prep.curves import on_grid
from data_prep.folder import COLUMNS, TABLE, corpus_name, read_annotations, read_folder
from data_prep.shards import read_corpus
from dsaml_jax.cli import main
from tests.deam_files import almost_csv

FUZZ = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAN = np.nan


def make_folder(root, rows, audio=()):
    """Writes rows of song, annotator, time, arousal, valence, and empty sound files of these ids."""
    (root / "audio").mkdir(parents=True, exist_ok=True)
    lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in rows)]
    (root / TABLE).write_text("\n".join(lines))
    for song in audio:
        (root / "audio" / f"{song}.wav").touch()
    return root


def ramp(song, annotator, times, level=0.0):
    return [(song, annotator, t, round(level + 0.1 * t, 6), round(0.5 - 0.1 * t, 6)) for t in times]


def test_curves_on_the_grid_and_their_mean(tmp_path):
    rows = [
        *ramp("b", "ann", [0.6, 1.1, 1.6, 2.2]),
        *ramp("b", "ben", [1.0, 1.5, 2.0, 2.5, 3.0], level=0.2),
        *ramp("10", "ann", [2.0, 2.5]),
        *ramp("9", "ann", [2.0, 2.5]),
    ]
    root = make_folder(tmp_path / "Lab 1", rows, audio=["b", "9", "unused"])
    corpus = read_folder(root)
    assert corpus.name == "lab_1" and "Lab 1" in corpus.provenance.citation
    assert [(song.song_id, song.audio is None) for song in corpus.songs] == [
        ("9", False), ("10", True), ("b", False),
    ]  # fmt: skip
    song = corpus.songs[-1]
    assert (song.start, song.split, song.static) == (0.5, None, None)
    ann, ben = song.ratings
    assert (ann.annotator_id, ben.annotator_id) == ("ann", "ben")
    np.testing.assert_allclose(ann.arousal, [NAN, 0.1, 0.15, 0.2, NAN, NAN], atol=1e-6)
    np.testing.assert_allclose(ann.valence, [NAN, 0.4, 0.35, 0.3, NAN, NAN], atol=1e-6)
    np.testing.assert_allclose(ben.arousal, [NAN, 0.3, 0.35, 0.4, 0.45, 0.5], atol=1e-6)
    np.testing.assert_allclose(song.arousal, [NAN, 0.2, 0.25, 0.3, 0.45, 0.5], atol=1e-6)
    assert song.arousal.dtype == ann.arousal.dtype == np.float32


def test_gaps_of_more_than_a_second_are_unlabelled(tmp_path):
    rows = ramp("1", "ann", [0.0, 0.5, 1.5, 2.6, 3.5])
    (song,) = read_folder(make_folder(tmp_path / "x", rows)).songs
    labelled = np.isfinite(song.ratings[0].arousal)
    assert labelled.tolist() == [True, True, True, True, False, False, True, True]


def test_flat_traces_are_left_out_of_the_ratings_but_not_of_the_mean(tmp_path):
    flat = [("1", "ben", t, 0.5, 0.1 * t) for t in range(5)]
    late = [("1", "cat", 40 + t, 0.1 * t, 0.1 * t) for t in range(4)]
    still = [("1", "dan", t, 0.1, -0.2) for t in range(5)]
    root = make_folder(tmp_path / "x", ramp("1", "ann", range(5)) + flat + late + still)
    corpus = read_folder(root, flat="drop")
    (song,) = corpus.songs
    ratings = {rating.annotator_id: rating for rating in song.ratings}
    assert list(ratings) == ["ann", "ben", "cat"]
    assert not np.isfinite(ratings["ben"].arousal).any() and np.isfinite(ratings["ben"].valence).any()  # fmt: skip
    assert list(corpus.dropped.values()) == [1] and "hardly move" in next(iter(corpus.dropped))
    assert corpus.flat == {"arousal": FlatTraces(4, 2, 2), "valence": FlatTraces(4, 1, 1)}
    kept = read_folder(root).songs[0].ratings
    assert [rating.annotator_id for rating in kept] == ["ann", "ben", "cat", "dan"]
    song = read_folder(make_folder(tmp_path / "y", ramp("1", "ann", range(5)) + flat + late)).songs[0]  # fmt: skip
    np.testing.assert_allclose(song.arousal[:9:2], [0.25, 0.3, 0.35, 0.4, 0.45], atol=1e-6)


def test_annotations_that_reach_no_half_second_are_counted(tmp_path):
    rows = ramp("1", "ann", range(3)) + ramp("1", "ben", [0.7]) + ramp("2", "ann", [0.3, 5.8])
    corpus = read_folder(make_folder(tmp_path / "x", rows))
    assert [len(song.ratings) for song in corpus.songs] == [1]
    assert sorted(corpus.dropped.values()) == [1, 2]
    with pytest.raises(DataError, match="no song has an annotation that reaches"):
        read_folder(make_folder(tmp_path / "x", ramp("2", "ann", [0.3])))


def test_times_blurred_by_arithmetic_are_on_the_grid(tmp_path):
    times = np.cumsum(np.full(50, 0.1))
    rows = [("1", "ann", repr(float(t)), t / 10, -t / 10) for t in times]
    (song,) = read_folder(make_folder(tmp_path / "x", rows)).songs
    assert len(song.arousal) == 11 and np.isfinite(song.arousal).tolist() == [False] + [True] * 10


def test_empty_cells_are_counted_and_names_may_be_those_of_files(tmp_path):
    rows = [("s.mp3", "ann", time, 0.5, value) for time, value in enumerate((0.1, "", "NaN", 0.3))]
    make_folder(tmp_path, rows, audio=["s"])
    corpus = read_folder(tmp_path, "lab")
    (song,) = corpus.songs
    assert song.song_id == "s" and song.audio is not None
    assert corpus.notes == ("2 ratings are empty or nan: unlabelled",)


def test_columns_in_any_order_and_others_ignored(tmp_path):
    make_folder(tmp_path, [])
    text = "\ufeff valence ,note,time,song_id,annotator_id,arousal\r\n0.1,hm,2,s,a,-0.2\r\n\r\n"
    (tmp_path / TABLE).write_bytes(text.encode())
    trace = read_annotations(tmp_path / TABLE)["s"]["a"]
    np.testing.assert_array_equal(trace, [[2, -0.2, 0.1]])


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("study", "study"), ("Köln, 2nd try!", "koln_2nd_try"), ("2024", "corpus_2024"),
        ("deam", "corpus_deam"), ("PMEmo", "corpus_pmemo"), ("synthetic", "corpus_synthetic"),
        ("vgmidi", "corpus_vgmidi"), ("MERP", "corpus_merp"),
        ("音楽", "corpus"), ("_x__y_", "x_y"), ("x" * 99, "x" * 40), ("deam/../mine", "mine"),
    ],
)  # fmt: skip
def test_a_corpus_is_named_after_its_folder(tmp_path, folder, name):
    assert corpus_name(tmp_path / folder) == name


def test_a_name_can_be_given(tmp_path):
    root = make_folder(tmp_path / "x", ramp("1", "ann", range(3)))
    assert read_folder(root, "my_study2").name == "my_study2"
    for bad in ("deam", "vgmidi", "merp", "My", "2x", "a-b", "", "a/b", "x" * 41):
        with pytest.raises(DataError, match="cannot be a corpus's name"):
            read_folder(root, bad)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,ann,0.0,0,0", "line 5: ann, song 1, has 0 s already on line 2"),
        ("1,ann,2,1.01,0", "line 5: arousal 1.01 is not from -1 to 1; if the table has"),
        ("1,ann,2,0,inf", "line 5: valence 'inf'"), ("1,ann,-0.1,0,0", "line 5: time"),
        ("1,ann,inf,0,0", "line 5: time"), ("1,ann,1e9,0,0", "line 5: time"),
        ("1,ann,2,0_1,0", "line 5: arousal '0_1'"), ("1,ann,2,0", "line 5: 4 cells, 5 are"),
        (",ann,2,0,0", "line 5: song_id ''"), ("1,,2,0,0", "line 5: annotator_id ''"),
        ("../1,ann,2,0,0", "line 5: song_id '../1'"), ("..,ann,2,0,0", "line 5: song_id '..'"),
        (r"a\b,ann,2,0,0", "line 5: song_id"), ("a\0b,ann,2,0,0", "line 5: song_id"),
        ('"a\nb",ann,2,0,0', "line 6: song_id"), (f"{'x' * 101},ann,2,0,0", "line 5: song_id"),
        (f"{'x' * 140_000},ann,2,0,0", "not a CSV file"),
    ],
)  # fmt: skip
def test_bad_rows_are_said_in_one_line(tmp_path, row, message):
    root = make_folder(tmp_path, [*ramp("1", "ann", range(3)), (row,)])
    with pytest.raises(DataError) as error:
        read_folder(root, "x")
    assert message in str(error.value) and TABLE in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(root))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'song_id'"), (",".join(COLUMNS), "no annotations"),
        ("song_id,annotator_id,time\n", "no column 'arousal'"),
        ("song_id,time,annotator_id,time,arousal,valence\n", "more than one column 'time'"),
        (b"\xff\xfe\x00", "not a CSV"),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path, text, message):
    make_folder(tmp_path, [])
    (tmp_path / TABLE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, "x")


def test_missing_parts(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "study.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"is an archive; unpack it"):
        read_folder(tmp_path / "study.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="needs a file annotations.csv.*folder audio"):
        read_folder(tmp_path / "empty")
    (make_folder(tmp_path, ramp("1", "ann", range(3))) / "audio").rmdir()
    with pytest.raises(DataError, match="folder audio"):
        read_folder(tmp_path)


def test_a_large_table_takes_seconds(tmp_path):
    """A fifth of a million rows in about a second; the limit is wide for slow machines."""
    rows = [
        (song, f"a{who}", t / 10, (t % 7) / 7, -(t % 13) / 13)
        for song in range(20) for who in range(20) for t in range(500)
    ]  # fmt: skip
    root = make_folder(tmp_path / "x", rows)
    began = time.process_time()
    corpus = read_folder(root)
    assert time.process_time() - began < 4
    assert len(corpus.songs) == 20 and all(len(song.ratings) == 20 for song in corpus.songs)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(("separator", "point"), [(",", "."), (";", "."), (";", ","), ("\t", ","), ("\t", ".")])  # fmt: skip
def test_tables_as_spreadsheets_write_them(tmp_path, separator, point, encoding):
    """The same corpus, whatever separates cells, marks decimals and encodes the text."""
    rows = ramp("1", "Jürgen", [0.5, 1.0, 1.5, 2.0, 2.5])
    expected = read_folder(make_folder(tmp_path / "plain", rows), "x").songs[0]
    root = make_folder(tmp_path / "other", rows)
    lines = [line.split(",") for line in (root / TABLE).read_text(encoding="utf-8").splitlines()]
    text = "\r\n".join(separator.join(cell.replace(".", point) for cell in line) for line in lines)
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (root / TABLE).write_bytes((mark + "\r\n" + text).encode(encoding))  # a blank row is none
    song = read_folder(root, "x").songs[0]
    np.testing.assert_array_equal(song.arousal, expected.arousal)
    np.testing.assert_array_equal(song.valence, expected.valence)
    assert [rating.annotator_id for rating in song.ratings] == ["Jürgen"]


@FUZZ
@given(almost_csv(list(COLUMNS), ["1", "0.5", "0", "0.001", "0.7"]))
def test_any_bytes_give_a_table_or_a_clear_error(tmp_path, data):
    make_folder(tmp_path, [])
    (tmp_path / TABLE).write_bytes(data)
    try:
        songs = read_folder(tmp_path, "x").songs
    except DataError as error:
        assert TABLE in str(error) and "\n" not in str(error)
    else:
        for song in songs:
            curves = [(song.arousal, song.valence), *((r.arousal, r.valence) for r in song.ratings)]
            for arousal, valence in curves:
                assert arousal.shape == valence.shape == song.arousal.shape
                for curve in (arousal, valence):  # each is masked by itself
                    assert (np.isnan(curve) | (np.abs(curve) <= 1)).all()


LEVEL = st.floats(-1, 1)
POINTS = st.dictionaries(
    st.integers(0, 10**8), st.tuples(LEVEL, LEVEL), min_size=1, max_size=8
)  # microseconds
TABLES = st.dictionaries(
    st.tuples(st.sampled_from(["1", "2", "x y", "é"]), st.sampled_from(["ann", "ben", "c.d"])),
    POINTS,
    min_size=1,
)


@FUZZ
@given(TABLES, st.randoms(use_true_random=False))
def test_what_was_written_is_read(tmp_path, table, random):
    """Rows and columns in any order; every trace comes back sorted by time."""
    rows = [
        (*who, f"{t / 1e6:.6f}", *pair) for who, points in table.items() for t, pair in points.items()
    ]  # fmt: skip
    random.shuffle(rows)
    order = random.sample(range(5), 5)
    lines = [[str(row[i]) for i in order] for row in [COLUMNS, *rows]]
    (tmp_path / TABLE).write_text("\n".join(",".join(line) for line in lines))
    read = read_annotations(tmp_path / TABLE)
    assert {(song, who) for song in read for who in read[song]} == table.keys()
    for (song, who), points in table.items():
        expected = [(round(t / 1e6, 6), *pair) for t, pair in sorted(points.items())]
        np.testing.assert_array_equal(read[song][who], expected)


@FUZZ
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(LEVEL, min_size=2, max_size=30)), min_size=1, max_size=4
    )
)  # fmt: skip
def test_half_second_traces_and_their_mean_come_back(tmp_path, traces):
    """Model: annotators drawing on the grid itself, from different first steps."""
    rows = [
        ("1", f"a{who}", (first + i) / 2, value, -value)
        for who, (first, values) in enumerate(traces)
        for i, value in enumerate(values)
    ]
    (song,) = read_folder(make_folder(tmp_path, rows), "x").songs
    origin = min(first for first, _ in traces)
    end = max(first + len(values) for first, values in traces)
    model = np.full((len(traces), end - origin), np.nan)
    for who, (first, values) in enumerate(traces):
        model[who, first - origin : first - origin + len(values)] = values
    assert song.start == origin / 2
    for rating in song.ratings:
        np.testing.assert_allclose(rating.arousal, model[int(rating.annotator_id[1:])], atol=1e-6)
    masked = np.ma.masked_invalid(model).mean(axis=0).filled(np.nan)
    np.testing.assert_allclose(song.arousal, masked, atol=1e-6)
    np.testing.assert_allclose(song.valence, -masked, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 0.1, 0.2, 0.3, 0.7])
def test_points_exactly_a_second_apart_are_joined(offset):
    """2.2 - 1.2 is a little more than 1."""
    times = np.arange(30) + offset
    curve = on_grid(np.stack([times, times / 30 - 0.5, times / 30 - 0.5], axis=1), 58, start=0.0)
    inside = (np.arange(58) / 2 >= times[0]) & (np.arange(58) / 2 <= times[-1])
    np.testing.assert_array_equal(np.isfinite(curve).all(axis=1), inside)


def test_names_are_found_in_either_unicode_form(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = make_folder(tmp_path / "lab", ramp(composed, "ann", [1, 1.5, 2]), audio=[decomposed])
    assert read_folder(root).songs[0].audio is not None


def test_a_study_goes_through_prepare(tmp_path, capsys):
    times = np.arange(0, 40, 0.1).round(1)
    rows = []
    for number, song in enumerate(("one song", "two", "3")):
        for annotator in ("ann", "ben"):
            values = np.sin(times / 5 + number).round(3) * (0.5 if annotator == "ann" else 0.2)
            rows += [(song, annotator, t, v, -v) for t, v in zip(times, values, strict=True)]
    root = make_folder(tmp_path / "lab", rows)
    for song in ("one song", "two", "3"):
        sound = 0.1 * np.random.RandomState(0).randn(8000 * 41)
        soundfile.write(root / "audio" / f"{song}.ogg", sound, 8000)
    arguments = ["prepare", "folder", "--root", root, "--out", tmp_path / "out", "--features", "tiny",
                 "--name", "my_study", "--workers", "1", "--embedding", "spectral"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    corpus = read_corpus(tmp_path / "out")
    assert corpus.name == "my_study" and set(corpus.song_ids) == {"one song", "two", "3"}
    assert sorted(corpus.split) == ["test", "train", "validation"]
    assert corpus.song_steps.tolist() == [80] * 3 and len(corpus.rating_song) == 6
    np.testing.assert_allclose(corpus.ratings[:79, 0], rows_of(rows, corpus, 0), atol=1e-6)


def rows_of(rows, corpus, rating):
    """Arousal of a rating at its half seconds."""
    song = corpus.song_ids[corpus.rating_song[rating]]
    annotator = corpus.annotator_ids[corpus.rating_annotator[rating]]
    mine = {row[2]: row[3] for row in rows if row[:2] == (song, annotator)}
    return [mine[step / 2] for step in range(79)]
