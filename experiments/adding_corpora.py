"""Does another corpus in the same training help, and does a model of one corpus know another?

DMER with levels (`--preset levels`) is trained on DEAM, on VGMIDI, and on both, in proportion to their songs and equally
(`training.corpora`), on the same folds of songs (nobody is judged, so nobody is held out). Every model is judged on the
test songs of each corpus: its head for levels alone on all folds, the whole model, which takes minutes each, on those asked for.

Command: `python experiments/adding_corpora.py --data DEAM --more VGMIDI --out OUT [--fold 0 --fold 1 ...]`, after
  `dsaml prepare deam ... --audio-start 30 --features tiny --out DEAM` and `dsaml prepare vgmidi ... --features tiny --out VGMIDI`.
Result (`experiments/results/adding_corpora.md`, heads for levels, all folds): VGMIDI does not help DEAM. Added in proportion R² of levels is -0.002
  [-0.006, +0.002] and -0.002 [-0.009, +0.005] different, as one half of all that counts -0.019 and -0.028, beyond doubt. Nor does DEAM help VGMIDI: in
  proportion -0.092 and -0.082, equally -0.002 and +0.002. A model of one corpus orders the other's songs in arousal (r 0.60 and 0.69) and hardly in
  valence (0.04 and 0.30), and does not know how high they lie (R² at most 0.05). The packaged model on VGMIDI: r 0.70 and 0.31.
  A whole model of VGMIDI (`dsaml train --task dmer --preset levels --folds 5 --fold 0 --set training.steps=100`, by `dsaml evaluate`) on all of DEAM: r 0.66,
  0.04, R² -0.20, -0.18; on its own test pieces R² 0.73, 0.35.
  Whole models (two folds, `--fold 0 --fold 1 --steps 150`) say the same: on DEAM, with VGMIDI in proportion, R² -0.002 [-0.009, +0.005] and -0.002 [-0.014,
  +0.010], RMSE +0.001, PCC of arousal -0.037 [-0.060, -0.014]; equally all is worse. On VGMIDI DEAM in proportion does harm, equally nothing beyond doubt.
Time: three minutes of processor time without whole models; some twenty for a fold of these.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.base import DIMENSIONS, replacing
from data_prep.curves import labelled_mean
from data_prep.several import read_corpora
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.config import Balance, preset, with_settings
from dsaml_jax.corpus import (
    WHOLE,
    Fold,
    consensus_target,
    held_out,
    input_statistics,
    song_embeddings,
)
from dsaml_jax.evaluation import (
    LEVELS,
    Trial,
    agreed_trial,
    curves_of_songs,
    is_of,
    level_errors,
    methods,
    score_curves,
)
from dsaml_jax.experiment import (
    Judged,
    difference_of,
    paired_difference,
    pooled,
    tables,
    unit_scores,
)
from dsaml_jax.models import SongSpace, squared_distances
from dsaml_jax.pretrained import MODEL
from dsaml_jax.progress import Console
from dsaml_jax.reporting import environment
from dsaml_jax.runs import LoadedModel, load_model
from dsaml_jax.training import fit_levels, train

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


Found = dict[tuple[str, str], list[Scored]]
"""(model, corpus) -> one a fold."""

Guess = Callable[[Trial], np.ndarray]
"""A trial -> curves of its songs."""

Training = tuple[Corpus, Balance]


def judge(guess: Guess, corpus: Corpus, fold: Fold) -> Scored:
    """Scores on the test songs of a fold."""
    trial = agreed_trial(corpus, "test", fold=fold)
    curves = guess(trial)
    scores = score_curves(curves, trial.truth) | level_errors(curves, trial.truth)
    drawn = np.isfinite(trial.truth)
    here = np.where(drawn, np.clip(curves, -1.0, 1.0), np.nan)
    levels = np.stack([labelled_mean(x, axis=-2) for x in (here, trial.truth)])
    return Scored(Judged(trial.labels(), scores), levels)


@dataclasses.dataclass(frozen=True)
class Head:
    """A head for levels alone, fitted in closed form: levels `[k, 2]` of songs `[k]` of a corpus.

    Attributes:
      fitted: see :func:`dsaml_jax.training.fit_levels`.
      space: in which songs lie.
    """

    fitted: dict[str, np.ndarray]
    space: SongSpace

    def __call__(self, corpus: Corpus, songs: np.ndarray) -> np.ndarray:
        """What it says of songs."""
        places = self.space.place(song_embeddings(corpus, songs))
        kernel = np.exp(-self.fitted["gamma"] * squared_distances(places, self.fitted["centres"]))
        found: np.ndarray = self.fitted["bias"] + kernel @ self.fitted["weights"]
        return found


def head_of(trained: Training, fold: Fold) -> Head:
    """The head for levels, fitted on the songs of training."""
    corpus, balance = trained
    part = held_out(corpus, fold)["train"]
    mean, spread = input_statistics(corpus, part.songs)["embedding"]
    target = consensus_target(corpus, part)
    head = fit_levels(corpus, part, target, (mean, spread), len(part.songs), balance=balance)
    return Head(head, SongSpace(mean, spread, float(head["listener_gamma"])))


def flat_by(trained: Training, fold: Fold) -> Guess:
    """Curves that lie at the level that the head says, and do not move."""
    levels = head_of(trained, fold)
    return lambda trial: np.broadcast_to(levels(trial.corpus, trial.song)[:, None], trial.truth.shape)  # fmt: skip


def network_of(trained: Training, fold: Fold, steps: int, workdir: Path, console: Console) -> Guess:
    """The whole model, trained."""
    corpus, balance = trained
    settings = ["training.task=dmer", "training.protocol=reference", f"training.folds={FOLDS}",
                f"training.fold={fold.fold}", f"training.steps={steps}", "training.validate_every=50",
                f"training.corpora={balance}"]  # fmt: skip
    train(with_settings(preset("levels"), settings), corpus, workdir, console)
    return curves_by(load_model(workdir))


def curves_by(model: LoadedModel) -> Guess:
    """What a model says."""
    return lambda trial: curves_of_songs(trial, model.model, model.variables).of(trial.song)


def main() -> None:
    """Fits, trains and judges; writes the page after each fold of networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "more", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--fold", type=int, action="append", default=[], help="of whole models")
    parser.add_argument("--steps", type=int, default=400, help="of whole models")
    options = parser.parse_args()
    console = Console()
    corpora = read_corpus(options.data), read_corpus(options.more)
    both = read_corpora(options.data, options.more)
    trainings: dict[str, Training] = {f"{one.name} alone": (one, "proportional") for one in corpora}
    trainings |= {"both, in proportion": (both, "proportional"), "both, equally": (both, "equal")}
    heads: Found = {}
    networks: Found = {}

    def add(found: Found, guesses: dict[str, Guess], fold: Fold) -> None:
        for name, guess in {"constant": methods.constant, **guesses}.items():
            for corpus in corpora:
                found.setdefault((name, corpus.name), []).append(judge(guess, corpus, fold))

    packaged: Found = {}
    shipped = load_model(MODEL)
    if not is_of(shipped, corpora[1]):
        rows = {"constant": methods.constant, "the packaged model": curves_by(shipped)}
        packaged = {(name, corpora[1].name): [judge(guess, corpora[1], WHOLE)] for name, guess in rows.items()}  # fmt: skip

    def write() -> None:
        page = "\n".join(markdown(heads, packaged, networks, corpora, options.steps))
        with replacing(RESULTS / "adding_corpora.md") as temporary:
            temporary.write_text(page, encoding="utf-8")

    folds = [Fold(FOLDS, 0, number, everyone=True) for number in range(FOLDS)]
    for fold in folds:
        add(heads, {name: flat_by(one, fold) for name, one in trainings.items()}, fold)
    write()
    for fold in (folds[number] for number in options.fold):
        guesses = {
            name: network_of(one, fold, options.steps, options.out / _slug(name) / f"fold{fold.fold}", console)
            for name, one in trainings.items()
        }  # fmt: skip
        add(networks, guesses, fold)
        write()


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def markdown(
    heads: Found, packaged: Found, networks: Found, corpora: tuple[Corpus, Corpus], steps: int
) -> Iterator[str]:
    """The page, in lines."""
    sizes = " and ".join(f"{corpus.name} ({len(corpus.song_ids)} songs)" for corpus in corpora)
    yield from ("# Several corpora in one training", "")
    yield (
        f"{sizes}; {FOLDS} folds over songs. Judged on the test songs of each corpus, all folds together. r and R² are of songs' "
        "levels, the means of their curves; R²: 1 minus the squared error over that of a constant, the mean of what that corpus "
        "trains on. Differences with 95 % intervals over songs."
    )
    yield from ("", "## The head for levels alone, fitted in closed form")
    for corpus in corpora:
        yield from _levels_lines(heads, corpus)
    if packaged:
        yield from ("", f"## The model that comes with the package, on all of {corpora[1].name}")
        yield from _levels_lines(packaged, corpora[1], "constant")
        yield from _curves_lines(packaged, corpora[1], "constant")
    if networks:
        count = len(next(iter(networks.values())))
        yield from ("", f"## Whole models: DMER, preset levels, {steps} steps, seed 0, {count} of the folds", "")  # fmt: skip
        for corpus in corpora:
            yield from _levels_lines(networks, corpus)
            yield from _curves_lines(networks, corpus)
    yield from ("", *(f"- {name}: {value}" for name, value in environment().items()), "")


def _pooled(found: Found, corpus: Corpus) -> dict[str, list[Judged]]:
    """Model -> all folds together."""
    return {
        name: [pooled([one.curves for one in scored])]
        for (name, judged_on), scored in found.items()
        if judged_on == corpus.name
    }


def _levels_lines(found: Found, corpus: Corpus, alone: str = "") -> Iterator[str]:
    judged, alone = _pooled(found, corpus), alone or f"{corpus.name} alone"
    yield from ("", f"### Levels of {corpus.name}'s songs ({len(judged[alone][0].labels)})", "")
    yield f"| trained on | {' | '.join(f'{name} r | {name} R² | minus {alone}' for name in DIMENSIONS)} |"  # fmt: skip
    yield "|---" * 7 + "|"
    for name in judged:
        levels = np.concatenate([one.levels for one in found[name, corpus.name]], axis=1)
        cells: list[str] = []
        for number, column in enumerate(LEVELS):
            r = _correlation(*levels[..., number]) if name != "constant" else ""
            cells += [r, *_level_cells(judged, name, alone, column)]
        yield f"| {name} | {' | '.join(cells)} |"


def _curves_lines(found: Found, corpus: Corpus, alone: str = "") -> Iterator[str]:
    judged, alone = _pooled(found, corpus), alone or f"{corpus.name} alone"
    titles = [column.replace("_rmse", " RMSE").replace("_pcc", " PCC") for column in CURVES]
    yield from ("", f"### Curves of {corpus.name}'s songs (minus {alone})", "")
    yield f"| trained on | {' | '.join(titles)} |"
    yield "|---" * (len(CURVES) + 1) + "|"
    for name in judged:
        cells = [_curve_cell(judged, name, alone, column) for column in CURVES]
        yield f"| {name} | {' | '.join(cells)} |"


def _correlation(predicted: np.ndarray, truth: np.ndarray) -> str:
    known = np.isfinite(truth)
    return f"{np.corrcoef(predicted[known], truth[known])[0, 1]:.2f}"


def _level_cells(
    judged: dict[str, list[Judged]], name: str, alone: str, column: str
) -> tuple[str, str]:
    """R² of levels, and how much more that is than of the corpus's own model."""
    error = {
        one: tables.score_table(judged[one], column, "song")[1] for one in (name, alone, "constant")
    }
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
