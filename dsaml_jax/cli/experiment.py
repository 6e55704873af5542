"""`dsaml experiment`: a table of the paper."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dsaml_jax.errors import UsageError

if TYPE_CHECKING:
    from data_prep.shards import Corpus
    from dsaml_jax.corpus import Fold
    from dsaml_jax.experiment import Experiment, Scale
    from dsaml_jax.progress import Console

from dsaml_jax.cli.arguments import PROTOCOLS, OneCorpus, Register, positive
from experiments import NAMES as EXPERIMENTS


def add(register: Register) -> None:
    """Registers `dsaml experiment` and its arguments."""
    experiment = register("experiment", run, "Run all variants of a table, with statistics and figures",
                     "Start it again to go on; models and scores that are there are used again, also by other\n"
                     "experiments with the same --out.", goes_on=True)  # fmt: skip
    experiment.add_argument("name", choices=tuple(EXPERIMENTS), help="see experiments/README.md")
    experiment.add_argument("--data", type=Path, action=OneCorpus, help="folder of prepared data, of any corpus (default: a synthetic one is made in OUT/data)")  # fmt: skip
    experiment.add_argument("--dataset", help="name that the corpus must have; synthetic: may be made here")  # fmt: skip
    experiment.add_argument("--folds", type=int, metavar="K",
                            help="run K folds over people and songs and judge them together; 0: the corpus's own split\n"
                                 "(default: its own split, or 5 folds where that leaves nobody to be judged)")  # fmt: skip
    experiment.add_argument("--out", type=Path, required=True, help="folder for models, tables and figures")  # fmt: skip
    experiment.add_argument("--seeds", type=positive, metavar="N", help="seeds 0 to N-1 of training (default: the scale's)")  # fmt: skip
    experiment.add_argument("--protocol", choices=PROTOCOLS, help="judge by this one alone (default: by all of the experiment's)")  # fmt: skip
    size = experiment.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the smallest that runs: to try it, the numbers mean nothing")  # fmt: skip
    size.add_argument("--standard", action="store_true", help="what two cores manage, for --features tiny (default without --data)")  # fmt: skip
    size.add_argument("--full", action="store_true", help="the published size, for an accelerator (default with --data)")  # fmt: skip
    experiment.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                            help="a setting of every model, as for 'dsaml train'")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml experiment`."""
    import importlib

    from dsaml_jax.experiment import FULL, QUICK, STANDARD, Runner, write_outcomes
    from dsaml_jax.progress import Console
    from experiments import NAMES

    console = Console(options.quiet)
    scale = QUICK if options.quick else STANDARD
    made_here = options.data is None and options.dataset in (None, "synthetic")
    if options.full or not (options.quick or options.standard or made_here):
        scale = FULL
    corpus = _corpus_of_experiment(options, scale, console)
    experiment: Experiment = importlib.import_module(
        f"experiments.{NAMES[options.name]}"
    ).experiment()
    if options.protocol is not None:
        if options.protocol not in experiment.protocols:
            raise UsageError(
                f"--protocol {options.protocol}: {options.name} is judged by {' and '.join(experiment.protocols)}"
            )
        experiment = dataclasses.replace(experiment, protocols=(options.protocol,))
    runner = Runner(
        options.name, experiment, scale, corpus, options.out,
        seeds=options.seeds or scale.seeds, settings=tuple(options.set), console=console,
        folds=_folds_of_experiment(options, experiment, corpus),
    )  # fmt: skip
    for line in runner.judging():
        console.say(line)
    runner.train_all()
    outcomes = [runner.judge_all(protocol) for protocol in experiment.protocols]
    words = ["dsaml", "experiment", options.name, *([] if made_here else ["--data", "DATA"])]
    words += ["--seeds", str(runner.seeds), "--out", "OUT"]
    sizes = (("--quick", options.quick), ("--standard", options.standard), ("--full", options.full))
    words += [word for word, given in sizes if given]
    words += [] if options.folds is None else ["--folds", str(options.folds)]
    words += [] if options.protocol is None else ["--protocol", options.protocol]
    words += [f"--set={setting}" for setting in options.set]
    page = write_outcomes(runner, outcomes, shlex.join(words))
    console.say(
        f"written: {page}, with figures, tables in CSV and LaTeX, and the scores behind them"
    )


def _folds_of_experiment(
    options: argparse.Namespace, experiment: Experiment, corpus: Corpus
) -> tuple[Fold, ...]:
    """The corpus's own split where that can be judged and nothing else is asked for; else folds."""
    from dsaml_jax.corpus import Fold
    from dsaml_jax.evaluation import listener_judging

    if options.folds is not None and options.folds != 0 and options.folds < 2:
        raise UsageError(f"--folds {options.folds}: 2 or more, or 0 for the corpus's own split")
    if options.folds is None and experiment.task == "pdmer" and len(corpus.rating_song):
        people = 0
        with contextlib.suppress(UsageError):
            listener_judging(corpus, "validation", shots=experiment.shots)
            people = listener_judging(corpus, "test", shots=experiment.shots)[0].people
        if people < FEWEST_PEOPLE:
            return tuple(Fold(FOLDS, 0, fold) for fold in range(FOLDS))
    everyone = experiment.task == "dmer"  # nobody is judged, so nobody need be held out
    if not options.folds:
        return (Fold(everyone=everyone),)
    return tuple(Fold(options.folds, 0, fold, everyone) for fold in range(options.folds))


def _corpus_of_experiment(options: argparse.Namespace, scale: Scale, console: Console) -> Corpus:
    """Prepared data; the synthetic corpus is made where there is none."""
    from data_prep import synthetic
    from data_prep.features import TINY
    from data_prep.prepare import prepare
    from data_prep.shards import read_corpus

    if options.data is None and options.dataset not in (None, "synthetic"):
        raise UsageError(
            f"--data is the folder that 'dsaml prepare {options.dataset} --root ... --out DATA' has written"
        )
    data = options.data or options.out / "data"
    if options.data is None:
        if not scale.songs:
            raise UsageError(
                "--full is for prepared data: make it by 'dsaml prepare synthetic', and give it as --data"
            )
        with console.counter("composing", "song") as progress:
            root = synthetic.write_corpus(
                options.out / "corpus", songs=scale.songs, annotators=scale.annotators,
                raters=scale.raters, progress=progress,
            )  # fmt: skip
        prepare(synthetic.read_synthetic(root), data, TINY, display=console.counter)
    corpus = read_corpus(data)
    if options.dataset is not None and corpus.name != options.dataset:
        raise UsageError(f"{data} holds {corpus.name}, not {options.dataset}")
    return corpus


FOLDS = 5
FEWEST_PEOPLE = 4
"""An experiment takes folds where the corpus's own split leaves fewer people to be judged."""
