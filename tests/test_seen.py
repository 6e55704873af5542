"""The same recording twice, and models that have seen what they are judged by."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from data_prep.base import copies, deal_splits
from data_prep.card import read_card
from data_prep.features import TINY
from data_prep.folder import read_folder
from data_prep.prepare import prepare
from data_prep.shards import find_dataset, read_corpus
from dsaml_jax import UsageError
from dsaml_jax.corpus import OWN_SPLIT, Fold, Overlap, Seen, held_out, require_unseen
from dsaml_jax.evaluation import evaluate, listener_trial
from dsaml_jax.runs import load_model, read_run_info
from tests.test_listeners import song


def test_copies_are_those_that_are_not_the_first():
    sounds = {"b": "1", "a": "1", "c": "2", "d": "", "e": "", "f": "1"}
    assert copies(sounds) == {"a": "b", "f": "b"}


@pytest.mark.parametrize("official", [False, True])
def test_copies_are_dealt_to_one_part(official):
    songs = [song(f"s{i}", {"x": np.zeros(10)}) for i in range(60)]
    if official:
        songs[41] = dataclasses.replace(songs[41], split="test")
    copy_of = {f"s{i + 20}": f"s{i}" for i in range(40)} | {
        f"s{i + 40}": f"s{i}" for i in range(20)
    }
    dealt = {x.song_id: x.split for x in deal_splits(songs, copy_of)}
    assert all(dealt[name] == dealt[first] for name, first in copy_of.items())
    assert len(set(dealt.values())) == 3
    if official:
        assert {name for name, part in dealt.items() if part == "test"} == {"s1", "s21", "s41"}
    alone = [dataclasses.replace(x, split=None) for x in songs]
    assert [x.split for x in deal_splits(alone)] == [x.split for x in deal_splits(alone, {})]


@pytest.mark.parametrize("fold", [OWN_SPLIT, *(Fold(4, 0, number) for number in range(4))])
def test_folds_keep_copies_together(small_data, fold):
    corpus = read_corpus(small_data[1])
    halves = len(corpus.song_ids) // 2
    sounds = tuple(str(number % halves) for number in range(len(corpus.song_ids)))
    split = np.tile(corpus.split[:halves], 2)  # as prepare would deal them
    parts = held_out(dataclasses.replace(corpus, sounds=sounds, split=split), fold)
    heard = [{sounds[number] for number in part.songs} for part in parts.values()]
    assert sum(map(len, heard)) == halves == len(set.union(*heard))
    assert sum(len(part.songs) for part in parts.values()) == len(corpus.song_ids)


def test_a_copy_of_the_support_song_is_not_asked_about(small_data):
    corpus = read_corpus(small_data[1])
    tests = held_out(corpus)["test"].songs
    sounds = list(corpus.sounds)
    sounds[tests[1]] = sounds[tests[0]]
    pairs = {tuple(tests[:2]), tuple(tests[1::-1])}

    def asked(corpus):
        tasks = listener_trial(corpus, "test").listeners
        rows = zip(tasks.support_song, tasks.query, tasks.query_song, strict=True)
        return {
            (a, b) for support, query, songs in rows for a in support for b in songs[query >= 0]
        }

    assert asked(corpus) & pairs
    copied = asked(dataclasses.replace(corpus, sounds=tuple(sounds)))
    assert copied == asked(corpus) - pairs


def test_the_card_names_copies(tmp_path):
    root = tmp_path / "study"
    (root / "audio").mkdir(parents=True)
    names = ["0", "0b", "1", "2", "3"]
    for name in names:
        noise = np.random.RandomState(int(name[0])).uniform(-0.5, 0.5, 10 * 8000)
        soundfile.write(root / "audio" / f"{name}.wav", noise, 8000)
    rows = [f"{name},p,{t / 2},0.{t % 5},0.1" for name in names for t in range(20)]
    (root / "annotations.csv").write_text(
        "\n".join(["song_id,annotator_id,time,arousal,valence", *rows, ""])
    )
    data = prepare(read_folder(root, "study"), tmp_path / "data", TINY)
    corpus = read_corpus(data)
    known = dict(zip(corpus.song_ids, zip(corpus.sounds, corpus.split, strict=True), strict=True))
    assert known["0"] == known["0b"] and len(set(corpus.sounds)) == 4
    assert "the same sound file under two names, in one part: 0b = 0" in read_card(
        find_dataset(data)
    )


# ---- What a run has seen.


def test_a_run_says_what_it_has_seen_and_not_who(small_data, small_run):
    corpus, info = read_corpus(small_data[1]), read_run_info(small_run)
    parts = held_out(corpus)
    used = np.concatenate([parts["train"].songs, parts["validation"].songs])
    assert set(info.seen.sounds) == {corpus.sounds[number] for number in used}
    assert len(info.seen.songs) == len(used) and len(info.seen.people) > 0
    text = (small_run / "run.json").read_text()
    assert not any(f'"{name}"' in text or f" {name} " in text for name in corpus.annotator_ids)


def other_names(corpus, split):
    """The same sounds in another corpus."""
    names = tuple(f"other {name}" for name in corpus.song_ids)
    return dataclasses.replace(corpus, name="other", song_ids=names, fingerprint="1", split=split)


def test_training_songs_under_other_names_are_no_test(small_data, small_run):
    corpus, run = read_corpus(small_data[1]), load_model(small_run)
    same = other_names(corpus, corpus.split)
    info = run.info
    assert require_unseen(info.data, info.seen, OWN_SPLIT, same, OWN_SPLIT, "it") == Overlap(0, 0)
    swapped = np.where(
        corpus.split == "test", "train", np.where(corpus.split == "train", "test", corpus.split)
    )
    seen = other_names(corpus, swapped)
    count, known = int((corpus.split == "train").sum()), int((corpus.split != "test").sum())
    total = len(corpus.song_ids)
    # All of another corpus is judged.
    with pytest.raises(UsageError, match=f"has seen {known} of the {total} test songs.*--seen-songs"):  # fmt: skip
        evaluate(run, seen)
    with pytest.raises(UsageError, match=f"has seen {count} of the {count} test songs"):
        evaluate(run, seen, fold=OWN_SPLIT)
    assert require_unseen(
        info.data, info.seen, OWN_SPLIT, seen, OWN_SPLIT, "it", allow=True
    ) == Overlap(count, 0)


def test_a_corrected_label_is_another_state_that_the_model_may_be_judged_on(small_data, small_run):
    corpus, info = read_corpus(small_data[1]), read_run_info(small_run)
    corrected = dataclasses.replace(corpus, fingerprint="corrected")
    assert require_unseen(info.data, info.seen, OWN_SPLIT, corrected, OWN_SPLIT, "it") == Overlap(
        0, 0
    )
    # ... unless somebody else is held out in it.
    with pytest.raises(UsageError, match="has seen"):
        require_unseen(info.data, info.seen, OWN_SPLIT, corrected, Fold(4, 0, 1), "it")
    # A run of before this was written down cannot know.
    with pytest.raises(UsageError, match="may have been seen in training"):
        require_unseen(info.data, Seen(), OWN_SPLIT, corrected, OWN_SPLIT, "it")
    unknown = require_unseen(info.data, Seen(), OWN_SPLIT, corrected, OWN_SPLIT, "it", allow=True)
    assert unknown == Overlap(None, None) and "not known" in unknown.line()
    # The same state of the corpus by another fold is no reason to trust a model either.
    with pytest.raises(UsageError, match="has seen"):
        require_unseen(info.data, info.seen, OWN_SPLIT, corpus, Fold(4, 0, 1), "it")
    both = require_unseen(info.data, info.seen, OWN_SPLIT, corpus, Fold(4, 0, 1), "it", allow=True)
    assert both.songs > 0 and both.people > 0 and f"{both.people} of the test people" in both.line()


def test_runs_of_before_are_read(small_run, tmp_path):
    values = json.loads((small_run / "run.json").read_text())
    del values["seen"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert read_run_info(tmp_path).seen == Seen()
    values["seen"] = {"songs": 3}
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="damaged or of another version"):
        read_run_info(tmp_path)
