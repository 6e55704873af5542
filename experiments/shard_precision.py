"""Patches stored as float16 or float32: does the evaluation notice?

Claim: a trained model scores the same on either to about 1e-4. Training amplifies any change of its input, and
float16 changes its result as random noise of the size of its rounding does.
Command: `python experiments/shard_precision.py --out /tmp/shard_precision` (finished runs are not run again).
The embedded corpus with 200 songs, tiny features; a DMER run of 400 steps for each seed on float32,
on float16, and on float32 with noise drawn within half a step of float16; scores on the test songs.
Result: `results/shard_precision.md`; about a minute a run on two CPU cores.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from data_prep.features import TINY
from data_prep.prepare import prepare
from data_prep.shards import Corpus, read_corpus
from data_prep.synthetic import read_synthetic, write_corpus
from dsaml_jax.config import preset, with_settings
from dsaml_jax.evaluation import COLUMNS, evaluate
from dsaml_jax.progress import Console
from dsaml_jax.reporting import environment
from dsaml_jax.runs import load_model
from dsaml_jax.training import train

RESULTS = Path(__file__).parent / "results"
SETTINGS = ("training.task=dmer", "training.steps=400", "training.validate_every=100")


def scores(out: Path, seeds: int) -> dict[str, np.ndarray]:
    """How trained and read -> `[seeds, columns]` of the DMER model's means on the test songs."""
    root = write_corpus(out / "corpus", songs=200, annotators=60)
    annotated = read_synthetic(root)
    half, full = (
        read_corpus(prepare(annotated, out / "data", dataclasses.replace(TINY, dtype=dtype)))
        for dtype in ("float16", "float32")
    )
    rounded = dataclasses.replace(full, log_mel=full.log_mel.astype(np.float16))
    step = np.abs(np.spacing(rounded.log_mel)).astype(np.float32)
    results: dict[str, list[list[float]]] = {name: [] for name in ("full", "half", "noisy", "read")}
    for seed in range(seeds):
        settings = with_settings(preset("tiny"), [*SETTINGS, f"training.seed={seed}"])
        noise = np.random.RandomState(seed).uniform(-0.5, 0.5, step.shape).astype(np.float32)
        noisy = dataclasses.replace(full, log_mel=full.log_mel + noise * step)
        for name, corpus in (("full", full), ("half", half), ("noisy", noisy)):
            train(settings, corpus, out / f"{name}-{seed}", Console())
            results[name].append(_means(out / f"{name}-{seed}", corpus))
        results["read"].append(_means(out / f"full-{seed}", rounded))
    return {name: np.array(rows) for name, rows in results.items()}


def _means(workdir: Path, corpus: Corpus) -> list[float]:
    summary = evaluate(load_model(workdir), corpus)[0].summary["DMER"]
    return [summary[column]["mean"] for column in COLUMNS]


def markdown(results: dict[str, np.ndarray]) -> str:
    """Both, their differences by seed, and how far seeds lie apart."""
    full = results["full"]
    titles = [column.replace("_", " ") for column in COLUMNS]
    rows = {"trained on float32": full.mean(axis=0), "sd between seeds": full.std(axis=0, ddof=1)}
    for name, title in (("half", "float16"), ("noisy", "float32 and noise of that size")):
        difference = results[name] - full
        rows[f"trained on {title}: change, mean"] = difference.mean(axis=0)
        rows[f"trained on {title}: change, sd over seeds"] = difference.std(axis=0, ddof=1)
    rows["trained on float32, read as float16: largest change"] = np.abs(
        results["read"] - full
    ).max(axis=0)
    lines = [
        "# Patches stored as float16 or float32",
        "",
        f"Command: `python experiments/shard_precision.py`; {len(full)} seeds.",
        "",
        "| | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(f"{x:.5f}" for x in row) + " |"
            for name, row in rows.items()
        ),
        "",
        *(f"- {name}: {value}" for name, value in environment().items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    text = markdown(scores(options.out, options.seeds))
    (RESULTS / "shard_precision.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
