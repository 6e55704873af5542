"""Patches stored as float16 or float32: does the evaluation notice?

Claim: the difference is far below that between seeds.
Command: `python experiments/shard_precision.py --out /tmp/shard_precision` (finished runs are not run again).
The embedded corpus with 200 songs, tiny features; a DMER run of 400 steps for each seed on both, same seed,
same everything else; scores on the test songs.
Result: `results/shard_precision.md`; about a minute a run on two CPU cores.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from data_prep.deam import read_deam
from data_prep.features import TINY
from data_prep.prepare import prepare
from data_prep.shards import read_corpus
from data_prep.synthetic import write_corpus
from data_prep.synthetic.corpus import PROVENANCE
from dsaml_jax.checkpoints import load_model
from dsaml_jax.config import preset, with_settings
from dsaml_jax.evaluation import COLUMNS, evaluate
from dsaml_jax.progress import Console
from dsaml_jax.report import environment
from dsaml_jax.training import train

RESULTS = Path(__file__).parent / "results"
SETTINGS = ("training.task=dmer", "training.steps=400", "training.validate_every=100")


def scores(out: Path, seeds: int) -> dict[str, np.ndarray]:
    """Type -> `[seeds, columns]` of the DMER model's means on the test songs."""
    root = write_corpus(out / "corpus", songs=200, annotators=60)
    annotated = read_deam(root, name="synthetic", provenance=PROVENANCE)
    results = {}
    for dtype in ("float16", "float32"):
        config = dataclasses.replace(TINY, dtype=dtype)
        corpus = read_corpus(prepare(annotated, out / "data", config))
        rows = []
        for seed in range(seeds):
            workdir = out / f"{dtype}-{seed}"
            settings = with_settings(preset("tiny"), [*SETTINGS, f"training.seed={seed}"])
            train(settings, corpus, workdir, Console())
            summary = evaluate(load_model(workdir), corpus)[0].summary["DMER"]
            rows.append([summary[column]["mean"] for column in COLUMNS])
        results[dtype] = np.array(rows)
    return results


def markdown(results: dict[str, np.ndarray]) -> str:
    """Both, their differences by seed, and how far seeds lie apart."""
    half, full = results["float16"], results["float32"]
    titles = [column.replace("_", " ") for column in COLUMNS]
    rows = {
        "float16, mean over seeds": half.mean(axis=0),
        "float32, mean over seeds": full.mean(axis=0),
        "largest difference in a seed": np.abs(half - full).max(axis=0),
        "sd between seeds (float32)": full.std(axis=0, ddof=1),
    }
    lines = [
        "# Patches stored as float16 or float32",
        "",
        f"Command: `python experiments/shard_precision.py`; {len(full)} seeds.",
        "",
        "| | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(f"{x:.4f}" for x in row) + " |"
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
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    text = markdown(scores(options.out, options.seeds))
    (RESULTS / "shard_precision.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
