"""The command line end to end, and every wrong turn: one line, a status, nothing left behind."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from data_prep.shards import read_corpus
from dsaml_jax.cli import entry, main
from dsaml_jax.corpus import identity
from dsaml_jax.evaluation import COLUMNS
from tests import golden_file
from tests.conftest import SMALL_MODEL
from tests.deam_files import AUDIO, AVERAGED
from tests.recipe import weights
from tests.test_imagebind import published_weights

COMMAND = [sys.executable, "-m", "dsaml_jax"]


@pytest.fixture
def environment():
    return os.environ | {"DSAML_CACHE": jax.config.jax_compilation_cache_dir}


@pytest.fixture(autouse=True)
def same_cache(monkeypatch):
    monkeypatch.setenv("DSAML_CACHE", jax.config.jax_compilation_cache_dir)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fails(capsys, *arguments):
    """Runs a command that must fail; returns its one line."""
    status = main([str(argument) for argument in arguments])
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert status != 0
    assert message.startswith("dsaml: ") and "Traceback" not in message
    return message


@pytest.mark.slow
def test_quick_demo_end_to_end(tmp_path, environment):
    workdir = tmp_path / "demo"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*COMMAND, "demo", "--quick", "--workdir", str(workdir)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    first = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert "[6/6]" in done.stdout and "step/s" in done.stderr
    page = (workdir / "report.html").read_text()
    assert page.count("<svg") == 5 and "Meta-SGD adapted" in page and "jaxlib" in page
    assert not any(word in page for word in ("src=", "<script", "@import", "<link"))
    assert page.count("href=") == page.count('href="#') + page.count('href="data:image')
    results = json.loads((workdir / "results.json").read_text())
    assert list(results["summary"]) == [
        "constant", "support mean", "DMER", "DMER + affine", "DMER + offset", "DMER + prior", "DMER fine-tuned",
        "Meta-SGD unadapted", "Meta-SGD + offset", "Meta-SGD + prior", "Meta-SGD adapted",
    ]  # fmt: skip
    rows = list(csv.DictReader((workdir / "per_song.csv").open()))
    of_person = {}
    for row in rows:
        if row["method"] == "Meta-SGD adapted":
            songs = of_person.setdefault(row["annotator"], {})
            songs.setdefault(row["song"], []).append(float(row["arousal_rmse"]))
    mean = np.mean([np.mean([np.mean(x) for x in songs.values()]) for songs in of_person.values()])
    # Written with all digits.
    assert results["summary"]["Meta-SGD adapted"]["arousal_rmse"]["mean"] == pytest.approx(mean)
    assert all(row["support"] != row["song"] for row in rows)

    before = contents(workdir / "run")
    again = subprocess.run(
        [*COMMAND, "demo", "--quick", "--workdir", str(workdir), "--quiet"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout == "" and again.stderr == ""
    assert contents(workdir / "run") == before
    # Processor time, whatever else runs; about four minutes of it. This only catches a runaway.
    assert first < 600


@pytest.mark.slow
def test_real_clips_through_the_main_job(real, tmp_path, capsys):
    """Four DEAM clips and their labels: prepare, train, evaluate, personalise, predict."""
    root = tmp_path / "DEAM"
    (root / AVERAGED).mkdir(parents=True)
    (root / AUDIO).mkdir(parents=True)
    for name in ("arousal.csv", "valence.csv"):
        shutil.copy(real / "deam" / name, root / AVERAGED)
    for clip in (real / "deam" / "audio").iterdir():
        shutil.copy(clip, root / AUDIO)

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    data, work, mine, out = (tmp_path / name for name in ("data", "run", "mine", "out"))
    said = run("prepare", "deam", "--root", root, "--out", data, "--features", "tiny", "--embedding", "spectral")  # fmt: skip
    assert "1798 of 1802 annotated songs have no sound file" in said
    card = run("describe", "--data", data)
    for words in (r"songs +\| 1,802", r"points +\| 129,999 +\| 129,998", r"all +\| 4 "):
        assert re.search(words, card), words
    assert "Aljanaki" in card and "research use" in card
    small = [f"--set={s}" for s in SMALL_MODEL if s.startswith(("model", "training"))]
    run("train", "--data", data, "--workdir", work, "--task", "dmer", "--preset", "tiny", *small)
    said = run("evaluate", "--data", data, "--workdir", work)
    assert "DMER" in said and (work / "per_song.csv").is_file()
    labels = np.genfromtxt(real / "deam" / "arousal.csv", delimiter=",", skip_header=2, max_rows=1)
    annotations = tmp_path / "mine.csv"
    lines = [f"{15 + 0.5 * i},{a},{-a}" for i, a in enumerate(labels[1:60])]
    annotations.write_text("\n".join(["time,arousal,valence", *lines]))
    clip = root / AUDIO / "3.mp3"
    run(
        "personalize",
        "--checkpoint",
        work,
        "--audio",
        clip,
        "--annotations",
        annotations,
        "--out",
        mine,
    )
    songs = sorted((real / "music").iterdir())
    run("predict", "--checkpoint", mine, *songs, "--out", out)
    for song in songs:
        rows = list(csv.reader((out / f"{song.stem}.csv").open()))
        assert rows[0] == ["time", "arousal", "valence"]
        seconds = soundfile.info(song).duration
        assert abs(len(rows) - 1 - 2 * seconds) <= 2  # whole steps, give or take one at each end
        assert np.abs(np.array(rows[1:], float)[:, 1:]).max() <= 1.0
        assert (out / f"{song.stem}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("protocol", ["clean", pytest.param("reference", marks=pytest.mark.slow)])
def test_evaluate(small_data, small_run, tmp_path, capsys, protocol):
    work = tmp_path / "run"
    shutil.copytree(small_run, work)
    arguments = ["evaluate", "--data", str(small_data[1]), "--workdir", str(work)]
    assert main([*arguments, "--protocol", protocol]) == 0
    said = capsys.readouterr().out
    assert protocol in said and "Meta-SGD adapted" in said
    rows = list(csv.DictReader((work / "per_song.csv").open()))
    same = [row["support"] == row["song"] for row in rows]
    assert all(same) if protocol == "reference" else not any(same)
    assert all(np.isfinite(float(row[column])) for row in rows for column in COLUMNS)
    results = json.loads((work / "results.json").read_text())
    assert results["protocol"] == protocol and results["facts"]["embedding"] == "spectral"
    facts = results["facts"]
    assert facts["trained_on"] == facts["judged_on"] == identity(read_corpus(small_data[1]))
    assert 0 < facts["largest_share_of_one_annotator"] <= 1 and facts["annotators"] > 1
    assert set(facts["chosen_on_validation"]) == {"Meta-SGD + offset"}
    assert "of the songs, and counts as one" in said
    (kept,) = (work / "evaluations").iterdir()
    assert kept.name.startswith(f"{protocol}-step") and "synthetic" in kept.name
    assert facts["seen_in_training"] == {"model": {"songs": 0, "people": 0}}
    for name in ("results.json", "per_song.csv"):
        assert (kept / name).read_bytes() == (work / name).read_bytes()


def test_convert(tmp_path, small_data, capsys):
    """A published model becomes a checkpoint that a run can start from."""
    torch = pytest.importorskip("torch", reason="PyTorch (extra [torch]) is not installed")

    def state_dict(names):
        drawn = weights(golden_file.shapes(names), 3)
        return {name: torch.from_numpy(array) for name, array in drawn.items()}

    torch.save(state_dict("full_1024_names"), tmp_path / "model.pth")
    out = tmp_path / "converted"
    assert main(["convert", "reference", str(tmp_path / "model.pth"), "--out", str(out)]) == 0
    data = tmp_path / "data"
    root = str(small_data[0])
    prepare = ["prepare", "deam", "--root", root, "--out", str(data), "--songs", "8"]
    assert main([*prepare, "--embedding", "spectral"]) == 0
    run = ["train", "--data", str(data), "--workdir", str(tmp_path / "run"), "--task", "dmer",
           "--steps", "1", f"--set=training.init_from={out}", "--set=training.batch_songs=1"]  # fmt: skip
    assert main(run) == 0

    torch.save(state_dict("state_dict_names"), tmp_path / "small.pth")
    message = fails(capsys, "convert", "reference", tmp_path / "small.pth", "--out", tmp_path / "o")
    assert "width 64" in message
    torch.save({"weights": [1, 2]}, tmp_path / "odd.pth")
    message = fails(capsys, "convert", "reference", tmp_path / "odd.pth", "--out", tmp_path / "o")
    assert "other than a state dict" in message


# ---- Wrong turns.


def test_wrong_folders_and_files(small_data, small_run, tmp_path, capsys):
    data = small_data[1]
    text = tmp_path / "song.mp3"
    text.write_text("not music")
    nothing = tmp_path / "nothing"
    cases = [
        (("prepare", "deam", "--root", nothing, "--out", tmp_path / "o"), "no such folder"),
        (("prepare", "deam", "--root", tmp_path, "--out", tmp_path / "o"), "DEAM_Annotations.zip"),
        (("prepare", "synthetic", "--root", nothing, "--out", tmp_path / "o", "--songs", "1"), "--songs"),
        (("train", "--data", nothing, "--workdir", tmp_path / "w"), "no such folder"),
        (("train", "--data", tmp_path, "--workdir", tmp_path / "w"), "no prepared dataset"),
        (("train", "--data", data, "--workdir", tmp_path / "w", "--set", "meta.stpes=1"), "did you mean meta.steps"),
        (("train", "--data", data, "--workdir", tmp_path / "w", "--steps", "0"), "1 or more"),
        (("train", "--data", data, "--workdir", text, "--preset", "tiny"), "is a file"),
        (("evaluate", "--data", data, "--workdir", tmp_path), "not a run"),
        (("evaluate", "--data", data, "--workdir", small_run, "--dmer", nothing), "not a run"),
        (("predict", "--checkpoint", nothing, text, "--out", tmp_path / "o"), "not a run"),
        (("predict", "--checkpoint", small_run, text, "--out", tmp_path / "o"), "not a sound file"),
        (("predict", "--checkpoint", small_run, nothing, "--out", tmp_path / "o"), "no such sound file"),
        (("personalize", "--checkpoint", small_run, "--audio", text, "--annotations", nothing, "--out", tmp_path / "o"), "no such file"),
        (("convert", "reference", nothing, "--out", tmp_path / "o"), "no such file"),
    ]  # fmt: skip
    for arguments, message in cases:
        assert message in fails(capsys, *arguments), arguments
    assert {path.name for path in tmp_path.iterdir()} == {"song.mp3"}


def test_features_that_do_not_fit_the_run(small_data, small_run, tmp_path, capsys):
    root, _ = small_data
    out = tmp_path / "full"
    prepare = ["prepare", "deam", "--root", str(root), "--out", str(out), "--songs", "4", "--quiet"]
    assert main([*prepare, "--embedding", "spectral"]) == 0
    message = fails(capsys, "evaluate", "--data", out, "--workdir", small_run)
    assert "mel32" in message and "mel128" in message


def test_a_good_song_is_written_beside_a_bad_one(small_run, real, tmp_path, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    good = next((real / "music").glob("hungarian*"))
    message = fails(
        capsys, "predict", "--checkpoint", small_run, bad, good, "--out", tmp_path / "out"
    )
    assert "bad.wav" in message
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        good.stem + ".csv",
        good.stem + ".png",
    }


def write_limited(environment, *arguments):
    """Runs a command that may write no file over 3 kB: what a disk does that has just run full."""
    limit = 3_000
    measured = ("COVERAGE_", "COV_")  # a report of coverage would not fit either
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env={name: x for name, x in environment.items() if not name.startswith(measured)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(small_data, small_run, tmp_path, environment):
    environment["DSAML_CACHE"] = str(tmp_path / "cache")  # the shared one must not be cut short
    root, data = small_data
    song = root / "DEAM_audio" / "MEMD_audio" / "1.flac"
    drawn = tmp_path / "drawn.csv"
    drawn.write_text("time,arousal,valence\n" + "".join(f"{t},0.1,0.1\n" for t in range(40)))
    out = tmp_path / "out"
    for arguments in (
        ("prepare", "synthetic", "--root", out / "c", "--out", out / "d", "--songs", "5"),
        ("prepare", "deam", "--root", root, "--out", out / "d"),
        ("personalize", "--checkpoint", small_run, "--audio", song, "--annotations", drawn, "--out", out / "m"),
        ("predict", "--checkpoint", small_run, song, "--out", out / "p"),
    ):  # fmt: skip
        done = write_limited(environment, *arguments)
        assert done.returncode == 1, arguments
        assert sum(line.startswith("dsaml: ") for line in done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr, done.stderr
        left = [p for p in out.rglob("*") if p.is_file() and p.suffix != ".csv"]
        left = [p for p in left if ".preparing" not in str(p) and p.name != ".lock"]
        assert not left, arguments  # but for the shards that the next start goes on with

    work = tmp_path / "run"
    arguments = ["train", "--data", data, "--workdir", work, "--preset", "tiny",
                 *[f"--set={setting}" for setting in SMALL_MODEL]]  # fmt: skip
    done = write_limited(environment, *arguments)
    assert done.returncode == 1
    assert sum(line.startswith("dsaml: ") for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr, done.stderr
    assert main([*map(str, arguments), "--quiet"]) == 0  # with room again, it goes on
    assert (work / "metrics.jsonl").read_bytes() == (small_run / "metrics.jsonl").read_bytes()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_that_cannot_be_written(small_data, small_run, real, capsys):
    """/proc takes no files from anybody, root included."""
    good = next((real / "music").glob("hungarian*"))
    nowhere = "/proc/dsaml"
    for arguments in (
        ("predict", "--checkpoint", small_run, good, "--out", nowhere),
        ("train", "--data", small_data[1], "--workdir", nowhere, "--preset", "tiny"),
        ("prepare", "deam", "--root", small_data[0], "--out", nowhere),
        ("demo", "--quick", "--workdir", nowhere),
    ):
        assert nowhere in fails(capsys, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["composing", "features"])
def test_ctrl_c_while_preparing_leaves_nothing_half_done(tmp_path, environment, stage):
    command = [*COMMAND, "prepare", "synthetic", "--root", str(tmp_path / "c"), "--out",
               str(tmp_path / "d"), "--songs", "60", "--embedding", "spectral"]  # fmt: skip
    process = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A test runner in the background has its interrupts ignored, and would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    marker = tmp_path / ("c" if stage == "features" else "")
    while process.poll() is None:
        hidden = [p for p in tmp_path.rglob(".*") if p.is_dir()]
        # A first file: before that much is imported, and imports may swallow an interrupt.
        begun = any(x.is_file() for p in hidden for x in p.rglob("*"))
        if begun and (stage == "composing" or marker.exists()):
            break
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("dsaml: interrupted")
    assert "Traceback" not in errors
    left = {p.name for p in tmp_path.iterdir()}
    assert left <= ({"c", "d"} if stage == "features" else set())
    assert not list(tmp_path.rglob("dataset.json"))
    if stage == "features":  # finished shards stay for the next start
        subprocess.run([*command, "--quiet"], env=environment, check=True)
        assert not list(tmp_path.rglob(".preparing*"))
        assert len(list(tmp_path.rglob("dataset.json"))) == 1


def test_ctrl_c_while_starting(tmp_path, capsys, monkeypatch):
    """Loading JAX takes a second, and happens where an interrupt is answered like any other."""
    code = "import sys, dsaml_jax.cli; assert not {'jax', 'flax', 'librosa'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_enable_compile_cache", interrupted)
    assert "interrupted" in fails(capsys, "demo", "--quick", "--workdir", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_help_teaches(capsys):
    for command in (
        "demo",
        "prepare",
        "train",
        "evaluate",
        "personalize",
        "predict",
        "convert",
        "studio",
    ):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert "--quiet" in capsys.readouterr().out


def test_convert_imagebind(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="needs the extra [torch]")
    tensors = {name: torch.from_numpy(x) for name, x in published_weights().items()}
    torch.save(
        tensors | {"modality_trunks.text.x": torch.zeros(3)}, tmp_path / "imagebind_huge.pth"
    )
    out = tmp_path / "audio.safetensors"
    arguments = ["convert", "imagebind", str(tmp_path / "imagebind_huge.pth"), "--out", str(out)]
    assert main(arguments) == 0
    assert "CC-BY-NC" in capsys.readouterr().out and out.stat().st_size > 340e6
    assert main(arguments) == 2 and "exists" in capsys.readouterr().err
