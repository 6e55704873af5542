"""Memory over a long training and a long preparation.

Claims: over 2,000 meta-steps, with their checkpoints, validations and lines of numbers, memory grows by less than 5 MB after the
first 500 and nothing is compiled after the first validation; preparing 1,000 songs takes less than 5 MB more at the end than
after the first hundred.
Command: `python experiments/benchmarks/long_runs.py` (1.5 GB of disk in --scratch, about ten minutes).
Result: `experiments/results/long_runs.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import gc
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from timing import measured_on, write_result

META_STEPS = 2000
SONGS = 1000
SOUNDS = 10
"""Different sounds among the songs; each has many names."""

SMALL = (
    "model.width=16", "model.num_heads=2", "model.ffn_width=16", "training.log_every=10",
    "training.validate_every=50", "meta.tasks=3", "meta.query_songs=2", "meta.min_songs=2", "meta.steps=2",
    "training.validation_tasks=4",
)  # fmt: skip
"""What leaks does so by the step, not by the size of the model."""

Rows = list[dict[str, float]]


# ---- Looking.


def resident(process: int | str = "self") -> float:
    """Memory of a process that is in RAM and its own, in MB: without files that are mapped into it."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no RssAnon")


def give_back_freed() -> None:
    """Lets glibc return what is free in its heaps, which it otherwise does whenever it likes, hundreds of MB at a time."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def workers() -> list[int]:
    """The processes that this one has started."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(number) for path in tasks for number in path.read_text().split()]


def of_workers() -> float:
    """The memory of all of them together."""
    held = 0.0
    for process in workers():
        try:
            held += resident(process)
        except (OSError, ValueError):  # it has just ended
            continue
    return held


def slope(rows: Rows, by: str, column: str) -> float:
    """Of a column, per thousand of `by`: least squares."""
    x, y = (np.array([row[name] for row in rows]) for name in (by, column))
    return float(np.polyfit(x, y, 1)[0]) * 1000


# ---- Training, in a process of its own.


def training(scratch: Path, steps: int) -> Rows:
    """A row for every fiftieth step of a run: memory, compiled programs, arrays and objects that are alive."""
    import jax

    from data_prep.deam import read_deam
    from data_prep.features import TINY
    from data_prep.prepare import prepare
    from data_prep.shards import read_corpus
    from data_prep.synthetic import write_corpus
    from dsaml_jax.config import preset, with_settings
    from dsaml_jax.progress import Console
    from dsaml_jax.training import train

    root = write_corpus(scratch / "corpus", songs=30, annotators=15)
    prepare(read_deam(root, name="synthetic"), scratch / "data", TINY)
    compiled = 0

    def count(event: str, *_: Any, **__: Any) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    rows: Rows = []

    class Watch(Console):
        """Looks at the process where others would draw a bar."""

        def bar(self, total: int, title: str, unit: str, done: int = 0) -> Any:
            bar = super().bar(total, title, unit, done)
            step, draw = done, bar.update

            def update(more: int = 1) -> None:
                nonlocal step
                step += more
                draw(more)
                if step % 50 == 25:  # between two validations
                    gc.collect()
                    give_back_freed()
                    rows.append(
                        {
                            "step": step,
                            "MB": resident(),
                            "compiled": compiled,
                            "arrays": len(jax.live_arrays()),
                            "objects": len(gc.get_objects()),
                            "files": len(os.listdir("/proc/self/fd")),
                            "threads": len(os.listdir("/proc/self/task")),
                        }
                    )

            bar.update = update
            return bar

    config = with_settings(preset("tiny"), (*SMALL, f"training.steps={steps}"))
    train(config, read_corpus(scratch / "data"), scratch / "run", Watch(quiet=True))
    return rows


# ---- Preparing, likewise.


def write_folder(root: Path, scratch: Path, songs: int) -> None:
    """A corpus of one's own: a few sounds under many names, with two people's curves for each."""
    from data_prep.synthetic import write_corpus

    composed = write_corpus(scratch / "composed", songs=SOUNDS, annotators=5)
    sounds = sorted(composed.rglob("*.flac"))
    (root / "audio").mkdir(parents=True)
    times = np.arange(15.0, 45.0, 0.5)
    with (root / "annotations.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("song_id", "annotator_id", "time", "arousal", "valence"))
        for number in range(songs):
            sound = sounds[number % len(sounds)]
            os.link(sound, root / "audio" / f"{number:04}{sound.suffix}")
            for who in range(2):
                curve = np.sin(times / 9 + number + who) / 2
                for time, value in zip(times, curve, strict=True):
                    table.writerow((f"{number:04}", f"p{(number + who) % 20}", time, value, -value))


def preparing(scratch: Path, songs: int) -> Rows:
    """A row for every twentieth song: memory of the process that writes, and of its workers together."""
    from data_prep.features import FeatureConfig
    from data_prep.folder import read_folder
    from data_prep.prepare import prepare

    write_folder(scratch / "study", scratch, songs)
    rows: Rows = []

    @contextmanager
    def watch(stage: str) -> Iterator[Callable[[int, int], None]]:
        last = 0

        def update(done: int, total: int) -> None:
            nonlocal last
            if stage == "features" and (done >= last + 20 or done == total) and workers():
                last = done
                rows.append({"songs": done, "MB": resident(), "MB of workers": of_workers()})

        yield update

    prepare(
        read_folder(scratch / "study"),
        scratch / "prepared",
        FeatureConfig(embedding="spectral"),
        display=watch,
    )
    return rows


# ---- Both.


def _fresh(function: Callable[..., Rows], *arguments: Any) -> Rows:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _table(rows: Rows, columns: dict[str, str], places: int) -> str:
    picked = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, places).round().astype(int))]
    lines = [f"| {' | '.join(columns.values())} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(f'{row[name]:.0f}' for name in columns)} |" for row in picked]
    return "\n".join(lines)


def _sentence(name: str, unit: str, rows: Rows, by: str, column: str, after: float) -> str:
    """How a column went in the rows from `after` on."""
    kept = [row for row in rows if row[by] >= after]
    return (
        f"{name}: {kept[0][column]:.1f}{unit} at {kept[0][by]:.0f}, {kept[-1][column]:.1f}{unit} at the end; "
        f"fitted slope {slope(kept, by, column):+.2f}{unit} per 1,000."
    )


def main() -> None:
    """Measures both and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=META_STEPS)
    parser.add_argument("--songs", type=int, default=SONGS)
    parser.add_argument("--scratch", type=Path, default=None, help="a folder with 1.5 GB to spare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        steps = _fresh(training, Path(folder), options.steps)
        songs = _fresh(preparing, Path(folder), options.songs)
    settled = options.steps / 4 + 25
    compiled_late = int(
        steps[-1]["compiled"] - next(r for r in steps if r["step"] > 50)["compiled"]
    )
    text = f"""# Long runs

Command: `python experiments/benchmarks/long_runs.py`. Memory is what is in RAM and belongs to the process (`RssAnon` of Linux).

## {options.steps:,} meta-steps

Settings beside the preset tiny: {", ".join(f"`{setting}`" for setting in SMALL)}. A line of numbers every 10 steps, a validation
and a checkpoint every 50. Measured between validations, after a garbage collection and `malloc_trim`.

{_table(steps, {"step": "step", "MB": "MB", "compiled": "programs compiled so far", "arrays": "arrays alive", "objects": "Python objects", "files": "open files", "threads": "threads"}, 9)}

{_sentence("Memory", " MB", steps, "step", "MB", settled)}
{_sentence("Python objects", "", steps, "step", "objects", settled)}
Programs compiled after the first validation: {compiled_late}.
What the Python objects are that are added: about fifty small ones a checkpoint, numbers of TensorStore's metrics and paths, that
Orbax keeps. They belong to checkpoints, not to steps.

## {options.songs:,} songs

FLAC files of 45 s ({SOUNDS} sounds, many names), 30 s of each annotated by two people, `dsaml prepare folder`'s own way, default
features.

{_table(songs, {"songs": "songs", "MB": "MB, the process that writes", "MB of workers": "MB, its workers together"}, 9)}

{_sentence("The process that writes", " MB", songs, "songs", "MB", options.songs / 10)}
{_sentence("Its workers", " MB", songs, "songs", "MB of workers", options.songs / 10)}

{measured_on("jax", "flax", "orbax-checkpoint", "numpy", "soundfile", "array_record")}"""
    write_result("long_runs", text)


if __name__ == "__main__":
    main()
