"""Who makes the tasks of a meta-step, when one person rated 949 songs and fifty rated under 12?

A task is an annotator; they are drawn by their number of songs to a power: 0, everybody alike (the default); 1, in proportion
to their ratings. Same DMER model, same folds, same number of meta-steps.

Command: `python experiments/drawing_people.py --data DATA --out OUT` (DATA: DEAM, prepared).
Result (`experiments/results/drawing_people.md`, 200 and 100 steps, 74 people): no interval excludes zero. In proportion to their ratings RMSE is 0.015
  [-0.037, +0.009] and 0.007 lower, PCC 0.04 and 0.03 lower. Everybody alike stays the default.
Time: 10 minutes on two cores that did other work beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from data_prep.base import replacing
from data_prep.shards import read_corpus
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import Fold
from dsaml_jax.evaluation import COLUMNS
from dsaml_jax.experiment import Judged, difference_of, pooled, unit_scores
from dsaml_jax.progress import Console
from dsaml_jax.reporting import environment
from dsaml_jax.training import train
from experiments.flat_traces import FOLDS, RESULTS, judge

POWERS = (0.0, 0.5, 1.0)


def main() -> None:
    """Trains, judges and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--dmer-steps", type=int, default=300)
    parser.add_argument("--pdmer-steps", type=int, default=200)
    options = parser.parse_args()
    console, corpus = Console(), read_corpus(options.data)
    found: dict[float, list[Judged]] = {power: [] for power in POWERS}
    for fold in (Fold(FOLDS, 0, number) for number in range(FOLDS)):
        start = options.out / f"fold{fold.fold}" / "dmer"
        common = [f"training.folds={FOLDS}", f"training.fold={fold.fold}", "training.validate_every=50"]  # fmt: skip
        settings = [*common, "training.task=dmer", f"training.steps={options.dmer_steps}"]
        train(with_settings(preset("tiny"), settings), corpus, start, console)
        for power in POWERS:
            workdir = options.out / f"fold{fold.fold}" / f"power{power:g}"
            settings = [*common, f"training.steps={options.pdmer_steps}", f"training.init_from={start}",
                        f"meta.people_weight={power}"]  # fmt: skip
            train(with_settings(preset("tiny"), settings), corpus, workdir, console)
            found[power].append(judge(workdir, corpus))
    scored = {power: [pooled(folds)] for power, folds in found.items()}
    people = len(unit_scores(scored[0.0], COLUMNS[0], "annotator"))
    lines = ["# How annotators are drawn for tasks", ""]
    lines += [f"{corpus.name}, {len(corpus.song_ids)} songs, {len(corpus.annotator_ids)} people; {FOLDS} folds over people and songs, preset "
              f"tiny, DMER {options.dmer_steps} and PDMER {options.pdmer_steps} steps, seed 0. Means over {people} people after adapting to one song; "
              "differences from drawing everybody alike with 95 % intervals over people and songs.", ""]  # fmt: skip
    lines += ["| power | " + " | ".join(c.replace("_", " ") for c in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]  # fmt: skip
    for power in POWERS:
        cells = []
        for column in COLUMNS:
            means = unit_scores(scored[power], column, "annotator")
            cell = f"{np.mean(list(means.values())):.4f}"
            if power:
                one = difference_of(scored[power], scored[0.0], column, "annotator")
                cell += f" ({one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}])"
            cells.append(cell)
        lines.append(f"| {power:g} | {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {value}" for name, value in environment().items()), ""]
    with replacing(RESULTS / "drawing_people.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
