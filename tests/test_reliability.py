"""Runs that survive: kills, signals, damage, two at once, numbers that are not finite; and looking at them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data_prep.curves import is_flat
from data_prep.deam import read_deam
from data_prep.features import TINY
from data_prep.prepare import prepare
from data_prep.shards import read_corpus
from dsaml_jax import UsageError
from dsaml_jax.cli import inspection, main
from dsaml_jax.config import TrainingConfig, preset, with_settings
from dsaml_jax.errors import Interrupted
from dsaml_jax.runs import (
    METRICS_FILE,
    CheckpointStore,
    load_model,
    read_metrics,
    read_status,
    save_model,
)
from dsaml_jax.runs import log as runs
from dsaml_jax.training import failures, make_optimizer, train
from dsaml_jax.training.state import INTERRUPTED
from dsaml_jax.training.stopping import StopRequest
from tests.conftest import SMALL_DMER, SMALL_MODEL

DMER = (*SMALL_DMER, "training.log_every=4")


def settings(*more, base=DMER):
    return with_settings(preset("tiny"), [*base, *more])


@pytest.fixture(scope="module")
def corpus(small_data):
    return read_corpus(small_data[1])


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(settings(), corpus, workdir)
    return workdir


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def sums(workdir):
    """Step -> checksums of what its checkpoint holds."""
    store = CheckpointStore(workdir, read_only=True)
    return {step: store.manifest(step)["sha256"] for step in store.steps()}


def assert_same(ours, theirs):
    assert (ours / METRICS_FILE).read_bytes() == (theirs / METRICS_FILE).read_bytes()
    assert sums(ours) == sums(theirs)
    assert not (ours / INTERRUPTED).exists()


def stop_after(monkeypatch, steps, number=signal.SIGTERM):
    """Sends a signal to this process when a run has taken so many steps."""
    taken = []
    original = StopRequest.agreed

    def agreed(self):
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), number)
        return original(self)

    monkeypatch.setattr(StopRequest, "agreed", agreed)


# ---- Asked to stop.


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3, 4, 6])
def test_a_stopped_run_goes_on_to_the_same_numbers(corpus, whole, tmp_path, monkeypatch, steps):
    """Also between two lines of the metrics file, whose mean then spans both processes."""
    workdir = tmp_path / "run"
    stop_after(monkeypatch, steps)
    with pytest.raises(Interrupted, match=f"stopped at step {steps} of 12"):
        train(settings(), corpus, workdir)
    assert read_status(workdir).state == "stopped"
    assert (workdir / "report.html").is_file()
    assert (workdir / INTERRUPTED).is_dir() == (steps != 4)
    monkeypatch.undo()
    train(settings(), corpus, workdir)
    assert_same(workdir, whole)
    assert read_status(workdir).state == "finished"


@pytest.mark.slow
def test_an_interruption_that_is_damaged_costs_only_itself(corpus, whole, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    stop_after(monkeypatch, 6)
    with pytest.raises(Interrupted):
        train(settings(), corpus, workdir)
    monkeypatch.undo()
    cut(workdir / INTERRUPTED / "6")
    train(settings(), corpus, workdir)
    assert (workdir / "damaged" / "interrupted-6").is_dir()
    assert_same(workdir, whole)


def test_a_second_signal_insists():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        assert stop.agreed() == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not heard")


def test_a_signal_that_comes_too_late_is_handed_on():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_kill_before_the_first_file_leaves_the_folder_usable(corpus, whole, tmp_path):
    for name in (".lock", ".run.json.abc.json"):
        (tmp_path / name).touch()
    train(settings(), corpus, tmp_path)
    assert_same(tmp_path, whole)
    assert not (tmp_path / ".run.json.abc.json").exists()


def test_a_run_killed_after_its_last_checkpoint_is_finished(corpus, whole, copy):
    status = json.loads((copy / "status.json").read_text()) | {"state": "validating"}
    (copy / "status.json").write_text(json.dumps(status))
    train(settings(), corpus, copy)
    assert read_status(copy).state == "finished"
    assert_same(copy, whole)


def test_a_finished_model_is_no_work_directory(corpus, whole, tmp_path):
    loaded = load_model(whole)
    info = dataclasses.replace(loaded.info, note="personalised on 30 s of x.flac")
    save_model(tmp_path / "mine", loaded.variables, info)
    with pytest.raises(UsageError, match=r"finished model \(personalised"):
        train(settings(), corpus, tmp_path / "mine")
    assert main(["runs", "show", str(tmp_path / "mine")]) == 0
    assert "personalised on 30 s" in (tmp_path / "mine" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_to_the_command(small_data, whole, tmp_path, number, status):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "dsaml_jax", "train", "--data", str(small_data[1]), "--workdir",
               str(workdir), "--preset", "tiny", *[f"--set={x}" for x in DMER]]  # fmt: skip
    environment = os.environ | {"DSAML_CACHE": jax.config.jax_compilation_cache_dir}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (workdir / METRICS_FILE).is_file() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == status, said
    assert "everything is saved" in said.splitlines()[-1] and "Traceback" not in said
    assert main([*map(str, command[3:]), "--quiet"]) == 0
    assert_same(workdir, whole)


# ---- Damage.


def other_numbers(folder):
    """A model that can be read, but is not what was written: that of another step."""
    (other,) = {path for path in folder.parent.iterdir() if path.name.isdecimal()} - {folder}
    shutil.rmtree(folder / "model")
    shutil.copytree(other / "model", folder / "model")


def empty(name):
    def damage(folder):
        (folder / name).write_bytes(b"")

    return damage


def cut(folder):
    for path in folder.rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "other numbers": other_numbers, "cut short": cut, "no manifest": empty("_CHECKPOINT_METADATA"),
    "no score": empty("metrics/metrics"), "no tree": empty("model/_METADATA"),
    "no optimizer": lambda folder: shutil.rmtree(folder / "optimizer"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_costs_only_itself(corpus, whole, copy, damage, capsys):
    damage(copy / "checkpoints" / "12")
    from dsaml_jax.progress import Console

    train(settings(), corpus, copy, Console())
    said = capsys.readouterr().out
    assert "checkpoints/12: damaged" in said and "at step 8" in said
    assert [path.name for path in (copy / "damaged").iterdir()] == ["checkpoints-12"]
    assert_same(copy, whole)


@pytest.mark.slow
def test_all_damaged_is_a_new_beginning(corpus, whole, copy):
    for folder in (copy / "checkpoints").iterdir():
        cut(folder)
    train(settings(), corpus, copy)
    assert_same(copy, whole)


def test_a_damaged_model_is_not_used(copy, capsys):
    other_numbers(copy / "checkpoints" / f"{load_model(copy).step}")
    with pytest.raises(UsageError, match=r"checksum of model differs.*dsaml checkpoint verify"):
        load_model(copy)
    assert main(["checkpoint", "verify", str(copy)]) == 2
    out = capsys.readouterr()
    assert out.out.count(", whole\n") == len(list((copy / "checkpoints").iterdir())) - 1
    assert "1 of " in out.err


def test_a_later_schema_is_refused(copy):
    for path in copy.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    with pytest.raises(UsageError, match="written by a later version"):
        load_model(copy)


def test_torn_metrics_are_mended(corpus, whole, copy):
    """A line that a cut of power has torn, and whatever came after it."""
    shutil.rmtree(copy / "checkpoints" / "12")
    lines = (copy / METRICS_FILE).read_text().splitlines(keepends=True)
    kept = sum(json.loads(line)["step"] <= 8 for line in lines)
    (copy / METRICS_FILE).write_text("".join(lines[:kept]) + lines[kept][:20])
    train(settings(), corpus, copy)
    assert_same(copy, whole)


@pytest.mark.slow
def test_checkpoints_of_the_first_version_keep_working(small_data, tmp_path):
    """Made before checkpoints had checksums: it predicts the same, and goes on to the same numbers.

    At that time a rating was left out if either of its curves was flat.
    """
    with tarfile.open(Path(__file__).parent / "data" / "run_format_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    run, expected = tmp_path / "run", tmp_path / "expected"
    loaded = load_model(run)
    random = np.random.RandomState(0)
    mel = (2 * random.standard_normal((1, 60, 11, 32)) - 4).astype(np.float32)
    embedding = random.standard_normal((1, 1, 256)).astype(np.float32)
    variables = {name: loaded.variables[name] for name in ("params", "batch_stats")}
    out = loaded.model.apply(variables, mel, embedding)
    with np.load(expected / "outputs.npz") as stored:
        for name in ("arousal", "valence"):
            # float32, whatever the compiler.
            np.testing.assert_allclose(getattr(out, name), stored[name], atol=2e-5)
    assert [line.state for line in inspection.checkpoint_lines(run, verify=True)] == ["readable, no checksum"]  # fmt: skip
    # The simulated listeners were others then; the music was the same.
    with tarfile.open(Path(__file__).parent / "data" / "format_1_annotations.tar.gz") as archive:
        archive.extractall(tmp_path / "corpus", filter="data")
    (tmp_path / "corpus" / "DEAM_audio").symlink_to(small_data[0] / "DEAM_audio")
    annotated = read_deam(tmp_path / "corpus", name="synthetic")
    songs = []
    for song in annotated.songs:
        kept = tuple(x for x in song.ratings if not is_flat(x.arousal) and not is_flat(x.valence))
        # Who was left out was not written down.
        raters = tuple(x.annotator_id for x in kept)
        songs.append(dataclasses.replace(song, ratings=kept, raters=raters))
    data = prepare(dataclasses.replace(annotated, songs=tuple(songs)), tmp_path / "data", TINY)
    train(loaded.info.config, read_corpus(data), run)
    for ours, theirs in zip(read_metrics(run), read_metrics(expected), strict=True):
        kind = ours.pop("kind")
        assert kind == theirs.pop("kind")
        if kind == "validation":  # a mean was over curves then, and is over people now
            assert ours["step"] == theirs["step"]
            continue
        ours.pop("gradient_norm", None)
        assert ours == pytest.approx(theirs, abs=1e-4)  # Adam carries rounding on


# ---- Two at once.


def test_two_processes_on_one_folder(corpus, copy, capsys):
    with runs.only_here(copy), pytest.raises(UsageError, match="another process is training"):
        train(settings(), corpus, copy)


# ---- Numbers that are not finite.


def poisoned(corpus, song):
    features = np.array(corpus.log_mel)
    first = corpus.song_start[song]
    features[first : first + corpus.song_steps[song]] = np.inf
    return dataclasses.replace(corpus, log_mel=features)


@pytest.mark.slow
def test_a_song_that_is_not_finite_is_named(corpus, small_run, tmp_path, monkeypatch, capsys):
    """PDMER: step, task, annotator and song are named, and the bundle replays it."""
    song = 11  # drawn after the first checkpoint
    workdir = tmp_path / "run"
    base = (*SMALL_MODEL, "training.validate_every=2")
    with pytest.raises(UsageError) as caught:
        train(settings("training.steps=40", base=base), poisoned(corpus, song), workdir)
    message = str(caught.value)
    name = corpus.song_ids[song]
    assert "not finite at step" in message and "task " in message
    assert f"the features of song {name} by itself is not finite" in message
    assert "\n" not in message
    assert read_status(workdir).state == "failed"
    (path,) = (workdir / failures.FAILURES_FOLDER).iterdir()
    bundle = failures.read_bundle(path)
    assert name in bundle.songs and any(x in message for x in corpus.annotator_ids)
    assert not failures.replay(bundle).is_finite
    assert main(["runs", "replay", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"step {bundle.step}: task" in out and "songs whose features are not finite: 1" in out
    last = inspection.checkpoint_lines(workdir, verify=True)  # the last good checkpoint stays
    assert [line.state for line in last] == ["whole"] * len(last)
    assert all(line.step < bundle.step for line in last)


@pytest.mark.slow
def test_a_diverging_run_keeps_the_state_before_it(corpus, tmp_path):
    """DMER: the songs of the step are named; the bundle holds parameters that are finite still."""
    workdir = tmp_path / "run"
    with pytest.raises(UsageError, match=r"not finite at step \d+: songs .*training.clip_norm"):
        train(settings("training.learning_rate=1e30"), corpus, workdir)
    (path,) = (workdir / failures.FAILURES_FOLDER).iterdir()
    bundle = failures.read_bundle(path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bundle.variables))
    found = failures.replay(bundle)
    assert not found.is_finite and found.inputs_finite.all()


@pytest.mark.slow
def test_gradients_are_clipped(corpus, whole, tmp_path):
    """Adam does not see the scale of all gradients, so what shows is that their ratio over steps changes."""
    norms = [line["gradient_norm"] for line in read_metrics(whole) if line["kind"] == "train"]
    assert min(norms) > 1e-3  # all will be clipped
    train(settings("training.clip_norm=1e-3"), corpus, tmp_path / "tight")
    assert read_metrics(tmp_path / "tight")[0] != read_metrics(whole)[0]
    with pytest.raises(UsageError, match="clip_norm"):
        settings("training.clip_norm=-1")


@pytest.mark.parametrize(("clip", "same"), [(0.0, True), (1e9, True), (1.0, False)])
def test_only_gradients_above_the_norm_are_clipped(clip, same):
    def moved(config):
        optimizer, params = make_optimizer(config), {"a": np.zeros(2, np.float32)}
        state = optimizer.init(params)
        for size in (0.1, 100.0):
            gradient = {"a": np.array([size, -size], np.float32)}
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state, params)
        return updates["a"]

    plain, clipped = (moved(TrainingConfig(clip_norm=norm)) for norm in (0.0, clip))
    assert np.array_equal(plain, clipped) == same


def test_the_learning_rate_falls_to_nothing():
    optimizer = make_optimizer(TrainingConfig(schedule="cosine", steps=4, learning_rate=0.5))
    state, sizes = optimizer.init(np.zeros(1, np.float32)), []
    for _ in range(5):
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimizer.update(np.ones(1, np.float32), state)
        sizes.append(-float(update[0]))
    rates = [0.25 * (1 + np.cos(np.pi * step / 4)) for step in range(5)]
    # Adam's powers and divisions in float32: measured 4e-6.
    np.testing.assert_allclose(sizes, rates, atol=4e-5)


# ---- Seeing a run.


def test_runs_are_listed(whole, copy, tmp_path, capsys):
    (copy / "status.json").write_text("{")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert main(["runs", "ls", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "no word" in lines[2] and "damaged" in lines[1]
    assert main(["runs", "ls", str(whole)]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["runs", "ls", str(tmp_path / "nothing")]) == 2


def test_a_run_that_was_killed_says_so(copy):
    status = json.loads((copy / "status.json").read_text()) | {"state": "training", "step": 8}
    (copy / "status.json").write_text(json.dumps(status))
    assert read_status(copy).state == "killed"
    with runs.only_here(copy):
        assert read_status(copy).state == "training"


def test_a_run_is_shown(whole, capsys):
    assert main(["runs", "show", str(whole)]) == 0
    out = capsys.readouterr().out
    for word in ("state: finished", "step: 12/12", "gradient_norm", "training.task=dmer"):
        assert word in out
    page = (whole / "report.html").read_text()
    assert page.count("<svg") == 1 and "Finished at step 12 of 12" in page
    assert not any(word in page for word in ("src=", "<script", "@import", "<link"))


def test_a_run_does_not_fail_for_want_of_a_report(corpus, copy):
    (copy / "results.json").write_text("[")
    assert train(settings(), corpus, copy)["best_step"] > 0


@pytest.mark.slow
def test_time_goes_on_after_an_interruption(corpus, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    stop_after(monkeypatch, 6)
    with pytest.raises(Interrupted):
        train(settings(), corpus, workdir)
    monkeypatch.undo()
    path = workdir / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1000.0}))
    train(settings(), corpus, workdir)
    assert 1000.0 < read_status(workdir).seconds < 1100.0  # a few steps take seconds


def test_tensorboard_reads_it(whole, corpus, copy):
    """Read by the format's own records, and without steps twice after going on."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

    def scalars(workdir):
        found = {}
        for path in sorted((workdir / "tensorboard").iterdir()):
            data = path.read_bytes()
            while data:
                length = int.from_bytes(data[:8], "little")
                event = Event.FromString(data[12 : 12 + length])
                for value in event.summary.value:
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
                data = data[16 + length :]
        return found

    assert RecordWriter
    losses = scalars(whole)["train/total_loss"]
    lines = [line for line in read_metrics(whole) if line["kind"] == "train"]
    # Kept in float32.
    assert losses == pytest.approx({line["step"]: line["total_loss"] for line in lines})
    assert set(scalars(whole)["validation/score"]) == {4, 8, 12}


def test_export(whole, tmp_path, capsys):
    from safetensors import safe_open

    out = tmp_path / "model.safetensors"
    assert main(["checkpoint", "export", str(whole), "--out", str(out)]) == 0
    loaded = load_model(whole)
    with safe_open(out, framework="numpy") as file:
        assert file.metadata()["step"] == str(loaded.step)
        np.testing.assert_array_equal(
            file.get_tensor("params.predictor.out.bias"),
            loaded.variables["params"]["predictor"]["out"]["bias"],
        )
    assert main(["checkpoint", "export", str(whole), "--out", str(out)]) == 2
    assert main(["checkpoint", "export", str(whole)]) == 2
    assert main(["checkpoint", "ls", str(whole)]) == 0
    assert "(best)" in capsys.readouterr().out


def test_a_slow_run_knows_its_pace_from_its_first_word_on(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dsaml_jax.runs.log.time.monotonic", lambda: now[0])
    log = runs.RunLog(tmp_path, 4, 20)
    paces = []
    # 20 s for the first two steps, compiled among them; then 5 s a step.
    for step, passed in ((4, 0.0), (6, 20.0), (6, 1.0), (8, 9.0)):
        now[0] += passed
        log.state("training", step)
        paces.append(read_status(tmp_path).steps_per_second)
    log.close()
    assert paces == pytest.approx([0.0, 0.1, 2 / 21, 0.2])
