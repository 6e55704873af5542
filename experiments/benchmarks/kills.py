"""Runs and preparations that are killed at random moments end in the same bytes as those that nobody disturbed.

Claim: after any number of SIGKILL, SIGTERM, SIGINT and cuts of power, in training, in a validation, while a checkpoint is
written and while a corpus is prepared, starting the same command again ends in the same metrics file, the same checkpoints
(by their checksums), the same table of results and the same shards.
Command: `python experiments/benchmarks/kills.py --out /tmp/kills`.
Result: `experiments/results/kills.md`. Time: about 30 minutes on two busy CPU cores.

A cut of power is simulated: strace (a Debian package) logs what a run writes and syncs; it is killed, and of every file
that holds bytes it had not synced only a random part is left, or zeros. Names are taken to be kept, as a journal
does.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from timing import measured_on, write_result

from dsaml_jax.runs import METRICS_FILE, CheckpointStore, read_status

SETTINGS = (
    "model.width=16", "model.num_heads=2", "model.ffn_width=16", "training.steps=60", "training.log_every=5",
    "training.validate_every=15", "meta.tasks=3", "meta.query_songs=2", "meta.min_songs=2", "meta.steps=2",
    "training.validation_tasks=16",
)  # fmt: skip
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
POWER = "power"
KINDS = (*SIGNALS, POWER)
MOMENTS = ("start", "training", "validation", "checkpoint")
KILLS_PER_RUN = 6

Found = Callable[[], bool]


def dsaml(*arguments: object) -> list[str]:
    """A command."""
    return [sys.executable, "-m", "dsaml_jax", *map(str, arguments), "--quiet"]


# ---- Cutting the power.


class Disk:
    """What a process has written below a folder and not synced, from a log of strace."""

    CALLS = "write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,renameat2,ftruncate"

    def __init__(self, log: Path, folder: Path) -> None:
        self._log, self._folder = log, str(folder.resolve())

    def command(self, command: list[str]) -> list[str]:
        """The command, logged; its process is the one that is started."""
        return [
            "strace",
            "-D",
            "-f",
            "-y",
            "-qq",
            "-s",
            "0",
            "-e",
            f"trace={self.CALLS}",
            "-o",
            str(self._log),
            *command,
        ]

    def unsynced(self) -> set[Path]:
        """Files with bytes that a cut of power may take."""
        dirty: set[str] = set()
        for line in self._log.read_text(errors="replace").splitlines():
            call = re.search(r"(\w+)\(", line)
            if not call:
                continue
            if call[1].startswith("rename"):
                old, new = re.findall(r'"([^"]*)"', line)[:2]
                moved = {x for x in dirty if x == old or x.startswith(f"{old}/")}
                dirty = (dirty - moved) | {new + x[len(old) :] for x in moved}
                continue
            path = re.search(r"\(\d+<([^>]*)>", line)
            if not path or not path[1].startswith(self._folder):
                continue
            if call[1] in ("fsync", "fdatasync"):
                dirty.discard(path[1])
            else:
                dirty.add(path[1])
        return {path for path in map(Path, dirty) if path.is_file()}

    def cut(self, chance: random.Random) -> int:
        """Takes a random part of what is not synced; returns from how many files."""
        files = sorted(self.unsynced())
        for path in files:
            size = path.stat().st_size
            kept = chance.randint(0, size)
            os.truncate(path, kept)
            if chance.random() < 0.5:
                os.truncate(path, size)  # the size arrived, the bytes did not
        return len(files)


# ---- Killing.


def moment_of_a_run(workdir: Path, moment: str) -> Found:
    """Whether a run is now at a moment."""
    left = set(workdir.glob("checkpoints/*tmp*"))  # by an earlier kill

    def found() -> bool:
        if moment == "start":
            return True
        if moment == "checkpoint":
            return bool(set(workdir.glob("checkpoints/*tmp*")) - left)
        status = read_status(workdir)
        wanted = {"training": "training", "validation": "validating"}[moment]
        return status is not None and status.state == wanted and (workdir / ".lock").exists()

    return found


def run_and_kill(
    command: list[str], kind: str, found: Found, delay: float, disk: Disk, chance: random.Random
) -> tuple[bool, str]:
    """Starts a command and ends it `delay` seconds after a moment is there.

    Returns:
      whether it was alive to be killed, and what happened in words.
    """
    process = subprocess.Popen(
        disk.command(command) if kind == POWER else command,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    while process.poll() is None and not found():
        time.sleep(0.001)
    end = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    alive = process.poll() is None
    if alive:
        process.send_signal(SIGNALS.get(kind, signal.SIGKILL))
    try:
        said = process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"{kind} was not heard") from None
    if not alive:
        assert process.returncode == 0, said
        return False, "had finished"
    if kind == POWER:
        time.sleep(0.5)  # strace writes its last lines
        return True, f"{disk.cut(chance)} files cut"
    # While Python imports, ctrl-C is its own affair.
    assert "Traceback" not in said or said.rstrip().endswith("KeyboardInterrupt"), said
    return True, f"exit {process.returncode}"


def finish(command: list[str]) -> None:
    """Runs a command to its end."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# ---- Training.


def end_of_run(workdir: Path) -> dict[str, object]:
    """What must not depend on interruptions."""
    store = CheckpointStore(workdir, read_only=True)
    sums = {step: store.manifest(step) for step in store.steps()}
    store.close()
    return {
        "metrics": (workdir / METRICS_FILE).read_bytes(),
        "checkpoints": sums,
        "results": (workdir / "results.json").read_bytes(),
        "per song": (workdir / "per_song.csv").read_bytes(),
    }


def train_command(data: Path, workdir: Path) -> list[str]:
    """A short run."""
    return dsaml("train", "--data", data, "--workdir", workdir, "--preset", "tiny",
                 *[f"--set={setting}" for setting in SETTINGS])  # fmt: skip


def killed_runs(out: Path, kills: int, chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """Kind, moment and outcome of every kill; raises where a run does not end as the undisturbed one."""
    data, reference = out / "data", out / "reference"
    finish(train_command(data, reference))
    finish(dsaml("evaluate", "--data", data, "--workdir", reference))
    expected = end_of_run(reference)
    landed, number = 0, 0
    while landed < kills:
        workdir = out / f"run-{number}"
        shutil.rmtree(workdir, ignore_errors=True)
        for _ in range(min(KILLS_PER_RUN, kills - landed)):
            kind = KINDS[landed % len(KINDS)]
            moment = chance.choice(MOMENTS)
            delay = (
                chance.random()
                * {"start": 12.0, "checkpoint": 0.1, "validation": 1.0, "training": 2.0}[moment]
            )
            disk = Disk(out / "strace.log", workdir)
            alive, outcome = run_and_kill(
                train_command(data, workdir),
                kind,
                moment_of_a_run(workdir, moment),
                delay,
                disk,
                chance,
            )
            if not alive:
                break
            landed += 1
            yield kind, moment, outcome
        finish(train_command(data, workdir))
        finish(dsaml("evaluate", "--data", data, "--workdir", workdir))
        ended = end_of_run(workdir)
        for part in expected:
            assert ended[part] == expected[part], f"{workdir}: other {part} than without kills"
        shutil.rmtree(workdir)
        number += 1


# ---- Preparation.


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def killed_preparations(
    out: Path, kills: int, chance: random.Random
) -> Iterator[tuple[str, str, str]]:
    """The same of `dsaml prepare`."""
    expected = files_of(out / "data")
    landed, number = 0, 0
    while landed < kills:
        folder = out / f"prepared-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        command = prepare_command(out / "corpus", folder)
        for _ in range(min(3, kills - landed)):
            kind = KINDS[landed % len(KINDS)]
            disk = Disk(out / "strace.log", folder)
            alive, outcome = run_and_kill(
                command, kind, lambda: True, chance.random() * 12.0, disk, chance
            )
            if not alive:
                break
            landed += 1
            yield kind, "preparation", outcome
        finish(command)
        assert files_of(folder) == expected, f"{folder}: other files than without kills"
        shutil.rmtree(folder)
        number += 1


def prepare_command(root: Path, data: Path) -> list[str]:
    """Shards of a small corpus."""
    tiny = ("--features", "tiny", "--embedding", "spectral")
    return dsaml("prepare", "deam", "--root", root, "--out", data, *tiny)


def main() -> None:
    """Kills, compares, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--preparations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not shutil.which("strace"):
        parser.error("strace is needed to simulate cuts of power: apt install strace")
    chance = random.Random(options.seed)
    out: Path = options.out
    os.environ.setdefault("DSAML_CACHE", str(out / "compiled"))
    finish(dsaml("prepare", "synthetic", "--root", out / "corpus", "--out", out / "composed",
                 "--songs", "30", "--annotators", "15", "--features", "tiny", "--embedding", "spectral"))  # fmt: skip
    finish(prepare_command(out / "corpus", out / "data"))

    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for what in (
        killed_runs(out, options.kills, chance),
        killed_preparations(out, options.preparations, chance),
    ):
        for kind, moment, outcome in what:
            counts[kind, moment] += 1
            print(json.dumps([sum(counts.values()), kind, moment, outcome]), flush=True)
    moments = (*MOMENTS, "preparation")
    lines = [
        "# Kills", "",
        f"{sum(counts.values())} processes were ended at random moments; every run and every preparation, started "
        "again, ended in the bytes of the undisturbed one.", "",
        f"Command: `python experiments/benchmarks/kills.py --out /tmp/kills --kills {options.kills} "
        f"--preparations {options.preparations} --seed {options.seed}`", "",
        "| | " + " | ".join(moments) + " |", "|---" * (len(moments) + 1) + "|",
        *(f"| {kind} | " + " | ".join(str(counts[kind, moment]) for moment in moments) + " |" for kind in KINDS), "",
        "Moments are where the process was when the wait began; up to two seconds (twelve for `start` and "
        "`preparation`) passed before the signal.", "", measured_on("jax", "orbax-checkpoint"),
    ]  # fmt: skip
    write_result("kills", "\n".join(lines))


if __name__ == "__main__":
    main()
