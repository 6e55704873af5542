"""Several corpora in one training: nobody is mixed up, each is dealt and judged as if it were alone."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from data_prep.base import DataError
from data_prep.features import FeatureConfig
from data_prep.several import join, read_corpora
from data_prep.shards import read_corpus, read_labels
from dsaml_jax import UsageError, evaluate
from dsaml_jax.cli import main
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import (
    Fold,
    balanced,
    consensus_target,
    drawing,
    held_out,
    identities,
    identity,
    pool_of,
    song_embeddings,
)
from dsaml_jax.evaluation import judged_corpora
from dsaml_jax.pretrained import MODEL
from dsaml_jax.runs import load_model, read_listeners, read_metrics, read_run_info
from dsaml_jax.training import judging_lines, train
from dsaml_jax.training.validating import together
from tests.conftest import SMALL_DMER, SMALL_MODEL

FOLD = Fold(3, 0, 1)
FOLDED = ("training.folds=3", "training.fold=1")
RUNS = ["dmer_of_both", pytest.param("pdmer_of_both", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def data(small_data, elsewhere):
    return small_data[1], elsewhere


@pytest.fixture(scope="module")
def both(data):
    return read_corpora(*data)


@pytest.fixture(scope="module")
def dmer_of_both(both, made_once):
    """A DMER run of a fold of both, with levels."""
    settings = [*SMALL_DMER, *FOLDED, "model.standardize=true", "model.level_centres=40"]

    def make(workdir):
        train(with_settings(preset("tiny"), settings), both, workdir)

    return made_once("dmer_of_both", make)


@pytest.fixture(scope="module")
def pdmer_of_both(both, made_once):
    """A PDMER run of a fold of both."""

    def make(workdir):
        train(with_settings(preset("tiny"), [*SMALL_MODEL, *FOLDED]), both, workdir)

    return made_once("pdmer_of_both", make)


# ---- As one.


def test_one_corpus_is_itself(data):
    one = read_corpora(data[0])
    assert one.members == () and one.each == (one,) and identity(one) == identity(read_corpus(data[0]))  # fmt: skip
    assert one.song_ids == read_corpus(data[0]).song_ids


def test_the_order_in_which_they_are_named_makes_no_difference(data, both):
    other = read_corpora(*reversed(data))
    assert identity(other) == identity(both) and other.song_ids == both.song_ids
    np.testing.assert_array_equal(other.log_mel, both.log_mel)


def test_every_song_and_every_rating_is_what_it_was(data, both):
    """Features, mean curves, ratings, raters and windows of each member, by its own indices and by those of both."""
    alone = {corpus.name: corpus for corpus in map(read_corpus, data)}
    assert list(identities(identity(both))) == ["elsewhere", "synthetic"] == sorted(alone)
    assert len(both.song_ids) == sum(len(corpus.song_ids) for corpus in alone.values())
    first_song = first_rating = 0
    for name in sorted(alone):
        corpus = alone[name]
        for song in range(len(corpus.song_ids)):
            here = first_song + song
            assert both.song_ids[here] == f"{name}/{corpus.song_ids[song]}"
            steps = corpus.song_steps[song]
            assert both.song_steps[here] == steps and both.raters[here] == corpus.raters[song]
            a, b = corpus.song_start[song], both.song_start[here]
            np.testing.assert_array_equal(both.mean[b : b + steps], corpus.mean[a : a + steps])
            np.testing.assert_array_equal(both.log_mel[b : b + steps], corpus.log_mel[a : a + steps])  # fmt: skip
            windows = [one.window_start[one.window_first[x] :][: one.window_count[x]] for one, x in ((corpus, song), (both, here))]  # fmt: skip
            np.testing.assert_array_equal(*windows)
        for rating in range(len(corpus.rating_song)):
            here = first_rating + rating
            song, who = corpus.rating_song[rating], corpus.rating_annotator[rating]
            assert both.rating_song[here] == first_song + song
            assert both.annotator_ids[both.rating_annotator[here]] == f"{name}/{corpus.annotator_ids[who]}"  # fmt: skip
            steps = corpus.song_steps[song]
            a, b = corpus.rating_first[rating], both.rating_first[here]
            np.testing.assert_array_equal(both.ratings[b : b + steps], corpus.ratings[a : a + steps])  # fmt: skip
        songs = np.arange(len(corpus.song_ids))
        np.testing.assert_array_equal(
            song_embeddings(both, first_song + songs), song_embeddings(corpus, songs)
        )
        first_song += len(songs)
        first_rating += len(corpus.rating_song)


def test_ids_that_are_alike_are_of_two_songs_and_two_people(data, both):
    names = [set(read_labels(folder).song_ids) for folder in data]
    people = [set(read_labels(folder).annotator_ids) for folder in data]
    assert names[0] & names[1] and people[0] & people[1]  # else this shows nothing
    assert len(set(both.song_ids)) == sum(map(len, names))
    assert len(set(both.annotator_ids)) == sum(map(len, people))


def test_what_does_not_go_together_is_refused_in_one_line(data):
    one, other = map(read_labels, data)
    with pytest.raises(DataError, match="2 of the corpora are called synthetic"):
        read_corpora(data[0], data[0])
    for features in (
        FeatureConfig(hop_ms=50, mel_bands=32, embedding="musicnn"),
        FeatureConfig(hop_ms=50, mel_bands=64, embedding="spectral"),
        FeatureConfig(hop_ms=50, mel_bands=32, embedding="spectral", sample_rate=16_000),
        FeatureConfig(hop_ms=50, mel_bands=32, embedding="spectral", embedding_per="step"),
    ):
        changed = dataclasses.replace(other, features=features)
        with pytest.raises(DataError) as error:
            join([one, changed])
        said = str(error.value)
        assert one.features.name in said and features.name in said and "\n" not in said
        assert "prepare them with the same --features and --embedding" in said


def test_features_on_disk_are_those_in_memory(data, both):
    streamed = read_corpora(*data, stream_above_gb=0.0)
    assert streamed.log_mel is None
    songs = np.array([3, 9, 10, 39])  # of both members
    for song, (log_mel, embedding) in zip(songs, streamed.store.read(songs.tolist()), strict=True):
        start, row = both.song_start[song], both.embedding_first[song]
        np.testing.assert_array_equal(log_mel, both.log_mel[start : start + both.song_steps[song]])
        np.testing.assert_array_equal(embedding, both.embedding[row : row + len(embedding)])


# ---- Who is held out, and what is drawn.


@pytest.mark.parametrize("fold", [Fold(), FOLD, Fold(4, 2, 3), Fold(everyone=True), Fold(folds=1)])
def test_each_corpus_is_dealt_as_if_it_were_alone(both, fold):
    parts = held_out(both, fold)
    for name, part in parts.items():
        expected = [
            f"{one.name}/{one.song_ids[song]}" for one in both.members for song in held_out(one, fold)[name].songs
        ]  # fmt: skip
        assert [both.song_ids[song] for song in part.songs] == expected
        for kind in ("ratings", "support", "consensus"):
            found = getattr(part, kind)
            lengths = [len(getattr(held_out(one, fold)[name], kind)) for one in both.members]
            assert len(found) == sum(lengths)
    target = consensus_target(both, parts["train"])
    alone = [consensus_target(one, held_out(one, fold)["train"]) for one in both.members]
    np.testing.assert_array_equal(target, np.concatenate(alone))


def test_a_recording_that_both_have_is_not_trained_on_where_one_holds_it_out(both):
    first = both.members[0]
    tested = held_out(first, FOLD)["test"].songs[0]
    later = len(first.song_ids)
    trained = held_out(both, FOLD)["train"].songs
    copy = trained[trained >= later][0]
    sounds = list(both.sounds)
    sounds[copy] = sounds[tested]
    parts = held_out(dataclasses.replace(both, sounds=tuple(sounds)), FOLD)
    assert tested in parts["test"].songs
    assert not any(copy in part.songs for part in parts.values())
    kept = sum(len(part.songs) for part in parts.values())
    assert kept == len(both.song_ids) - 1


@pytest.mark.parametrize("balance", ["proportional", "equal"])
def test_songs_are_drawn_as_asked(both, balance):
    """Whole epochs of systematic sampling: an epoch's shares are exact to one song."""
    config = with_settings(preset("tiny"), [*SMALL_DMER, f"training.corpora={balance}"])
    part = held_out(both, FOLD)["train"]
    everyone = dataclasses.replace(part, everyone=True)  # all songs alike but for the corpus
    draw = drawing(config, None, both, everyone, both.mean)
    epochs, batch = 6, config.training.batch_songs
    steps = epochs * len(part.songs) // batch
    drawn = np.concatenate([draw(step).song for step in range(1, steps + 1)])
    of_first = len(both.members[0].song_ids)
    share = np.mean(drawn < of_first)
    expected = 0.5 if balance == "equal" else np.mean(part.songs < of_first)
    assert share == pytest.approx(expected, abs=1.0 / len(part.songs) + batch / len(drawn))
    assert len(part.songs) != 2 * np.sum(part.songs < of_first)  # else both would be the same


@pytest.mark.parametrize("balance", ["proportional", "equal"])
def test_people_are_drawn_as_asked(both, balance):
    """One task a step, 2000 steps: shares to within five standard errors of the binomial."""
    settings = [*SMALL_MODEL, f"training.corpora={balance}", "meta.tasks=1"]
    part = held_out(both, FOLD)["train"]
    pool = pool_of(both, part.ratings, min_songs=2)
    of_first = len(both.members[0].annotator_ids)
    draw = drawing(with_settings(preset("tiny"), settings), pool, both, part, both.mean)
    drawn = np.array([draw(step).query[0, 0] for step in range(2000)])
    share = np.mean(both.rating_annotator[drawn] < of_first)
    expected = 0.5 if balance == "equal" else np.mean(pool.annotators < of_first)
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / len(drawn))
    assert abs(0.5 - np.mean(pool.annotators < of_first)) > 0.1


def test_balanced_weights_keep_their_sum_and_their_order_within_a_corpus():
    weights, corpora = np.array([1.0, 3.0, 2.0, 2.0]), np.array([0, 0, 4, 4])
    np.testing.assert_array_equal(balanced(weights, corpora, "proportional"), weights)
    assert balanced(np.array([1.0, 3.0, 2.0, 10.0]), corpora, "equal") == pytest.approx(
        [2.0, 6.0, 8 / 6, 40 / 6]
    )
    assert not len(balanced(weights[:0], corpora[:0], "equal"))


# ---- Runs.


def test_a_run_says_what_it_was_trained_on(both, dmer_of_both):
    info = read_run_info(dmer_of_both)
    assert info.data == identity(both)
    parts = held_out(both, FOLD)
    assert len(info.seen.songs) == len(parts["train"].songs) + len(parts["validation"].songs)
    level = load_model(dmer_of_both).variables["batch_stats"]["level"]
    fitted = np.flatnonzero(np.asarray(level["weights"]).any(axis=-1))
    assert len(fitted) == len(parts["train"].songs)  # of either corpus


@pytest.mark.parametrize("run", RUNS)
def test_a_validation_says_each_corpus_and_all(run, both, request):
    lines = [x for x in read_metrics(request.getfixturevalue(run)) if x["kind"] == "validation"]
    assert len(lines) == 3
    for line in lines:
        for column in ("score", "arousal_rmse", "valence_ccc"):
            ends = sorted(line[f"{name}/{column}"] for name in ("elsewhere", "synthetic"))
            assert ends[0] <= line[column] <= ends[1]


def test_the_score_of_all_is_that_of_everybody_or_of_every_corpus():
    found = {"a": {"score": 0.2, "arousal_rmse": 0.4}, "b": {"score": 0.6}}
    counts = {"a": 30, "b": 10}
    by_all = together(found, counts, "proportional")
    assert by_all["score"] == pytest.approx(0.3) and by_all["arousal_rmse"] == pytest.approx(0.4)
    assert together(found, counts, "equal")["score"] == pytest.approx(0.4)
    assert by_all["b/score"] == 0.6 and "b/arousal_rmse" not in by_all


def test_listeners_of_all_corpora_are_known(both, dmer_of_both):
    parts = [held_out(one, FOLD)["validation"] for one in both.members]
    listeners = read_listeners(dmer_of_both)
    assert listeners.curves == sum(len(part.consensus) for part in parts)


@pytest.mark.parametrize("run", RUNS)
def test_scores_of_a_corpus_are_those_of_that_corpus_alone(run, data, both, request):
    run = load_model(request.getfixturevalue(run))
    evaluation, shown = evaluate(run, both)
    assert shown is None or shown.song in both.members[0].song_ids
    assert set(evaluation.corpora) == {"elsewhere", "synthetic"}
    for folder in data:
        corpus = read_corpus(folder)
        alone, _ = evaluate(run, corpus)
        assert not alone.facts["another_corpus"] and alone.facts["held_out"] == str(FOLD)
        assert evaluation.corpora[corpus.name].summary == alone.summary
        assert evaluation.corpora[corpus.name].levels == alone.levels
        mine = [row for row in evaluation.rows if row["song"].startswith(f"{corpus.name}/")]
        assert len(mine) == len(alone.rows)
    # All together: everybody counts the same, wherever they are from.
    for method, columns in evaluation.summary.items():
        each = [row for one in evaluation.corpora.values() for row in one.per_unit() if row["method"] == method]  # fmt: skip
        for column, found in columns.items():
            assert found["mean"] == pytest.approx(np.mean([row[column] for row in each if column in row]))  # fmt: skip


def test_people_are_judged_where_there_are_any(both):
    """A corpus of mean curves alone may be beside one with raters."""
    first, second = both.members
    nobody = np.zeros(0, np.int32)
    means = dataclasses.replace(
        first, annotator_ids=(), rating_song=nobody, rating_annotator=nobody, rating_first=nobody,
        ratings=np.zeros((0, 2), np.float32), raters=np.zeros_like(first.raters),
    )  # fmt: skip
    mixed = join([means, second])

    def judged(corpus, task):
        return [one.name for one in judged_corpora(corpus, task)]

    assert judged(mixed, "pdmer") == [second.name]
    assert judged(mixed, "dmer") == [means.name, second.name]
    assert judged(means, "pdmer") == [means.name]  # which is refused by a line of its own
    config = with_settings(preset("tiny"), [*SMALL_MODEL, *FOLDED])
    assert all(line.startswith("synthetic, ") for line in judging_lines(mixed, config))


def test_a_run_of_one_is_not_judged_on_both_at_once(data, both, small_run):
    with pytest.raises(UsageError, match="was trained on synthetic alone.*two commands"):
        evaluate(load_model(small_run), both)


@pytest.mark.slow
def test_a_run_of_one_may_begin_one_of_both_on_the_same_fold_alone(data, both, tmp_path):
    settings = [*SMALL_DMER, *FOLDED, "training.steps=4"]
    config = with_settings(preset("tiny"), settings)
    train(config, read_corpus(data[0]), tmp_path / "one")
    begun = [*settings, f"training.init_from={tmp_path / 'one'}"]
    train(with_settings(preset("tiny"), begun), both, tmp_path / "both")
    seen = read_run_info(tmp_path / "both").seen
    assert set(read_run_info(tmp_path / "one").seen.songs) <= set(seen.songs)
    other = with_settings(preset("tiny"), [*begun, "training.fold=2"])
    with pytest.raises(UsageError, match="has seen"):
        train(other, both, tmp_path / "other")


@pytest.mark.slow
def test_the_commands_take_several(data, tmp_path, capsys):
    work = tmp_path / "run"
    named = [word for folder in data for word in ("--data", str(folder))]
    settings = [word for setting in (*SMALL_DMER, *FOLDED) for word in ("--set", setting)]
    words = ["train", *named, "--workdir", str(work), "--preset", "tiny", *settings]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "elsewhere, validation" in said and f"dsaml evaluate {' '.join(named)}" in said
    assert main(["evaluate", *named, "--workdir", str(work)]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} with spectral" in said for name in ("elsewhere", "synthetic", "elsewhere+synthetic"))  # fmt: skip
    results = json.loads((work / "results.json").read_text())
    assert set(results["corpora"]) == {"elsewhere", "synthetic"}
    assert set(results["corpora"]["synthetic"]) == {"facts", "summary", "levels"}
    assert results["facts"]["songs"] == sum(x["facts"]["songs"] for x in results["corpora"].values())  # fmt: skip
    kept = sorted(path.name for path in (work / "evaluations").iterdir())
    both = "+".join(f"{one.name}-{one.fingerprint}" for one in read_corpora(*data).members)
    assert [name.split("-", 2)[2] for name in kept] == [both, *(identity(read_corpus(folder)).replace("/", "-") for folder in reversed(data))]  # fmt: skip
    # The same run is gone on with by the same corpora in any order, and by no others.
    assert main([words[0], *named[2:], *named[:2], *words[5:]]) == 0
    capsys.readouterr()
    assert main([words[0], *named[:2], *words[5:]]) != 0
    assert "belongs to a run with other settings (data: elsewhere/" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("task", "stream"), [("dmer", False), ("pdmer", True)])
def test_a_run_that_is_stopped_ends_as_one_that_was_not(data, task, stream, tmp_path, monkeypatch):
    """Killed between two checkpoints: the same metrics and the same numbers, from memory and from disk."""
    corpus = read_corpora(*data, stream_above_gb=0.0 if stream else 8.0)
    small = SMALL_DMER if task == "dmer" else SMALL_MODEL
    config = with_settings(preset("tiny"), [*small, *FOLDED, "training.corpora=equal"])
    train(config, corpus, tmp_path / "whole")

    from dsaml_jax.training import loop

    class Killed(BaseException):
        pass

    def die(self, rows=loop._Loop._rows):
        if self.step == 10:
            raise Killed
        return rows(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_rows", die)
        with pytest.raises(Killed):
            train(config, corpus, tmp_path / "killed")
    assert len(read_metrics(tmp_path / "killed")) < len(read_metrics(tmp_path / "whole"))
    train(config, corpus, tmp_path / "killed")
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    for leaf, other in zip(
        *(_leaves(load_model(tmp_path / name)) for name in ("whole", "killed")), strict=True
    ):
        np.testing.assert_array_equal(leaf, other)


def _leaves(model):
    import jax

    return jax.tree.leaves(model.variables)


def test_a_run_of_both_does_not_go_on_with_another_state_of_one(both, dmer_of_both, tmp_path):
    work = tmp_path / "run"
    shutil.copytree(dmer_of_both, work)
    first, second = both.members
    changed = join([dataclasses.replace(first, fingerprint="corrected"), second])
    config = read_run_info(work).config
    with pytest.raises(UsageError, match="belongs to a run with other settings .data: elsewhere/"):
        train(config, changed, work)


# ---- Commands that do not take them as one.


def test_cards_of_all_are_shown(data, capsys):
    assert main(["describe", *(f"--data={folder}" for folder in data)]) == 0
    said = capsys.readouterr().out
    assert said.index("synthetic") < said.index("elsewhere")


def test_evaluating_a_file(data, capsys):
    """It can be loaded, and no results can be written into it: said before the work."""
    assert main(["evaluate", f"--data={data[0]}", f"--workdir={MODEL}"]) == 2
    assert "--workdir is the folder of a run" in capsys.readouterr().err


def test_an_experiment_takes_one(data, tmp_path, capsys):
    """Where it took the last without a word."""
    with pytest.raises(SystemExit):
        main(["experiment", "dmer", *(f"--data={folder}" for folder in data), "--out", str(tmp_path)])  # fmt: skip
    assert "--data is given twice, and this command takes one corpus" in capsys.readouterr().err
