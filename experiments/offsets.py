"""How far should one annotated song move the model? The simplest adaptation, by all its sizes; and MAML's, by its strength.

Claim: moving a model's curves by a share of what it missed on the support song gains for most listeners while the share is
small, and gains most in the mean where it hurts a third of them; no share serves both. What a listener's *other* songs would
say, all of them, bounds what any one song can. So does the strength by which MAML adapts: the presets' is the one from which the
middle listener of the *validation* part gains most in RMSE.
Command: `python experiments/offsets.py --out experiments_out --seeds 3` after `dsaml experiment pdmer --out experiments_out`.
Result: `results/offsets.md`; six minutes.

Three steps of gradient descent on squared error at a rate r move the offsets by 1 - (1 - 2 r)^3 of the mean error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.shards import read_corpus
from dsaml_jax.checkpoints import LoadedModel, load_model
from dsaml_jax.config import with_settings
from dsaml_jax.evaluation import Trial, listener_trial
from dsaml_jax.evaluation.methods import CurvesOfSongs, adapted, curves_of_songs
from dsaml_jax.evaluation.scores import better_when, scores
from dsaml_jax.experiment.statistics import by_unit
from dsaml_jax.experiment.tables import all_columns
from dsaml_jax.report import environment

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
SUPPORTS = 6
"""Tasks of each listener."""
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


Scores = dict[str, np.ndarray]


def rows_of(before: Scores, after: dict[str, Scores]) -> list[str]:
    """A table with a row for each way to move."""
    lines = [
        "| moved by | CCC | gain | middle | listeners | RMSE | gain | middle | listeners |",
        "|---" * 9 + "|",
    ]
    for name, scores_after in after.items():
        cells = [name]
        for metric in ("ccc", "rmse"):
            change = scores_after[metric] - before[metric]
            gains = change < 0 if better_when(metric) == "lower" else change > 0
            cells += [f"{scores_after[metric].mean():.4f}", f"{change.mean():+.4f}", f"{np.median(change):+.5f}", f"{gains.mean():.0%}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def shares_table(trial: Trial, model: LoadedModel) -> list[str]:
    """DMER's curves, moved."""
    curves = curves_of_songs(trial, model.model, model.variables)
    after = {
        f"{share:g} of the support's": per_listener(trial, moved_by_support(trial, curves, share))
        for share in SHARES
    }
    after["all of the mean of all others'"] = per_listener(trial, moved_by_all_others(trial, curves))  # fmt: skip
    return rows_of(after["0 of the support's"], after)


def strengths_table(trial: Trial, models: list[LoadedModel]) -> list[str]:
    """MAML's curves, adapted by different strengths; of each listener the mean over seeds."""

    def over_seeds(curves: Callable[[LoadedModel], np.ndarray]) -> Scores:
        found = [per_listener(trial, curves(model)) for model in models]
        return {metric: np.mean([one[metric] for one in found], axis=0) for metric in found[0]}

    def at(strength: float) -> Callable[[LoadedModel], np.ndarray]:
        def curves(model: LoadedModel) -> np.ndarray:
            config = with_settings(model.info.config, [f"meta.strength={strength}"]).meta
            return adapted(trial, model.model, config, model.variables)

        return curves

    before = over_seeds(
        lambda model: curves_of_songs(trial, model.model, model.variables).of(trial.song)
    )
    after = {f"strength {strength:g}": over_seeds(at(strength)) for strength in STRENGTHS}
    return rows_of(before, after)


def main() -> None:
    """Writes the tables of the validation part and of the test part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("experiments_out"))
    parser.add_argument("--data", type=Path, help="default: OUT/data")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    corpus = read_corpus(options.data or options.out / "data")
    runs = options.out / "runs"
    dmer = load_model(runs / "DMER" / "seed0")
    models = [load_model(runs / "MAML" / f"seed{seed}") for seed in range(options.seeds)]
    lines = ["# How far one song should move the model", ""]
    lines += [f"On {corpus.name} with {len(corpus.song_ids)} songs; judged on the other songs of each listener. `gain`: minus no move, mean "
              "over listeners; `middle`: its median; `listeners`: share of them that gain.", ""]  # fmt: skip
    for part in ("validation", "test"):
        trial = listener_trial(corpus, part, supports=SUPPORTS)
        people = len(np.unique(trial.listeners.annotator))
        lines += [f"## The {part} part, {people} listeners", "", "DMER, seed 0: its curves plus a share of its mean error on the support song.",
                  "", *shares_table(trial, dmer), "", f"MAML, {options.seeds} seeds, by the strength of adapting.", "",
                  *strengths_table(trial, models), ""]  # fmt: skip
    lines += [f"- {name}: {value}" for name, value in environment().items()]
    RESULT.write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
