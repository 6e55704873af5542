"""The embedded corpus: frozen, in DEAM's layout, with DEAM's spread between raters."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from data_prep.base import DataError, deal_splits
from data_prep.deam import read_deam
from data_prep.synthetic import listeners, music, write_corpus


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("synthetic") / "c", songs=12, annotators=16)


def digest(folder):
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.csv")):
        total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:16]


def test_frozen_sound():
    random = np.random.RandomState(7)
    sections = music.compose(random)
    sound = music.render(sections, random)
    assert sound.shape == (45 * 44_100,) and np.abs(sound).max() > 3000
    assert hashlib.sha256(sound.tobytes()).hexdigest()[:16] == "8f9614602d082632"


def test_frozen_annotations(corpus_root):
    assert digest(corpus_root) == "2dac3155bc633aaf"


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_files(corpus_root, tmp_path):
    other = write_corpus(tmp_path / "c", songs=12, annotators=16, workers=1)
    assert digest(other) == digest(corpus_root)
    audio = "DEAM_audio/MEMD_audio/5.flac"
    assert (other / audio).read_bytes() == (corpus_root / audio).read_bytes()
    seeded = write_corpus(tmp_path / "d", songs=12, annotators=16, seed=1, workers=1)
    assert digest(seeded) != digest(corpus_root)


def test_layout_is_read_as_deam(corpus_root):
    corpus = read_deam(corpus_root, name="synthetic")
    assert [song.song_id for song in corpus.songs] == [str(i) for i in range(1, 13)]
    dealt = {song.split for song in deal_splits(corpus.songs)}
    assert dealt == {"train", "validation", "test"}
    for song in corpus.songs:
        assert len(song.arousal) == len(song.valence) == 60
        assert 8 <= len(song.ratings) <= 10
        drawn = np.mean([rating.arousal for rating in song.ratings], axis=0)
        if len(song.ratings) == 10:
            # Both are written with six decimals.
            np.testing.assert_allclose(song.arousal, drawn, atol=2e-6)


def rate_many(songs=80, people=30, seed=0):
    """`[songs, people, 60, 2]`"""
    random = np.random.RandomState(seed)
    crowd = [listeners.draw_listener(random) for _ in range(people)]
    times = np.arange(15, 45, 0.5)
    grid = listeners.cue_grid(45)
    cues = [music.cue_curves(music.compose(random), grid) for _ in range(songs)]
    return np.stack([[listeners.rate_song(p, c, times, random) for p in crowd] for c in cues])


def test_spread_between_raters_is_deams():
    """0.337 and 0.312 (DEAM), to 10 %, over three crowds; levels of songs spread 0.28 and 0.23."""
    curves = np.stack([rate_many(seed=seed) for seed in range(3)])
    between_raters = np.sqrt(curves.var(axis=2, ddof=1).mean(axis=(0, 1, 2)))
    # Three crowds of 30 listeners, 80 songs each: the spreads themselves vary by some per cent.
    np.testing.assert_allclose(between_raters, listeners.RATER_SPREAD, rtol=0.1)
    between_songs = curves.mean(axis=(2, 3)).std(axis=1).mean(axis=0)
    np.testing.assert_allclose(between_songs, listeners.SONG_SPREAD, rtol=0.15)


def test_part_of_a_listener_shows_in_one_song_and_part_does_not():
    """A listener's deviation from the crowd repeats from song to song, but far from wholly."""
    curves = rate_many()
    deviation = (curves - curves.mean(axis=1, keepdims=True)).mean(axis=2)  # [songs, people, 2]
    half = len(deviation) // 2
    for dimension in range(2):
        first, second = deviation[:half, :, dimension], deviation[half:, :, dimension]
        one_song = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)])
        assert 0.2 < one_song < 0.7  # neither nothing nor nearly all


def test_louder_is_more_arousing_and_major_more_pleasant():
    weights = dict(zip(music.CUES, listeners.shared_weights().T, strict=True))
    assert weights["loudness"][0] == listeners.shared_weights()[0].max()
    assert weights["mode"][1] == listeners.shared_weights()[1].max()


def test_a_finished_corpus_is_found_and_another_refused(corpus_root, tmp_path):
    assert write_corpus(corpus_root, songs=12, annotators=16) == corpus_root
    with pytest.raises(DataError, match="other settings"):
        write_corpus(corpus_root, songs=13, annotators=16)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="not empty"):
        write_corpus(tmp_path, songs=12, annotators=16)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
