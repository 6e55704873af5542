"""What each command does. Imports are inside, so that each loads what it needs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.base import DataError, printable
from dsaml_jax.errors import UsageError

if TYPE_CHECKING:
    from data_prep.base import AnnotatedCorpus
    from data_prep.curves import Flat
    from data_prep.features import FeatureConfig
    from data_prep.shards import Corpus
    from data_prep.writing import Engine
    from dsaml_jax.config import TrainingConfig
    from dsaml_jax.corpus import Fold
    from dsaml_jax.experiment import Experiment, Scale
    from dsaml_jax.progress import Console


def demo_command(options: argparse.Namespace) -> None:
    """Runs `dsaml demo`."""
    from dsaml_jax.demo import run_demo
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    run_demo(options.workdir, quick=options.quick, seed=options.seed, console=console)


def prepare_command(options: argparse.Namespace) -> None:
    """Runs `dsaml prepare`."""
    from data_prep.card import CARD_FOLDER, LEFT_OUT_FILE, write_left_out
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
    shortened = False
    limit = None if options.corpus == "synthetic" else options.songs  # composed as many as asked
    for note in _few(corpus.notes):
        console.say(f"note: {note}")
    for dimension, flat in corpus.flat.items():
        what = "left out" if options.flat == "drop" else "kept"
        console.say(
            f"{flat.flat} of {flat.traces} traces of {dimension} hardly move, by {flat.people} people; {what} (--flat)"
        )
    for reason, count in corpus.dropped.items():
        console.say(f"left out: {count} {reason}")

    def show(checked: Checked) -> None:
        nonlocal shortened
        shortened = checked.is_shortened
        for line in checked.lines():
            console.say(f"check: {line}")
        console.say(f"check: {len(checked.songs)} songs of {corpus.name} can be used")

    if options.check:
        with console.counter("reading every file") as progress:
            checked = check(
                corpus, limit=limit, thorough=True, workers=options.workers, progress=progress
            )
        show(checked)
        if shortened:
            everything = (options.out or Path()) / LEFT_OUT_FILE
            write_left_out(everything, checked.all_lines())
            console.say(f"each of them: {everything}")
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
        engine=_engine(options, console),
        display=console.counter,
        on_checked=show,
    )
    facts = read_facts(folder)
    counts = ", ".join(f"{count} {split}" for split, count in facts["songs"].items())
    console.say(f"songs of {corpus.name}: {counts} ({corpus.provenance.licence})")
    console.say(
        f"global embedding: {facts['features']['embedding']}, per {facts['features']['embedding_per']}"
    )
    console.say(f"prepared: {folder}")
    if shortened:
        console.say(f"each file that was left out or cut: {folder / CARD_FOLDER / LEFT_OUT_FILE}")
    console.say(f"its data card: dsaml describe --data {folder}")


def _few(messages: Sequence[str], most: int = 10) -> list[str]:
    """The first of many, and how many more there are; the data card has all."""
    if len(messages) <= most:
        return list(messages)
    return [*messages[:most], f"and {len(messages) - most} more like these; the data card has all"]


def _read_annotated(options: argparse.Namespace, console: Console) -> AnnotatedCorpus:
    flat: Flat = options.flat or "keep"
    if options.audio_start is not None and options.corpus not in ("deam", "pmemo"):
        raise UsageError(
            "--audio-start is for deam and pmemo: elsewhere times count from the file's start"
        )
    if options.flat is not None and options.corpus == "pmemo":
        raise UsageError("--flat is for corpora with single raters; pmemo has their mean alone")
    if options.corpus == "deam":
        from data_prep.deam import read_deam

        return read_deam(options.root, audio_start=options.audio_start or 0.0, flat=flat)
    if options.corpus == "pmemo":
        from data_prep.pmemo import read_pmemo

        return read_pmemo(options.root, audio_start=options.audio_start or 0.0)
    if options.corpus == "folder":
        from data_prep.folder import read_folder

        return read_folder(options.root, options.name, flat=flat)
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
    return read_deam(options.root, name="synthetic", provenance=PROVENANCE, flat=flat)


def _feature_config(options: argparse.Namespace) -> FeatureConfig:
    from data_prep.features import TINY, FeatureConfig, needs_imagebind

    weights = ""
    if needs_imagebind(options.embedding):
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
        embedding_dtype=options.embedding_dtype,
        weights=weights,
    )


def _engine(options: argparse.Namespace, console: Console) -> Engine | None:
    if not options.beam_runner:
        if options.beam_options:
            raise UsageError("--beam-options belong to a --beam-runner")
        return None
    from data_prep.beam import beam_engine

    console.say(f"features: computed by Beam's {options.beam_runner}")
    return beam_engine(options.beam_runner, shlex.split(options.beam_options), options.workers)


def describe_command(options: argparse.Namespace) -> None:
    """Runs `dsaml describe`."""
    from data_prep.card import CARD_FOLDER, read_card
    from data_prep.shards import find_dataset
    from dsaml_jax.progress import show

    folder = find_dataset(options.data)
    show(read_card(folder))
    show(f"The same with its figures: {folder / CARD_FOLDER}")


def train_command(options: argparse.Namespace) -> None:
    """Runs `dsaml train`."""
    import jax

    from data_prep.shards import read_corpus
    from dsaml_jax.config import preset, with_settings
    from dsaml_jax.devices import describe_devices, is_first
    from dsaml_jax.progress import Console
    from dsaml_jax.training import train

    settings = [f"training.{key}={value}" for key, value in
                (("task", options.task), ("steps", options.steps), ("seed", options.seed),
                 ("protocol", options.protocol), ("folds", options.folds), ("song_folds", options.song_folds), ("fold", options.fold))
                if value is not None]  # fmt: skip
    config = with_settings(preset(options.preset), settings + options.set)
    _join_processes(options)
    console = Console(options.quiet or not is_first())
    with console.counter("reading") as progress:
        corpus = read_corpus(options.data, stream_above_gb=options.stream_above, progress=progress)
    cache = jax.config.values["jax_compilation_cache_dir"]
    console.say(f"{describe_devices()}; compiled programs are kept in {cache}")
    if corpus.log_mel is None:
        console.say(f"features are larger than {options.stream_above:g} GB: streamed from disk")
    train(config, corpus, options.workdir, console)
    console.say(
        f"run: {options.workdir}; next: dsaml evaluate --data {options.data} --workdir {options.workdir}"
    )


def _join_processes(options: argparse.Namespace) -> None:
    from dsaml_jax.devices import join_processes

    asked = (options.coordinator, options.processes, options.process)
    if options.distributed:
        join_processes(*asked)
    elif any(value is not None for value in asked):
        raise UsageError("--coordinator, --processes and --process need --distributed")


def evaluate_command(options: argparse.Namespace) -> None:
    """Runs `dsaml evaluate`."""
    from data_prep.shards import read_corpus
    from dsaml_jax.checkpoints import load_model
    from dsaml_jax.evaluation import evaluate, keep_evaluation, table
    from dsaml_jax.progress import Console
    from dsaml_jax.run_report import write_run_report

    console = Console(options.quiet)
    dmer = load_model(options.dmer) if options.dmer else None
    run = load_model(options.workdir)
    _require_asked_fold(options, run.info.config.training)
    evaluation, _ = evaluate(
        run,
        read_corpus(options.data, stream_above_gb=options.stream_above),
        protocol=options.protocol,
        dmer=dmer,
        seen_songs=options.seen_songs,
        console=console,
    )
    kept = keep_evaluation(evaluation, options.workdir)
    facts = evaluation.facts
    console.say(
        f"{evaluation.task}, protocol {evaluation.protocol}, {facts['corpus']} with {facts['embedding']} "
        f"embedding, {facts['rows_per_method']} curves of {facts['songs']} songs, {facts['held_out']}: "
        f"mean ± sd over {'people' if evaluation.task == 'pdmer' else 'songs'}"
    )
    console.say(table(evaluation))
    console.say(f"written: results.json and per_song.csv in {options.workdir}, and kept in {kept}")
    write_run_report(options.workdir)


def _require_asked_fold(options: argparse.Namespace, training: TrainingConfig) -> None:
    """A run is judged on the fold that it was trained for; naming another is a mistake."""
    for name in ("folds", "song_folds", "fold"):
        asked = getattr(options, name)
        if asked is not None and asked != getattr(training, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {asked}: the run was trained with {getattr(training, name)}; "
                "who is held out is the run's to say"
            )


def experiment_command(options: argparse.Namespace) -> None:
    """Runs `dsaml experiment`."""
    import importlib

    from dsaml_jax.experiment import Runner, write_outcomes
    from dsaml_jax.experiment.scales import FULL, QUICK, STANDARD
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


FOLDS = 5
FEWEST_PEOPLE = 4
"""An experiment takes folds where the corpus's own split leaves fewer people to be judged."""


def _corpus_of_experiment(options: argparse.Namespace, scale: Scale, console: Console) -> Corpus:
    """Prepared data; the synthetic corpus is made where there is none."""
    from data_prep.deam import read_deam
    from data_prep.features import TINY
    from data_prep.prepare import prepare
    from data_prep.shards import read_corpus
    from data_prep.synthetic import write_corpus
    from data_prep.synthetic.corpus import PROVENANCE

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
            root = write_corpus(
                options.out / "corpus", songs=scale.songs, annotators=scale.annotators,
                raters=scale.raters, progress=progress,
            )  # fmt: skip
        annotated = read_deam(root, name="synthetic", provenance=PROVENANCE)
        prepare(annotated, data, TINY, display=console.counter)
    corpus = read_corpus(data)
    if options.dataset is not None and corpus.name != options.dataset:
        raise UsageError(f"{data} holds {corpus.name}, not {options.dataset}")
    return corpus


def personalize_command(options: argparse.Namespace) -> None:
    """Runs `dsaml personalize`."""
    from dsaml_jax.checkpoints import at_strength, load_model, require_free
    from dsaml_jax.personalize import personalize, save_personalized
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    require_free(options.out)
    loaded = at_strength(load_model(options.checkpoint), options.strength)
    result = personalize(loaded, options.audio, options.annotations, options.imagebind_weights)
    save_personalized(options.out, loaded, result, options.audio.name)
    for name, before, after in zip(
        ("arousal", "valence"), result.before, result.after, strict=True
    ):
        if not math.isfinite(before):
            continue
        console.say(f"{name}: RMSE on your song {before:.3f} before, {after:.3f} after")
    console.say(
        f"adapted to {result.labelled_seconds:g} s of annotation; "
        f"next: dsaml predict --checkpoint {options.out} SONG --out DIR"
    )


def predict_command(options: argparse.Namespace) -> None:
    """Runs `dsaml predict`."""
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


def studio_command(options: argparse.Namespace) -> None:
    """Runs `dsaml studio`."""
    import os

    try:
        from dsaml_jax.studio.serving import Settings, serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the studio needs more packages ({error.name}): pip install 'dsaml_jax[studio]'"
        ) from None
    from dsaml_jax.progress import Console, show

    Console(options.quiet).say("reading songs, and compiling what adapting needs")
    settings = Settings(
        checkpoint=options.checkpoint, songs=options.songs, study=options.study, everyone=options.everyone,
        host=options.host, port=options.port, allowed_hosts=tuple(options.allow_host),
        password=os.environ.get("DSAML_STUDIO_PASSWORD", ""), blind=options.blind, ratings=options.ratings,
        uploads=not options.no_uploads, weights=options.imagebind_weights, strength=options.strength,
    )  # fmt: skip
    serve(settings, show)


def checkpoint_command(options: argparse.Namespace) -> None:
    """Runs `dsaml checkpoint`."""
    from dsaml_jax.inspection import checkpoint_lines, export_model
    from dsaml_jax.progress import show

    _stay_on_the_host()

    if options.action == "export":
        if options.out is None:
            raise UsageError("--out is needed: the .safetensors file")
        count = export_model(options.directory, options.out)
        show(f"exported: {options.out} ({count:,} numbers of the best checkpoint)")
        return
    verify = options.action == "verify"
    lines = checkpoint_lines(options.directory, verify=verify)
    scores = [line.score for line in lines if line.score is not None]
    for line in lines:
        score = "-" if line.score is None else f"{line.score:.4f}"
        mark = " (best)" if scores and line.score == max(scores) else ""
        show(f"step {line.step}: score {score}{mark}, {line.size / 1e6:.1f} MB, {line.state}")
    damaged = [line for line in lines if "damaged" in line.state]
    if verify and damaged:
        raise UsageError(
            f"{len(damaged)} of {len(lines)} checkpoints are damaged; 'dsaml train' with the same settings puts "
            "them aside and goes on from the newest whole one"
        )


def _stay_on_the_host() -> None:
    """Whoever looks at a run leaves the accelerator to it."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def runs_command(options: argparse.Namespace) -> None:
    """Runs `dsaml runs`."""
    from dsaml_jax.progress import show

    if options.action != "replay":
        _stay_on_the_host()
    if options.action == "ls":
        from dsaml_jax.inspection import runs_table

        show(runs_table(options.path))
    elif options.action == "show":
        from dsaml_jax.inspection import run_lines
        from dsaml_jax.run_report import write_run_report
        from dsaml_jax.runs import REPORT_FILE

        show("\n".join(run_lines(options.path)))
        write_run_report(options.path)
        show(f"report: {options.path / REPORT_FILE}")
    else:
        from dsaml_jax.failures import read_bundle, replay, report

        bundle = read_bundle(options.path)
        show("\n".join(report(bundle, replay(bundle))))


def convert_command(options: argparse.Namespace) -> None:
    """Runs `dsaml convert`."""
    if not options.file.is_file():
        raise UsageError(f"{options.file}: no such file")
    if options.kind == "reference":
        _convert_reference(options)
    else:
        _convert_imagebind(options)


def _convert_reference(options: argparse.Namespace) -> None:
    from data_prep.features import FeatureConfig
    from dsaml_jax import convert
    from dsaml_jax.checkpoints import RunInfo, require_free, require_variables, save_model
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
    require_variables(variables, model, features, str(options.file))
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
    tensors = weights.read_published(options.file)
    try:
        weights.save(options.out, tensors, source=printable(options.file.name))
    except DataError as error:
        raise DataError(f"{options.file}: {error}") from None
    console = Console(options.quiet)
    console.say(f"converted: {options.out}, the audio tower of ImageBind ({weights.LICENCE})")
    console.say(f"next: dsaml prepare ... --embedding imagebind --imagebind-weights {options.out}")
