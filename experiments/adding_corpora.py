"""Does another corpus in the same training help, and does a model of one corpus know another?

DMER with levels (`--preset levels`) is trained on DEAM, on VGMIDI, and on both, in proportion to their songs and equally
(`training.corpora`), on the same folds of people and songs. Every model is judged on the test songs of each corpus.

Command: `python experiments/adding_corpora.py --data DEAM --more VGMIDI --out OUT [--fold 0 --fold 1 ...]`, after
  `dsaml prepare deam ... --audio-start 30 --features tiny --out DEAM` and `dsaml prepare vgmidi ... --features tiny --out VGMIDI`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.base import DIMENSIONS, replacing
from data_prep.curves import labelled_mean
from data_prep.several import read_corpora
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import Fold
from dsaml_jax.evaluation import (
    LEVELS,
    agreed_trial,
    curves_of_songs,
    level_errors,
    methods,
    score_curves,
)
from dsaml_jax.experiment import Judged, difference_of, paired_difference, pooled, unit_scores
from dsaml_jax.experiment.tables import score_table
from dsaml_jax.progress import Console
from dsaml_jax.reporting import environment
from dsaml_jax.runs import LoadedModel, load_model
from dsaml_jax.training import train

RESULTS = Path(__file__).parent / "results"
FOLDS = 5
CURVES = tuple(f"{dimension}_{metric}" for metric in ("rmse", "pcc") for dimension in DIMENSIONS)


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a model said of test songs.

    Attributes:
      curves: scores, and how much too high each curve lies.
      levels: `[2, songs, 2]` predicted and true means of curves.
    """

    curves: Judged
    levels: np.ndarray


def judge(model: LoadedModel | None, corpus: Corpus, fold: Fold) -> Scored:
    """Scores on the test songs of a fold; of no model: of the mean of what the corpus trains on."""
    trial = agreed_trial(corpus, "test", fold=fold)
    if model is None:
        curves = methods.constant(trial)
    else:
        curves = curves_of_songs(trial, model.model, model.variables).of(trial.song)
    scores = score_curves(curves, trial.truth) | level_errors(curves, trial.truth)
    drawn = np.isfinite(trial.truth)
    here = np.where(drawn, np.clip(curves, -1.0, 1.0), np.nan)
    levels = np.stack([labelled_mean(x, axis=-2) for x in (here, trial.truth)])
    return Scored(Judged(trial.labels(), scores), levels)


def main() -> None:
    """Trains, judges and writes the page after each fold."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "more", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--fold", type=int, action="append", help="default: all")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    console = Console()
    first, second = read_corpus(options.data), read_corpus(options.more)
    both = read_corpora(options.data, options.more)
    models = {
        f"{first.name} alone": (first, "proportional"),
        f"{second.name} alone": (second, "proportional"),
        "both, in proportion": (both, "proportional"),
        "both, equally": (both, "equal"),
    }
    found: dict[tuple[str, str], list[Scored]] = {}
    for done, number in enumerate(options.fold or range(FOLDS), start=1):
        fold = Fold(FOLDS, 0, number)
        judged: dict[str, LoadedModel | None] = {"constant": None}
        for name, (corpus, balance) in models.items():
            workdir = options.out / name.replace(" ", "-").replace(",", "") / f"fold{number}"
            settings = ["training.task=dmer", f"training.folds={FOLDS}", f"training.fold={number}",
                        f"training.steps={options.steps}", "training.validate_every=50",
                        f"training.corpora={balance}"]  # fmt: skip
            train(with_settings(preset("levels"), settings), corpus, workdir, console)
            judged[name] = load_model(workdir)
        for name, model in judged.items():
            for corpus in (first, second):
                found.setdefault((name, corpus.name), []).append(judge(model, corpus, fold))
        page = "\n".join(markdown(found, (first, second), done, options.steps))
        with replacing(RESULTS / "adding_corpora.md") as temporary:
            temporary.write_text(page, encoding="utf-8")


def markdown(
    found: dict[tuple[str, str], list[Scored]],
    corpora: tuple[Corpus, Corpus],
    folds: int,
    steps: int,
) -> Iterator[str]:
    """The page, in lines.

    Args:
      found: (model, corpus) -> one a fold.
      corpora: that were judged.
      folds: how many are done.
      steps: of each training.
    """
    sizes = " and ".join(f"{corpus.name} ({len(corpus.song_ids)} songs)" for corpus in corpora)
    yield "# Several corpora in one training"
    yield ""
    yield (
        f"{sizes}; {folds} of {FOLDS} folds over people and songs, DMER, preset levels, {steps} steps, seed 0. Judged on the test songs of "
        "each corpus. R²: 1 minus the squared error of songs' levels over that of a constant, the mean of what that corpus "
        "trains on. Differences with 95 % intervals over songs."
    )
    models = list(dict.fromkeys(name for name, _ in found))
    for corpus in corpora:
        judged = {
            name: [pooled([one.curves for one in found[name, corpus.name]])] for name in models
        }
        alone = f"{corpus.name} alone"
        yield from ("", f"## Levels of {corpus.name}'s songs ({len(judged[alone][0].labels)})", "")
        yield f"| trained on | {' | '.join(f'{name} r | {name} R² | minus {alone}' for name in DIMENSIONS)} |"  # fmt: skip
        yield "|---" * 7 + "|"
        for name in models:
            levels = np.concatenate([one.levels for one in found[name, corpus.name]], axis=1)
            cells = []
            for number, column in enumerate(LEVELS):
                r = _correlation(*levels[..., number]) if name != "constant" else ""
                cells += [r, *_level_cells(judged, name, alone, column)]
            yield f"| {name} | {' | '.join(cells)} |"
        yield from ("", f"## Curves of {corpus.name}'s songs", "")
        yield f"| trained on | {' | '.join(column.replace('_rmse', ' RMSE').replace('_pcc', ' PCC') for column in CURVES)} |"  # fmt: skip
        yield "|---" * (len(CURVES) + 1) + "|"
        for name in models:
            cells = [_curve_cell(judged, name, alone, column) for column in CURVES]
            yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield from (f"- {name}: {value}" for name, value in environment().items())
    yield ""


def _correlation(predicted: np.ndarray, truth: np.ndarray) -> str:
    known = np.isfinite(truth)
    return f"{np.corrcoef(predicted[known], truth[known])[0, 1]:.2f}"


def _level_cells(
    judged: dict[str, list[Judged]], name: str, alone: str, column: str
) -> tuple[str, str]:
    """R² of levels, and how much more that is than of the corpus's own model."""
    error = {one: score_table(judged[one], column, "song")[1] for one in (name, alone, "constant")}
    worst = float(np.mean(error["constant"] ** 2))
    explained = {one: 1.0 - errors**2 / worst for one, errors in error.items()}
    r2 = f"{explained[name].mean():.3f}"
    if name in (alone, "constant"):
        return r2, ""
    one = paired_difference(explained[name], explained[alone], lower_is_better=False)
    return r2, f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"


def _curve_cell(judged: dict[str, list[Judged]], name: str, alone: str, column: str) -> str:
    """The mean over songs, and what it is more than that of the corpus's own model."""
    cell = f"{np.mean(list(unit_scores(judged[name], column, 'song').values())):.3f}"
    if name in (alone, "constant"):
        return cell
    one = difference_of(judged[name], judged[alone], column, "song")
    return f"{cell} ({one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}])"


if __name__ == "__main__":
    main()
