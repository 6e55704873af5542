"""Training: it learns, resumes bit for bit after a kill, and stops with a reason."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import pytest

from data_prep.base import Rating
from data_prep.deam import read_deam
from data_prep.features import FeatureConfig
from data_prep.prepare import prepare
from data_prep.shards import read_corpus
from dsaml_jax import UsageError, meta
from dsaml_jax.adaptation import adapt_to_listener, inner_algorithm
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import (
    batches,
    consensus_target,
    drawing,
    gather_windows,
    held_out,
    pool_of,
    to_device,
)
from dsaml_jax.evaluation import evaluate
from dsaml_jax.progress import Console
from dsaml_jax.runs import METRICS_FILE, load_model, read_metrics
from dsaml_jax.training import steps, train
from tests.conftest import SMALL_DMER, SMALL_MODEL
from tests.deam_files import make_deam

TINY = preset("tiny")


def settings(*more, base=SMALL_MODEL):
    return with_settings(TINY, [*base, *more])


@pytest.fixture(scope="module")
def corpus(small_data):
    return read_corpus(small_data[1])


def test_dmer_learns(corpus, tmp_path, monkeypatch):
    """It learns, writes a line for every logged step, keeps the best checkpoint, and is traced once."""
    traces = []
    original = steps.gather_windows
    monkeypatch.setattr(
        steps, "gather_windows", lambda *args: (traces.append(1), original(*args))[1]
    )
    config = settings("training.steps=24", "training.validate_every=12", base=SMALL_DMER)
    result = train(config, corpus, tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(2, 25, 2))
    losses = [line["total_loss"] for line in lines]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    validated = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "validation"]
    assert result["best_score"] == max(line["score"] for line in validated)
    assert len(traces) == 1


def killed_run(small_data, workdir, *, after):
    """Starts `dsaml train` and kills it as soon as its metrics file has `after` lines."""
    command = [sys.executable, "-m", "dsaml_jax", "train", "--data", str(small_data[1]),
               "--workdir", str(workdir), "--preset", "tiny", "--quiet",
               *[f"--set={setting}" for setting in SMALL_MODEL]]  # fmt: skip
    environment = os.environ | {"DSAML_CACHE": jax.config.jax_compilation_cache_dir}
    process = subprocess.Popen(command, env=environment)
    metrics = workdir / METRICS_FILE
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= after:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return command, environment
        time.sleep(0.002)
    process.kill()
    raise AssertionError("the run ended before it could be killed")


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 5])
def test_killed_and_started_again_equals_never_killed(small_data, small_run, tmp_path, after):
    workdir = tmp_path / "killed"
    command, environment = killed_run(small_data, workdir, after=after)
    assert len(read_metrics(workdir)) < len(read_metrics(small_run))
    subprocess.run(command, env=environment, check=True)
    assert (workdir / METRICS_FILE).read_bytes() == (small_run / METRICS_FILE).read_bytes()
    ours, theirs = load_model(workdir), load_model(small_run)
    assert ours.step == theirs.step
    for a, b in zip(
        jax.tree.leaves(ours.variables), jax.tree.leaves(theirs.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_seed_changes_the_numbers(corpus, small_run, tmp_path):
    train(settings("training.seed=1"), corpus, tmp_path / "other")
    assert read_metrics(tmp_path / "other")[0] != read_metrics(small_run)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [("meta.algorithm=fomaml",), ("meta.task_kind=random",),
     ("meta.batch_norm=batch", "meta.inner_loss=dsaml", "model.dropout=0.1", "meta.tasks_at_once=3"),
     ("meta.algorithm=imaml", "meta.inner_optimizer=momentum"),
     ("meta.algorithm=maml++", "meta.multi_step_until=2")],
)  # fmt: skip
def test_variants_run(corpus, tmp_path, change):
    config = settings("training.steps=2", "training.validate_every=2", *change)
    train(config, corpus, tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert all(np.isfinite(line["score"]) for line in lines)


@pytest.mark.slow
def test_learned_rates_are_kept_and_used(corpus, tmp_path):
    config = settings("training.steps=4", "meta.algorithm=meta-sgd", "meta.adapts=predictor/out")
    train(config, corpus, tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    rates, rate = loaded.variables["rates"], config.meta.learning_rate
    assert {np.shape(rate) for rate in rates.values()} == {
        leaf.shape for leaf in jax.tree.leaves(loaded.variables["params"]["predictor"]["out"])
    }
    # Far above rounding: Adam moves by about its learning rate a step.
    assert any((np.abs(np.asarray(value) - rate) > 1e-4).any() for value in rates.values())
    device = to_device(corpus, corpus.mean)
    support = gather_windows(device, *(np.array([i], np.int32) for i in (0, 0, 0)))
    adapted, plain = (
        adapt_to_listener(loaded.model, config.meta, variables, support)["params"]
        for variables in (
            loaded.variables,
            {name: loaded.variables[name] for name in ("params", "batch_stats")},
        )
    )
    name = "predictor/out/bias"
    start, *ends = (
        params["predictor"]["out"]["bias"]
        for params in (loaded.variables["params"], adapted, plain)
    )
    moved = [np.abs(np.asarray(end) - np.asarray(start)).sum() for end in ends]
    assert moved[0] != moved[1] and name in rates
    train(config, corpus, tmp_path / "run")  # a finished run can be read again, rates and all


@pytest.mark.parametrize("name", meta.algorithm_names())
def test_every_algorithm_has_a_configuration(name):
    algorithm = inner_algorithm(settings(f"meta.algorithm={name}", "meta.adapts=all").meta)
    assert algorithm.steps == 2
    if name in ("anil", "boil"):
        adapting = [algorithm.adapting(path) for path in ("predictor/out/bias", "predictor/outer")]
        assert adapting == [name == "anil", name == "boil"]
    elif name == "cavia":
        assert algorithm.adapting("predictor/out/bias")
        assert not algorithm.adapting("predictor/out/kernel")
    elif name == "imaml":
        options = {
            "proximal": 3.0,
            "cg_steps": 7,
            "tolerance": 1e-3,
            "damping": 0.25,
            "solver": "neumann",
        }
        asked = settings(f"meta.algorithm={name}", *(f"meta.{k}={v}" for k, v in options.items()))
        got = inner_algorithm(asked.meta)
        assert {option: getattr(got, option) for option in options} == options


@pytest.fixture(scope="module")
def streamed(small_data):
    corpus = read_corpus(small_data[1], stream_above_gb=0.0)
    assert corpus.log_mel is None and corpus.embedding is None
    return corpus


@pytest.fixture(scope="module", params=["clip", "step"])
def uneven(request, tmp_path_factory):
    """Songs of 2 to 150 steps, annotators who skipped stretches; both ways to read it."""
    folder = tmp_path_factory.mktemp("uneven")
    lengths = [60, 61, 100, 150, 2, 40, 90, 60, 120, 75, 30, 60] * 3
    steps = {str(i): (n, n) for i, n in enumerate(lengths, start=2)}
    annotated = read_deam(make_deam(folder / "deam", steps, raters=10, seconds=90.0))
    random = np.random.RandomState(0)
    songs = []
    for song in annotated.songs:
        ratings = []
        for rating in song.ratings:
            curves = np.stack([rating.arousal, rating.valence])
            first = random.randint(len(song.arousal))
            curves[:, first : first + 40] = np.nan
            ratings.append(Rating(rating.annotator_id, *curves))
        songs.append(dataclasses.replace(song, ratings=tuple(ratings)))
    annotated = dataclasses.replace(annotated, songs=tuple(songs))
    config = FeatureConfig(sample_rate=8000, hop_ms=50, mel_bands=8, embedding_per=request.param)
    data = prepare(annotated, folder / "data", config, workers=1)
    return read_corpus(data), read_corpus(data, stream_above_gb=0.0)


gather = jax.jit(gather_windows)
gather_tasks = jax.jit(jax.vmap(gather_windows, in_axes=(None, 0, 0, 0)))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["dmer", "pdmer"])
def test_streamed_windows_equal_those_in_memory(uneven, task):
    memory, streamed = uneven
    assert streamed.log_mel is None and streamed.embedding is None
    parts = held_out(memory)
    config = settings(f"training.task={task}", "meta.support_songs=2", "meta.query_songs=9",
                      "meta.min_songs=3")  # fmt: skip
    target = consensus_target(memory, parts["train"])
    pool = None
    if task == "pdmer":
        pool = pool_of(memory, parts["train"].ratings, min_songs=3)

    def windows(corpus):
        draw = drawing(config, pool, corpus, parts["train"], target)
        device = to_device(corpus, target, parts["validation"].songs)
        for here, drawn in batches(corpus, target, device, draw, 1, 6):
            here = jax.device_put(here)
            drawn = jax.tree.map(lambda x: x[0], drawn)
            if task == "dmer":
                yield gather(here, drawn.song, drawn.window)
                continue
            for kind in ("support", "query"):
                places = (getattr(drawn, kind + name) for name in ("_song", "_window", ""))
                yield gather_tasks(here, *places)

    padded = 0
    for ours, theirs in zip(windows(streamed), windows(memory), strict=True):
        present = np.asarray(theirs.present)
        padded += (~present).sum()
        np.testing.assert_array_equal(ours.present, theirs.present)
        np.testing.assert_array_equal(ours.labelled, theirs.labelled)
        assert np.asarray(theirs.labelled).any()
        for name in ("log_mel", "arousal", "valence"):
            mine, other = (np.asarray(getattr(x, name))[present] for x in (ours, theirs))
            np.testing.assert_array_equal(mine, other)
        shown = present if ours.embedding.shape[-2] > 1 else present.any(-1, keepdims=True)
        mine, other = (np.asarray(x.embedding)[shown] for x in (ours, theirs))
        np.testing.assert_array_equal(mine, other)
    assert padded


@pytest.mark.slow
@pytest.mark.parametrize("uneven", ["step"], indirect=True)
def test_a_streamed_run_equals_one_in_memory(uneven, tmp_path):
    memory, streamed = uneven
    train(settings("training.steps=4"), memory, tmp_path / "memory")
    train(settings("training.steps=4"), streamed, tmp_path / "streamed")
    for ours, theirs in zip(
        *(read_metrics(tmp_path / name) for name in ("streamed", "memory")), strict=True
    ):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, abs=1e-5)  # float32, two programs
    loaded = load_model(tmp_path / "memory")
    rows = [evaluate(loaded, corpus)[0].rows for corpus in uneven]
    for ours, theirs in zip(*rows, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)  # likewise
    _no_method_is_perfect(rows[0])
    _no_method_is_perfect(evaluate(loaded, memory, protocol="reference")[0].rows)


def _no_method_is_perfect(rows):
    """A prediction that is no number, for want of labels in the support, would score an error of 0."""
    for method in {row["method"] for row in rows}:
        errors = [row["arousal_rmse"] for row in rows if row["method"] == method]
        assert min(errors) > 1e-4, method  # no real one comes near


def test_a_streamed_run_goes_on_where_it_stopped(streamed, tmp_path):
    """Order and content of the steps depend on the step alone, whoever asks and when."""
    parts = held_out(streamed)
    target = consensus_target(streamed, parts["train"])
    draw = drawing(settings("training.task=dmer"), None, streamed, parts["train"], target)
    device = to_device(streamed, target, parts["validation"].songs)
    whole = list(batches(streamed, target, device, draw, 1, 8))
    rest = list(batches(streamed, target, device, draw, 5, 8))
    assert len(whole) == 7 and len(rest) == 3
    for a, b in zip(jax.tree.leaves(whole[4:]), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_start_from_another_run(corpus, small_run, tmp_path):
    config = settings(
        f"training.init_from={small_run}", "training.steps=2", "training.validate_every=2"
    )
    train(config, corpus, tmp_path / "run")
    wider = settings(f"training.init_from={small_run}", "model.width=32")
    with pytest.raises(UsageError, match=r"another model.*model.width: 16 -> 32"):
        train(wider, corpus, tmp_path / "wider")
    with pytest.raises(UsageError, match="not a run"):
        train(settings(f"training.init_from={tmp_path}"), corpus, tmp_path / "nothing")


def test_another_configuration_in_the_same_folder_is_refused(corpus, small_run):
    before = (small_run / METRICS_FILE).read_bytes()
    with pytest.raises(UsageError, match=r"other settings \(meta.steps: 2 -> 3\)"):
        train(settings("meta.steps=3"), corpus, small_run)
    assert (small_run / METRICS_FILE).read_bytes() == before


@pytest.mark.slow
def test_a_refused_run_leaves_the_folder_free(corpus, tmp_path):
    """Following the advice of the error must work in the same folder."""
    with pytest.raises(UsageError, match="--set meta.min_songs="):
        train(settings("meta.min_songs=99"), corpus, tmp_path / "run")
    train(settings("training.steps=2", "training.validate_every=2"), corpus, tmp_path / "run")


@pytest.mark.slow
def test_a_finished_run_does_not_need_its_source_any_more(corpus, small_run, tmp_path):
    import shutil

    source = tmp_path / "source"
    shutil.copytree(small_run, source)
    config = settings(
        f"training.init_from={source}", "training.steps=2", "training.validate_every=2"
    )
    train(config, corpus, tmp_path / "run")
    shutil.rmtree(source)
    train(config, corpus, tmp_path / "run")


@pytest.mark.slow
def test_dropout_may_change_on_the_way_from_one_run_to_the_next(corpus, small_run, tmp_path):
    config = settings(f"training.init_from={small_run}", "model.dropout=0.2", "training.task=dmer",
                      "training.steps=2", "training.validate_every=2")  # fmt: skip
    train(config, corpus, tmp_path / "run")


def test_a_folder_that_is_no_run_is_left_alone(corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        train(settings(), corpus, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "run.json").write_text("{"), "damaged"),
        (lambda d: (d / "run.json").write_text((d / "run.json").read_text().replace('"format_version": 1', '"format_version": 99')), "version 99"),
        (lambda d: (d / "run.json").write_text((d / "run.json").read_text().replace('"width": 16', '"width": 32')), "another model"),
        (lambda d: (d / "run.json").unlink(), "not a run"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_refused(small_run, tmp_path, damage, message):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    damage(copy)
    with pytest.raises(UsageError, match=message):
        load_model(copy)


@pytest.fixture(scope="module")
def averaged(corpus):
    """The corpus as one of mean curves alone."""
    return dataclasses.replace(
        corpus,
        annotator_ids=(),
        raters=np.zeros_like(corpus.raters),
        rating_song=np.zeros(0, np.int32),
        rating_annotator=np.zeros(0, np.int32),
        rating_first=np.zeros(0, np.int32),
        ratings=np.zeros((0, 2), np.float32),
    )


def test_a_corpus_without_annotators_says_so(averaged, tmp_path):
    with pytest.raises(UsageError, match="PDMER needs"):
        train(settings(), averaged, tmp_path / "pdmer")


@pytest.mark.slow
def test_a_corpus_without_annotators_serves_dmer(averaged, tmp_path):
    config = settings("training.steps=2", "training.validate_every=2", base=SMALL_DMER)
    train(config, averaged, tmp_path / "dmer")


def of_steps(count, schedule):
    """A short DMER run that validates every other step."""
    return settings(
        f"training.steps={count}", "training.validate_every=2", f"training.schedule={schedule}", base=SMALL_DMER
    )  # fmt: skip


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps(corpus, tmp_path):
    """It ends as one that was asked for all of them at once."""
    steps_of = partial(of_steps, schedule="constant")
    train(steps_of(2), corpus, tmp_path / "longer")
    train(steps_of(6), corpus, tmp_path / "longer")
    train(steps_of(6), corpus, tmp_path / "whole")
    metrics = [(tmp_path / name / METRICS_FILE).read_bytes() for name in ("longer", "whole")]
    assert metrics[0] == metrics[1]
    with pytest.raises(UsageError, match="other settings"):
        train(steps_of(4), corpus, tmp_path / "longer")


@pytest.mark.slow
def test_a_run_whose_rate_has_fallen_does_not_go_on(corpus, tmp_path):
    steps_of = partial(of_steps, schedule="cosine")
    train(steps_of(2), corpus, tmp_path / "run")
    with pytest.raises(UsageError, match="falls to nothing at the last step"):
        train(steps_of(4), corpus, tmp_path / "run")


def test_a_model_too_large_for_its_features_is_said_before_the_first_step(corpus, tmp_path):
    said = []

    class Heard(Console):
        def say(self, text):
            said.append(text)
            if "tiny" in text and "made for" in text:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(preset("default"), corpus, tmp_path / "run", Heard(quiet=True))
    assert any("parameters, on" in line for line in said) and not (tmp_path / "run").exists()
