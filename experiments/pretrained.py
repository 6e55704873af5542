"""Makes the model that comes with the package, from a DEAM root.

Command: `python experiments/pretrained.py --root DEAM --work WORK` (`--audio-start 30` where the sound is excerpts from there on)
Result: `dsaml_jax/pretrained/deam.safetensors`; how good it is, by cross-validation, says `experiments/results/dmer-deam/table.md`.
Time: 43 minutes on two cores (AMD EPYC) that did much other work beside it, for six trainings; the features of 1,602
  excerpts were there, and take ten minutes more.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from data_prep.curves import labelled_mean
from data_prep.deam import read_deam
from data_prep.features import TINY
from data_prep.prepare import prepare
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import fold_of, held_out
from dsaml_jax.evaluation import (
    agreed_trial,
    curves_of_songs,
    differences,
    fit_listeners,
    inside,
    likeness_of,
)
from dsaml_jax.models import song_space
from dsaml_jax.pretrained import MODEL
from dsaml_jax.progress import Console
from dsaml_jax.runs import Listeners, LoadedModel, export_model, load_model
from dsaml_jax.training import train

SETTINGS = ("training.task=dmer", "training.protocol=reference", "training.folds=1")
"""The published mean curves, of all songs."""

FOLDS = 5


def cross_validated(corpus: Corpus, work: Path, loaded: LoadedModel, console: Console) -> Listeners:
    """How single listeners differ from models that have not heard the song: of each song, one of five folds.

    Says how much of the curves of each fold lies in a band that the other folds have made.

    Args:
      corpus: the songs.
      work: folder for the five runs.
      loaded: the model of all songs, by which songs are alike.
      console: for people.
    """
    rated, found = [], []
    for number in range(FOLDS):
        settings = ("training.task=dmer", "training.protocol=reference")
        fold = (f"training.folds={FOLDS}", f"training.fold={number}")
        workdir = work / f"fold{number}"
        train(with_settings(preset("levels"), (*settings, *fold)), corpus, workdir, console)
        without = load_model(workdir)
        where = fold_of(without.info.config.training)
        trial = agreed_trial(corpus, "test", fold=where)
        ratings = held_out(corpus, where)["test"].all_ratings
        curves = curves_of_songs(trial, without.model, without.variables)
        rated.append(ratings)
        found.append(differences(corpus, ratings, curves))
    for number in range(FOLDS):
        others = [x for place, x in enumerate(found) if place != number]
        rest = np.concatenate([x for place, x in enumerate(rated) if place != number])
        known = fit_listeners(corpus.rating_annotator[rest], list(itertools.chain(*others)))
        assert known is not None
        shares = inside(found[number], known)
        console.say(f"fold {number}: {labelled_mean(shares).round(3)} of the curves in the band")
    ratings = np.concatenate(rated)
    songs, likeness = likeness_of([(corpus, ratings)], song_space(loaded.variables))
    listeners = fit_listeners(corpus.rating_annotator[ratings], list(itertools.chain(*found)), songs, likeness)  # fmt: skip
    assert listeners is not None
    return listeners


def main() -> None:
    """Prepares, trains, exports; what is there already is used again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--audio-start", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=MODEL)
    options = parser.parse_args()
    console = Console()
    features = dataclasses.replace(TINY, embedding="musicnn-spectral")
    corpus = read_deam(options.root, audio_start=options.audio_start)
    prepare(corpus, options.work / "data", features, display=console.counter)
    data, workdir = read_corpus(options.work / "data"), options.work / "run"
    train(with_settings(preset("levels"), SETTINGS), data, workdir, console)
    loaded = load_model(workdir)
    loaded = dataclasses.replace(loaded, listeners=cross_validated(data, options.work, loaded, console))  # fmt: skip
    note = f"everyone's curves, learned from {len(data.song_ids):,} songs of DEAM; for research, see MODEL_CARD.md"
    options.out.unlink(missing_ok=True)
    named = dataclasses.replace(loaded, info=dataclasses.replace(loaded.info, note=note))
    count = export_model(named, options.out)
    console.say(f"written: {options.out}, {count:,} numbers")


if __name__ == "__main__":
    main()
