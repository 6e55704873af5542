"""Every command and Python block of the READMEs, run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from data_prep.synthetic import write_corpus
from dsaml_jax.cli import entry, main
from tests.sound_files import write_sound
from tests.test_merp import make_merp
from tests.test_pmemo import make_pmemo
from tests.test_wide import make_wide
from tests.vgmidi_files import make_vgmidi, two_each

ROOT = Path(__file__).parent.parent
READMES = sorted(
    path.relative_to(ROOT)
    for path in [ROOT / "README.md", *(p for top in ("data_prep", "dsaml_jax", "experiments", "tests")
                                       for p in (ROOT / top).rglob("README.md") if "results" not in p.parts)]
)  # fmt: skip
BLOCK = re.compile(
    r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>bash|python)\n(?P<text>.*?)```", re.DOTALL
)
LONGEST_LINE = 120


def blocks(readme, kind):
    """Texts of a kind that are to be run; `<!-- not run: WHY -->` above one leaves it out."""
    for found in BLOCK.finditer((ROOT / readme).read_text()):
        if found["kind"] == kind and not (found["note"] or "").startswith("not run: "):
            yield found["text"]


def commands(readme):
    """Arguments of every `dsaml` command."""
    for text in blocks(readme, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                words = shlex.split(command, comments=True)
                if words[:1] == ["dsaml"]:
                    yield words[1:]


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_lines_fit_a_window(readme):
    text = (ROOT / readme).read_text()
    long = [line for line in text.splitlines() if len(line) > LONGEST_LINE and line[:1] != "|"]
    assert not long


def test_the_first_page_is_short_and_narrow():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 110


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_lead_somewhere(readme):
    text = (ROOT / readme).read_text()
    targets = re.findall(r"\]\(([^)#]+)", text) + re.findall(
        r"^\[[^]]+\]: (\S+)", text, re.MULTILINE
    )
    missing = [
        target
        for target in targets
        if "://" not in target and not (ROOT / readme).parent.joinpath(target).exists()
    ]
    assert not missing


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_python_blocks_run(readme):
    for text in blocks(readme, "python"):
        with jax.numpy_dtype_promotion(
            "standard"
        ):  # as users have it: optax's Adam is float ** int
            exec(compile(text, str(readme), "exec"), {})


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_commands_are_understood(readme, capsys):
    for words in commands(readme):
        entry._parser().parse_args(words)


# What stands for the sizes of the READMEs: it is the command that is tried, not the hours.
SMALL = {
    "prepare": ["--features", "tiny"],
    "train": ["--preset", "tiny", *(f"--set={x}" for x in (
        "training.steps=4", "training.validate_every=2", "training.log_every=2", "training.validation_tasks=4",
        "training.batch_songs=2", "meta.tasks=2", "meta.query_songs=2", "meta.min_songs=2"))],
    "experiment": ["--quick", "--folds", "2"],
    "demo": ["--quick"],
}  # fmt: skip
ELSEWHERE = {
    "pip": ".ci/run",
    "python3": ".ci/run",
    "pytest": "this",
    "ruff": ".ci/run",
    "tensorboard": "optional",
}
"""Programs of the READMEs that are not `dsaml`, and where they are tried."""


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_no_command_is_forgotten(readme):
    """What is no `dsaml` command is one of those that are tried elsewhere, or says where it comes from."""
    for text in blocks(readme, "bash"):
        for line in filter(None, text.replace("\\\n", " ").splitlines()):
            word = line.split()[0]
            assert word in {"dsaml", "export", "#", *ELSEWHERE} or readme.parts[0] == "experiments"


TRIED_BY = {"demo": "test_cli.py", "studio": "test_studio.py", "experiment": "test_experiment.py"}
"""Commands that take minutes or do not end, and the tests that run them."""


def make_what_they_name(folder):
    """DEAM, PMEmo, VGMIDI, MERP, two studies, songs, a person's annotations, and a trained model, all of them small."""
    write_corpus(folder / "DEAM", songs=24, annotators=12)
    songs = ("sunrise", "noon", "dusk", "night")
    lines = [f"{song},{15.5 + step / 2},0.5,{step / 60}" for song in range(4) for step in range(30)]
    make_pmemo(folder / "PMEmo", lines)
    for song in range(4):
        write_sound(folder / "PMEmo" / "chorus" / f"{song}.mp3")
    make_vgmidi(folder / "vgmidi", two_each([f"Piece {i}" for i in range(10)], 60))
    times = np.arange(0, 20, 0.5)
    rated = [
        [song, who, (times / 40).tolist(), [0.1 * i] * 40]
        for song in songs
        for i, who in enumerate("abc")
    ]
    make_merp(folder / "MERP", rated)
    wide = ["time,anna,ben", *(f"{t},{t / 40},{-t / 40}" for t in times)]
    make_wide(folder / "TENSION", dict.fromkeys(songs, wide))
    rows = [f"{song},{who},{t},{np.sin(t + i) / 5:.3f},0.2" for song in songs
            for i, who in enumerate(("anna", "ben", "carol")) for t in times]  # fmt: skip
    for song in songs:
        for study in ("STUDY", "MERP", "TENSION"):
            write_sound(folder / study / "audio" / f"{song}.wav")
    header = "song_id,annotator_id,time,arousal,valence"
    (folder / "STUDY" / "annotations.csv").write_text("\n".join([header, *rows]))
    for song in ("song.mp3", "other.flac", "another.mp3", "FOLDER/deep/down.wav"):
        write_sound(folder / song)
    mine = [f"{t},0.2,{np.sin(t) / 5:.3f}" for t in times]
    for name in ("mine.csv", "other.csv"):
        (folder / name).write_text("\n".join(["time,arousal,valence", *mine]))


@pytest.mark.slow
def test_commands_run(tmp_path, monkeypatch, small_run):
    """In the order of the READMEs, the first page first."""
    make_what_they_name(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSAML_CACHE", jax.config.jax_compilation_cache_dir)
    shutil.copytree(small_run, "dsaml_demo/run")
    for readme in (Path("README.md"), *(x for x in READMES if x != Path("README.md"))):
        for words in commands(readme):
            if words[0] in TRIED_BY:
                continue
            if "model.class=mine:Small" in words:
                (own,) = (x for x in blocks(readme, "python") if x.startswith("# mine.py"))
                (tmp_path / "mine.py").write_text(own)
                monkeypatch.syspath_prepend(tmp_path)  # as the lines above it say
                monkeypatch.setenv("DSAML_NETWORKS", "mine:Small")
            extra = ["--songs", "12", "--annotators", "8"] if "synthetic" in words else []
            assert main([*words, *SMALL.get(words[0], []), *extra]) == 0, words
