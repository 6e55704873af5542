"""Curves of long songs, adapting to one, and the first step after the start of the command.

Claims, on two CPU cores at full size: a 10-minute song takes less than a twentieth of the published way (the model, front
end included, on windows moved by one step), and time is linear in length; adapting by 16 inner steps and predicting one
45 s song takes less than 6 s; the first training step begins less than 10 s after the command, with a warm compile cache.
Command: `python experiments/benchmarks/inference.py` (needs the extra [torch]; `--quick` times the published way on 1 minute).
Result: `experiments/results/inference.md`. Time: about 20 minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from problem import MODELS, annotated, initial, song
from timing import interleaved, measured_on, table, write_result
from torch_peers import network, published_curves

from data_prep.features import FeatureConfig
from data_prep.synthetic import write_corpus
from dsaml_jax import DSAML
from dsaml_jax.adaptation import adapt_to_listener
from dsaml_jax.config import preset
from dsaml_jax.convert import to_torch
from dsaml_jax.listener import predict_song

MINUTES = (1, 2, 5, 10, 20)
CONFIG = FeatureConfig(embedding="spectral")


def lengths(variables: dict, rounds: int) -> str:
    """Markdown: seconds by length of the song."""
    model = DSAML(MODELS["full size"])
    sides = {
        f"{minutes} min": lambda features=song(minutes): predict_song(
            model, variables, **features, per_step=False
        )
        for minutes in MINUTES
    }
    seconds = interleaved(sides, rounds)
    lines = ["| song | seconds, median | quartiles | seconds a minute |", "|---|---|---|---|"]
    for minutes, values in zip(MINUTES, seconds.values(), strict=True):
        low, middle, high = np.percentile(values, (25, 50, 75))
        lines.append(
            f"| {minutes} min | {middle:.2f} | {low:.2f} to {high:.2f} | {middle / minutes:.3f} |"
        )
    return "\n".join(lines)


def against_published(variables: dict, minutes: float, rounds: int) -> str:
    """Markdown: ours and the published way on the same song."""
    config = MODELS["full size"]
    peer = network(config, to_torch(variables, config)).eval()
    features = song(minutes)
    seconds = interleaved(
        {
            "dsaml_jax": lambda: predict_song(DSAML(config), variables, **features, per_step=False),
            "published way (PyTorch)": lambda: published_curves(
                peer, features["log_mel"], features["embedding"][:1]
            ),
        },
        rounds,
    )
    return table(seconds, "dsaml_jax")


def adapting(variables: dict, rounds: int) -> str:
    """Markdown: 16 inner steps on one annotated song of 45 s, and the prediction of another."""
    config = preset("reference").meta
    model = DSAML(MODELS["full size"])
    features = song(0.75)
    support = annotated(features)
    adapt = jax.jit(adapt_to_listener, static_argnums=(0, 1))

    def both() -> None:
        predict_song(model, adapt(model, config, variables, support), **features, per_step=False)

    return table(interleaved({"adapt and predict": both}, rounds), "adapt and predict")


def first_step(rounds: int) -> str:
    """Markdown: from the command line to the end of the first step, and of the second."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_corpus(Path(folder) / "corpus", songs=60, annotators=30)
        command = [sys.executable, "-m", "dsaml_jax"]
        data = str(Path(folder) / "data")
        prepare = [*command, "prepare", "synthetic", "--root", str(root), "--out", data, "--songs", "60", "--annotators", "30",
                   "--embedding", "spectral"]  # fmt: skip
        subprocess.run([*prepare, "--quiet"], check=True)
        train = [*command, "train", "--data", data, "--preset", "reference", "--steps", "1", "--quiet",
                 "--set", "training.log_every=1", "--set", "training.validate_every=1",
                 "--set", "meta.min_songs=2", "--set", "meta.tasks=1", "--set", "meta.query_songs=1",
                 "--set", "meta.steps=1", "--set", "training.validation_tasks=1"]  # fmt: skip
        seconds = []
        for number in range(-1, rounds):
            workdir = Path(folder) / f"run{number}"
            start = time.time()
            process = subprocess.Popen([*train, "--workdir", str(workdir)])
            metrics = workdir / "metrics.jsonl"
            while not metrics.is_file() and process.poll() is None:
                time.sleep(0.02)
            if number >= 0:
                seconds.append(time.time() - start)
            if process.wait():
                raise RuntimeError("training failed")
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return (
        f"{middle:.1f} s ({low:.1f} to {high:.1f}) from the command to the written metrics of the first meta-step "
        "(one task, one inner step, one query song)."
    )


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="published way on one minute, one round"
    )
    options = parser.parse_args()
    variables = initial(MODELS["full size"])
    minutes, rounds = (1, 1) if options.quick else (10, 2)
    parts = [
        "# Inference and adaptation, full size", "",
        "## Time by length of the song", "", lengths(variables, options.rounds), "",
        f"## A song of {minutes} min against the published way", "",
        against_published(variables, minutes, rounds), "",
        "## 16 inner steps on one song of 45 s, and its curves, warm", "", adapting(variables, options.rounds), "",
        "## First step after the start, warm compile cache", "", first_step(options.rounds), "",
        f"Features: {CONFIG.name}.", measured_on("jax", "torch"),
    ]  # fmt: skip
    write_result("inference", "\n".join(parts))


if __name__ == "__main__":
    main()
