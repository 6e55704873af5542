"""The embedded corpus: frozen, in DEAM's layout, with people like DEAM's raters."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from data_prep.base import DataError, Rating, Song, deal_splits
from data_prep.curves import is_flat
from data_prep.deam import read_deam
from data_prep.listeners import describe_listeners
from data_prep.statistics import describe_songs
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
    assert digest(corpus_root) == "52245e9634e8576f"


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


@pytest.fixture(scope="module")
def crowd():
    """Facts of 400 songs, each rated by 10 of 400 people, as the data card counts them."""
    random = np.random.RandomState(0)
    people = [listeners.draw_listener(random) for _ in range(400)]
    times, grid = np.arange(15, 45, 0.5), listeners.cue_grid(45)
    songs = []
    for number in range(400):
        cues = music.cue_curves(music.compose(random), grid)
        who = random.permutation(len(people))[:10]
        drawn = [listeners.rate_song(people[one], cues, times, random) for one in who]
        ratings = [Rating(f"{one}", *curves.T) for one, curves in zip(who, drawn, strict=True)]
        songs.append(Song(f"{number}", None, 15.0, *np.mean(drawn, axis=0).T, tuple(ratings)))
    return songs, describe_listeners(songs), describe_songs(songs)


@pytest.mark.parametrize(("trait", "part", "deam"), [
    ("level", "song", (0.051, 0.037)), ("level", "person", (0.044, 0.045)), ("level", "rest", (0.072, 0.099)),
    ("movement", "song", (0.157, 0.099)), ("movement", "person", (0.181, 0.196)), ("movement", "rest", (0.805, 0.867)),
])  # fmt: skip
def test_variances_are_deams(crowd, trait, part, deam):
    found = [crowd[1][name][trait]["components"][part]["value"] for name in ("arousal", "valence")]
    # A variance of 400 songs or people has a standard error of 7 %, and the limit of movement takes some of it. A song
    # moves people by one number for both dimensions, which lies between DEAM's two. DEAM's own intervals are wider.
    np.testing.assert_allclose(found, deam, rtol=0.4 if (trait, part) == ("movement", "song") else 0.25)  # fmt: skip


def test_people_use_the_two_dimensions_together_and_move_as_far_as_deams(crowd):
    _, people, songs = crowd
    assert people["correlation"] == pytest.approx(0.64, abs=0.1)  # of 400 people: 0.03 by chance
    dimensions = ("arousal", "valence")
    moved = [people[name]["typical_sd"] for name in dimensions]
    np.testing.assert_allclose(moved, [0.064, 0.059], rtol=0.1)
    within = [songs[name]["sd_within_songs"] for name in dimensions]
    np.testing.assert_allclose(within, [0.040, 0.034], rtol=0.15)
    between = [songs[name]["sd_between_raters"] for name in dimensions]
    np.testing.assert_allclose(between, [0.340, 0.373], rtol=0.05)


def test_people_agree_as_little_as_deams(crowd):
    songs = crowd[2]
    agree = {
        key: [songs[name][key]["quartiles"][1] for name in ("arousal", "valence")]
        for key in ("cronbach_alpha", "pairwise_correlation")
    }
    # Medians of 400 songs, whose own spread is 0.3 and 0.1. One share of the music cannot give both of DEAM's numbers.
    np.testing.assert_allclose(agree["cronbach_alpha"], [0.352, 0.087], atol=0.07)
    np.testing.assert_allclose(agree["pairwise_correlation"], [0.078, 0.013], atol=0.04)


def test_as_many_traces_are_flat_and_they_belong_to_particular_people(crowd):
    for name, share in (("arousal", 0.273), ("valence", 0.338)):
        flat: dict[str, list[bool]] = {}
        for song in crowd[0]:
            for rating in song.ratings:
                flat.setdefault(rating.annotator_id, []).append(is_flat(getattr(rating, name)))
        shares = np.array([np.mean(of_one) for of_one in flat.values()])
        assert np.mean(shares) == pytest.approx(share, abs=0.05)
        chance = np.mean(shares) * (1 - np.mean(shares)) / 10  # were all people alike
        assert shares.var() > 2 * chance


def test_a_song_that_never_changes_is_rated():
    random = np.random.RandomState(0)
    cues = np.tile(0.3, (450, 7))
    curves = listeners.rate_song(listeners.draw_listener(random), cues, np.arange(15, 45, 0.5), random)  # fmt: skip
    assert np.isfinite(curves).all() and curves.std() > 0.0


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
