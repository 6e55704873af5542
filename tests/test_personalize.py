"""One annotated song: reading it, fitting it to the grid, adapting, and what cannot be.

Where no tolerance is given, numbers are float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.base import DataError
from data_prep.curves import on_grid
from data_prep.shards import read_corpus
from dsaml_jax import UsageError
from dsaml_jax.evaluation import listener_trial
from dsaml_jax.listener import (
    annotated_song,
    personalize,
    predict_file,
    read_annotations,
    save_personalized,
    support_windows,
    write_curve,
)
from dsaml_jax.listener.personal import support_batch
from dsaml_jax.listener.predicting import features_of_file
from dsaml_jax.runs import at_strength, load_model


def write_csv(path, rows, header="time,arousal,valence"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """50 s of stereo at 22.05 kHz."""
    path = tmp_path_factory.mktemp("song") / "mein Lied (é).wav"
    time = np.arange(50 * 22_050) / 22_050
    tone = np.sin(2 * np.pi * 220 * time) * (0.3 + 0.2 * np.sin(time))
    soundfile.write(path, np.stack([tone, 0.5 * tone], axis=1), 22_050)
    return path


def steady(arousal, valence, end=50.0, start=0.0, step=0.5):
    return [(t, arousal, valence) for t in np.arange(start, end, step)]


def test_columns_in_any_order_and_any_rate(tmp_path):
    path = write_csv(
        tmp_path / "a.csv", [(0.5, 1, 0.25), (-0.5, 2, 0.75)], "Valence, time ,AROUSAL"
    )
    np.testing.assert_allclose(read_annotations(path), [[1, 0.25, 0.5], [2, 0.75, -0.5]])


def test_what_pandas_writes(tmp_path):
    """An index in front, further columns, `nan`, rows in any order."""
    rows = [(0, 2, "nan", 0.5, ["x"]), (1, 1, 0.25, "", "y")]
    path = write_csv(tmp_path / "a.csv", rows, ",time,arousal,valence,note")
    np.testing.assert_allclose(read_annotations(path), [[1, 0.25, np.nan], [2, np.nan, 0.5]])


def test_one_persons_rows_of_a_study(tmp_path):
    header = "song_id,annotator_id,time,arousal,valence"
    rows = [("a.mp3", "ann", 1, 0.5, 0), ("b", "ann", 1, 0.25, 0), ("a.mp3", "ann", 0, 0.75, 0)]
    path = write_csv(tmp_path / "a.csv", rows, header)
    np.testing.assert_array_equal(
        read_annotations(path, tmp_path / "a.wav"), [[0, 0.75, 0], [1, 0.5, 0]]
    )
    with pytest.raises(DataError, match=r"no annotation of c among those of a, b"):
        read_annotations(path, tmp_path / "c.wav")
    path = write_csv(tmp_path / "c.csv", [("live.au", "ann", 1, 0.5, 0)], header)
    assert (
        len(read_annotations(path, tmp_path / "live.au.wav")) == 1
    )  # no suffix, but looks like one
    path = write_csv(tmp_path / "b.csv", [*rows, ("b", "ben", 2, 0, 0)], header)
    assert len(read_annotations(path, tmp_path / "a.wav")) == 2
    with pytest.raises(DataError, match=r"annotations of 2 people \(ann, ben\); keep one's"):
        read_annotations(path, tmp_path / "b.wav")


def test_grid():
    drawn = np.array([[1.0, 0.0, 0.5], [2.0, 0.5, 0.5], [5.0, 1.0, 0.5], [5.1, 0.0, 0.0]])
    curve = on_grid(drawn, 14)
    known = np.isfinite(curve).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(known), [2, 3, 4, 10])
    np.testing.assert_allclose(curve[2:5, 0], [0.0, 0.25, 0.5])


def test_dense_annotations_are_interpolated():
    time = np.arange(0, 10, 0.04)
    drawn = np.stack([time, np.sin(time), np.cos(time)], axis=1)
    curve = on_grid(drawn, 19)
    # Straight lines over 40 ms of a sine miss it by 0.04² / 8 = 2e-4.
    np.testing.assert_allclose(curve[:, 0], np.sin(np.arange(19) / 2), atol=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column 'time'"), ("time,arousal\n1,2\n", "line 2.*from -1 to 1"), ("time,time\n1,2\n", "more than one column 'time'"), ("time,pleasure\n1,2\n", "no column 'arousal'"),
        ("time,arousal,valence\n", "no annotations"), ("time,arousal,valence\n1,0.5\n", "line 2: 2 cells"),
        ("time,arousal,valence\n1,0.5,0\n2,0.5\n", "line 3: 2 cells"),
        ("time,arousal,valence\n1,2.5,0\n", "line 2.*from -1 to 1"),
        ("time,arousal,valence\n1,happy,0\n", "line 2.*happy"), ("time,arousal,valence\n2,0,0\n2,0,0\n", "line 3.*has 2 s already on line 2"),
        ("time,arousal,valence\n-1,0,0\n", "line 2.*from 0 to"),
    ],
)  # fmt: skip
def test_bad_annotations_are_explained(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_annotations(path)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=200)
    | st.text(alphabet="time,arousal,valence\n0123456789.-e", max_size=200).map(str.encode)
)
def test_any_bytes_give_a_table_or_a_clear_error(tmp_path, data):
    path = tmp_path / "any.csv"
    path.write_bytes(data)
    try:
        values = read_annotations(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert values.shape[1] == 3 and (np.diff(values[:, 0]) > 0).all()
        assert not (np.abs(values[:, 1:]) > 1).any()


def test_adapting_moves_towards_the_listener(small_run, song, tmp_path):
    loaded = load_model(small_run)
    general = predict_file(loaded, song)
    results = {}
    for level in (0.9, -0.9):
        path = write_csv(tmp_path / f"{level}.csv", steady(level, -level))
        result = personalize(loaded, [annotated_song(loaded, song, path)])
        assert (result.after < result.before).all()
        out = tmp_path / f"mine{level}"
        save_personalized(out, result, [song.name])
        mine = load_model(out)
        assert mine.info.note == f"personalised on 50 s of {song.name}"
        results[level] = predict_file(mine, song)
    assert results[0.9][:, 0].mean() > general[:, 0].mean() > results[-0.9][:, 0].mean()
    assert results[0.9][:, 1].mean() < general[:, 1].mean() < results[-0.9][:, 1].mean()


@pytest.mark.parametrize("by", ["prior", "steps"])
def test_strength_is_asked_for(small_run, song, tmp_path, by):
    loaded = load_model(small_run)
    drawn = [annotated_song(loaded, song, write_csv(tmp_path / "a.csv", steady(0.9, -0.9)))]
    gains = {}
    for strength in (0.0, None, 0.5, 1.0):  # None: 0.4, the preset's, or what listeners bear out
        result = personalize(at_strength(loaded, strength), drawn, by)
        gains[strength] = float((result.before - result.after).mean())
    assert gains[0.0] == 0.0 < gains[0.5] < gains[1.0]
    assert gains[None] not in (gains[0.0], gains[0.5], gains[1.0])
    with pytest.raises(UsageError, match="strength"):
        at_strength(loaded, 1.5)


def test_support_takes_labelled_windows_only(small_run, song):
    loaded = load_model(small_run)
    features = features_of_file(song, loaded.info.features, None)  # 100 steps: windows at 0, 30, 40
    labels = np.full((100, 2), np.nan, np.float32)
    labels[:20] = 0.5
    labels[5:12, 1] = np.nan
    batch = support_batch(features, labels, per_step=False)
    assert batch.arousal.shape == (1, 60)
    assert batch.labelled.sum(axis=(0, 1)).tolist() == [20, 13]


@pytest.mark.parametrize(
    ("steps", "drawn", "windows"),
    [
        (20, slice(None), [0]),
        (61, slice(None), [0]),  # the one flush with the end has half a second of its own
        (61, slice(51, None), [1]),  # ... and is taken where the others have too little
        (200, slice(None), [0, 1, 3, 4]),
        (200, slice(185, None), [5]),
        (200, slice(0, 9), []),
        (700, slice(None), [0, 7, 14, 21]),
    ],
)
def test_which_windows_of_a_song_are_adapted_to(steps, drawn, windows):
    labels = np.full((steps, 2), np.nan)
    labels[drawn, 0] = 0.5
    assert support_windows(labels).tolist() == windows


def test_what_is_personalised_on_is_what_is_evaluated(small_data):
    """The windows of a person's own song are those by which a model is judged."""
    corpus = read_corpus(small_data[1])
    tasks = listener_trial(corpus, "test").listeners
    for ratings, windows in zip(tasks.support, tasks.support_window, strict=True):
        first = corpus.rating_first[ratings[0]]
        labels = corpus.ratings[first : first + corpus.song_steps[corpus.rating_song[ratings[0]]]]
        np.testing.assert_array_equal(support_windows(labels), windows[ratings >= 0])


def test_what_cannot_be_adapted_to(small_run, song, tmp_path):
    loaded = load_model(small_run)
    far = write_csv(tmp_path / "far.csv", steady(0.1, 0.1, end=80))
    with pytest.raises(DataError, match=r"annotated up to 79.5 s, but .* ends at 50.0 s"):
        personalize(loaded, [annotated_song(loaded, song, far)])
    sparse = write_csv(tmp_path / "sparse.csv", steady(0.1, 0.1, step=6.5))
    with pytest.raises(DataError, match="at least 5 s within 30 s are needed"):
        personalize(loaded, [annotated_song(loaded, song, sparse)])
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(4 * 8000), 8000)
    with pytest.raises(DataError, match="4.0 s of sound; at least 5 s"):
        predict_file(loaded, short)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    good = write_csv(tmp_path / "good.csv", steady(0.1, 0.1))
    with pytest.raises(UsageError, match="not an empty folder"):
        save_personalized(
            tmp_path / "full",
            personalize(loaded, [annotated_song(loaded, song, good)]),
            ["x"],
        )


def test_a_curve_of_one_dimension_with_gaps_can_be_read_back(tmp_path):
    curve = np.full((9, 2), np.nan)
    curve[2:7, 1] = 0.5
    write_curve(tmp_path / "a.csv", curve)
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "time,valence"
    values = read_annotations(tmp_path / "a.csv")
    np.testing.assert_array_equal(on_grid(values, 9), curve)
    curve[3:5, 0] = -0.25
    write_curve(tmp_path / "b.csv", curve)
    np.testing.assert_array_equal(on_grid(read_annotations(tmp_path / "b.csv"), 9), curve)


def test_five_seconds_of_sound_in_one_dimension_are_enough(small_run, tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(6 * 8000) / 5), 8000)
    loaded = load_model(small_run)
    drawn = write_csv(tmp_path / "d.csv", [(t, 0.5) for t in np.arange(0, 6, 0.5)], "time,arousal")
    result = personalize(loaded, [annotated_song(loaded, path, drawn)])
    assert result.after[0] < result.before[0] and np.isnan(result.after[1])
    assert predict_file(loaded, path).shape == (12, 2)


def test_a_written_curve_can_be_read_back(tmp_path):
    curve = np.random.RandomState(0).uniform(-1.5, 1.5, (40, 2))
    write_curve(tmp_path / "a.csv", curve)
    values = read_annotations(tmp_path / "a.csv")
    np.testing.assert_allclose(values[:, 1:], np.clip(curve, -1, 1), atol=1e-5)  # five decimals
    np.testing.assert_allclose(values[:, 0], np.arange(40) / 2)
