"""How listeners differ from a model, and what that makes of a few songs of one of them.

Where no tolerance is given, numbers are float64 and go the same way.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data_prep.analysis import SongFeatures
from data_prep.features import TINY, window_starts
from data_prep.shards import read_corpus
from dsaml_jax import UsageError
from dsaml_jax.cli import main
from dsaml_jax.corpus import held_out
from dsaml_jax.evaluation import Likeness, fit_listeners, inside
from dsaml_jax.listener import (
    AnnotatedSong,
    band_of,
    how_sure,
    how_you_hear,
    personalize,
    predict_file,
    save_personalized,
)
from dsaml_jax.models import SongSpace
from dsaml_jax.runs import (
    LISTENERS_FILE,
    Correlations,
    Listeners,
    Person,
    Spread,
    Together,
    export_model,
    load_model,
    read_listeners,
    read_person,
)
from tests.test_cli import fails

SPREAD = Spread(between=0.04, within=0.12, moving=0.01, low=-0.5, high=0.4)
LISTENERS = Listeners(SPREAD, dataclasses.replace(SPREAD, between=0.0), people=9, curves=90)


def made_up(people=300, songs=12, steps=30, seed=0, between=0.2, within=0.3, moving=0.1):
    """Differences of people with 1 to `songs` songs, by the model that is fitted."""
    random = np.random.default_rng(seed)
    who, found = [], []
    for person in range(people):
        level = between * random.standard_normal(2)
        for _ in range(random.integers(1, songs + 1)):
            song = level + within * random.standard_normal(2)
            who.append(person)
            found.append(song + moving * random.standard_normal((steps, 2)))
    return np.array(who), found


def test_variances_are_found_again():
    """Over five draws: within three standard errors of what they were made with (about a tenth, a fortieth, a hundredth)."""
    drawn = [fit_listeners(*made_up(seed=seed)) for seed in range(5)]
    for name, expected, tolerance in (("between", 0.04, 0.2), ("within", 0.09, 0.05), ("moving", 0.01, 0.1)):  # fmt: skip
        values = [getattr(x.arousal, name) for x in drawn]
        assert np.mean(values) == pytest.approx(expected, rel=tolerance), name
    assert drawn[0].arousal.taste == 0.0  # nobody knows which songs are alike


SPACE = SongSpace(np.zeros(3), np.ones(3), gamma=0.5)


def test_taste_is_found_again():
    """Over five draws, each within three standard errors (over draws: a tenth, a seventh, a twentieth)."""
    drawn = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        likeness = Likeness(SPACE, random.standard_normal((60, 3)))
        songs = np.stack([random.permutation(60)[:12] for _ in range(150)])
        alone = 0.2 * random.standard_normal((150, 12))
        level = 0.2 * random.standard_normal((150, 1))
        root = np.linalg.cholesky(0.05 * likeness.of(songs) + 1e-9 * np.eye(12))
        levels = level + alone + (root @ random.standard_normal((150, 12, 1)))[..., 0]
        found = [np.full((4, 2), x) for x in levels.ravel()]
        fitted = fit_listeners(np.repeat(np.arange(150), 12), found, songs.ravel(), likeness).arousal  # fmt: skip
        drawn.append((fitted.between - fitted.taste * fitted.alike, fitted.taste, fitted.alone))
    np.testing.assert_allclose(np.mean(drawn, axis=0), [0.04, 0.05, 0.04], rtol=0.3)


TOGETHER = Correlations(level=0.8, taste=0.4, alone=-0.2)


@given(st.integers(1, 5), st.integers(0, 99))
def test_what_songs_tell_is_the_posterior_mean(count, seed):
    """Of a further song in both dimensions, by the joint normal distribution of all, written out number by number."""
    random = np.random.default_rng(seed)
    spreads = (
        dataclasses.replace(SPREAD, taste=0.06, alike=0.5),
        dataclasses.replace(SPREAD, within=0.2),
    )
    places = random.standard_normal((count + 1, 3))
    alike = SPACE.likeness(places, places)
    drawn = random.standard_normal((count, 2))
    drawn[random.random((count, 2)) < 0.2] = np.nan
    every = [(song, x) for song in range(count + 1) for x in range(2)]
    variances = np.array([x.parts for x in spreads])

    def covariance(one, other):
        (song, x), (at, y) = one, other
        level, taste, alone = np.sqrt(variances[x] * variances[y]) * (
            1.0 if x == y else dataclasses.astuple(TOGETHER)
        )
        return level + taste * alike[song, at] + alone * (song == at)

    together = np.array([[covariance(one, other) for other in every] for one in every])
    np.testing.assert_allclose(np.diag(together)[:2], [0.04 + 0.12, 0.04 + 0.2])
    known = np.append(np.isfinite(drawn).ravel(), [False, False])
    expected = together[-2:, known] @ np.linalg.solve(
        together[known][:, known], drawn.ravel()[known[:-2]]
    )
    told = Listeners(*spreads, people=9, curves=90, together=TOGETHER).told(drawn, alike[:-1, :-1])
    np.testing.assert_allclose(
        told.shift(alike[-1, :-1]), expected, atol=1e-6
    )  # rounding of variances
    assert (told.deviation <= np.sqrt([0.04, 0.04]) + 1e-9).all() and (told.deviation >= 0.0).all()


def test_songs_as_alike_as_usual_tell_by_their_mean():
    """As where nobody knows which are alike."""
    spread = dataclasses.replace(SPREAD, taste=0.06, alike=0.5)
    listeners = Listeners(spread, None, people=9, curves=90)
    drawn = np.array([[0.3, np.nan], [0.1, np.nan], [-0.2, np.nan]])
    usual = np.where(np.eye(3, dtype=bool), 1.0, 0.5)
    for told in (listeners.told(drawn, usual), listeners.told(drawn)):
        expected = spread.share(3) * drawn[:, 0].mean()
        np.testing.assert_allclose(told.usual, [expected, 0.0], atol=1e-6)
        assert told.deviation[0] == pytest.approx(math.sqrt(spread.unknown(3)), rel=1e-6)
        assert np.isnan(told.deviation[1])


def test_correlations_are_found_again():
    """Of people who are made so, over five draws: within 0.15, three standard errors of the least certain one."""
    drawn = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        likeness = Likeness(SPACE, random.standard_normal((60, 3)))
        spreads = [dataclasses.replace(SPREAD, between=0.07, taste=0.05, alike=0.4)] * 2
        both = Together.of(spreads, TOGETHER)
        who, songs, found = [], [], []
        for person in range(150):
            mine = random.permutation(60)[:10]
            root = np.linalg.cholesky(both.covariance(likeness.of(mine)).reshape(20, 20))
            levels = (root @ random.standard_normal(20)).reshape(2, 10).T
            who += [person] * 10
            songs += mine.tolist()
            found += [np.full((4, 2), level) for level in levels]
        fitted = fit_listeners(np.array(who), found, np.array(songs), likeness)
        drawn.append(dataclasses.astuple(fitted.together))
    np.testing.assert_allclose(np.mean(drawn, axis=0), dataclasses.astuple(TOGETHER), atol=0.15)


def test_there_cannot_be_more_taste_than_is_shared():
    for wrong in ({"taste": 0.2, "alike": 0.5}, {"taste": 0.13}, {"taste": -0.1}):
        with pytest.raises(ValueError, match="taste|negative"):
            dataclasses.replace(SPREAD, **wrong)


def test_a_band_holds_what_it_says():
    """On curves of other people; each curve as much as another."""
    listeners = fit_listeners(*made_up(seed=1))
    _, others = made_up(seed=2)
    shares = inside(others, listeners).mean(axis=0)
    # Levels of 300 people, correlated within a person: a standard error of 0.013.
    np.testing.assert_allclose(shares, 0.8, atol=0.04)


def test_the_share_is_the_posterior_mean():
    """Of a normal level, from the mean of K normal songs: by the joint covariance of both."""
    for songs in (1, 2, 5, 10):
        together = SPREAD.between + SPREAD.within * np.eye(songs)
        expected = np.linalg.solve(together, np.full(songs, SPREAD.between)).sum()
        assert SPREAD.share(songs) == pytest.approx(expected)
    assert SPREAD.share(0) == 0.0


def test_what_is_not_known_is_the_posterior_variance():
    """Of the same normal level; and of any other share of the mean difference, by its bias and its variance."""
    for songs in (1, 2, 5, 10):
        together = SPREAD.between + SPREAD.within * np.eye(songs)
        known = np.full(songs, SPREAD.between)
        expected = SPREAD.between - known @ np.linalg.solve(together, known)
        assert SPREAD.unknown(songs) == pytest.approx(expected)
        assert SPREAD.unknown(songs) == pytest.approx((1 - SPREAD.share(songs)) * SPREAD.between)
        for share in (0.0, 0.3, 1.0):
            weights = np.full(songs, share / songs)
            expected = SPREAD.between + weights @ together @ weights - 2 * weights @ known
            assert SPREAD.unknown(songs, share) == pytest.approx(expected)
            assert SPREAD.unknown(songs) <= SPREAD.unknown(songs, share)
    assert SPREAD.unknown(0) == SPREAD.unknown(0, 0.4) == SPREAD.between
    assert SPREAD.error(0) == pytest.approx(math.sqrt(0.04 + 0.12 + 0.01))


def test_the_error_to_be_expected_is_met():
    """By people who are made by that model, of whom three songs are known: within three standard errors."""
    random = np.random.default_rng(0)
    level = 0.2 * random.standard_normal(20_000)
    songs = level[:, None] + math.sqrt(0.12) * random.standard_normal((20_000, 4))
    missed = songs[:, 3] - SPREAD.share(3) * songs[:, :3].mean(axis=1)
    expected = math.sqrt(np.square(SPREAD.error(3)) - SPREAD.moving)
    assert np.sqrt(np.square(missed).mean()) == pytest.approx(expected, rel=3 / math.sqrt(2 * 20_000))  # fmt: skip


@pytest.mark.parametrize(
    ("songs", "expected"),
    [
        ([], ""),
        # Shares of 1/4 and 2/5 of the differences; deviations of sqrt(0.04 * 3/4) and sqrt(0.04 * 3/5).
        ([(-0.8, 0.3)], "You hear this music calmer than most, by 0.20 ± 0.17; its valence about as most do."),
        ([(0.8, None)], "You hear this music more excited than most, by 0.20 ± 0.17."),
        ([(0.1, -0.1)], "You hear this music about as most do."),
        ([(0.5, 0.5), (0.5, 0.5)], "You hear this music more excited than most, by 0.20 ± 0.15, and brighter than most, by 0.20 ± 0.15."),
        ([(0.1, -0.5), (0.0, -0.5)], "You hear this music darker than most, by 0.20 ± 0.15; its arousal about as most do."),
    ],
)  # fmt: skip
def test_how_you_hear(songs, expected):
    listeners = dataclasses.replace(LISTENERS, valence=SPREAD)
    assert how_you_hear(person_of(listeners, songs)) == expected


def person_of(listeners, pairs):
    person = Person((0.0, 0.0), {str(number): pair for number, pair in enumerate(pairs)})
    return person.after(listeners.told(person.differences))


@given(st.lists(st.tuples(st.floats(-1, 1) | st.none(), st.floats(-1, 1) | st.none()), max_size=6), st.floats(0, 1) | st.none())  # fmt: skip
def test_nothing_is_claimed_that_is_less_than_its_deviation(pairs, strength):
    listeners = dataclasses.replace(LISTENERS, strength=strength)
    person = person_of(listeners, pairs)
    said = how_you_hear(person)
    told = listeners.told(person.differences)
    for words, shift, deviation, count in zip((("calmer", "more excited"), ("darker", "brighter")), told.usual, told.deviation, person.counts(), strict=True):  # fmt: skip
        sure = count > 0 and shift != 0 and abs(shift) >= deviation
        assert [word in said for word in words] == [bool(sure and shift < 0), bool(sure and shift > 0)]  # fmt: skip
    assert bool(said) == bool(how_sure(listeners, person)) == any(person.counts())
    errors = listeners.error((0, 0)) - listeners.error(person.counts())
    assert strength is not None or (errors >= 0).all()


def test_how_sure():
    person = person_of(LISTENERS, [(0.1, 0.1), (0.2, None)])
    # sqrt(0.04 * 3/5 + 0.13), sqrt(0.17); between is 0 in valence: nothing is gained.
    assert how_sure(LISTENERS, person) == (
        "On a new song your curve should be off by 0.392 in arousal (0.412 before your 2 songs) "
        "and 0.361 in valence (0.361 before your 1 song), where the scale goes from -1 to 1."
    )
    half = dataclasses.replace(LISTENERS, valence=None)
    person = person_of(half, [(0.1, 0.1), (0.2, None)])
    assert "valence" not in how_sure(half, person) + how_you_hear(person)


def test_bands_narrow_with_songs():
    widths = [np.subtract(*SPREAD.band(songs)[::-1]) for songs in (0, 1, 2, 5, 10, 10_000)]
    assert widths == sorted(widths, reverse=True) and widths[0] == pytest.approx(0.9)
    rest = (SPREAD.within + SPREAD.moving) / (SPREAD.between + SPREAD.within + SPREAD.moving)
    assert widths[-1] == pytest.approx(0.9 * math.sqrt(rest), rel=1e-3)
    curve = np.array([[0.9, -0.9], [np.nan, 0.0]])
    whole = SPREAD.between + SPREAD.within + SPREAD.moving
    for strength, unknown in ((0.0, SPREAD.between), (1.0, SPREAD.within / 2)):
        low, high = dataclasses.replace(LISTENERS, strength=strength).band(np.zeros((1, 2)), (2, 2))
        left = unknown + SPREAD.within + SPREAD.moving
        assert high[0, 0] - low[0, 0] == pytest.approx(0.9 * math.sqrt(left / whole), rel=1e-6)
    low, high = LISTENERS.band(curve)
    np.testing.assert_allclose(low[0], [0.4, -1.0], atol=1e-6)
    np.testing.assert_allclose(high[0], [1.0, -0.5], atol=1e-6)
    assert np.isnan([low[1, 0], high[1, 0]]).all()


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1) | st.just(math.nan)), min_size=1, max_size=6), st.randoms())  # fmt: skip
def test_the_order_of_songs_makes_no_difference(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    people = [Person((0.0, 0.0)), Person((0.0, 0.0))]
    for which, order in enumerate((pairs, shuffled)):
        for pair in order:  # a song is the same wherever it stands
            digest = str(pairs.index(pair))
            people[which] = people[which].with_song(digest, np.array(pair))
    first, second = (LISTENERS.told(x.differences).level for x in people)
    np.testing.assert_array_equal(first, second)
    assert first[1] == 0.0  # people do not differ in this dimension


def test_too_few_people_say_nothing():
    who, found = made_up(people=1, seed=3)
    assert fit_listeners(who, found) is None
    assert fit_listeners(np.arange(len(found)), found) is None  # one song each
    who, found = made_up(people=5)
    silent = [np.where([True, False], x, np.nan) for x in found]
    assert fit_listeners(who, silent).valence is None


def test_a_run_knows_how_listeners_differ(small_data, small_run):
    """From the songs of validation, and nobody who is held out for the test."""
    corpus = read_corpus(small_data[1])
    known = load_model(small_run).listeners
    ratings = held_out(corpus)["validation"].consensus
    assert known.curves == len(ratings)
    assert known.people == len(np.unique(corpus.rating_annotator[ratings]))
    assert known.arousal.low < 0 < known.arousal.high


@pytest.fixture(scope="module")
def loaded(small_run):
    return dataclasses.replace(load_model(small_run), listeners=LISTENERS)


@pytest.fixture(scope="module")
def songs(loaded):
    """Three songs, of one of which only arousal is drawn."""
    random = np.random.RandomState(0)
    made = []
    for number in range(3):
        curve = random.uniform(-0.2, 0.2, (40, 2)).astype(np.float32)
        labels = np.full((40, 2), (0.3, -0.2), np.float32) * (number + 1)
        labels[:, 1] = np.nan if number == 2 else labels[:, 1]
        made.append(
            AnnotatedSong(f"song {number}", str(number), labels, features_of(number), curve)
        )
    return made


def features_of(number, steps=40):
    random = np.random.RandomState(number)
    starts = window_starts(steps)
    return SongFeatures(random.randn(steps, TINY.frames, TINY.mel_bands), random.randn(len(starts), TINY.embedding_width), starts)  # fmt: skip


def bias_of(loaded):
    return np.asarray(loaded.variables["params"]["predictor"]["out"]["bias"])


def saved(loaded, songs, folder):
    result = personalize(loaded, songs)
    save_personalized(folder, result, [song.name for song in songs])
    return load_model(folder)


def test_curves_move_by_the_share_of_the_mean_difference(loaded, songs):
    result = personalize(loaded, songs)
    means = [(song.labels - song.curve).mean(axis=0) for song in songs]  # NaN of what was not drawn
    share = 3 * 0.04 / (3 * 0.04 + 0.12)
    expected = share * np.mean([mean[0] for mean in means])
    moved = bias_of(result.loaded) - bias_of(loaded)
    np.testing.assert_allclose(moved, [expected, 0.0], atol=1e-6)  # float32
    assert result.loaded.person.counts() == (3, 2) and result.labelled_seconds == 60.0
    assert result.after[0] < result.before[0] and result.after[1] == result.before[1]


def test_songs_may_come_in_any_order_and_one_by_one(loaded, songs, tmp_path):
    """To the bit, and the model is kept with what it needs for more."""
    at_once = personalize(loaded, songs)
    for order in itertools.permutations(songs):
        np.testing.assert_array_equal(bias_of(personalize(loaded, order).loaded), bias_of(at_once.loaded))  # fmt: skip
    model = saved(loaded, songs[2:], tmp_path / "one")
    model = saved(model, songs[:1], tmp_path / "two")
    assert "and 1 before" in model.info.note
    last = personalize(model, [songs[1]])
    np.testing.assert_array_equal(bias_of(last.loaded), bias_of(at_once.loaded))
    assert last.loaded.person == at_once.loaded.person


def test_a_song_that_comes_again_counts_once(loaded, songs):
    model = personalize(loaded, songs[:2]).loaded
    again = personalize(model, songs[:1])
    np.testing.assert_array_equal(bias_of(again.loaded), bias_of(model))
    redrawn = dataclasses.replace(songs[0], labels=-songs[0].labels)
    np.testing.assert_array_equal(
        bias_of(personalize(model, [redrawn]).loaded),
        bias_of(personalize(loaded, [redrawn, songs[1]]).loaded),
    )


def test_what_adapts_by_steps_alone(loaded, songs):
    with pytest.raises(UsageError, match="does not know how listeners differ"):
        personalize(dataclasses.replace(loaded, listeners=None), songs, "prior")
    person = Person((0.0, 0.0))
    with pytest.raises(UsageError, match="takes no further inner steps"):
        personalize(dataclasses.replace(loaded, person=person), songs, "steps")


def test_an_exported_model_keeps_what_it_knows(loaded, tmp_path):
    export_model(loaded, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").listeners == LISTENERS


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"arousal": null, "valence": null}', '{"arousal": 1, "valence": null, "people": 1, "curves": 1}',
             '{"arousal": {"between": -1, "within": 1, "moving": 1, "low": 0, "high": 1}, "valence": null, "people": 1, "curves": 1}'],
)  # fmt: skip
def test_what_is_no_knowledge_of_listeners(tmp_path, text):
    (tmp_path / LISTENERS_FILE).write_text(text)
    with pytest.raises(UsageError, match=r"listeners.json: damaged"):
        read_listeners(tmp_path)


PERSON_TEXT = '{"base": [0.0, %s], "songs": {%s}, "level": [0.0, 0.0], "deviation": [0.1, null]}'


def test_what_is_a_person(tmp_path):
    (tmp_path / "person.json").write_text(PERSON_TEXT % ("0.5", '"a": [0.1, null]'))
    assert read_person(tmp_path) == Person((0.0, 0.5), {"a": (0.1, None)}, deviation=(0.1, None))


@pytest.mark.parametrize("text", ["", "[]", '{"base": [0.0, 0.0]}', *(PERSON_TEXT % pair for pair in (("null", ""), ("0.0", '"a": [0.1]'), ("0.0", '"a": [NaN, 0.1]')))])  # fmt: skip
def test_what_is_no_person(tmp_path, text):
    (tmp_path / "person.json").write_text(text)
    with pytest.raises(UsageError, match=r"person.json: damaged"):
        read_person(tmp_path)


@pytest.fixture
def study(tmp_path):
    """Three songs that one person annotated."""
    (tmp_path / "study" / "audio").mkdir(parents=True)
    rows = ["song_id,annotator_id,time,arousal,valence"]
    for number in range(3):
        tone = 0.1 * np.sin(np.arange(8 * 8000) * (0.1 + 0.1 * number))
        soundfile.write(tmp_path / "study" / "audio" / f"s{number}.wav", tone, 8000)
        rows += [f"s{number},me,{t / 2},{0.2 * number},0.5" for t in range(16)]
    (tmp_path / "study" / "annotations.csv").write_text("\n".join(rows))
    return tmp_path / "study"


def test_songs_one_by_one_on_the_command_line(small_run, study, tmp_path, capsys):
    """As all at once; in a new folder or in place; and what cannot be."""
    table = study / "annotations.csv"

    def run(*arguments):
        assert main(["personalize", *map(str, arguments)]) == 0
        return bias_of(load_model(arguments[arguments.index("--out") + 1] if "--out" in arguments else tmp_path / "mine"))  # fmt: skip

    pairs = [("--song", study / "audio" / f"s{number}.wav", table) for number in range(3)]
    everyone = ("--checkpoint", small_run)
    at_once = run(*everyone, "--folder", study, "--out", tmp_path / "all")
    run(*everyone, *pairs[2], "--out", tmp_path / "mine")
    two = run("--checkpoint", tmp_path / "mine", "--add", *pairs[0], "--out", tmp_path / "two")
    here = run("--checkpoint", tmp_path / "mine", "--add", *pairs[1], *pairs[0])
    np.testing.assert_array_equal(here, at_once)
    said = capsys.readouterr().out
    assert (two != at_once).any() and "your 2 songs" in said
    # One line each time: what is known of the person, and what that is worth.
    assert said.count("You hear this music") == said.count("On a new song") == 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    out = ("--out", tmp_path / "no")
    fail = ("personalize", "--checkpoint", tmp_path / "mine")
    assert "with --add" in fails(capsys, *fail, *pairs[0], *out)
    assert "--out is needed" in fails(capsys, *fail, *pairs[0])
    assert "named twice" in fails(capsys, *fail, "--add", *pairs[0], *pairs[0], *out)
    assert "--song AUDIO CSV" in fails(capsys, *fail, "--add", *out)
    assert "belong together" in fails(capsys, *fail, "--add", "--audio", pairs[0][1], *out)
    assert "--add is for a personal model" in fails(capsys, "personalize", *everyone, "--add", *pairs[0], *out)  # fmt: skip
    (study / "audio" / "s1.wav").unlink()
    assert "no sound file of s1" in fails(capsys, *fail, "--add", "--folder", study, *out)


def test_predictions_have_a_band(small_run, study, tmp_path):
    """In the table, narrower for a person; none of a model that does not know."""
    song = study / "audio" / "s0.wav"
    assert main(["predict", "--checkpoint", str(small_run), str(song), "--out", str(tmp_path)]) == 0
    header, *rows = (tmp_path / "s0.csv").read_text().splitlines()
    assert header == "time,arousal,valence,arousal_low,arousal_high,valence_low,valence_high"
    values = np.array([[float(x) for x in row.split(",")] for row in rows])
    known = load_model(small_run).listeners
    np.testing.assert_allclose(values[:, 3], np.clip(values[:, 1] + known.arousal.low, -1, 1), atol=2e-5)  # fmt: skip
    assert (tmp_path / "s0.png").is_file()
    loaded = load_model(small_run)
    curve = predict_file(loaded, song)
    person = Person((0.0, 0.0), {"a": (0.1, 0.1)})
    low, high = band_of(dataclasses.replace(loaded, listeners=LISTENERS, person=person), curve)
    assert (high - low)[0, 0] < 0.9 - 1e-4
    assert band_of(dataclasses.replace(loaded, listeners=None), curve) is None


def test_checkpoint_ls_says_how_far_to_go(small_run, capsys):
    assert main(["checkpoint", "ls", str(small_run)]) == 0
    said = capsys.readouterr().out
    spread = load_model(small_run).listeners.arousal
    assert f"after 1, 2, 5, 10 songs a person's curves move by {spread.share(1):.2f}, " in said


def test_knowledge_of_another_checkpoint_is_not_used(small_run, tmp_path):
    import shutil

    shutil.copytree(small_run, tmp_path / "run")
    path = tmp_path / "run" / LISTENERS_FILE
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "step": values["step"] + 1}))
    assert load_model(tmp_path / "run").listeners is None
