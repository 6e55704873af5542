"""What the numbers of a table mean: units, scales and gaps, given or refused by a line that names the option."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.base import DataError
from data_prep.card import read_card
from data_prep.convention import SCALES, Convention
from data_prep.curves import on_grid
from data_prep.features import TINY
from data_prep.folder import read_annotations, read_folder
from data_prep.prepare import prepare
from data_prep.shards import find_dataset, read_facts
from dsaml_jax.cli import main
from dsaml_jax.listener import annotated_song, personalize, save_personalized
from dsaml_jax.listener import read_annotations as read_mine
from dsaml_jax.runs import load_model
from tests.test_cli import fails
from tests.test_folder_corpus import FUZZ, make_folder
from tests.test_readmes import write_sound

TIMES = np.arange(0, 30, 0.5)


def study(times, values, songs=2, people=2):
    """Rows of songs that everybody rated alike."""
    return [
        (f"s{song}", f"p{who}", f"{time:g}", f"{value:g}", f"{value:g}")
        for song, who in itertools.product(range(songs), range(people))
        for time, value in zip(times, values, strict=True)
    ]


def waves(low, high, count=len(TIMES)):
    """Values over all of a scale."""
    return np.round(np.linspace(low, high, count)[np.random.RandomState(0).permutation(count)], 3)


def table(tmp_path, rows):
    return make_folder(tmp_path / "x", rows) / "annotations.csv"


def refused(path, convention=Convention()):
    with pytest.raises(DataError) as error:
        read_annotations(path, convention)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


# ---- Units of time.


@pytest.mark.parametrize("rate", [25, 10, 2, 1, 0.5, 0.2])
@pytest.mark.parametrize("seconds", [10, 45, 600])
def test_milliseconds_are_refused_and_read_when_asked(tmp_path, rate, seconds):
    times = np.arange(0, seconds, 1 / rate)[:600]
    path = table(tmp_path, study(times * 1000, waves(-1, 1, len(times))))
    assert "give --time-unit ms" in refused(path)
    trace = read_annotations(path, Convention("ms"))["s0"]["p0"]
    np.testing.assert_allclose(trace[:, 0], times, atol=1e-6)  # rounded to microseconds


@FUZZ
@given(
    st.floats(0, 1000), st.lists(st.floats(0.01, 9.9), min_size=1, max_size=40), st.booleans()
)  # fmt: skip
def test_seconds_never_look_like_milliseconds(tmp_path, first, gaps, whole):
    """Ratings every few seconds, at any time of a long piece, also in whole seconds."""
    times = np.cumsum([first, *gaps])
    times = np.unique(np.rint(times) if whole else np.round(times, 3))
    trace = read_annotations(table(tmp_path, study(times, 0 * times)))["s0"]["p0"]
    np.testing.assert_allclose(trace[:, 0], times, rtol=1e-5)  # six digits are written


@pytest.mark.parametrize(
    ("times", "convention"),
    [
        ([0, 30, 60, 90], Convention()),  # sections of a song
        ([0, 600, 1200], Convention("s")),  # it was said
        ([0, 20, 1000, 1020], Convention(max_gap=30)),  # they are joined: seconds make sense
        ([1500], Convention()),
    ],
)
def test_wide_gaps_may_be_seconds(tmp_path, times, convention):
    trace = read_annotations(table(tmp_path, study(times, [0] * len(times))), convention)["s0"]["p0"]  # fmt: skip
    assert trace[:, 0].tolist() == times


@pytest.mark.parametrize(
    ("times", "convention", "message"),
    [
        ([0, 20_000], None, "line 3: time 20000 is not from 0 to 14400 s; if times are milliseconds give --time-unit ms"),
        ([0.5, 20_000], None, "line 3: time 20000 is not from 0 to 14400 s"),
        ([0, 500, 1000], None, "times look like milliseconds (whole numbers up to 1000, mostly 500 apart); give --time-unit ms, or --time-unit s if"),
        ([0, 20_000], Convention("s"), "time 20000 is not from 0 to 14400 s"),
        ([-1, 3], Convention("ms"), "line 2: time -1 is not from 0"),
        (TIMES, Convention("ms"), "the last time is 29.5, less than a second with --time-unit ms"),
    ],
)  # fmt: skip
def test_times_that_cannot_be(tmp_path, times, convention, message):
    said = refused(table(tmp_path, study(times, [0] * len(times))), convention or Convention())
    assert message in said
    assert said.endswith("give --time-unit ms") == message.endswith("give --time-unit ms")


# ---- Scales.


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_other_scales_are_refused_and_read_when_asked(tmp_path, scale):
    """The line proposes a scale that holds all values, if it has to be another one than [-1, 1]."""
    path = table(tmp_path, study(TIMES, waves(*scale)))
    message = refused(path)
    assert f"--scale {scale[0]} {scale[1]}" in message
    trace = read_annotations(path, Convention(scale=scale))["s0"]["p0"]
    expected = np.interp(waves(*scale), scale, [-1, 1])
    np.testing.assert_allclose(trace[:, 1], expected, atol=1e-12)
    assert trace[:, 1].min() == -1 and trace[:, 1].max() == 1


@pytest.mark.parametrize(
    ("values", "scale", "message"),
    [
        ([1, 7, 6], None, "line 3: arousal 7 is not from -1 to 1; if the scale is 1 to 7 or 1 to 9 give --scale 1 7 or --scale 1 9"),
        ([1, 8, 9], None, "if the scale is 1 to 9 or 0 to 10 give --scale 1 9 or --scale 0 10"),
        ([-100, 3, 70], None, "if the scale is -100 to 100 or -1000 to 1000 give --scale -100 100 or --scale -1000 1000"),
        ([0, 55, 1], None, "if the scale is 0 to 100 or -100 to 100 give"),
        ([0, 5_000, 1], None, "if the table has another scale give --scale LOW HIGH"),
        ([0, 0.1, 0.2, -0.5, 0.9, 1.5], None, "line 7: arousal 1.5 is not from -1 to 1; if the table has another scale give"),
        ([1, 5, 10], (1, 9), "line 4: arousal 10 is not from 1 to 9; that is what --scale says"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(tmp_path, values, scale, message):
    path = table(tmp_path, study(range(len(values)), values))
    assert message in refused(path, Convention(scale=scale))


def test_a_corpus_that_is_never_below_zero_has_to_say_so(tmp_path):
    """Many songs and people: all of [0, 1] is likelier than half of [-1, 1]. Either can be said."""
    rows = study(TIMES, waves(0, 1), songs=5)
    path = table(tmp_path, rows)
    assert "no rating of 10 is ever below 0; give --scale 0 1 if that is the scale, or --scale -1 1 if" in refused(path)  # fmt: skip
    half = read_annotations(path, Convention(scale=(-1, 1)))["s0"]["p0"]
    whole = read_annotations(path, Convention(scale=(0, 1)))["s0"]["p0"]
    np.testing.assert_array_equal(half[:, 1], waves(0, 1))
    np.testing.assert_allclose(whole[:, 1], 2 * waves(0, 1) - 1, atol=1e-12)


@pytest.mark.parametrize(
    "rows",
    [
        study(TIMES, waves(0, 1), songs=1, people=20),
        study(TIMES, waves(0, 1), songs=20, people=1),
        study(TIMES, waves(0, 1), songs=3, people=3),
        [*study(TIMES, waves(0, 1), songs=5), ("s0", "p9", "0", "-0.01", "0")],
        [(*row[:4], "") for row in study(TIMES, waves(0, 1), songs=5)],
        study(TIMES, 0 * TIMES, songs=5),
    ],
    ids=["a song", "a person", "few", "one below", "one dimension", "zeros"],
)
def test_half_of_the_scale_may_be_all_that_was_used(tmp_path, rows):
    assert read_annotations(table(tmp_path, rows))


def test_one_persons_song_may_be_pleasant_throughout(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "time,arousal,valence\n" + "\n".join(f"{t},0.5,{t / 99:.3f}" for t in range(99))
    )
    assert len(read_mine(path)) == 99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (9, 1)}, "--scale 9 1: give two numbers, the lower one first"),
        ({"scale": (1, 1)}, "--scale 1 1"), ({"scale": (0, np.nan)}, "--scale 0 nan"),
        ({"scale": (-np.inf, 1)}, "--scale -inf 1"), ({"scale": (-1e308, 1e308)}, "--scale"),
        ({"scale": (0, 5e-324)}, "--scale"),
        ({"max_gap": 0}, "--max-gap 0"), ({"max_gap": np.inf}, "--max-gap inf"), ({"max_gap": np.nan}, "--max-gap nan"),
    ],
)  # fmt: skip
def test_conventions_that_are_none(options, message):
    with pytest.raises(DataError, match="give|number of seconds") as error:
        Convention(**options)
    assert message in str(error.value)


FINITE = st.floats(-1e6, 1e6)


@FUZZ
@given(st.tuples(FINITE, FINITE).filter(lambda ends: ends[1] - ends[0] > 1e-3), st.lists(st.floats(0, 1), min_size=1, max_size=9))  # fmt: skip
def test_a_scale_is_linear_and_its_ends_are_ours(ends, shares):
    """To 1e-6: float64 knows numbers of 1e6 to 1e-10, and the ends may be only 1e-3 apart."""
    low, high = ends
    values = np.clip(low + np.array([0, 1, *shares]) * (high - low), low, high)
    rows = np.column_stack([np.arange(len(values)), values, values, np.arange(len(values))])
    found = Convention(scale=ends).apply("x.csv", rows, {("s", "p"): range(len(values))})[:, 1]
    assert (np.abs(found) <= 1).all()
    np.testing.assert_allclose(found, 2 * np.array([0, 1, *shares]) - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("convention", "said"),
    [
        (Convention(), "annotated in [-1, 1], unchanged"),
        (Convention("s", (-1, 1)), "annotated in [-1, 1], unchanged"),
        (Convention("ms", (1, 9)), "annotated in [1, 9], by (x - 5) / 4; times in milliseconds"),
        (Convention(scale=(-100, 100)), "annotated in [-100, 100], by x / 100"),
        (Convention(scale=(-3, 1)), "annotated in [-3, 1], by (x + 1) / 2"),
    ],
)
def test_what_was_done_is_said(convention, said):
    assert convention.meaning() == said


# ---- Gaps.


@FUZZ
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=20), st.sampled_from([0.5, 1.0, 2.0, 2.5, 5.0])
)  # fmt: skip
def test_points_are_joined_up_to_the_gap(halves, max_gap):
    """Model: every half second between two neighbours is labelled if they are near enough, by a straight line."""
    times = np.concatenate([[0], np.cumsum(halves)]) / 2
    values = np.sin(times)
    steps = int(times[-1] * 2) + 3
    curve = on_grid(np.column_stack([times, values, values]), steps, max_gap=max_gap)[:, 0]
    for step in range(steps):
        now = step / 2
        left, right = times[times <= now], times[times >= now]
        known = len(left) and len(right) and right[0] - left[-1] <= max_gap
        assert np.isfinite(curve[step]) == bool(known)
        if known:
            assert abs(curve[step] - np.interp(now, times, values)) < 1e-6  # float32


def test_what_a_gap_costs_is_said(tmp_path):
    rows = study([0.3, 3.3, 6.3], [0, 0.1, -0.1], songs=1, people=1) + study([0, 0.5], [0, 0.1], songs=1)  # fmt: skip
    rows = [("one", f"q{i}", *row[2:]) for i, row in enumerate(rows[:1])] + rows[3:]
    corpus = read_folder(make_folder(tmp_path / "y", rows))
    assert list(corpus.dropped) and all("--max-gap" in x for x in corpus.dropped if "over" in x)
    sparse = make_folder(tmp_path / "z", study([0.3, 3.3, 6.3], [0, 0.1, -0.1]))
    with pytest.raises(DataError, match=r"points over 1 s apart are not joined \(--max-gap\)"):
        read_folder(sparse)
    corpus = read_folder(sparse, convention=Convention(max_gap=3))
    assert [np.isfinite(song.arousal).sum() for song in corpus.songs] == [12, 12]
    whole = make_folder(tmp_path / "w", study([0, 3, 6], [0, 0.1, -0.1]))
    assert read_folder(whole).notes == ("most points are over 1 s apart, and not joined; --max-gap joins them",)  # fmt: skip
    assert read_folder(whole, convention=Convention(max_gap=3)).notes == ()


def test_other_gaps_and_scales_are_other_data(tmp_path):
    """The data card says what was done; what was prepared otherwise is never taken for it."""
    rows = study(np.arange(0, 20, 2), waves(1, 9, 10), songs=3)
    root = make_folder(tmp_path / "lab", rows)
    for song in range(3):
        write_sound(root / "audio" / f"s{song}.wav")
    seen = set()
    for convention in (
        Convention(scale=(1, 9)), Convention(scale=(1, 9), max_gap=2), Convention(scale=(0, 10), max_gap=2),
    ):  # fmt: skip
        corpus = read_folder(root, "lab", convention=convention)
        folder = prepare(corpus, tmp_path / "data", TINY, workers=1)
        facts, card = read_facts(folder), read_card(folder)
        assert convention.meaning() in card.replace("\\", "")
        assert f"60, joined over gaps of up to {convention.max_gap:g} s" in card
        assert facts["drawn"] == {"points": 60, "max_gap": convention.max_gap}
        seen.add(facts["fingerprint"])
    assert len(seen) == 3
    assert {path.name for path in (folder.parent / "older").iterdir()} == seen - {facts["fingerprint"]}  # fmt: skip
    again = prepare(read_folder(root, "lab", convention=convention), tmp_path / "data", TINY, workers=1)  # fmt: skip
    assert read_facts(again)["fingerprint"] == facts["fingerprint"]
    assert find_dataset(tmp_path / "data") == folder


def test_from_the_command_line(tmp_path, small_run, capsys):
    """A study of 1 to 9 in milliseconds, every 3 s, prepared; the same table adapts a model."""
    times = np.arange(0, 20_000, 3000)
    rows = study(times, waves(1, 9, len(times)), songs=3)
    root = make_folder(tmp_path / "lab", rows)
    for song in range(3):
        write_sound(root / "audio" / f"s{song}.wav")
    meant = ["--time-unit", "ms", "--scale", "1", "9", "--max-gap", "3"]
    prepared = ["prepare", "folder", "--root", root, "--out", tmp_path / "out", "--features", "tiny", "--workers", "1"]  # fmt: skip
    assert "give --scale" in fails(capsys, *prepared, "--time-unit", "ms")
    assert "give --time-unit ms" in fails(capsys, *prepared, "--scale", "1", "9")
    assert "--scale is for folder" in fails(capsys, "prepare", "pmemo", "--root", root, "--out", root, "--scale", "1", "9")  # fmt: skip
    assert main([str(x) for x in [*prepared, *meant]]) == 0

    mine = tmp_path / "mine.csv"
    mine.write_text("\n".join(["time,arousal,valence", *(",".join(row[2:]) for row in rows[: len(times)])]))  # fmt: skip
    adapt = ["personalize", "--checkpoint", small_run, "--audio", root / "audio" / "s0.wav", "--annotations", mine]  # fmt: skip
    said = fails(capsys, *adapt, "--out", tmp_path / "no", *meant[:5])
    assert "without gaps of more than 1 s (--max-gap)" in said
    assert main([str(x) for x in [*adapt, "--out", tmp_path / "mine", *meant]]) == 0
    note = load_model(tmp_path / "mine").info.note
    assert note.endswith(
        "s0.wav, annotated in [1, 9], by (x - 5) / 4; times in milliseconds, joined over up to 3 s"
    )


def test_milliseconds_beyond_the_end_of_a_song(tmp_path, small_run):
    """At 500 Hz they do not look so by themselves; the song's length tells."""
    write_sound(tmp_path / "a.wav")
    (tmp_path / "a.csv").write_text("time,arousal\n" + "\n".join(f"{t},0.1" for t in range(0, 14_000, 2)))  # fmt: skip
    loaded = load_model(small_run)
    with pytest.raises(DataError, match=r"ends at 20.0 s; if times are milliseconds give --time-unit ms"):  # fmt: skip
        personalize(loaded, [annotated_song(loaded, tmp_path / "a.wav", tmp_path / "a.csv")])
    result = personalize(loaded, [annotated_song(loaded, tmp_path / "a.wav", tmp_path / "a.csv", convention=Convention("ms"))])  # fmt: skip
    assert result.labelled_seconds == 14.0
    save_personalized(tmp_path / "out", result, ["a"], Convention("ms"))
