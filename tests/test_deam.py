"""DEAM's layout: real labels, each quirk, and what is said when something is wrong."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.base import DataError
from data_prep.deam import read_averaged, read_deam, read_raters
from tests.deam_files import AUDIO, AVERAGED, PER_RATER, header, make_deam, row


def test_the_real_labels(real):
    arousal = read_averaged(real / "deam" / "arousal.csv")
    valence = read_averaged(real / "deam" / "valence.csv")
    assert len(arousal) == len(valence) == 1802
    assert sum(map(len, arousal.values())) == 129_999
    assert sum(map(len, valence.values())) == 129_998
    differ = {song for song in arousal if len(arousal[song]) != len(valence[song])}
    assert differ == {"2002", "2011", "2020", "2027", "2036", "2042", "2045"}
    assert arousal["2"][:2] == pytest.approx([-0.109386, -0.1149416])


@pytest.fixture
def small(tmp_path):
    return make_deam(tmp_path / "deam", {"3": (61, 60), "10": (60, 60), "2001": (70, 71)})


def test_ragged_lengths_order_and_official_split(small):
    corpus = read_deam(small)
    assert [song.song_id for song in corpus.songs] == ["3", "10", "2001"]
    assert [len(song.arousal) for song in corpus.songs] == [60, 60, 70]
    assert corpus.songs[-1].split == "test"
    assert all(song.split != "test" for song in corpus.songs[:-1])
    for song in corpus.songs:
        assert [r.annotator_id for r in song.ratings] == [f"worker{i}" for i in range(4)]
        assert all(len(r.arousal) == len(song.arousal) for r in song.ratings)


@pytest.mark.parametrize("where", ["", "..", "DEAM_Annotations", "DEAM_audio"])
def test_unpacked_one_level_up_or_down(small, where):
    assert len(read_deam((small / where).resolve()).songs) == 3


def test_files_without_worker_id(tmp_path):
    root = make_deam(tmp_path, {"3": (60, 60), "4": (60, 60), "5": (60, 60)}, worker_column=False)
    corpus = read_deam(root)
    assert all(song.ratings == () for song in corpus.songs)
    assert any("without a WorkerId" in note for note in corpus.notes)


def test_no_rater_files_at_all(small):
    shutil.rmtree(small / "DEAM_Annotations/annotations/annotations per each rater")
    assert any("PDMER needs them" in note for note in read_deam(small).notes)


def test_flat_traces_and_one_sided_raters_are_left_out(small):
    path = small / PER_RATER / "arousal" / "3.csv"
    lines = path.read_text().splitlines()
    lines[1] = row("worker0", np.full(61, 0.25))
    lines[2] = lines[2].replace("worker1", "somebody else")
    path.write_text("\n".join(lines))
    corpus = read_deam(small)
    assert [r.annotator_id for r in corpus.songs[0].ratings] == ["worker2", "worker3"]
    notes = " ".join(corpus.notes)
    assert "1 ratings hardly move" in notes and "2 ratings exist in one dimension only" in notes


def test_spaces_in_headers_byte_order_mark_and_blank_lines(small):
    path = small / AVERAGED / "arousal.csv"
    text = path.read_text().replace(",sample", ", sample").replace("\n", "\r\n") + "\r\n\r\n"
    path.write_text("\ufeff" + text)
    assert len(read_averaged(path)) == 3


def test_missing_audio_is_said(small):
    (small / AUDIO / "10.wav").unlink()
    corpus = read_deam(small)
    assert len(corpus.songs) == 2
    assert any("1 of 3 annotated songs have no audio" in note for note in corpus.notes)


def test_limit_takes_songs_from_all_over(small):
    assert [song.song_id for song in read_deam(small, limit=2).songs] == ["3", "2001"]


def break_corpus(root, kind):
    averaged = root / AVERAGED / "arousal.csv"
    if kind == "no audio folder":
        shutil.rmtree(root / "DEAM_audio")
    elif kind == "no audio files":
        for path in (root / AUDIO).iterdir():
            path.unlink()
    elif kind == "no annotations":
        shutil.rmtree(root / "DEAM_Annotations")
    elif kind == "no valence":
        (root / AVERAGED / "valence.csv").unlink()
    elif kind == "empty":
        averaged.write_text("")
    elif kind == "binary":
        averaged.write_bytes(bytes(range(256)) * 4)
    elif kind == "words":
        averaged.write_text(header("song_id", 2) + "\n3,0.1,happy\n")
    elif kind == "range":
        averaged.write_text(header("song_id", 2) + "\n3,0.1,7.5\n")
    elif kind == "nan":
        averaged.write_text(header("song_id", 3) + "\n3,0.1,nan,0.2\n")
    elif kind == "twice":
        averaged.write_text(header("song_id", 1) + "\n3,0.1\n3,0.2\n")
    elif kind == "header":
        averaged.write_text("song_id,a,b\n3,0.1,0.2\n")
    elif kind == "gap":
        averaged.write_text("song_id,sample_15000ms,sample_16500ms\n3,0.1,0.2\n")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no audio folder", "DEAM_audio.zip"), ("no audio files", "no audio for any"),
        ("no annotations", "DEAM_Annotations.zip"), ("no valence", "valence.csv: no such file"),
        ("empty", "arousal.csv: empty"), ("binary", "not a CSV"), ("words", "row 2.*happy"),
        ("range", "7.5 is outside"), ("nan", "row 2.*no number"), ("twice", "row 3"), ("header", "sample_15000ms"),
        ("gap", "side by side"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(small, kind, message):
    break_corpus(small, kind)
    with pytest.raises(DataError, match=message) as error:
        read_deam(small)
    assert "\n" not in str(error.value)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=300)
    | st.text(alphabet='song_id,1234567890.-\nWorkerIdsample_15000ms "', max_size=300).map(
        str.encode
    )
)
@pytest.mark.parametrize("reader", [read_averaged, read_raters])
def test_any_bytes_give_a_table_or_a_clear_error(tmp_path, reader, data):
    path = tmp_path / "any.csv"
    path.write_bytes(data)
    try:
        curves = reader(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        for curve in (curves or {}).values():
            assert curve.ndim == 1 and not (np.abs(curve) > 1).any()
