"""VGMIDI: the real studies, small ones with every quirk, and what is said when something is wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.base import DataError
from data_prep.vgmidi import read_vgmidi
from data_prep.vgmidi_sounds import Titled, recordings_of
from tests.vgmidi_files import make_vgmidi, person, piece, rating, two_each

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAN = np.nan


@pytest.fixture(scope="module")
def vgmidi(real):
    return read_vgmidi(real / "vgmidi")


def raw(real, number):
    path = real / "vgmidi" / "labelled" / "annotations" / f"vgmidi_raw_{number}.json"
    return json.loads(path.read_text())


def test_the_real_studies(vgmidi):
    assert len(vgmidi.songs) == 200
    assert sum(len(song.ratings) for song in vgmidi.songs) == 5976
    assert all(song.audio.suffix == ".mid" and song.start == 0 for song in vgmidi.songs)
    assert all(27 <= len(song.ratings) == len(song.raters) <= 32 for song in vgmidi.songs)
    assert {song.split for song in vgmidi.songs} == {None}
    people = {rating.annotator_id for song in vgmidi.songs for rating in song.ratings}
    assert len(people) == 3061 and all(re.fullmatch(r"p[12]_\d+", who) for who in people)
    assert vgmidi.drawn.max_gap == pytest.approx(5.8541, abs=1e-4)


def test_the_quirks_of_the_real_studies_are_counted(vgmidi):
    assert list(vgmidi.dropped.values()) == [125, 4]
    undescribed, twice = vgmidi.dropped
    assert "not described" in undescribed and "rated the piece before" in twice
    notes = "\n".join(vgmidi.notes)
    assert "3061 people, 154 of 1 piece, 2903 of 2 pieces, 4 of 4 pieces" in notes
    assert "18 ratings lack the answers" in notes and "3 ratings have more values" in notes


@pytest.mark.parametrize("number", [1, 2])
def test_real_values_are_where_their_measures_are(vgmidi, real, number):
    """A piece's first value, and those that fall on half seconds, unchanged; the rest between their neighbours."""
    study = raw(real, number)
    songs = {song.song_id: song for song in vgmidi.songs}
    for name in ("piece0", "piece27", "piece45"):
        described = study["pieces"][name]
        song = songs[described["midi"].removesuffix(".mid")]
        interval = described["duration"] / described["measures"]
        assert len(song.arousal) == int((described["measures"] - 1) * interval * 2 + 1e-9) + 1
        first = study["annotations"][f"{name}_1"]
        times = np.arange(described["measures"]) * interval
        mine = [np.interp(np.arange(len(song.arousal)) / 2, times, first[d][: len(times)])
                for d in ("arousal", "valence")]  # fmt: skip
        near = [
            np.abs(np.stack([x.arousal, x.valence]) - mine).max() for x in song.ratings
        ]  # float32 of values in [-1, 1], and times rounded to microseconds
        assert min(near) < 1e-5


def test_nobody_can_be_known_by_what_is_kept(vgmidi, real):
    """No age, no country and no word that anybody wrote is in an id, a note or a count."""
    text = "\n".join([*vgmidi.notes, *vgmidi.dropped, repr(vgmidi.provenance)])
    for number in (1, 2):
        for answers in raw(real, number)["annotations"].values():
            words = str(answers.get("ex1_description"))
            assert len(words) < 12 or words not in text


def test_measures_become_half_seconds(tmp_path):
    anna, ben = person("anna"), person("ben")
    pieces = {"piece0": piece("Dawn", duration=4.0, measures=4)}
    annotations = {
        "piece0_1": rating(anna, [0.0, 0.2, 0.4, 0.2], [1, -1, 0, None]),
        "piece0_2": rating(ben, [0.4, 0.4, 0.4, 0.4], [0.0, 0.0]),
    }
    corpus = read_vgmidi(make_vgmidi(tmp_path, (pieces, annotations)))
    (song,) = corpus.songs
    assert song.song_id == "Series_NES_The Game_Dawn" and song.raters == ("p1_1", "p1_2")
    first, second = song.ratings
    # float32.
    np.testing.assert_allclose(first.arousal, [0, 0.1, 0.2, 0.3, 0.4, 0.3, 0.2], atol=1e-7)
    np.testing.assert_allclose(first.valence, [1, 0, -1, -0.5, 0, NAN, NAN], atol=1e-7)
    np.testing.assert_allclose(second.valence, [0, 0, 0, NAN, NAN, NAN, NAN], atol=1e-7)
    np.testing.assert_allclose(song.arousal[:3], [0.2, 0.25, 0.3], atol=1e-7)
    assert any("1 ratings have fewer values" in note for note in corpus.notes)
    assert (corpus.drawn.points, corpus.drawn.max_gap) == (8, 1.0)


def test_people_are_who_answered_alike_within_a_study(tmp_path):
    curve = [0.1, 0.2, 0.3, 0.4]
    pieces = {f"piece{i}": piece(f"Title {i}") for i in range(3)}
    anna, ben, mute = person("anna"), person("anna", age="41-45"), person("x")
    for field in [name for name in mute if name.startswith("ex")]:
        del mute[field]
    annotations = {
        "piece0_1": rating(anna, curve, curve), "piece1_1": rating(anna, curve, curve),
        "piece0_2": rating(ben, curve, curve), "piece0_3": rating(anna, curve[::-1], curve),
        "piece1_2": rating(mute, curve, curve), "piece2_1": rating(mute, curve, curve),
    }  # fmt: skip
    others = {"piece0": piece("Another")}, {"piece0_1": rating(anna, curve, curve)}
    corpus = read_vgmidi(make_vgmidi(tmp_path, (pieces, annotations), others))
    who = {song.song_id[-7:]: song.raters for song in corpus.songs}
    assert who == {"Another": ("p2_1",), "Title 0": ("p1_1", "p1_2"), "Title 1": ("p1_1", "p1_3"), "Title 2": ("p1_3",)}  # fmt: skip
    # The first of two ratings of one piece is kept.
    assert corpus.songs[1].ratings[0].arousal[0] == pytest.approx(0.1)
    assert list(corpus.dropped.values()) == [1]
    assert "4 people, 2 of 1 piece, 2 of 2 pieces" in corpus.notes[0]
    assert "2 ratings lack the answers" in corpus.notes[1]


@pytest.mark.parametrize(
    ("arousal", "valence", "kept", "what"),
    [
        ([0.1] * 5, [0.2] * 5, True, "1 ratings have more values"),
        ([0.1] * 9, [0.2] * 4, True, "1 ratings have more values"),
        ([0.1] * 3, [0.2] * 4, True, "1 ratings have fewer values"),
        ([0.1] * 4, [], True, None), ([], [], False, "hold no value"),
        ([None] * 4, [None] * 4, False, "hold no value"), ([0.1, 2], [0.1], False, "no lists"),
        ([0.1, True], [0.1], False, "no lists"), ("abc", [0.1], False, "no lists"),
        ([0.1], {"0": 1}, False, "no lists"), ([0.1, "0.2"], [0.1], False, "no lists"),
        ([0.1, [0.2]], [0.1], False, "no lists"), ([float("nan")], [0.1], False, "no lists"),
    ],
)  # fmt: skip
def test_ratings_of_other_lengths_and_other_things(tmp_path, arousal, valence, kept, what):
    curve = [0.1, 0.2, 0.3, 0.4]
    annotations = {
        "piece0_1": rating(person("a"), curve, curve), "piece0_2": rating(person("b"), arousal, valence),
    }  # fmt: skip
    corpus = read_vgmidi(make_vgmidi(tmp_path, ({"piece0": piece("Dawn")}, annotations)))
    (song,) = corpus.songs
    assert len(song.ratings) == 1 + kept and len(song.arousal) == 13  # six seconds of eight
    if what:
        assert what in "\n".join([*corpus.notes, *corpus.dropped])


@pytest.mark.parametrize(
    "described",
    [
        None, [], {}, piece("x") | {"measures": 0}, piece("x") | {"measures": 2.5},
        piece("x") | {"measures": True}, piece("x") | {"duration": "8"}, piece("x") | {"duration": -1},
        piece("x") | {"duration": float("inf")}, piece("x") | {"midi": "../../etc/passwd"},
        piece("x") | {"midi": ""}, piece("x") | {"midi": 7}, piece("Dawn"),
    ],
)  # fmt: skip
def test_pieces_that_cannot_be_are_left_out_and_counted(tmp_path, described):
    curve = [0.1, 0.2, 0.3, 0.4]
    root = make_vgmidi(tmp_path, ({"piece0": piece("Dawn")}, {}))
    pieces = {"piece0": piece("Dawn"), "piece1": described}
    annotations = {f"piece{i}_1": rating(person("a"), curve, curve) for i in range(3)}
    annotations["nonsense"] = rating(person("a"), curve, curve)
    annotations["piece0_2"] = ["no", "rating"]
    path = root / "labelled" / "annotations" / "vgmidi_raw_1.json"
    path.write_text(json.dumps({"pieces": pieces, "annotations": annotations}))
    corpus = read_vgmidi(root)
    assert [len(song.ratings) for song in corpus.songs] == [1]
    assert sorted(corpus.dropped.values()) == [1, 2, 2]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_vgmidi(tmp_path / "nowhere")
    with pytest.raises(DataError, match="vgmidi_raw_1.json' not found.*git clone"):
        read_vgmidi(tmp_path)
    root = make_vgmidi(tmp_path, two_each(["Dawn", "Noon"], 4), midi=False)
    corpus = read_vgmidi(root)
    assert [song.audio for song in corpus.songs] == [None, None]
    assert any("vgmidi_raw_2.json is not there" in note for note in corpus.notes)
    path = root / "labelled" / "annotations" / "vgmidi_raw_1.json"
    path.write_text(json.dumps({"pieces": {"piece0": piece("Dawn")}, "annotations": {}}))
    with pytest.raises(DataError, match="no piece has a rating"):
        read_vgmidi(root)


@pytest.mark.parametrize("where", ["", "labelled", "labelled/annotations", "labelled/midi", ".."])
def test_any_part_of_the_clone_will_do(tmp_path, where):
    make_vgmidi(tmp_path / "vgmidi", two_each(["Dawn", "Noon"], 4))
    corpus = read_vgmidi((tmp_path / "vgmidi" / where).resolve())
    assert [song.audio.name for song in corpus.songs] == [
        "Series_NES_The Game_Dawn.mid", "Series_NES_The Game_Noon.mid",
    ]  # fmt: skip


def test_a_truncated_study_is_said_in_one_line(real, tmp_path):
    make_vgmidi(tmp_path, ({}, {}), ({}, {}))
    path = tmp_path / "labelled" / "annotations" / "vgmidi_raw_1.json"
    whole = (real / "vgmidi" / "labelled" / "annotations" / path.name).read_bytes()
    for part in (whole[: len(whole) // 2], whole.rstrip()[:-1], b"", b"[]", b"{}", b"\xff", b"[" * 10**5,
                 b'{"pieces": [], "annotations": {}}'):  # fmt: skip
        path.write_bytes(part)
        with pytest.raises(DataError, match="vgmidi_raw_1.json: cut off.*download it again") as error:  # fmt: skip
            read_vgmidi(tmp_path)
        assert "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["piece0", "piece0_1", "midi", "duration", "measures", "arousal", "valence"]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@FUZZ
@given(JSON, JSON)
def test_any_json_gives_a_corpus_or_a_clear_error(tmp_path, described, rated):
    make_vgmidi(tmp_path, ({}, {}))
    pieces = {"piece0": piece("Dawn"), "piece1": described}
    annotations = {
        "piece0_1": rating(person("a"), [0.1], [0.1]), "piece0_2": rated, "piece1_1": rating(person("b"), rated, rated),
    }  # fmt: skip
    path = tmp_path / "labelled" / "annotations" / "vgmidi_raw_1.json"
    path.write_text(json.dumps({"pieces": pieces, "annotations": annotations}))
    for song in read_vgmidi(tmp_path).songs:
        for curve in (song.arousal, song.valence):
            assert (np.isnan(curve) | (np.abs(curve) <= 1)).all()


def test_recordings_are_found_under_their_other_names(tmp_path):
    pieces = [
        Titled("Final Fantasy_PS1_Final Fantasy VII_Tifa", ("Tifa", "audio/Tifa.wav"), 6.0),
        Titled("Zelda_N64_The Legend of Zelda Ocarina of Time_Prelude of Light", ("Prelude", "x"), 6.0),
        Titled("Super Mario_SNES_Super Mario World_Overworld", ("SMW Overworld", "audio/SMW Overworld.wav"), 6.0),
        Titled("Dragon Quest_NES_Dragon Quest_Overworld Theme", ("O", "audio/Dragon_Warrior_Overworld_Theme.wav"), 6.0),
        Titled("Other_N64_GoldenEye 007_Dam", ("Dam", "audio/Dam.wav"), 6.0),
        Titled("Star Fox_SNES_Star Fox_Stage_Clear", ("Stage Clear", "y"), 6.0),
    ]  # fmt: skip
    files = {
        "Final_Fantasy_7_Tifa": 6.0, "Legend_Of_Zelda_The_Ocarina_Of_Time_PreludeofLight": 8.0,
        "Super_Mario_World_Overworld": 5.0, "Dragon_Warrior_Overworld_Theme": 6.0,
        "GoldenEye_007_Dam": 30.0, "Star_Fox_Stage_Clear": 6.0, "Unrelated_Amsterdam": 6.0,
    }  # fmt: skip
    for name, seconds in files.items():
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(int(seconds * 4000)), 4000)
    found = {song.split("_")[-1]: path.stem for song, path in recordings_of(pieces, tmp_path).items()}  # fmt: skip
    assert found == {
        "Tifa": "Final_Fantasy_7_Tifa", "Prelude of Light": "Legend_Of_Zelda_The_Ocarina_Of_Time_PreludeofLight",
        "Overworld": "Super_Mario_World_Overworld", "Overworld Theme": "Dragon_Warrior_Overworld_Theme",
        "Clear": "Star_Fox_Stage_Clear",
    }  # fmt: skip
    assert recordings_of(pieces, tmp_path / "nowhere") == {}
