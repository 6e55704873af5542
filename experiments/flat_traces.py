"""Raters' traces that hardly move: keep them or drop them?

A quarter of DEAM's traces by single raters are exactly constant. The published code drops them. Here the same models are
trained with and without them (in the dimension in which they are flat), on the same folds of people and songs, and judged
twice: on all that the unseen people drew, and on what moves of it.

Command: `python experiments/flat_traces.py --kept KEPT --dropped DROPPED --out OUT`, after
  `dsaml prepare deam ... --out KEPT --flat keep` and `... --out DROPPED --flat drop`.
Result (`experiments/results/flat_traces.md`, 200 and 100 steps, 74 people): no interval excludes zero, in any column, by either truth. So nothing is
  thrown away: `keep` is the default. Without personalising the two are within 0.003 RMSE; adapted, arousal is 0.018 [-0.006, +0.041] worse in RMSE and
  0.022 [-0.017, +0.053] better in CCC by keeping.
Time: 15 minutes on two cores that did other work beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from data_prep.base import replacing
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import Fold, fold_of
from dsaml_jax.evaluation import COLUMNS, listener_trial, methods, score_curves
from dsaml_jax.experiment import Judged, difference_of, pooled, unit_scores
from dsaml_jax.progress import Console
from dsaml_jax.reporting import environment
from dsaml_jax.runs import load_model
from dsaml_jax.training import train

RESULTS = Path(__file__).parent / "results"
FOLDS = 5
SUPPORTS = 4


def like(corpus: Corpus, other: Corpus) -> Corpus:
    """`corpus` with only the ratings, and of them the dimensions, that `other` has; the same songs and people."""
    rows = {
        (other.song_ids[song], other.annotator_ids[person]): first
        for song, person, first in zip(
            other.rating_song, other.rating_annotator, other.rating_first, strict=True
        )
    }
    ratings = np.full_like(corpus.ratings, np.nan)
    for song, person, first in zip(
        corpus.rating_song, corpus.rating_annotator, corpus.rating_first, strict=True
    ):
        row = rows.get((corpus.song_ids[song], corpus.annotator_ids[person]))
        if row is not None:
            steps = corpus.song_steps[song]
            ratings[first : first + steps] = other.ratings[row : row + steps]
    return dataclasses.replace(corpus, ratings=ratings, fingerprint=other.fingerprint)


def judge(workdir: Path, corpus: Corpus) -> Judged:
    """Scores of a run on its test fold, after adapting."""
    run = load_model(workdir)
    trial = listener_trial(
        corpus, "test", supports=SUPPORTS, fold=fold_of(run.info.config.training)
    )
    if run.info.config.training.task == "dmer":
        curves = methods.curves_of_songs(trial, run.model, run.variables).of(trial.song)
    else:
        curves = methods.adapted(trial, run.model, run.info.config.meta, run.variables)
    return Judged(trial.labels(), score_curves(curves, trial.truth))


def main() -> None:
    """Trains, judges and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("kept", "dropped", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--dmer-steps", type=int, default=300)
    parser.add_argument("--pdmer-steps", type=int, default=200)
    options = parser.parse_args()
    console = Console()
    kept = read_corpus(options.kept)
    dropped = like(kept, read_corpus(options.dropped))
    found: dict[tuple[str, str, str], list[Judged]] = {}
    for fold in (Fold(FOLDS, 0, number) for number in range(FOLDS)):
        for rule, corpus in (("keep", kept), ("drop", dropped)):
            start = ""
            for task, steps in (("dmer", options.dmer_steps), ("pdmer", options.pdmer_steps)):
                workdir = options.out / rule / f"fold{fold.fold}" / task
                settings = [f"training.task={task}", f"training.steps={steps}", f"training.folds={FOLDS}",
                            f"training.fold={fold.fold}", "training.validate_every=50", f"training.init_from={start}"]  # fmt: skip
                train(with_settings(preset("tiny"), settings), corpus, workdir, console)
                start = str(workdir)
                for truth, judged in (("all", kept), ("moving", dropped)):
                    found.setdefault((task, rule, truth), []).append(judge(workdir, judged))
    with replacing(RESULTS / "flat_traces.md") as temporary:
        temporary.write_text(
            "\n".join(
                markdown({key: pooled(folds) for key, folds in found.items()}, kept, options)
            ),
            encoding="utf-8",
        )


def markdown(
    found: dict[tuple[str, str, str], Judged], corpus: Corpus, options: argparse.Namespace
) -> list[str]:
    """The page: means over people, and paired differences with 95 % intervals."""
    lines = ["# Flat traces of single raters, kept or dropped in training", ""]
    lines += [f"{corpus.name}, {len(corpus.song_ids)} songs, {len(corpus.annotator_ids)} people; {FOLDS} folds over people and songs, "
              f"preset tiny, DMER {options.dmer_steps} and PDMER {options.pdmer_steps} steps, seed 0. Means over people, each the mean of their songs; "
              "intervals over people and songs.", ""]  # fmt: skip
    for truth, what in (("all", "Judged on all that people drew"), ("moving", "Judged on the traces that move")):  # fmt: skip
        lines += [f"## {what}", "", "| model | " + " | ".join(c.replace("_", " ") for c in COLUMNS) + " | people |", "|---" * (len(COLUMNS) + 2) + "|"]  # fmt: skip
        for task in ("dmer", "pdmer"):
            keep, drop = ([found[task, rule, truth]] for rule in ("keep", "drop"))
            for rule, judged in (("keep", keep), ("drop", drop)):
                people = [unit_scores(judged, column, "annotator") for column in COLUMNS]
                cells = [f"{np.mean(list(scored.values())):.4f}" for scored in people]
                lines.append(f"| {task}, {rule} | {' | '.join(cells)} | {len(people[0])} |")
            differences = [difference_of(keep, drop, column, "annotator") for column in COLUMNS]
            cells = [f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]" for one in differences]
            lines.append(f"| {task}, keep minus drop | {' | '.join(cells)} | |")
        lines.append("")
    return [*lines, *(f"- {name}: {value}" for name, value in environment().items()), ""]


if __name__ == "__main__":
    main()
