"""Which song would tell most, against the same Gaussian process by its joint covariance.

Where no tolerance is given, numbers are float64 and go the same way.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from dsaml_jax.cli import main
from dsaml_jax.listener import likeness, most_telling, suggest
from dsaml_jax.listener.suggesting import NOISE, not_known
from experiments import suggesting
from tests.test_cli import fails


def songs_of(seed, count, width=6):
    return np.random.default_rng(seed).standard_normal((count, width))


def left_after(alike, known):
    """Variance of all songs together after some were drawn: from the joint covariance of songs and drawings."""
    count = len(alike)
    draws = np.eye(count)[list(known)]
    joint = np.block([[alike, alike @ draws.T], [draws @ alike, draws @ alike @ draws.T + NOISE * np.eye(len(draws))]])  # fmt: skip
    precision = np.linalg.inv(joint + 1e-9 * np.eye(len(joint)))
    return np.trace(np.linalg.inv(precision[:count, :count]))


@given(st.integers(0, 10_000), st.integers(2, 9), st.data())
def test_the_song_that_is_suggested_leaves_least(seed, count, data):
    """Of all songs, each time, whatever is known."""
    alike = likeness(songs_of(seed, count), gamma=1.0)
    known = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count - 1))
    found = most_telling(alike, known, count)
    assert sorted(found + known) == list(range(count))
    for place, best in enumerate(found):
        before = known + found[:place]
        others = [left_after(alike, [*before, song]) for song in range(count) if song not in before]
        # The jitter that makes the joint covariance invertible.
        assert left_after(alike, [*before, best]) <= min(others) + 1e-6


@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_what_is_not_known_does_not_depend_on_the_order(seed, order):
    """And is less with every song; in closed form of one."""
    alike = likeness(songs_of(seed, 8))
    first, second = not_known(alike, range(4)), not_known(alike, order)
    np.testing.assert_allclose(first, second, atol=1e-12)
    assert (np.diag(first) <= np.diag(not_known(alike, range(3))) + 1e-12).all()
    one = not_known(alike, [2])
    np.testing.assert_allclose(np.diag(one), 1.0 - np.square(alike[2]) / (1.0 + NOISE))
    np.testing.assert_array_equal(not_known(alike, []), alike)


@given(st.integers(0, 10_000), st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_likeness_is_that_of_standardised_songs(seed, scale, offset):
    """Units of an embedding make no difference, and what is constant has no say."""
    songs = songs_of(seed, 7)
    alike = likeness(songs)
    np.testing.assert_allclose(np.diag(alike), 1.0)
    assert (np.linalg.eigvalsh(alike) > -1e-9).all() and (alike > 0.0).all()
    other = np.concatenate([scale * songs + offset, np.full((7, 3), 0.25)], axis=1)
    np.testing.assert_allclose(likeness(other), alike, atol=1e-9)
    assert (likeness(np.ones((3, 4))) == 1.0).all()


def test_the_middle_of_many_comes_before_the_odd_one_and_copies_come_last():
    random = np.random.default_rng(0)
    crowd = 0.1 * random.standard_normal((9, 5))
    other = np.ones((1, 5)) + 0.1 * random.standard_normal((4, 5))
    songs = np.concatenate([crowd, other, crowd[:1]])
    order = suggest(songs, [], 3)
    assert order[0] < 9 and 9 <= order[1] < 13  # then the smaller crowd
    assert suggest(songs, [0], 1)[0] in range(9, 13)
    assert suggest(songs, range(13), 5) == [13]
    assert suggest(songs, range(14), 5) == [] == suggest(songs[:0], [], 5)
    assert suggest(np.ones((4, 2)), [1], 2) == [0, 2]  # all alike: as they stand


def test_five_hundred_songs_take_no_time():
    """Of the processor, whatever else runs beside it: less than the 2 s that people are told."""
    songs = songs_of(0, 500, 1209)
    begun = time.process_time()
    assert len(suggest(songs, range(0, 100, 7), 5)) == 5
    assert time.process_time() - begun < 2.0


def made_up(taste, people=40, count=60):
    """Levels of people by a process with this share of `within`; each has drawn half of the songs."""
    random = np.random.default_rng(0)
    kernel = likeness(songs_of(1, count, 3), gamma=1.0)
    root = np.linalg.cholesky(kernel + 1e-9 * np.eye(count))
    rows = []
    for person in range(people):
        level = 0.2 * random.standard_normal() + root @ (
            np.sqrt(0.1 * taste) * random.standard_normal(count)
        )
        level = level + np.sqrt(0.1 * (1.0 - taste)) * random.standard_normal(count)
        rows += [(person, song, level[song]) for song in random.permutation(count)[: count // 2]]
    person, song, rest = np.array(rows).T
    return suggesting.Levels(
        rest, np.zeros(len(rest)), person.astype(int), song.astype(int)
    ), kernel


@pytest.mark.parametrize("taste", [0.0, 0.5])
def test_taste_is_found_again(taste, monkeypatch):
    """By moments to a tenth of `within`, about three standard errors; by likelihood and in what is predicted, its sign."""
    levels, kernel = made_up(taste)
    people = np.unique(levels.person)
    spread = suggesting.spread_of(levels, people)
    assert suggesting.taste_by_moments(levels, people, kernel) / 0.1 == pytest.approx(
        taste, abs=0.1
    )
    none, half = (suggesting.log_likelihood(levels, people, kernel, spread, x) for x in (0.0, 0.5))
    assert (half > none) == (taste > 0.0)
    monkeypatch.setattr(suggesting, "SHARES", (0.0, 0.6))
    monkeypatch.setattr(suggesting, "SHOTS", (10,))
    found = suggesting.predicting(levels, suggesting.deal_people(levels), {1.0: kernel})
    assert (found[10, 1.0, 0.6].mean() < found[10, 1.0, 0.0].mean()) == (taste > 0.0)


def test_differences_from_the_other_raters():
    """Of a song with three raters; one with two says nothing."""
    rest = np.array([0.1, 0.2, 0.6, 0.3, 0.4])
    levels = suggesting.Levels(rest, rest, np.array([0, 1, 2, 0, 1]), np.array([0, 0, 0, 1, 1]))
    expected = [0.1 - 0.4, 0.2 - 0.35, 0.6 - 0.15, np.nan, np.nan]
    np.testing.assert_allclose(suggesting.beside_others(levels).rest, expected)


@pytest.fixture
def folder(tmp_path):
    """Four songs, one of them twice, and a file that is none."""
    (tmp_path / "album").mkdir()
    for number in range(4):
        tone = 0.1 * np.sin(np.arange(8 * 8000) * (0.1 + 0.2 * number))
        soundfile.write(tmp_path / "album" / f"s{number}.wav", tone, 8000)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "album" / "s0.wav").read_bytes())
    (tmp_path / "broken.mp3").write_bytes(b"nothing" * 40)
    return tmp_path


def test_suggestions_on_the_command_line(small_run, folder, tmp_path_factory, capsys):
    """Each song once, and none that a personal model knows already."""
    out = tmp_path_factory.mktemp("out")
    assert (
        main(["personalize", "--checkpoint", str(small_run), "--suggest", str(folder), "--quiet"])
        == 0
    )
    first = capsys.readouterr().out.splitlines()
    assert len(first) == 4 and {name.split("/")[-1] for name in first} & {"s0.wav", "copy.wav"}
    table = out / "mine.csv"
    table.write_text("time,arousal,valence\n" + "".join(f"{t / 2},0.2,0.5\n" for t in range(16)))
    song = folder / first[0]
    asked = ["personalize", "--checkpoint", str(small_run), "--song", str(song), str(table)]
    assert main([*asked, "--out", str(out / "mine")]) == 0
    capsys.readouterr()
    again = ["personalize", "--checkpoint", str(out / "mine"), "--suggest", str(folder)]
    assert main(again) == 0
    said = capsys.readouterr().out
    assert "left out:" in said and "in this order" in said
    assert set(said.splitlines()[-3:]) == set(first[1:])
    for path in folder.rglob("*.wav"):
        if path.read_bytes() != song.read_bytes():
            path.unlink()
    assert "all songs are annotated" in fails(capsys, *again)
    song.unlink()
    assert "no sound files" in fails(capsys, *again[:-1], str(folder / "album" / "none"))
    assert "none of its sound files" in fails(capsys, *again[:-1], str(folder))
