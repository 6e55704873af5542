"""Does adapting to one song do harm, where one song tells nothing of a person?

The data card of VGMIDI says that one of a person's two pieces tells nothing of the other. Everyone's model here is the head
for levels alone, fitted in closed form on the training people and pieces (what `--preset levels` knows of a song before its
network is trained). It is adapted to one piece of a person, as personal models are (by how listeners differ, which is
learned on the people of validation), and judged on the other piece.

Command: `python experiments/one_piece.py --data VGMIDI`, after `dsaml prepare vgmidi ... --features tiny --out VGMIDI`.
Result (`experiments/results/one_piece_vgmidi.md`, 1,024 people): one piece tells nothing, and the default adaptation does nothing: RMSE +0.0000 in both
  dimensions. Between people there is nothing to learn (the mean product of the differences of two pieces is 0 to within its error of 0.005). Validation has
  about fifty people with two pieces; by moments, cut off at 0, the variance between people that was learned there was noise, and adapting did harm (+0.007
  [+0.001, +0.013] in arousal). That is why the variances have a prior (`dsaml_jax.evaluation.listeners.EXPECTED`).
Time: half a minute of processor time.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.base import replacing
from data_prep.curves import labelled_mean
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.corpus import Fold, held_out
from dsaml_jax.evaluation import (
    OFFSETS,
    CurvesOfSongs,
    Trial,
    best_of,
    differences,
    listener_trial,
    listeners_of,
    methods,
    score_curves,
    share_of,
)
from dsaml_jax.experiment import Judged, difference_of, pooled, unit_scores
from dsaml_jax.reporting import environment
from dsaml_jax.runs import Listeners
from experiments.adding_corpora import FOLDS, RESULTS, Head, head_of

COLUMNS = ("arousal_rmse", "valence_rmse")
UNADAPTED = "everyone's model"


def main() -> None:
    """Fits, judges and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    corpus = read_corpus(parser.parse_args().data)
    found = [judged(corpus, Fold(FOLDS, 0, number)) for number in range(FOLDS)]
    together = {name: [pooled([scored[name] for scored, _ in found])] for name in found[0][0]}
    with replacing(RESULTS / f"one_piece_{corpus.name}.md") as temporary:
        page = "\n".join(markdown(corpus, together, [known for _, known in found]))
        temporary.write_text(page, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Known:
    """What was learned of listeners in a fold, and what is true of its test people.

    Attributes:
      listeners: as personal models have them.
      twice: people of whom two songs or more were looked at.
      shared: `[2]` mean product of what a test person's first and second song differ from everyone's model, over people: the
        variance between people, without the one within.
      error: `[2]` its standard error.
    """

    listeners: Listeners
    twice: int
    shared: np.ndarray
    error: np.ndarray


def judged(corpus: Corpus, fold: Fold) -> tuple[dict[str, Judged], Known]:
    """What each way to predict a person's other piece scores on the test part of a fold, and why."""
    levels = head_of((corpus, "proportional"), fold)

    def curves_for(trial: Trial, songs: np.ndarray) -> CurvesOfSongs:
        flat = np.broadcast_to(levels(corpus, songs)[:, None], (len(songs), trial.shape[0], 2))
        return CurvesOfSongs(songs, flat)

    trial = listener_trial(corpus, "test", fold=fold)
    validated = listener_trial(corpus, "validation", fold=fold)
    curves, on_validation = (curves_for(one, one.songs) for one in (trial, validated))
    best = best_of(
        OFFSETS, validated, lambda one: methods.with_offset(validated, on_validation, share_of(one))
    )
    parts = held_out(corpus, fold)
    ratings = parts["validation"].consensus
    listeners = listeners_of([(corpus, ratings, _flat(corpus, ratings, levels))], levels.space)
    assert listeners is not None
    _, counts = np.unique(corpus.rating_annotator[ratings], return_counts=True)
    mine = np.union1d(parts["test"].ratings, parts["test"].support)
    products = _products(corpus, mine, _flat(corpus, mine, levels))
    error = np.nanstd(products, axis=0) / np.sqrt(len(products))
    known = Known(listeners, int((counts > 1).sum()), np.nanmean(products, axis=0), error)
    predicted = {
        "constant": methods.constant(trial),
        "mean of the person's piece": methods.support_mean(trial),
        UNADAPTED: curves.of(trial.song),
        "by how listeners differ (the default)": methods.with_prior(
            trial, curves, listeners, levels.space
        ),
        "by a share of the error, chosen on validation people": methods.with_offset(
            trial, curves, share_of(best)
        ),
        "by all of the error": methods.with_offset(trial, curves, 1.0),
        "the piece's other raters (no model)": methods.others(trial, 0.0),
    }
    labels = trial.labels()
    scored = {name: Judged(labels, score_curves(x, trial.truth)) for name, x in predicted.items()}
    return scored, known


def _flat(corpus: Corpus, ratings: np.ndarray, levels: Head) -> CurvesOfSongs:
    """Everyone's curves of the songs of these ratings."""
    songs = np.unique(corpus.rating_song[ratings])
    shape = (len(songs), int(corpus.song_steps.max()), 2)
    return CurvesOfSongs(songs, np.broadcast_to(levels(corpus, songs)[:, None], shape))


def _products(corpus: Corpus, ratings: np.ndarray, curves: CurvesOfSongs) -> np.ndarray:
    """`[people, 2]` product of what the first two songs of each person differ in level from everyone's model."""
    ratings = ratings[np.argsort(corpus.rating_annotator[ratings], kind="stable")]
    rests = np.stack([labelled_mean(x) for x in differences(corpus, ratings, curves)])
    _, first, counts = np.unique(
        corpus.rating_annotator[ratings], return_index=True, return_counts=True
    )
    first = first[counts > 1]
    found: np.ndarray = rests[first] * rests[first + 1]
    return found


def markdown(
    corpus: Corpus, together: dict[str, list[Judged]], known: list[Known]
) -> Iterator[str]:
    """The page, in lines."""
    people = len(unit_scores(together[UNADAPTED], COLUMNS[0], "annotator"))
    yield from ("# One song of a person, where it tells nothing of them", "")
    yield (
        f"{corpus.name}, {len(corpus.song_ids)} songs, {len(corpus.annotator_ids)} people; {FOLDS} folds over people and songs; "
        f"means over the {people} people who can be judged. Minus {UNADAPTED}, with 95 % intervals over people and songs; "
        "people better/worse off."
    )
    yield from (
        "",
        "| | arousal RMSE | | better/worse | valence RMSE | | better/worse |",
        "|---" * 7 + "|",
    )
    for name, found in together.items():
        cells = [name]
        for column in COLUMNS:
            cells.append(f"{np.mean(list(unit_scores(found, column, 'annotator').values())):.4f}")
            if name == UNADAPTED:
                cells += ["", ""]
                continue
            one = difference_of(found, together[UNADAPTED], column, "annotator")
            cells += [
                f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]",
                f"{one.better}/{one.worse}",
            ]
        yield f"| {' | '.join(cells)} |"
    yield from ("", "## What was learned of listeners, fold by fold", "")
    yield (
        "Between: the variance of people's levels, learned on validation songs from the people of whom two are "
        "known there, and the share of a difference that follows for one song; on the test people the mean product of what "
        "their two songs differ from everyone's model, ± its standard error, which is that variance without noise of single songs."
    )
    yield from ("", "| people with two songs | arousal: between | share | on test people | valence: between | share | on test people |", "|---" * 7 + "|")  # fmt: skip
    for fold in known:
        cells = [str(fold.twice)]
        for number, spread in enumerate((fold.listeners.arousal, fold.listeners.valence)):
            assert spread is not None
            cells += [f"{spread.between:.3f}", f"{spread.share(1):.2f}", f"{fold.shared[number]:+.3f} ± {fold.error[number]:.3f}"]  # fmt: skip
        yield f"| {' | '.join(cells)} |"
    yield from ("", *(f"- {name}: {value}" for name, value in environment().items()), "")


if __name__ == "__main__":
    main()
