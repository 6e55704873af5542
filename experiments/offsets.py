"""How far should one annotated song move the model? The simplest adaptation, by all its sizes.

Claim: moving a model's curves by a share of what it missed on the support song gains for most listeners while the share is
small, and gains most in the mean where it hurts a third of them; no share serves both. What a listener's *other* songs would
say, all of them, bounds what any one song can.
Command: `python experiments/offsets.py --out experiments_out --seed 0` after `dsaml experiment pdmer --out experiments_out`.
Result: `results/offsets.md`; a minute.

Three steps of gradient descent on squared error at a rate r move the offsets by 1 - (1 - 2 r)^3 of the mean error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from data_prep.shards import read_corpus
from dsaml_jax.checkpoints import load_model
from dsaml_jax.evaluation import Trial, listener_trial
from dsaml_jax.evaluation.methods import CurvesOfSongs, curves_of_songs
from dsaml_jax.evaluation.scores import better_when, scores
from dsaml_jax.experiment.statistics import by_unit
from dsaml_jax.experiment.tables import all_columns
from dsaml_jax.report import environment

SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
RESULT = Path(__file__).parent / "results" / "offsets.md"


def moved_by_support(trial: Trial, curves: CurvesOfSongs, share: float) -> np.ndarray:
    """Curves plus a share of the mean error on the support song."""
    seen = trial.support_truth
    missed = np.nanmean(seen - curves.of(trial.support_songs), axis=(1, 2))  # [tasks, 2]
    return curves.of(trial.song) + share * missed[:, None, None]


def moved_by_all_others(trial: Trial, curves: CurvesOfSongs) -> np.ndarray:
    """Curves plus the mean error on all songs that the listener is asked about but the one at hand."""
    predicted = curves.of(trial.song)
    labelled = np.isfinite(trial.truth)
    steps = labelled.sum(axis=2)
    missed = np.where(labelled, trial.truth - predicted, 0.0).sum(axis=2) / np.maximum(steps, 1)
    songs = (steps > 0).sum(axis=1, keepdims=True)
    others = (missed.sum(axis=1, keepdims=True) - missed) / np.maximum(songs - 1, 1)
    return predicted + others[:, :, None]


def per_listener(trial: Trial, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """CCC and RMSE of each listener, mean of arousal and valence."""
    columns = all_columns(scores(predicted.astype(np.float32), trial.truth))
    people = [label["annotator"] for label in trial.labels()]
    return {metric: by_unit(people, columns[metric])[1] for metric in ("ccc", "rmse")}


def table(trial: Trial, curves: CurvesOfSongs) -> list[str]:
    """A row for each share, and one for the bound."""
    before = per_listener(trial, moved_by_support(trial, curves, 0.0))
    rows = {
        f"{share:g} of the support's": moved_by_support(trial, curves, share) for share in SHARES
    }
    rows["all of the mean of all others'"] = moved_by_all_others(trial, curves)
    lines = ["| moved by | CCC | gain | listeners | RMSE | gain | listeners |", "|---" * 7 + "|"]
    for name, predicted in rows.items():
        after, cells = per_listener(trial, predicted), [name]
        for metric in ("ccc", "rmse"):
            change = after[metric] - before[metric]
            gains = change < 0 if better_when(metric) == "lower" else change > 0
            cells += [f"{after[metric].mean():.4f}", f"{change.mean():+.4f}", f"{gains.mean():.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Writes the table of the validation part and of the test part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("experiments_out"))
    parser.add_argument("--data", type=Path, help="default: OUT/data")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    corpus = read_corpus(options.data or options.out / "data")
    model = load_model(options.out / "runs" / "DMER" / f"seed{options.seed}")
    lines = ["# How far one song should move the model", ""]
    lines += [f"DMER, seed {options.seed}, on {corpus.name} with {len(corpus.song_ids)} songs; its curves plus a share of its mean error "
              "on one song of the listener, judged on their others. `gain`: minus no move; `listeners`: share of them that gain.", ""]  # fmt: skip
    for part in ("validation", "test"):
        trial = listener_trial(corpus, part)
        curves = curves_of_songs(trial, model.model, model.variables)
        people = len(np.unique(trial.listeners.annotator))
        lines += [f"## The {part} part, {people} listeners", "", *table(trial, curves), ""]
    lines += [f"- {name}: {value}" for name, value in environment().items()]
    RESULT.write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
