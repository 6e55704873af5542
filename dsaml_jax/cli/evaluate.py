"""`dsaml evaluate`: scores of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dsaml_jax.errors import UsageError

if TYPE_CHECKING:
    from dsaml_jax.config import TrainingConfig
    from dsaml_jax.corpus import Fold
    from dsaml_jax.evaluation import Evaluation
    from dsaml_jax.progress import Console

from dsaml_jax.cli.arguments import PROTOCOLS, Register, add_data, add_folds, add_stream_above


def add(register: Register) -> None:
    """Registers `dsaml evaluate` and its arguments."""
    evaluate = register("evaluate", run, "Score a run on the test songs, beside simple baselines",
                        "DATA may be of another corpus than the run's, with the same features: all of its songs and people\n"
                        "are judged then, or those of --folds and --fold.")  # fmt: skip
    add_data(evaluate)
    evaluate.add_argument("--workdir", type=Path, required=True, help="folder of the run; results go there")  # fmt: skip
    evaluate.add_argument("--protocol", choices=PROTOCOLS,
                          help="clean: unseen songs and annotators, adapt on another song (default: as trained)\nreference: as published, adapt on the first 30 s of a song, judge the rest")  # fmt: skip
    add_folds(evaluate)
    add_stream_above(evaluate)
    evaluate.add_argument("--seen-songs", action="store_true", help="judge also by songs and people that the model was trained on, as of another corpus")  # fmt: skip
    evaluate.add_argument("--dmer", type=Path, help="a DMER run, for the baselines that start from it")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml evaluate`."""
    from data_prep.several import read_corpora
    from dsaml_jax.evaluation import evaluate, is_of, keep_evaluation
    from dsaml_jax.progress import Console
    from dsaml_jax.reporting import write_run_report
    from dsaml_jax.runs import load_model

    console = Console(options.quiet)
    if options.workdir.is_file():
        raise UsageError(
            f"{options.workdir}: --workdir is the folder of a run; results are written into it"
        )
    dmer = load_model(options.dmer) if options.dmer else None
    run = load_model(options.workdir)
    corpus = read_corpora(*options.data, stream_above_gb=options.stream_above)
    fold = None
    if is_of(run, corpus):
        _require_asked_fold(options, run.info.config.training)
    else:
        fold = _fold_of_another_corpus(options)
    evaluation, _ = evaluate(
        run,
        corpus,
        protocol=options.protocol,
        dmer=dmer,
        seen_songs=options.seen_songs,
        fold=fold,
        console=console,
    )
    kept = keep_evaluation(evaluation, options.workdir)
    for one in (*evaluation.corpora.values(), evaluation):
        _say(one, console)
    console.say(f"written: results.json and per_song.csv in {options.workdir}, and kept in {kept}")
    write_run_report(options.workdir)


def _say(evaluation: Evaluation, console: Console) -> None:
    """What was judged on what, and the tables."""
    from dsaml_jax.evaluation import levels_table, table

    facts = evaluation.facts
    console.say(
        f"{evaluation.task}, protocol {evaluation.protocol}, {facts['corpus']} with {facts['embedding']} "
        f"embedding, {facts['rows_per_method']} curves of {facts['songs']} songs, {facts['held_out']}: "
        f"mean ± sd over {'people' if evaluation.task == 'pdmer' else 'songs'}"
    )
    if facts["another_corpus"]:
        console.say(
            f"another corpus: trained on {facts['trained_on']}, judged on {facts['judged_on']}"
        )
    if "adapting" in facts:
        console.say(facts["adapting"])
    console.say(table(evaluation))
    if evaluation.levels:
        console.say(levels_table(evaluation))


def _require_asked_fold(options: argparse.Namespace, training: TrainingConfig) -> None:
    """A run is judged on the fold that it was trained for; naming another is a mistake."""
    for name in ("folds", "song_folds", "fold"):
        asked = getattr(options, name)
        if asked is not None and asked != getattr(training, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {asked}: the run was trained with {getattr(training, name)}; "
                "who is held out is the run's to say"
            )


def _fold_of_another_corpus(options: argparse.Namespace) -> Fold | None:
    """The part that is asked for; None: all of it."""
    from dsaml_jax.corpus import OWN_SPLIT, Fold

    folds, song_folds, fold = options.folds, options.song_folds or 0, options.fold or 0
    if folds is None or folds == 0:
        if song_folds or fold:
            raise UsageError("--fold and --song-folds need --folds, the number of folds")
        return None if folds is None else OWN_SPLIT
    if folds == 1:
        raise UsageError("--folds 1 holds nothing out; without --folds all of the corpus is judged")
    return Fold(folds, song_folds, fold)
