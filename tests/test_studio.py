"""The studio without a browser: what is kept, who may ask, what is refused, and what comes out.

Where no tolerance is given, numbers are kept or added in float64.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="the extra [studio] is not installed")

from data_prep.base import DataError
from data_prep.deam import read_deam
from data_prep.folder import read_folder
from dsaml_jax import UsageError
from dsaml_jax.cli import main
from dsaml_jax.runs import load_model
from dsaml_jax.studio import forgetting, ratings, serving
from dsaml_jax.studio import library as library_module
from dsaml_jax.studio.store import PlannedTrial, Store
from dsaml_jax.studio.takes import check_entries, drawn_curve
from tests.sound_files import make, music
from tests.studies import Person, running, song_named

PASSWORD = "correct horse"


# ---- Takes.


def entries_of(times, value):
    return [(round(float(t), 3), value, -value, None) for t in times]


def test_what_is_drawn_later_replaces_what_it_goes_over():
    first = entries_of(np.arange(0, 10, 0.05), 0.1)
    again = entries_of(np.arange(4, 6, 0.05), 0.5)
    curve = drawn_curve(first + again)
    assert (np.diff(curve[:, 0]) > 0).all()
    inside = (curve[:, 0] >= 4) & (curve[:, 0] < 5.96)
    np.testing.assert_allclose(curve[inside, 1], 0.5)
    np.testing.assert_allclose(curve[~inside, 1], 0.1)
    np.testing.assert_allclose(curve[:, 2], -curve[:, 1])


def test_erasing_takes_all_that_follows_and_only_that():
    drawn = entries_of(np.arange(0, 10, 0.05), 0.1)
    curve = drawn_curve([*drawn, (5.0, None, None, None)])
    assert curve[-1, 0] < 5.0 and len(curve) == 100
    later = drawn_curve([*drawn, (5.0, None, None, None), *entries_of(np.arange(5, 7, 0.05), 0.7)])
    np.testing.assert_allclose(later[later[:, 0] >= 5, 1], 0.7)
    assert len(later) == 140


def test_a_part_can_be_erased():
    drawn = entries_of(np.arange(0, 10, 0.05), 0.1)
    curve = drawn_curve([*drawn, (5.0, None, None, 7.0)])
    gone = (curve[:, 0] >= 5.0) & (curve[:, 0] < 7.0)
    assert not gone.any() and len(curve) == 160


def test_a_jump_leaves_what_it_skips_alone():
    drawn = entries_of(np.arange(0, 10, 0.05), 0.1)
    again = entries_of(np.arange(2, 3, 0.05), 0.5)
    on = entries_of(np.arange(3.6, 4, 0.05), 0.9)
    jump = (3.6, None, None, 3.6)
    curve = drawn_curve([*drawn, *again, jump, *on])
    between = (curve[:, 0] > 3.0) & (curve[:, 0] < 3.55)
    assert between.sum() >= 10
    np.testing.assert_allclose(curve[between, 1], 0.1)
    assert len(drawn_curve([*drawn, *again, *on])) < len(curve)  # without it one run went over all


def test_of_two_values_at_one_time_the_later_counts():
    assert drawn_curve([(1.0, 0.1, 0.1, None), (1.0, 0.2, 0.2, None)])[:, 1].tolist() == [0.2]


def test_one_dimension_leaves_the_other_unknown():
    curve = drawn_curve([(0.0, 0.5, None, None), (0.1, 0.6, None, None)])
    np.testing.assert_allclose(curve[:, 1], [0.5, 0.6])
    assert np.isnan(curve[:, 2]).all()
    assert drawn_curve([]).shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60), st.booleans()), max_size=6))
def test_any_history_gives_what_a_tape_would_hold(history):
    """Against a tape that is written over, 20 places a second."""
    tape = np.full(600, np.nan)
    log = []
    for number, (first, count, erase) in enumerate(history):
        if erase:
            log.append((first / 20, None, None, (first + count) / 20))
            tape[first : first + count] = np.nan
            continue
        if log and log[-1][1] is not None and 0 <= first / 20 - log[-1][0] <= 1.0:
            tape[round(log[-1][0] * 20) + 1 : first] = (
                np.nan
            )  # one run: it goes over what lies between
        value = (number + 1) / 10
        log += [(place / 20, value, value, None) for place in range(first, first + count)]
        tape[first : first + count] = value
    curve = drawn_curve(log)
    places = np.round(curve[:, 0] * 20).astype(int)
    np.testing.assert_array_equal(places, np.flatnonzero(np.isfinite(tape)))
    np.testing.assert_allclose(curve[:, 1], tape[places])


@pytest.mark.parametrize(
    "entries",
    [None, {}, [[0, 0, 0]], [[0, 2, 0, None]], [[-1, 0, 0, None]], [[1e9, 0, 0, None]], [["0", 0, 0, None]],
     [[0, True, 0, None]], [[0, float("nan"), 0, None]], [[0, 0, 0, None]] * 20_001, [[10**400, 0, 0, None]],
     [[5, None, None, 4]], [[float("inf"), 0, 0, None]]],
)  # fmt: skip
def test_entries_that_are_none(entries):
    with pytest.raises(UsageError):
        check_entries(entries)


# ---- The store.


def test_entries_sent_twice_are_kept_once(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    who = store.add_participant("a")
    song = store.song_number("d", "x")
    take = store.begin_take(who, song, "both", practice=False)
    entries = entries_of(range(10), 0.1)
    assert store.log(take.number, take.session, 0, entries[:6]) == 6
    assert (
        store.log(take.number, take.session, 0, entries[:8]) == 8
    )  # the answer to the first was lost
    assert store.log(take.number, take.session, 3, entries[3:5]) == 8
    with pytest.raises(UsageError, match="missing"):
        store.log(take.number, take.session, 9, entries[9:])
    newer = store.begin_take(who, song, "both", practice=False)
    assert (newer.number, newer.entries) == (take.number, entries[:8])
    for stale in (
        lambda: store.log(take.number, take.session, 8, entries[8:]),
        lambda: store.finish_take(take.number, take.session, 8),
    ):
        with pytest.raises(UsageError, match="another window"):
            stale()
    with pytest.raises(UsageError, match="8 of 9"):
        store.finish_take(newer.number, newer.session, 9)
    store.finish_take(newer.number, newer.session, 8)
    with pytest.raises(UsageError, match="finished"):
        store.log(newer.number, newer.session, 8, entries[8:])
    assert Store(tmp_path / "s.sqlite").entries(take.number) == entries[:8]
    assert store.begin_take(who, song, "both", practice=False).number != take.number


def test_two_windows_make_one_plan(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    songs = [store.song_number(str(i), str(i)) for i in range(30)]
    for _ in range(10):
        who = store.add_participant("a")
        adaptation = store.add_adaptation(who, songs[0])
        ready = threading.Barrier(2)

        def ask(who=who, adaptation=adaptation, ready=ready):
            planned = ratings.plan(dict.fromkeys(songs, 1.0), 10, random.Random())
            ready.wait()
            store.add_trials(who, adaptation, planned, blind=True)

        with ThreadPoolExecutor(2) as pool:
            for asked in [pool.submit(ask) for _ in range(2)]:
                asked.result()
        trials = store.trials(who)
        assert [trial["position"] for trial in trials] == list(range(10))
        assert sum(trial["adapted_side"] == "left" for trial in trials) == 5


def test_a_file_that_is_no_study(tmp_path):
    (tmp_path / "s.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match="not a study"):
        Store(tmp_path / "s.sqlite")


# ---- Ratings.


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 0.3), max_size=30), st.integers(1, 12), st.integers(0, 99))
def test_the_plan_shows_what_can_be_told_apart(differences, count, seed):
    """Each song once, both sides alike; some of the others as a control; nothing where all look alike."""
    named = dict(enumerate(differences))
    planned = ratings.plan(named, count, random.Random(seed))
    visible = sum(x >= ratings.VISIBLE for x in differences)
    controls = sum(trial.control for trial in planned)
    assert controls == (min(count // 5, len(named) - visible) if visible else 0)
    assert len(planned) - controls == min(count - controls, visible)
    assert len({trial.song for trial in planned}) == len(planned)
    for trial in planned:
        assert trial.difference == named[trial.song]
        assert trial.control == (trial.difference < ratings.VISIBLE)
    assert abs(2 * sum(trial.adapted_side == "left" for trial in planned) - len(planned)) <= 1


def test_plans_are_drawn_by_lot():
    same = dict.fromkeys(range(30), 0.2)
    first, second = (ratings.plan(same, 10, random.Random(seed)) for seed in (0, 1))
    assert first != second


def test_how_far_curves_are_apart():
    """In the dimension where it is more, wherever there is something."""
    first = np.array([[0.0, 0.5], [0.1, 0.5], [np.nan, 0.5]])
    assert ratings.apart(first, first + [0.2, -0.1]) == pytest.approx(0.2)
    assert ratings.apart(first, np.array([0.0, -0.5]) * first) == pytest.approx(0.75)
    assert ratings.apart(first * [1, np.nan], first + [0.2, 0.9]) == pytest.approx(0.2)


def test_trials_needed_have_the_power_that_is_said():
    """By simulating the test itself; fewer have less."""
    from scipy.stats import binomtest

    needed = ratings.trials_needed()
    assert needed == ratings.trials_needed(0.4)  # chance lies between
    assert ratings.trials_needed(0.7) < needed / 3
    drawn = np.random.default_rng(0).binomial(needed, ratings.PREFERENCE, 400)
    told = np.mean([binomtest(int(x), needed).pvalue < ratings.SIGNIFICANCE for x in drawn])
    assert told == pytest.approx(0.8, abs=0.06)  # three standard errors of 400 draws
    chosen = np.arange(needed)  # of one trial less, which is not enough, by all that may come out
    from scipy.stats import binom

    significant = [binomtest(int(x), needed - 1).pvalue < ratings.SIGNIFICANCE for x in chosen]
    assert binom.pmf(chosen, needed - 1, 0.6) @ significant < 0.8
    assert f"{needed} rated trials" in ratings.needed_in_words(10)


def test_a_study_of_version_1_goes_on(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    who, song = store.add_participant("a"), store.song_number("d", "x")
    adaptation = store.add_adaptation(who, song)
    with store._writing() as db:
        db.execute("ALTER TABLE trial DROP COLUMN difference")
        db.execute("ALTER TABLE trial DROP COLUMN control")
        db.execute("INSERT INTO trial (participant, adaptation, song, position, adapted_side, blind) VALUES (?, ?, ?, 0, 'left', 1)", (who.id, adaptation, song))  # fmt: skip
        db.execute("PRAGMA user_version = 1")
    (trial,) = Store(tmp_path / "s.sqlite").trials(who)
    assert (trial["difference"], trial["control"]) == (None, 0)
    Store(tmp_path / "s.sqlite")


def test_the_summary_is_what_was_answered():
    def trial(who, adapted, chosen, fit_left, fit_right):
        return {"participant": who, "adapted_side": adapted, "chosen_side": chosen, "fit_left": fit_left,
                "fit_right": fit_right, "rated": 1.0, "control": 0}  # fmt: skip

    trials = [trial(1, "left", "left", 6, 3), trial(1, "right", "left", 4, 5), trial(2, "right", "right", 2, 7),
              trial(2, "left", "left", 7, 2), {"rated": None, "control": 0}]  # fmt: skip
    found = ratings.summarise(trials)
    assert (found["rated"], found["chose_adapted"], found["share"]) == (4, 3, 0.75)
    # Wilson's, by hand: more digits than the tolerance needs.
    assert found["share_low"] == pytest.approx(0.3006, abs=1e-3)
    assert found["share_high"] == pytest.approx(0.9544, abs=1e-3)
    assert found["p"] == pytest.approx(
        10 / 16
    )  # of 16 outcomes those with 3 or more, or 1 or fewer
    control = trial(1, "left", "right", 1, 7) | {"control": 1}
    alone = {"controls": 1, "controls_chose_adapted": 0}
    assert ratings.summarise([*trials, control]) == found | alone
    assert ratings.summarise([control]) == {"trials": 0, "rated": 0} | alone
    assert found["fit_difference"] == pytest.approx((3 + 1 + 5 + 5) / 4)
    assert found["fit_low"] <= found["fit_difference"] <= found["fit_high"]
    assert ratings.summarise([]) == {"trials": 0, "rated": 0}
    alone = ratings.summarise(trials[:2])
    assert alone["fit_difference"] == pytest.approx(2.0)
    # Means that differ by rounding alone have an interval too, not NaN.
    thirds = [
        trial(who, "left", "left", 3 + extra, 2 + extra)
        for who in (1, 2, 3)
        for extra in (0, 2, who)
    ]
    json.dumps(ratings.summarise(thirds), allow_nan=False)


# ---- A study that runs.


@pytest.fixture(scope="module")
def config(knowing_run, songs, tmp_path_factory):
    return serving.Settings(
        checkpoint=knowing_run, songs=songs, study=tmp_path_factory.mktemp("study"), password=PASSWORD, ratings=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def studio(config):
    with running(config) as served:
        yield served


@pytest.fixture
def person(studio):
    return Person(*studio)


def test_songs_that_cannot_be_used_are_listed_with_the_reason(studio):
    _, study = studio
    assert len(study.library) == 6
    assert set(study.library.refused) == {"broken.mp3", "short.wav"}
    assert "5 to 900 s" in study.library.refused["short.wav"]


def test_songs_in_folders_of_folders(config, tmp_path):
    """Each under the names of its folders; hidden files, links and what the study keeps are none of its songs."""
    songs = tmp_path / "music"
    for number, name in enumerate(
        ("one/first.wav", "two/deep/first.wav", "zero.wav", ".trash/gone.wav", "one/.x.wav")
    ):
        (songs / name).parent.mkdir(parents=True, exist_ok=True)
        (songs / name).write_bytes(sound(8.0 + number))
    for name in ("one/broken.m4a", "two/broken.m4a"):
        (songs / name).write_bytes(b"nothing")
    (songs / "link.wav").symlink_to(songs / "zero.wav")
    inside = dataclasses.replace(config, songs=songs, study=songs / "study")
    with serving.open_study(inside) as study:
        assert [song.name for song in study.library] == ["one/first", "two/deep/first", "zero"]
        assert set(study.library.refused) == {"one/broken.m4a", "two/broken.m4a"}
        study.library.upload(study.store.add_participant("me"), "mine.wav", sound(20.0))
    with serving.open_study(inside) as study:
        (mine,) = (song for song in study.library if song.brought_by is not None)
        assert mine.name == "mine" and len(study.library) == 4


def test_annotating_adapting_and_looking(person, studio):
    _, study = studio
    support, other = song_named(study, "one"), song_named(study, "two")
    person.annotate(support.number, 0.8, -0.6)
    assert next(s for s in person.state()["songs"] if s["number"] == support.number)["drawn"] == ["arousal", "valence"]  # fmt: skip
    adaptation = person.adapt(support.number)
    assert adaptation["after"] < adaptation["before"]
    assert adaptation["done"] == adaptation["of"] == 6
    curves = person.get(f"/songs/{other.number}/curves").json()
    before, after = (np.array(curves[which]) for which in ("before", "after"))
    assert before.shape == after.shape == (90, 2)
    mean = (after - before).mean(axis=0)
    labels = study.modelling.labels(person.who, support)
    general = study.modelling.curve("before", support)
    wanted = np.nanmean(labels - general, axis=0)
    assert (np.sign(mean) == np.sign(wanted)).all()  # the curve moves to where the listener drew
    own = load_model(study.modelling.model_folder(adaptation["number"]))
    assert "personalised" in own.info.note


def test_what_it_knows_about_you_grows_with_songs(person, studio):
    """In numbers (the band) and in words; of the songs that were drawn there is an overlay."""
    _, study = studio
    other = song_named(study, "four").number
    assert person.state()["about"] is None
    widths = [_band_width(person, other)]
    for count, name in enumerate(("one", "two", "three"), 1):
        song = song_named(study, name).number
        person.annotate(song, 0.8, -0.6)
        person.adapt(song)
        about = person.state()["about"]
        assert about["songs"] == count and f"your {count} song" in about["words"][1]
        widths.append(_band_width(person, other))
        drawn = person.get(f"/songs/{song}/curves").json()["drawn"]
        assert sum(row != [None, None] for row in drawn) > 80
    assert person.get(f"/songs/{other}/curves").json()["drawn"] is None
    assert about["words"][0].startswith("You hear this music")
    known = study.modelling._loaded.listeners
    for dimension, spread in enumerate((known.arousal, known.valence)):
        expected = [np.subtract(*spread.band(songs)[::-1]) for songs in range(4)]
        np.testing.assert_allclose(
            [width[dimension] for width in widths], expected, atol=2e-4
        )  # four decimals, twice


def test_the_home_page_knows_which_song_would_tell_most(person, studio):
    """One that is not drawn, wherever there is one."""
    _, study = studio
    study.modelling.wait_until_warm()
    seen = []
    for _ in range(len(study.library)):
        suggested = person.state()["suggested"]
        assert suggested == person.state()["suggested"] not in seen
        seen.append(suggested)
        person.annotate(suggested, 0.2, 0.2, dimension="arousal")
        assert person.state()["suggested"] == suggested  # half of it is drawn
        person.annotate(suggested, 0.2, 0.2, dimension="valence")
    assert set(seen) == {song.number for song in study.library.of(person.who)}
    assert person.state()["suggested"] is None


def _band_width(person, song):
    """Of both dimensions, where the scale does not cut the band off."""
    until = time.monotonic() + 60.0
    while (band := person.get(f"/songs/{song}/curves").json()["band"]) is None:
        assert time.monotonic() < until  # curves of all songs come by and by
        time.sleep(0.05)
    low, high = np.array(band)
    inside = (low > -1.0) & (high < 1.0)
    assert inside.any(axis=0).all()
    return [np.median((high - low)[inside[:, k], k]) for k in range(2)]


def test_one_dimension_at_a_time(person, studio):
    song = song_named(studio[1], "three")
    assert "arousal or valence" in person.post(f"/songs/{song.number}/adapt").json()["error"]
    person.annotate(song.number, 0.5, 0.5, dimension="arousal")
    adaptation = person.adapt(song.number)
    assert adaptation["after"] < adaptation["before"]
    person.annotate(song.number, -0.5, -0.5, dimension="valence")
    labels = studio[1].modelling.labels(person.who, song)
    # What is drawn waves by 0.1 around the level.
    assert np.nanmean(labels[:, 0]) == pytest.approx(0.5, abs=0.05)
    assert np.nanmean(labels[:, 1]) == pytest.approx(-0.5, abs=0.05)
    person.annotate(song.number, 0.0, 0.25)  # both at once, later: counts
    assert np.nanmean(studio[1].modelling.labels(person.who, song)[:, 1]) == pytest.approx(0.25, abs=0.05)  # fmt: skip


def test_practice_is_never_used(person, studio):
    song = song_named(studio[1], "one").number
    person.annotate(song, 0.2, 0.2, practice=True)
    state = person.state()
    assert state["practised"] and all(not song["drawn"] for song in state["songs"])
    assert person.post(f"/songs/{song}/adapt").status_code == 422


def test_a_reload_goes_on_where_it_was(person, studio):
    song = song_named(studio[1], "four").number
    first = person.begin(song)
    assert (first["next"], first["curve"]) == (0, [])
    assert person.log(first, 0, [[50 * i, 0.1, 0.2, None] for i in range(40)]).json() == {
        "next": 40
    }
    again = person.begin(song)
    assert (again["take"], again["next"], again["at"]) == (first["take"], 40, 1.95)
    assert again["curve"][-1] == [1.95, 0.1, 0.2]
    assert "another window" in person.log(first, 40, [[2000, 0, 0, None]]).json()["error"]
    assert "another window" in person.finish(first, 40).json()["error"]
    fresh = person.begin(song, fresh=True)
    assert fresh["take"] != first["take"] and fresh["next"] == 0


@pytest.mark.slow
def test_twenty_at_once_lose_nothing(studio):
    address, study = studio
    song = song_named(study, "five").number
    people = [Person(address, study, f"p{i}") for i in range(20)]

    def draw(person):
        source = random.Random(person.who.id)
        take = person.begin(song)
        drawn = [[50 * i, source.uniform(-1, 1), source.uniform(-1, 1), None] for i in range(400)]
        acknowledged = 0
        while acknowledged < len(drawn):
            upto = acknowledged + source.randrange(1, 30)
            first = max(0, acknowledged - source.randrange(0, 10))  # some are sent again
            acknowledged = person.log(take, first, drawn[first:upto]).json()["next"]
        return take["take"], drawn

    with ThreadPoolExecutor(20) as pool:
        for take, drawn in pool.map(draw, people):
            kept = [[round(1000 * at), a, v, end] for at, a, v, end in study.store.entries(take)]
            assert kept == drawn


@pytest.mark.slow
def test_wrong_passwords_keep_nobody_waiting(person, studio):
    address, _ = studio
    with ThreadPoolExecutor(60) as pool:
        guesses = [pool.submit(_guess, address) for _ in range(60)]
        time.sleep(0.5)
        begun = time.monotonic()
        assert person.get("/state").status_code == 200
        # Not the minute that the guesses take, on a busy machine too.
        assert time.monotonic() - begun < 15.0
    assert sum(guess.result() for guess in guesses) < 20  # one a second; the others lost patience


def _guess(address):
    try:
        answer = httpx.post(f"{address}/owner/login", data={"key": "x"}, timeout=2.0)
    except httpx.TimeoutException:
        return False
    assert answer.status_code == 403
    return True


def test_rating_is_blind_and_counted(person, studio):
    _, study = studio
    assert person.get("/trial").status_code == 409  # nothing to rate yet
    support = song_named(study, "one").number
    person.annotate(support, 0.6, 0.6)
    person.adapt(support)
    seen = []
    while not (trial := person.get("/trial").json()).get("done"):
        assert person.get("/trial").json() == trial  # a reload shows the same
        assert not {"adapted", "adapted_side"} & trial.keys()
        seen.append(trial["song"])
        (row,) = study.store.rows("SELECT * FROM trial WHERE id = ?", trial["trial"])
        side = row["adapted_side"]
        own = study.modelling.curve(str(row["adaptation"]), study.library.get(trial["song"]))
        np.testing.assert_allclose(trial[side], own, atol=1e-4)  # sent with four decimals
        answer = {"chosen": side, "fit_left": 5 if side == "left" else 2, "fit_right": 5 if side == "right" else 2,
                  "comment": "=1+1", "listened": 3.0}  # fmt: skip
        assert person.post(f"/trials/{trial['trial']}", answer | {"fit_left": 8}).status_code == 422
        assert person.post(f"/trials/{trial['trial']}", answer | {"chosen": "both"}).status_code == 422  # fmt: skip
        assert person.post(f"/trials/{trial['trial']}", answer).status_code == 200
        assert person.post(f"/trials/{trial['trial']}", answer).status_code == 409
    assert len(seen) == len(set(seen)) == 4 and support not in seen
    summary = ratings.summary_of_study(study.store)["participants"][ratings.listener_id(person.who)]
    assert (summary["share"], summary["fit_difference"]) == (1.0, 3.0)
    assert not any(
        trial["blind"] for trial in study.store.trials(person.who)
    )  # the study is not, and says so


def test_curves_that_look_alike_are_not_asked_about(person, studio, monkeypatch):
    """It says so, and asks when another song has moved them apart."""
    _, study = studio
    person.annotate(song_named(study, "one").number, 0.6, 0.6)
    person.adapt(song_named(study, "one").number)
    monkeypatch.setattr(ratings, "VISIBLE", 1.9)
    answer = person.get("/trial").json()
    assert answer["alike"] and answer["most"] < answer["needed"] == 1.9
    assert not study.store.trials(person.who)
    monkeypatch.setattr(ratings, "VISIBLE", answer["most"] - 1e-6)
    assert "trial" in person.get("/trial").json()
    trials = study.store.trials(person.who)
    assert max(trial["difference"] for trial in trials) == pytest.approx(answer["most"])


# ---- The owner, and what leaves.


@pytest.fixture
def owner(studio):
    address, _ = studio
    client = httpx.Client(base_url=address, timeout=60.0)
    assert client.post("/owner/login", data={"key": PASSWORD}).status_code == 303
    return client


def test_only_the_owner_sees_the_study(studio, owner, monkeypatch):
    monkeypatch.setattr("dsaml_jax.studio.app.LOGIN_SECONDS", 0.0)
    address, study = studio
    stranger = httpx.Client(base_url=address)
    for path in ("/owner/state", "/owner/export/ratings.csv", "/owner/export/corpus.zip"):
        assert stranger.get(path).status_code == 403
    assert stranger.post("/owner/participants", json={"name": "x"}).status_code == 403
    assert stranger.post("/owner/login", data={"key": "wrong"}).status_code == 403
    assert "Password" in stranger.get("/owner").text
    assert (
        stranger.get("/owner", params={"key": study.key}).status_code == 303
    )  # the link that is printed
    assert "Participants" in owner.get("/owner").text


def test_links_are_made_by_the_owner(studio, owner):
    address, _ = studio
    made = owner.post("/owner/participants", json={"name": "<b>Ann</b>"})
    page = httpx.get(f"{address}/p/{made.json()['token']}")
    assert page.status_code == 200
    for name in (" ", 7, None, "x" * 61, "\ud800"):
        content = json.dumps({"name": name})
        assert owner.post("/owner/participants", content=content, headers={"Content-Type": "application/json"}).status_code == 422  # fmt: skip
    assert owner.post("/owner/participants", json=[]).status_code == 422
    people = owner.get("/owner/state").json()["people"]
    assert people[-1]["name"] == "<b>Ann</b>"


@pytest.mark.slow
def test_what_is_exported_trains_the_next_model(studio, owner, tmp_path):
    address, study = studio
    people = [Person(address, study, f"rater {i}") for i in range(3)]
    people[0].annotate(song_named(study, "five").number, 0.1, 0.1)
    people[1].annotate(
        song_named(study, "five").number, 0.1, 0.1, seconds=47.0
    )  # its header says 45
    for number, person in enumerate(people):
        for name in ("one", "two", "four"):
            person.annotate(song_named(study, name).number, 0.2 * number, -0.2 * number)
    answer = owner.get("/owner/export/corpus.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert not any("rater" in archive.read(name).decode(errors="ignore") for name in archive.namelist() if name.endswith(".csv") and "annotations" in name)  # fmt: skip
        archive.extractall(tmp_path)
    deam = read_deam(tmp_path / "deam")
    folder = read_folder(tmp_path / "folder", "study")
    song = song_named(study, "two")
    who = f"listener{people[2].who.id:03d}"
    for corpus, start in ((deam, 15.0), (folder, 0.0)):
        found = next(one for one in corpus.songs if one.song_id == str(song.number))
        rating = next(one for one in found.ratings if one.annotator_id == who)
        drawn = study.modelling.labels(people[2].who, song)[round(2 * start) :]
        assert found.start == start
        both = np.stack([rating.arousal, rating.valence], axis=-1)
        known = np.isfinite(both).all(axis=1)
        assert known.sum() > 50
        # Exported with four decimals.
        np.testing.assert_allclose(both[known], drawn[: len(both)][known], atol=1e-4)
        assert found.audio is not None
    out = tmp_path / "data"
    assert main(["prepare", "deam", "--root", str(tmp_path / "deam"), "--out", str(out), "--features", "tiny", "--embedding", "spectral", "--quiet"]) == 0  # fmt: skip
    assert owner.get("/owner/export/../../study.sqlite").status_code == 404


def test_tables_for_the_owner(person, studio, owner):
    _, study = studio
    for name in ("one", "two"):
        person.annotate(song_named(study, name).number, 0.1, 0.1)
    number = study.store.add_adaptation(person.who, song_named(study, "one").number)
    study.store.end_adaptation(number, before=0.2, after=0.1)
    planned = [
        PlannedTrial(song_named(study, name).number, "left", 0.1, name == "five")
        for name in ("two", "three", "four", "five")
    ]
    study.store.add_trials(person.who, number, planned, blind=False)
    for trial in study.store.trials(person.who):
        study.store.rate(
            person.who, trial["id"], chosen_side="left", fits=(5, 2), comment="=1+1", listened=3.0
        )
    text = owner.get("/owner/export/ratings.csv").text
    assert text.startswith("participant,position,song,adapted_side")
    assert "'=1+1" in text and ",=1+1" not in text
    summary = json.loads(owner.get("/owner/export/summary.json").text)
    assert summary["overall"]["rated"] >= 3 and summary["overall"]["controls"] >= 1
    assert summary["needed"] == ratings.trials_needed()
    assert text.splitlines()[-1].endswith(",0.1000,1,'=1+1")
    recorded = owner.get("/owner/export/recorded.csv").text.splitlines()
    assert recorded[0].startswith("participant,song,take") and len(recorded) > 1000


def test_people_take_their_model_with_them(person, studio, tmp_path):
    song = song_named(studio[1], "one")
    person.annotate(song.number, 0.3, 0.3)
    person.adapt(song.number)
    with zipfile.ZipFile(io.BytesIO(person.get("/export.zip").content)) as archive:
        archive.extractall(tmp_path)
    load_model(tmp_path / "model")
    assert (tmp_path / "figures" / f"{song.number}.svg").read_text().startswith("<svg")
    drawn, curve = tmp_path / "annotations" / f"{song.number}.csv", tmp_path / "curves" / f"{song.number}.csv"  # fmt: skip
    assert drawn.read_text().startswith("time,arousal,valence") and curve.is_file()


# ---- Privacy.


def _holds(folder, *texts):
    """Files below a folder whose bytes hold one of these, or whose names do."""
    return [
        path.relative_to(folder)
        for path in folder.rglob("*")
        if any(text in str(path.relative_to(folder)) for text in texts)
        or (path.is_file() and any(text.encode() in path.read_bytes() for text in texts))
    ]


def test_somebody_who_is_forgotten_leaves_nothing(studio, owner):
    """Of what they did, wrote and brought, not even in free pages of the database; others keep what is theirs."""
    address, study = studio
    gone, stays = Person(address, study, "Ann Onymous"), Person(address, study, "Ben Stays")
    song = song_named(study, "one")
    for somebody in (gone, stays):
        somebody.annotate(song.number, 0.6, 0.6)
        somebody.adapt(song.number)
        assert somebody.get("/export.zip").status_code == 200
    brought = upload(gone, "ann's secret.wav", sound(36.5)).json()["number"]
    shared = [upload(x, "shared.wav", sound(37.5)).json()["number"] for x in (gone, stays)][0]
    study.modelling.wait_until_warm()
    number = study.store.all_adaptations(gone.who)[-1]
    study.store.add_trials(gone.who, number, [PlannedTrial(song.number, "left")], blind=False)
    (trial,) = study.store.trials(gone.who)
    study.store.rate(gone.who, trial["id"], chosen_side="left", fits=(5, 2), comment="my private comment", listened=1.0)  # fmt: skip
    assert owner.get("/owner/export/corpus.zip").status_code == 200
    digest = study.library.get(brought).digest
    traces = ("Ann Onymous", gone.who.token, "my private comment", "ann's secret", digest)
    assert len(_holds(study.folder, *traces)) >= 4
    kept = study.store.entries(study.store.finished_takes(stays.who)[-1]["id"])

    refused = httpx.post(f"{address}/owner/participants/{gone.who.id}/forget", json={})
    assert refused.status_code == 403
    assert owner.post(f"/owner/participants/{gone.who.id}/forget", json={}).status_code == 200

    assert _holds(study.folder, *traces) == []
    assert not study.modelling.model_folder(number).exists()
    assert not list(study.folder.rglob(f"adapted-{number}"))
    assert gone.get("/state").status_code == 404
    assert study.library.get(brought) is None and study.library.get(shared) is not None
    for table in ("take", "adaptation", "trial", "upload"):
        assert not study.store.rows(f"SELECT 1 FROM {table} WHERE participant = ?", gone.who.id)
    assert not study.store.rows("SELECT 1 FROM entry WHERE take NOT IN (SELECT id FROM take)")
    assert study.store.entries(study.store.finished_takes(stays.who)[-1]["id"]) == kept
    assert stays.get(f"/songs/{song.number}/curves").json()["after"] is not None
    assert owner.post(f"/owner/participants/{gone.who.id}/forget", json={}).status_code == 404
    assert study.store.add_participant("new").id > gone.who.id  # an id is nobody else's


def test_what_was_asked_for_by_somebody_who_is_forgotten_is_not_done(person, studio):
    _, study = studio
    song = song_named(study, "one").number
    person.annotate(song, 0.6, 0.6)
    release = threading.Event()
    study.modelling._add(0, release.wait)  # the thread is busy
    number = person.post(f"/songs/{song}/adapt").json()["number"]
    with ThreadPoolExecutor(1) as pool:
        forgotten = pool.submit(study.modelling.forget, person.who)
        while study.modelling._jobs.qsize() < 2:
            time.sleep(0.01)
        release.set()
        forgotten.result()
    study.modelling._adapt(number, person.who)
    assert not study.modelling.model_folder(number).exists()
    assert study.store.participant(person.who.token) is None


def test_a_song_that_others_use_stays_when_who_brought_it_is_forgotten(tmp_path):
    """It is the study's own by now: the same bytes lie in its folder."""
    study, own = tmp_path / "study", (tmp_path / "study" / "uploads" / "own.wav")
    own.parent.mkdir(parents=True)
    store = Store(study / forgetting.DATABASE)
    gone, stays = store.add_participant("gone"), store.add_participant("stays")
    mine, used, named = (store.song_number(digest, digest) for digest in ("mine", "used", "own"))
    for song in (mine, used, named):
        store.add_upload(gone, song)
        own.with_name(f"{store.row('SELECT digest FROM song WHERE number = ?', song)['digest']}.wav").touch()  # fmt: skip
    store.begin_take(stays, used, "both", practice=False)
    forgetting.forget(study, store, gone, own={named})
    assert [row["number"] for row in store.rows("SELECT number FROM song ORDER BY number")] == [used, named]  # fmt: skip
    assert {path.name for path in own.parent.iterdir()} == {"used.wav", "own.wav"}
    assert store.participants() == [stays] and not store.uploads()


def test_exports_hold_no_names(studio, owner):
    """Of people, and of songs that they brought; links neither."""
    address, study = studio
    somebody = Person(address, study, "Cleo Patra")
    number = upload(somebody, "cleo sings.wav", sound(38.5)).json()["number"]
    somebody.annotate(number, 0.2, 0.2, seconds=38.0)
    with zipfile.ZipFile(io.BytesIO(owner.get("/owner/export/corpus.zip").content)) as archive:
        texts = [archive.read(name).decode(errors="ignore") + name for name in archive.namelist()]
    texts += [owner.get(f"/owner/export/{name}").text for name in ("ratings.csv", "recorded.csv", "summary.json")]  # fmt: skip
    for text in texts:
        assert not any(word in text for word in ("Cleo", "cleo", somebody.who.token))
    assert any(f"{number}," in text for text in texts)
    assert "What is kept" in somebody.get("").text


def test_forgetting_on_the_command_line(tmp_path, capsys):
    study = tmp_path / "study"
    study.mkdir()
    store = Store(study / "study.sqlite")
    for name in ("ann", "ben", "ben"):
        store.add_participant(name)

    def run(name):
        return main(["studio", "--study", str(study), "--forget", name])

    assert run("cleo") == 2 and "nobody is called cleo; there are listener001 (ann)" in capsys.readouterr().err  # fmt: skip
    assert run("ben") == 2 and "several people are called ben" in capsys.readouterr().err
    assert run("ann") == 0 and "listener001 is deleted" in capsys.readouterr().out
    assert run("listener003") == 0
    assert [who.name for who in store.participants()] == ["ben"]
    assert _holds(study, "ann") == []
    with serving.lock_of(study):
        assert run("ben") == 2 and "a studio runs here" in capsys.readouterr().err
    assert main(["studio", "--study", str(tmp_path), "--forget", "x"]) == 2
    assert "no study is here" in capsys.readouterr().err
    assert main(["studio", "--study", str(study)]) == 2
    assert "--songs is needed" in capsys.readouterr().err


# ---- Who may ask for what.


def test_names_and_comments_are_never_markup(person, studio):
    song = song_named(studio[1], "<img src=x onerror=alert(1)>")
    page = person.get(f"/annotate/{song.number}").text
    assert "<img" not in page and "&lt;img" in page


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
     {"Host": "evil.example"}],
)  # fmt: skip
def test_other_pages_are_refused(person, studio, headers):
    song = song_named(studio[1], "one").number
    assert person.post(f"/songs/{song}/takes", {"dimension": "both"}, headers=headers).status_code == 403  # fmt: skip


def test_a_name_that_points_here_reads_nothing(person):
    assert person.client.get(f"{person.page}/state", headers={"Host": "rebound.example"}).status_code == 403  # fmt: skip


def test_forms_of_other_pages_cannot_send_json(person, studio):
    song = song_named(studio[1], "one").number
    sent = person.client.post(f"{person.page}/songs/{song}/takes", content='{"dimension": "both"}', headers={"Content-Type": "text/plain"})  # fmt: skip
    assert sent.status_code == 415


def test_every_page_has_its_headers(person):
    headers = person.get("").headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "same-origin" and headers["x-content-type-options"] == "nosniff"  # fmt: skip
    assert "unsafe-eval" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2fapp.py", "/plotly/..%2f__init__.py", "/static/%2e%2e/app.py", "/p/../owner/state",
     "/p/nobody", "/p/nobody/state", "/p/' OR 1=1 --/state"],
)  # fmt: skip
def test_paths_that_lead_elsewhere(studio, path):
    address, _ = studio
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:  # no client that tidies the path
        raw.sendall(f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())  # fmt: skip
        status = raw.makefile("rb").readline().split()[1]
    assert status in (b"404", b"403")


def test_somebody_elses_take_is_nobodys(studio):
    address, study = studio
    first, second = Person(address, study), Person(address, study)
    take = first.begin(song_named(study, "one").number)
    assert second.log(take, 0, [[0, 0, 0, None]]).status_code == 404
    assert second.finish(take, 0).status_code == 404
    assert first.post(f"/takes/{10**30}/finish").status_code == 404
    assert first.post(f"/trials/{10**30}", {"chosen": "left", "fit_left": 1, "fit_right": 1}).status_code == 404  # fmt: skip


@pytest.mark.parametrize(
    "sent", [b"", b"[1", b"\xff", b"7", b'"x"', b"null", b"[]", b'{"dimension": 3}', b"[" * 100_000]
)
def test_bodies_that_are_nothing(person, studio, sent):
    song = song_named(studio[1], "one").number
    answer = person.client.post(f"{person.page}/songs/{song}/takes", content=sent, headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status_code in (400, 422) and "error" in answer.json()


def test_bodies_that_are_too_large(person, studio):
    song = song_named(studio[1], "one").number
    answer = person.client.post(f"{person.page}/songs/{song}/takes", content=b" " * 2_100_000, headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status_code == 413


# ---- Uploads.


def sound(seconds, rate=8000):
    file = io.BytesIO()
    time_axis = np.arange(round(seconds * rate)) / rate
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * 220 * time_axis), rate, format="WAV")
    return file.getvalue()


def upload(person, name, content, kind="application/octet-stream"):
    return person.client.post(f"{person.page}/uploads", params={"name": name}, content=content, headers={"Content-Type": kind})  # fmt: skip


def test_songs_of_ones_own(person, studio):
    before = set((studio[1].folder / "uploads").iterdir())
    answer = upload(person, "../../<script>.wav", sound(31.5))
    assert answer.status_code == 200, answer.text
    song = studio[1].library.get(answer.json()["number"])
    assert song.path.parent == studio[1].folder / "uploads" and song.name == "<script>"
    stranger = Person(*studio)  # nobody else sees it
    with zipfile.ZipFile(io.BytesIO(stranger.get("/export.zip").content)) as archive:
        assert "<script>" not in archive.read("songs.csv").decode()
    assert song.number in {song["number"] for song in person.state()["songs"]}
    assert song.number not in {song["number"] for song in stranger.state()["songs"]}
    assert stranger.get(f"/songs/{song.number}/audio").status_code == 404
    played = person.client.get(f"{person.page}/songs/{song.number}/audio", headers={"Range": "bytes=0-99"})  # fmt: skip
    assert played.status_code == 206 and len(played.content) == 100
    again = upload(person, "other.wav", sound(31.5))
    assert again.json()["number"] == song.number  # the same bytes
    assert upload(person, "音" * 90 + ".wav", sound(31.5)).status_code == 200
    assert len(set((studio[1].folder / "uploads").iterdir()) - before) == 1


def test_what_browsers_may_not_play_they_get_as_wav(person, studio, tmp_path):
    content = make(tmp_path, "alac.m4a", 8.0).read_bytes()
    number = upload(person, "mine.m4a", content).json()["number"]
    played = person.get(f"/songs/{number}/audio")
    assert played.headers["content-type"].startswith("audio/wav")
    wave, rate = soundfile.read(io.BytesIO(played.content))
    assert len(wave) == 8 * rate
    np.testing.assert_allclose(wave, music(8.0).mean(axis=0), atol=1e-4)  # 16 bits, twice


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.exe", b"MZ", "only"), ("a.wav", b"RIFFnonsense", "not a sound file"), ("a.wav", sound(2.0), "5 to 900 s"),
     ("a.mp3", b"", "not a sound file"), ("noending", b"x", "only")],
)  # fmt: skip
def test_uploads_that_are_no_songs(person, studio, name, content, message):
    before = sorted((studio[1].folder / "uploads").iterdir())
    answer = upload(person, name, content)
    assert answer.status_code == 422 and message in answer.json()["error"]
    assert str(studio[1].folder) not in answer.json()["error"]  # nobody needs to know our paths
    assert sorted((studio[1].folder / "uploads").iterdir()) == before


def test_uploads_are_limited(person, studio, monkeypatch):
    monkeypatch.setattr("dsaml_jax.studio.app.MOST_UPLOAD_BYTES", 1000)
    assert upload(person, "a.wav", sound(31.0)).status_code == 413
    assert upload(person, "a.wav", b"x", kind="audio/wav").status_code == 415
    monkeypatch.setattr("dsaml_jax.studio.app.MOST_UPLOADS", 0)
    assert upload(person, "a.wav", b"x").status_code == 429


@pytest.mark.slow
def test_decoding_has_a_time_limit(person, studio, monkeypatch):
    monkeypatch.setattr(library_module, "DECODE_SECONDS", 0.1)
    answer = upload(person, "slow.wav", sound(800.0))
    assert answer.status_code == 422 and "not decoded within" in answer.json()["error"]
    monkeypatch.undo()
    assert (
        upload(person, "quick.wav", sound(33.0)).status_code == 200
    )  # decoding goes on after that


# ---- Starting.


@pytest.mark.slow
def test_a_study_goes_on_after_a_stop(knowing_run, songs, tmp_path):
    config = serving.Settings(
        checkpoint=knowing_run, songs=songs, study=tmp_path, blind=True, ratings=2
    )
    with running(config) as (address, study):
        person = Person(address, study)
        with pytest.raises(UsageError, match="another studio"), serving.open_study(config):
            pass
        song = song_named(study, "two").number
        person.annotate(song, 0.5, 0.5)
        person.adapt(song)
        assert person.get(f"/songs/{song}/curves").status_code == 403  # blind
        assert person.get("/curves").status_code == 403
        assert person.get("/export.zip").status_code == 403
    with running(config) as (address, study):
        person.page = f"{address}/p/{person.who.token}"
        state = person.state()
        assert state["adaptation"]["ready"] and state["adaptation"]["finished"] and state["hidden"]
        for _ in range(2):
            trial = person.get("/trial").json()
            person.post(
                f"/trials/{trial['trial']}", {"chosen": "left", "fit_left": 4, "fit_right": 4}
            )
        assert person.get("/trial").json()["done"]
        assert person.get(f"/songs/{song}/curves").json()["after"] is not None


@pytest.mark.slow
def test_what_was_asked_for_when_it_stopped_is_done_after_that(
    knowing_run, songs, tmp_path, monkeypatch
):
    mine = tmp_path / "songs"
    shutil.copytree(songs, mine)
    damaged = (mine / "five.flac").read_bytes()
    (mine / "five.flac").write_bytes(damaged[: len(damaged) // 3])  # its header can be read
    config = serving.Settings(
        checkpoint=knowing_run, songs=mine, study=tmp_path / "study", ratings=3
    )
    with running(config) as (address, study):
        person, late = Person(address, study), Person(address, study)
        song = song_named(study, "two").number
        for somebody in (person, late):
            somebody.annotate(song, 0.5, 0.5)
        person.adapt(song)
        monkeypatch.setattr(
            study.modelling, "_adapt", lambda *_: None
        )  # the stop comes before the job
        late.post(f"/songs/{song}/adapt")
    (folder,) = (tmp_path / "study" / "cache" / "curves").glob("adapted-*")
    for curve in folder.iterdir():
        curve.unlink()
    with running(config) as (address, study):
        for somebody in (person, late):
            somebody.page = f"{address}/p/{somebody.who.token}"
            while not (adaptation := somebody.state()["adaptation"])["finished"]:
                assert not adaptation["error"]
                time.sleep(0.05)
            assert adaptation["ready"] and adaptation["of"] == 5
            rated = 0
            while not (trial := somebody.get("/trial").json()).get("done"):
                assert "waiting" not in trial
                somebody.post(f"/trials/{trial['trial']}", {"chosen": "left", "fit_left": 4, "fit_right": 4})  # fmt: skip
                rated += 1
            assert rated == 3
        assert "five.flac" in study.library.refused
    changed = dataclasses.replace(config, strength=1.0)
    with pytest.raises(UsageError, match="another checkpoint or strength"), serving.open_study(changed):  # fmt: skip
        pass


def test_addresses_that_others_reach_need_a_password(
    small_run, songs, tmp_path, capsys, monkeypatch
):
    asked = [
        "studio",
        "--checkpoint",
        str(small_run),
        "--songs",
        str(songs),
        "--study",
        str(tmp_path / "s"),
        "--port",
        "0",
    ]
    assert main([*asked, "--host", "0.0.0.0"]) == 2
    assert "DSAML_STUDIO_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("DSAML_STUDIO_PASSWORD", "short")
    assert main([*asked, "--host", "0.0.0.0"]) == 2
    assert not (tmp_path / "s").exists()


def test_what_cannot_start_says_why(small_run, tmp_path, capsys):
    asked = [
        "studio",
        "--checkpoint",
        str(small_run),
        "--study",
        str(tmp_path / "s"),
        "--port",
        "0",
    ]
    assert main([*asked, "--songs", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*asked, "--songs", str(tmp_path / "empty")]) == 2
    assert "no song can be used" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*asked[:-1], str(port), "--songs", str(tmp_path / "empty")]) == 2
    assert "choose another --port" in capsys.readouterr().err


def test_a_song_that_cannot_be_decoded_harms_no_other(studio, monkeypatch):
    _, study = studio

    def fail(song):
        raise DataError("no")

    song = song_named(study, "one")
    monkeypatch.setattr(study.library, "features", fail)
    study.modelling.prepare(song)
    while study.library.get(song.number) is not None:
        time.sleep(0.01)
    assert study.library.refused[song.path.name] == "no"
    study.modelling.wait_until_warm()  # the thread lives
    study.library._songs[song.number] = song  # for the tests that follow


def test_everyone_is_the_run_it_began_from(small_run, songs, tmp_path):
    loaded = load_model(small_run)
    config = serving.Settings(checkpoint=small_run, songs=songs, study=tmp_path)
    assert serving._everyone(config, loaded) is None

    def began_from(folder):
        training = dataclasses.replace(loaded.info.config.training, init_from=str(folder))
        run = dataclasses.replace(loaded.info.config, training=training)
        return dataclasses.replace(loaded, info=dataclasses.replace(loaded.info, config=run))

    assert serving._everyone(config, began_from(small_run)) is not None
    assert (
        serving._everyone(config, began_from(tmp_path / "gone" / small_run.name)) is not None
    )  # both were moved
    assert serving._everyone(config, began_from(tmp_path / "gone")) is None
    with pytest.raises(UsageError):
        serving._everyone(dataclasses.replace(config, everyone=tmp_path / "gone"), loaded)
