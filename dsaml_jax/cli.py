"""The command `dsaml`. Bad input ends in one line that says what to do, and an exit status."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.base import DataError
from dsaml_jax.errors import UsageError

if TYPE_CHECKING:
    from data_prep.base import AnnotatedCorpus
    from data_prep.features import FeatureConfig
    from data_prep.writing import Engine
    from dsaml_jax.progress import Console

_EPILOG = (
    "Every command: --quiet says nothing, --debug shows tracebacks. '{} --help' explains a command."
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        _enable_compile_cache()
        if not options.debug:
            _silence_background_threads()
        command: Callable[[argparse.Namespace], None] = options.run
        command(options)
        return 0
    except (UsageError, DataError) as error:
        return _fail(options, error, str(error), 2)
    except KeyboardInterrupt as error:
        return _fail(options, error, "interrupted; start the same command again", 130)
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(options, error, f"{place}{error.strerror or error}", 1)


def _fail(options: argparse.Namespace, error: BaseException, message: str, status: int) -> int:
    if options.debug:
        raise error
    print(f"dsaml: {' '.join(message.split())}", file=sys.stderr)
    return status


def _silence_background_threads() -> None:
    """Orbax writes in threads and raises their errors again here; nobody needs to read them twice.

    (It also closes its event loop while a failed thread still reports to it.)
    """
    import logging
    import threading
    import warnings

    from absl import logging as absl_logging

    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


def _enable_compile_cache() -> None:
    """Keeps compiled programs between commands, in $DSAML_CACHE or the user's cache folder."""
    import jax

    base = os.environ.get("DSAML_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dsaml_jax"
    )
    jax.config.update("jax_compilation_cache_dir", base)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# ---- The commands. Imports are inside, so that each loads what it needs.


def _demo(options: argparse.Namespace) -> None:
    from dsaml_jax.demo import run_demo
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    run_demo(options.workdir, quick=options.quick, seed=options.seed, console=console)


def _prepare(options: argparse.Namespace) -> None:
    from data_prep.prepare import prepare
    from data_prep.shards import read_facts
    from data_prep.validation import Checked, check
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    if options.songs is not None and options.songs < 3:
        raise UsageError("--songs must be 3 or more, one each for training, validation and test")
    if options.out is None and not options.check:
        raise UsageError("--out is needed: the folder for prepared data (or --check, to look only)")
    corpus = _read_annotated(options, console)
    limit = None if options.corpus == "synthetic" else options.songs
    for note in corpus.notes:
        console.say(f"note: {note}")
    for reason, count in corpus.dropped.items():
        console.say(f"left out: {count} {reason}")

    def show(checked: Checked) -> None:
        for line in checked.lines():
            console.say(f"check: {line}")
        console.say(f"check: {len(checked.songs)} songs of {corpus.name} can be used")

    if options.check:
        with console.counter("reading every file") as progress:
            checked = check(
                corpus, limit=limit, thorough=True, workers=options.workers, progress=progress
            )
        show(checked)
        if checked.lines():
            raise DataError(
                "files are missing or damaged; 'prepare' without --check leaves them out"
            )
        return
    folder = prepare(
        corpus,
        options.out,
        _feature_config(options),
        limit=limit,
        weights=options.imagebind_weights,
        workers=options.workers,
        engine=_engine(options),
        counter=console.counter,
        on_checked=show,
    )
    facts = read_facts(folder)
    counts = ", ".join(f"{count} {split}" for split, count in facts["songs"].items())
    console.say(f"songs of {corpus.name}: {counts} ({corpus.provenance.licence})")
    console.say(
        f"global embedding: {facts['features']['embedding']}, per {facts['features']['embedding_per']}"
    )
    console.say(f"prepared: {folder}")
    console.say(f"its data card: dsaml describe --data {folder}")


def _read_annotated(options: argparse.Namespace, console: Console) -> AnnotatedCorpus:
    if options.corpus == "deam":
        from data_prep.deam import read_deam

        return read_deam(options.root)
    if options.corpus == "pmemo":
        from data_prep.pmemo import read_pmemo

        return read_pmemo(options.root)
    if options.corpus == "folder":
        from data_prep.folder import read_folder

        return read_folder(options.root)
    from data_prep.deam import read_deam
    from data_prep.synthetic import write_corpus
    from data_prep.synthetic.corpus import PROVENANCE

    with console.counter("composing") as progress:
        write_corpus(
            options.root,
            songs=options.songs or 400,
            annotators=options.annotators,
            seed=options.seed,
            workers=options.workers,
            progress=progress,
        )
    return read_deam(options.root, name="synthetic", provenance=PROVENANCE)


def _feature_config(options: argparse.Namespace) -> FeatureConfig:
    from data_prep.features import TINY, FeatureConfig

    weights = ""
    if options.embedding != "spectral":
        if options.imagebind_weights is None:
            raise UsageError(
                f"--embedding {options.embedding} needs --imagebind-weights FILE (or $DSAML_IMAGEBIND), "
                "which 'dsaml convert imagebind' writes"
            )
        from data_prep.imagebind.weights import digest

        weights = digest(options.imagebind_weights)
    return dataclasses.replace(
        FeatureConfig() if options.features == "full" else TINY,
        embedding=options.embedding,
        embedding_per=options.embedding_per,
        weights=weights,
    )


def _engine(options: argparse.Namespace) -> Engine | None:
    if not options.beam_runner:
        return None
    from data_prep.beam import beam_engine

    return beam_engine(options.beam_runner, shlex.split(options.beam_options), options.workers)


def _describe(options: argparse.Namespace) -> None:
    from data_prep.card import CARD_FOLDER, read_card
    from data_prep.shards import find_dataset

    folder = find_dataset(options.data)
    print(read_card(folder))
    print(f"The same with its figures: {folder / CARD_FOLDER}")


def _train(options: argparse.Namespace) -> None:
    from data_prep.shards import read_corpus
    from dsaml_jax.config import preset, with_settings
    from dsaml_jax.progress import Console
    from dsaml_jax.training import train

    settings = [f"training.{key}={value}" for key, value in
                (("task", options.task), ("steps", options.steps), ("seed", options.seed))
                if value is not None]  # fmt: skip
    config = with_settings(preset(options.preset), settings + options.set)
    console = Console(options.quiet)
    with console.counter("reading") as progress:
        corpus = read_corpus(options.data, stream_above_gb=options.stream_above, progress=progress)
    if corpus.log_mel is None:
        console.say(f"features are larger than {options.stream_above:g} GB: streamed from disk")
    train(config, corpus, options.workdir, console)
    console.say(
        f"run: {options.workdir}; next: dsaml evaluate --data {options.data} --workdir {options.workdir}"
    )


def _evaluate(options: argparse.Namespace) -> None:
    from data_prep.shards import read_corpus
    from dsaml_jax.checkpoints import load_model
    from dsaml_jax.evaluation import evaluate, table, write_evaluation
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    dmer = load_model(options.dmer) if options.dmer else None
    evaluation, _ = evaluate(
        load_model(options.workdir),
        read_corpus(options.data, stream_above_gb=options.stream_above),
        protocol=options.protocol,
        dmer=dmer,
        console=console,
    )
    write_evaluation(evaluation, options.workdir)
    facts = evaluation.facts
    console.say(
        f"{evaluation.task}, protocol {evaluation.protocol}, {facts['corpus']} with {facts['embedding']} "
        f"embedding, {facts['rows_per_method']} curves of {facts['songs']} songs: mean ± sd over curves"
    )
    console.say(table(evaluation))
    console.say(f"written: {options.workdir / 'results.json'}, {options.workdir / 'per_song.csv'}")


def _personalize(options: argparse.Namespace) -> None:
    from dsaml_jax.checkpoints import load_model, require_free
    from dsaml_jax.personalize import personalize, save_personalized
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    require_free(options.out)
    loaded = load_model(options.checkpoint)
    result = personalize(loaded, options.audio, options.annotations, options.imagebind_weights)
    save_personalized(options.out, loaded, result, options.audio.name)
    for name, before, after in zip(
        ("arousal", "valence"), result.before, result.after, strict=True
    ):
        console.say(f"{name}: RMSE on your song {before:.3f} before, {after:.3f} after")
    console.say(
        f"adapted to {result.labelled_seconds:g} s of annotation; "
        f"next: dsaml predict --checkpoint {options.out} SONG --out DIR"
    )


def _predict(options: argparse.Namespace) -> None:
    from data_prep.figures import write_png
    from dsaml_jax.checkpoints import load_model
    from dsaml_jax.figures import song_curve
    from dsaml_jax.personalize import predict_file, write_curve
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    stems = [song.stem for song in options.songs]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    if twice:
        raise UsageError(f"two songs would both be written to {min(twice)}.csv; predict them apart")
    missing = [song for song in options.songs if not song.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such sound file")
    loaded = load_model(options.checkpoint)
    if loaded.info.note:
        console.say(f"model: {loaded.info.note}")
    failed = []
    with console.bar(len(options.songs), "predicting", "song") as bar:
        for song in options.songs:
            try:
                curve = predict_file(loaded, song, options.imagebind_weights)
                write_curve(options.out / f"{song.stem}.csv", curve)
                figure = song_curve(curve.clip(-1.0, 1.0), song.name)
                write_png(figure, options.out / f"{song.stem}.png")
            except DataError as error:
                failed.append(str(error))
            bar.update()
    done = len(options.songs) - len(failed)
    if done:
        console.say(f"written: {done} x CSV and PNG in {options.out}")
    if failed:
        raise DataError("; ".join(failed))


def _convert(options: argparse.Namespace) -> None:
    if not options.file.is_file():
        raise UsageError(f"{options.file}: no such file")
    if options.kind == "reference":
        _convert_reference(options)
    else:
        _convert_imagebind(options)


def _convert_reference(options: argparse.Namespace) -> None:
    from data_prep.features import FeatureConfig
    from dsaml_jax import convert
    from dsaml_jax.checkpoints import RunInfo, require_free, save_model
    from dsaml_jax.config import RunConfig
    from dsaml_jax.progress import Console

    require_free(options.out)
    state_dict = convert.load_torch_file(options.file)
    model = convert.infer_config(state_dict)
    features = FeatureConfig()
    if model.width != features.embedding_width:
        raise UsageError(
            f"{options.file}: width {model.width}; the features give {features.embedding_width} numbers"
        )
    variables = convert.from_torch(state_dict, model)
    note = f"converted from {options.file.name}"
    save_model(options.out, variables, RunInfo(RunConfig(model=model), features, "imported", note))
    console = Console(options.quiet)
    console.say(f"converted: {options.out} (width {model.width}, {model.num_layers} layers)")
    console.say(
        "the published model was trained on ImageBind embeddings; with the spectral embedding it is a start "
        "for training (--set training.init_from=...), not a finished model"
    )


def _convert_imagebind(options: argparse.Namespace) -> None:
    from data_prep.imagebind import weights
    from dsaml_jax.progress import Console

    if options.out.exists():
        raise UsageError(f"{options.out} exists; choose another --out")
    weights.save(options.out, weights.read_published(options.file), source=options.file.name)
    console = Console(options.quiet)
    console.say(f"converted: {options.out}, the audio tower of ImageBind ({weights.LICENCE})")
    console.say(f"next: dsaml prepare ... --embedding imagebind --imagebind-weights {options.out}")


# ---- What they accept.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsaml",
        description="Predicts how arousal and valence of music move, for listeners in general and, after one "
        "annotated song, for one listener.",
        epilog=_EPILOG.format("dsaml COMMAND"),
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], None], summary: str, more: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}. {more}",
            formatter_class=argparse.RawTextHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument("--quiet", action="store_true", help="print nothing but errors")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        return command

    demo = add("demo", _demo, "Make a corpus, train, evaluate, personalise and write a report",
               "A few minutes on two cores. Start it again to go on after an interruption.")  # fmt: skip
    demo.add_argument(
        "--quick", action="store_true", help="everything smaller: under two minutes, poor numbers"
    )
    demo.add_argument(
        "--workdir",
        type=Path,
        default=Path("dsaml_demo"),
        help="where everything goes (default: %(default)s)",
    )
    demo.add_argument(
        "--seed", type=int, default=0, help="of the corpus and of training (default: %(default)s)"
    )

    prepare = add("prepare", _prepare, "Turn a corpus into TFDS shards of features",
                  "Done once; training never touches a sound file.")  # fmt: skip
    prepare.add_argument("corpus", choices=("deam", "pmemo", "folder", "synthetic"),
                         help="deam, pmemo: your copy of it, see the README\n"
                              "folder: your own study: audio/ and annotations.csv with the columns\n"
                              "  song_id, annotator_id, time [s], arousal, valence (both in [-1, 1])\n"
                              "synthetic: made here, in DEAM's layout")  # fmt: skip
    prepare.add_argument(
        "--root",
        type=Path,
        required=True,
        help="folder of the corpus (synthetic: where to make it)",
    )
    prepare.add_argument("--out", type=Path, help="folder for prepared data")
    prepare.add_argument(
        "--check",
        action="store_true",
        help="read every file, list what is missing or damaged, and stop there",
    )
    prepare.add_argument("--features", choices=("full", "tiny"), default="full",
                         help="full: 51 x 128 patches, as published\ntiny: 11 x 32, for --preset tiny (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--embedding", choices=("spectral", "imagebind", "imagebind-published"), default="spectral",
                         help="global embedding\nspectral: statistics of the mel bands, no weights (default)\n"
                              "imagebind: its audio tower, at the rate it was trained on\n"
                              "imagebind-published: the same, fed 44.1 kHz as published")  # fmt: skip
    _add_imagebind_weights(prepare)
    prepare.add_argument(
        "--embedding-per",
        choices=("clip", "step"),
        default="clip",
        help="clip: one embedding per window of 30 s\nstep: one for the 30 s around every step (default: %(default)s)",
    )
    prepare.add_argument(
        "--songs", type=int, help="only so many songs (synthetic: make so many; default 400)"
    )
    prepare.add_argument(
        "--annotators",
        type=int,
        default=100,
        help="synthetic: how many listeners (default: %(default)s)",
    )
    prepare.add_argument(
        "--seed", type=int, default=0, help="synthetic: of the corpus (default: %(default)s)"
    )
    prepare.add_argument("--workers", type=int, help="processes (default: all cores)")
    prepare.add_argument("--beam-runner", metavar="RUNNER",
                         help="write the shards by Apache Beam (extra [beam]): DirectRunner, FlinkRunner, ...\n"
                              "--root and --out must be seen by every worker under the same path")  # fmt: skip
    prepare.add_argument("--beam-options", default="", metavar="FLAGS",
                         help="flags of the runner, in one string: '--flink_master=host:8081 --parallelism=64'")  # fmt: skip

    describe = add("describe", _describe, "Show the data card of a prepared corpus")
    describe.add_argument("--data", type=Path, required=True, help="folder of prepared data")

    train = add("train", _train, "Train, or go on with, a run",
                "The same --workdir with the same settings continues after an interruption.")  # fmt: skip
    train.add_argument("--data", type=Path, required=True, help="folder of prepared data")
    train.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    _add_stream_above(train)
    train.add_argument(
        "--task",
        choices=("pdmer", "dmer"),
        help="pdmer: meta-learning over annotators (default)\ndmer: the mean curve",
    )
    train.add_argument("--steps", type=int, help="optimiser steps (default: the preset's)")
    train.add_argument("--seed", type=int, help="of everything random (default: 0)")
    train.add_argument("--preset", choices=("reference", "default", "tiny"), default="default",
                       help="reference: the published settings\ndefault: the same network, adapting as we found better\ntiny: for a CPU, with --features tiny")  # fmt: skip
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                       help="any setting, e.g. --set meta.steps=4; a wrong key lists the known ones")  # fmt: skip

    evaluate = add("evaluate", _evaluate, "Score a run on the test songs, beside simple baselines")
    evaluate.add_argument("--data", type=Path, required=True, help="folder of prepared data")
    evaluate.add_argument(
        "--workdir", type=Path, required=True, help="folder of the run; results go there"
    )
    evaluate.add_argument("--protocol", choices=("clean", "reference"), default="clean",
                          help="clean: unseen songs and annotators, adapt on another song (default)\nreference: as published, adapt on 30 s of the same song")  # fmt: skip
    _add_stream_above(evaluate)
    evaluate.add_argument(
        "--dmer", type=Path, help="a DMER run, for the baselines that start from it"
    )

    personalize = add(
        "personalize", _personalize, "Adapt a model to one listener by one annotated song"
    )
    personalize.add_argument("--checkpoint", type=Path, required=True, help="folder of a run")
    personalize.add_argument("--audio", type=Path, required=True, help="the song")
    personalize.add_argument("--annotations", type=Path, required=True,
                             help="CSV with the columns time [s], arousal, valence; values in [-1, 1], any rate")  # fmt: skip
    personalize.add_argument(
        "--out", type=Path, required=True, help="folder for the personal model"
    )

    _add_imagebind_weights(personalize)

    predict = add("predict", _predict, "Predict curves of sound files: SONG.csv and SONG.png")
    predict.add_argument(
        "--checkpoint", type=Path, required=True, help="folder of a run or of a personal model"
    )
    predict.add_argument(
        "songs",
        type=Path,
        nargs="+",
        metavar="SONG",
        help="any file libsndfile reads, 30 s or more",
    )
    predict.add_argument("--out", type=Path, required=True, help="folder for the results")
    _add_imagebind_weights(predict)

    convert = add("convert", _convert, "Bring published weights over (needs the extra [torch])")
    convert.add_argument("kind", choices=("reference", "imagebind"),
                         help="reference: the state_dict of the published implementation -> a checkpoint\n"
                              "imagebind: imagebind_huge.pth -> its audio tower as safetensors")  # fmt: skip
    convert.add_argument("file", type=Path, help="the .pth file")
    convert.add_argument(
        "--out", type=Path, required=True, help="folder of the checkpoint, or the .safetensors file"
    )
    return parser


def _add_imagebind_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--imagebind-weights",
        type=Path,
        metavar="FILE",
        default=os.environ.get("DSAML_IMAGEBIND"),
        help="for ImageBind embeddings: what 'dsaml convert imagebind' wrote (default: $DSAML_IMAGEBIND)",
    )


def _add_stream_above(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--stream-above",
        type=float,
        metavar="GB",
        default=8.0,
        help="features larger than this stay on disk and are streamed (default: %(default)g)",
    )


if __name__ == "__main__":
    sys.exit(main())
