"""What else than a level can be read of a person from a few songs?

A DMER model with a head for levels says what everybody hears. What single people drew differs from that by a level of the person,
by a taste that songs share as far as they are alike, and by the song alone, in both dimensions, of which one tells of the other
(`dsaml_jax.runs.Listeners`). A personal model has all of that. Here each is compared with the level alone, beside what else a
person might have:

- movement: how much a person's curves move along with the model's, a gain shrunk to 1;
- lag: how much later or earlier than the model they move.

Shrinkage of the last two is chosen for each number of songs on validation people; what is fitted is from validation songs.

Command: `python experiments/beyond_level.py --data DATA --runs OUT/runs/with-levels`, after `dsaml experiment shots --data DATA
  --folds 5 ... --out OUT` with one seed.
Result (`experiments/results/beyond_level.md`, 48 people): the level is nearly all of it. Taste gains 0.001 to 0.004 RMSE in arousal, beyond 0 with two and
  with ten songs, and nothing in valence; both dimensions together 0.0005, within chance; movement and lag nothing. All that a personal model has gains 85,
  90, 91 and 93 % of what the best share of the mean difference would, if somebody knew it.
Time: ten minutes on two cores that did other work beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_prep.base import DIMENSIONS, replacing
from data_prep.curves import labelled_mean
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.corpus import Fold, fold_of
from dsaml_jax.evaluation import (
    curves_of_songs,
    listener_trial,
    methods,
    scores,
    trials,
)
from dsaml_jax.experiment import paired_difference
from dsaml_jax.models import song_space
from dsaml_jax.reporting import environment
from dsaml_jax.runs import Correlations, LoadedModel, load_model

RESULTS = Path(__file__).parent / "results"
SHOTS = (1, 2, 5, 10)
ROWS = {
    "level": (False, False),
    "level and taste": (True, False),
    "level, both dimensions together": (False, True),
    "level and taste, both dimensions together (the default)": (True, True),
}
"""Whether songs that are alike tell more of each other, and one dimension of the other."""
LAGS = range(-4, 5)
"""Half seconds."""
CEILING = "*the best share, told by the answers (no model)*"
CEILING_SHARES = np.linspace(0.0, 1.0, 21)
SHRINKING = (0.0, 0.3, 1.0, 3.0, 10.0, np.inf)
"""Of movement: so many songs' worth of a gain of 1. Of lag: so much more must another one explain than none; `inf`: neither."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A trial, and what everyone's model says of its songs.

    Attributes:
      trial: with its support songs.
      curves: of all its songs.
      loaded: the model.
    """

    trial: trials.Trial
    curves: methods.CurvesOfSongs
    loaded: LoadedModel

    def with_shots(self, shots: int) -> Asked:
        """With fewer support songs."""
        return dataclasses.replace(self, trial=self.trial.with_shots(shots))

    def moved(self) -> np.ndarray:
        """As a personal model predicts."""
        return methods.with_prior(
            self.trial, self.curves, self.loaded.listeners, song_space(self.loaded.variables)
        )


def ask(corpus: Corpus, loaded: LoadedModel, part: trials.PartName, fold: Fold) -> Asked:
    """The people of a part, with as many support songs as there will be."""
    trial = listener_trial(corpus, part, shots=max(SHOTS), fold=fold)
    return Asked(trial, curves_of_songs(trial, loaded.model, loaded.variables), loaded)


def knowing_less(loaded: LoadedModel, taste: bool, together: bool) -> LoadedModel:
    """The same, of whose people no songs are alike, or whose dimensions say nothing of each other."""
    known = loaded.listeners
    assert known is not None
    if not together:
        known = dataclasses.replace(known, together=Correlations())
    if not taste:
        arousal, valence = (
            x and dataclasses.replace(x, taste=0.0, alike=0.0)
            for x in (known.arousal, known.valence)
        )
        known = dataclasses.replace(known, arousal=arousal, valence=valence)
    return dataclasses.replace(loaded, listeners=known)


# ---- How people's curves move.


def centred(curves: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`[..., n, 2]` less the mean of what is known; 0 elsewhere."""
    mean = labelled_mean(np.where(known, curves, np.nan), axis=-2)[..., None, :]
    return np.where(known, curves - mean, 0.0)


def with_movement(asked: Asked, shrinking: float) -> np.ndarray:
    """A personal model's curves that move as much as the person's do along with them, in each dimension."""
    trial, curves = asked.trial, asked.moved()
    if np.isinf(shrinking):
        return curves
    truth = trial.support_truth
    known = np.isfinite(truth)
    model, person = centred(asked.curves.of(trial.support_songs), known), centred(truth, known)
    products = (model * person).sum(axis=(1, 2))
    squares = np.square(model).sum(axis=(1, 2))
    usual = np.square(model).sum(axis=2).mean(axis=(0, 1))  # of one song
    gain = (products + shrinking * usual) / (squares + shrinking * usual + 1e-12)
    everyone = asked.curves.of(trial.song)
    there = np.isfinite(trial.truth)
    return curves + (gain[:, None, None] - 1.0) * centred(everyone, there)


def with_lag(asked: Asked, shrinking: float) -> np.ndarray:
    """A personal model's curves, later or earlier by what fits the person's songs best."""
    trial, curves = asked.trial, asked.moved()
    if np.isinf(shrinking):
        return curves
    truth = trial.support_truth
    known = np.isfinite(truth)
    model, person = asked.curves.of(trial.support_songs), centred(truth, known)
    fit = np.array([(centred(later(model, lag), known) * person).sum(axis=(1, 2, 3)) for lag in LAGS])  # fmt: skip
    own = np.square(centred(model, known)).sum(axis=(1, 2, 3))
    fit -= shrinking * own * np.array([lag != 0 for lag in LAGS])[:, None]
    lags = np.array(LAGS)[fit.argmax(axis=0)]
    everyone = asked.curves.of(trial.song)
    there = np.isfinite(trial.truth)
    moved = np.stack([later(everyone[task], lag) for task, lag in enumerate(lags)])
    return curves + centred(moved, there) - centred(everyone, there)


def later(curves: np.ndarray, lag: int) -> np.ndarray:
    """`[..., n, 2]` so many steps later; ends stay as they are."""
    steps = np.clip(np.arange(curves.shape[-2]) - lag, 0, curves.shape[-2] - 1)
    return curves[..., steps, :]


# ---- Judging.

Errors = dict[str, dict[str, float]]
"""Dimension -> person -> RMSE."""


def errors(asked: Asked, predicted: np.ndarray) -> Errors:
    """Of each person, songs counting equally."""
    columns, units = scores.score_curves(predicted, asked.trial.truth), asked.trial.units()
    return {
        name: dict(zip(*scores.unit_means(units, columns[f"{name}_rmse"]), strict=True))
        for name in DIMENSIONS
    }


def mean_error(asked: Asked, predicted: np.ndarray) -> float:
    """Over people and dimensions."""
    return float(np.mean([np.mean(list(x.values())) for x in errors(asked, predicted).values()]))


def judge(corpus: Corpus, loaded: LoadedModel) -> dict[tuple[str, int], Errors]:
    """`(row, songs) -> errors` of the people that this fold holds out."""
    fold = fold_of(loaded.info.config.training)
    test, validation = (ask(corpus, loaded, part, fold) for part in ("test", "validation"))
    found = {}
    for shots in SHOTS:
        here, there = test.with_shots(shots), validation.with_shots(shots)
        found["not adapted", shots] = errors(here, here.curves.of(here.trial.song))
        for row, (taste, together) in ROWS.items():
            known = knowing_less(loaded, taste, together)
            found[row, shots] = errors(here, dataclasses.replace(here, loaded=known).moved())
        for share in CEILING_SHARES:
            found[f"share {share}", shots] = errors(here, methods.with_offset(here.trial, here.curves, share))  # fmt: skip
        ways: dict[str, Callable[[Asked, float], np.ndarray]] = {"movement": with_movement, "lag": with_lag}  # fmt: skip
        for name, way in ways.items():
            best = min(SHRINKING, key=lambda x, way=way: mean_error(there, way(there, x)))  # type: ignore[misc]
            print(f"{fold}: {shots} songs, {name}: {best:g}")
            found[f"and {name}", shots] = errors(here, way(here, best))
    return found


def merged(parts: Sequence[dict[tuple[str, int], Errors]]) -> dict[tuple[str, int], Errors]:
    """Of all folds: nobody is in two."""
    return {
        key: {name: {who: x for part in parts for who, x in part[key][name].items()} for name in DIMENSIONS}
        for key in parts[0]
    }  # fmt: skip


def with_ceiling(found: dict[tuple[str, int], Errors]) -> dict[tuple[str, int], Errors]:
    """With the best share of the mean difference in place of all shares: one for everybody, in each dimension."""
    shares = [f"share {share}" for share in CEILING_SHARES]
    kept = {key: x for key, x in found.items() if key[0] not in shares}
    for shots in SHOTS:
        mean = lambda share, name: np.mean(list(found[share, shots][name].values()))  # noqa: E731, B023
        best = {
            name: min(shares, key=lambda share, name=name: mean(share, name)) for name in DIMENSIONS
        }  # type: ignore[misc]
        kept[CEILING, shots] = {name: found[best[name], shots][name] for name in DIMENSIONS}
    return kept


def gained(found: dict[tuple[str, int], Errors], row: str, shots: int) -> float:
    """RMSE less than not adapted, in the mean over people and both dimensions."""
    pairs = [(found[x, shots][name].values() for x in ("not adapted", row)) for name in DIMENSIONS]
    return float(np.mean([np.mean(list(before)) - np.mean(list(after)) for before, after in pairs]))


def table(found: dict[tuple[str, int], Errors], name: str) -> list[str]:
    """RMSE of one dimension minus that of the level alone, with intervals over people."""
    lines = [f"| {name} | " + " | ".join(f"{k} song{'s' * (k > 1)}" for k in SHOTS) + " |"]
    lines.append("|---" * (len(SHOTS) + 1) + "|")
    for row in dict.fromkeys(row for row, _ in found):
        cells = []
        for shots in SHOTS:
            ours, alone = (found[x, shots][name] for x in (row, "level"))
            people = sorted(ours)
            if row == "level":
                cells.append(f"*{np.mean(list(ours.values())):.4f}* ({len(people)} people)")
                continue
            pair = ([x[who] for who in people] for x in (ours, alone))
            one = paired_difference(*map(np.array, pair), lower_is_better=True)
            cells.append(f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}], {one.better}/{one.worse}")  # fmt: skip
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    """Judges all folds, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    options = parser.parse_args()
    corpus = read_corpus(options.data)
    runs = sorted(options.runs.glob("fold*/seed0"))
    found = with_ceiling(merged([judge(corpus, load_model(run)) for run in runs]))
    rows = dict.fromkeys(row for row, _ in found if row != "not adapted")
    shares = [
        f"| {row} | " + " | ".join(f"{gained(found, row, k):.4f}, {gained(found, row, k) / gained(found, CEILING, k):.0%}" for k in SHOTS) + " |"
        for row in rows
    ]  # fmt: skip
    lines = [
        "# What else than a level can be read of a person?", "",
        f"{corpus.name}, {len(corpus.song_ids)} songs, {len(runs)} folds, one seed. RMSE on other songs of people whom no model has "
        "seen, minus that of the level alone (whose RMSE is given); 95 % intervals over people; better/worse off.", "",
        *(line for name in DIMENSIONS for line in table(found, name)),
        "RMSE gained over not adapting, the mean of both dimensions, and how much that is of what the best share would gain, if "
        "somebody knew it for each dimension (one for everybody):", "",
        "| | " + " | ".join(f"{k} song{'s' * (k > 1)}" for k in SHOTS) + " |", "|---" * (len(SHOTS) + 1) + "|", *shares, "",
        *(f"- {name}: {value}" for name, value in environment().items()), "",
    ]  # fmt: skip
    with replacing(RESULTS / "beyond_level.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
