"""`dsaml prepare`: a corpus becomes shards of features."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.base import DataError
from dsaml_jax.errors import UsageError

if TYPE_CHECKING:
    from data_prep.base import AnnotatedCorpus
    from data_prep.writing import Engine
    from dsaml_jax.progress import Console

from data_prep.features import EMBEDDINGS, FeatureConfig
from dsaml_jax.cli.arguments import (
    LIMITS,
    Register,
    add_convention,
    add_imagebind_weights,
    convention_of,
    positive,
)


def add(register: Register) -> None:
    """Registers `dsaml prepare` and its arguments."""
    prepare = register("prepare", run, "Turn a corpus into TFDS shards of features",
                  "Done once; training never touches a sound file. Start it again to go on after an\n"
                  f"interruption, or when the corpus has grown: no sound is decoded twice.\n{LIMITS}", goes_on=True)  # fmt: skip
    prepare.add_argument("corpus", choices=tuple(READERS),
                         help="deam, pmemo, vgmidi, merp: your copy of it, see data_prep/README.md\n"
                              "folder: your own study: audio/ and annotations.csv with the columns\n"
                              "  song_id, annotator_id, time [s], arousal, valence (or one of them; in [-1, 1])\n"
                              "wide: a study of one dimension: audio/ and ratings/SONG.csv with a column of times and one\n"
                              "  for each rater\n"
                              "synthetic: made here, in DEAM's layout")  # fmt: skip
    prepare.add_argument("--root", type=Path, required=True, help="folder of the corpus (synthetic: where to make it)")  # fmt: skip
    prepare.add_argument("--out", type=Path, help="folder for prepared data")
    prepare.add_argument("--soundfont", type=Path, metavar="FILE",
                         help="vgmidi: what plays the MIDI files, kept in OUT/vgmidi/rendered (extra [midi], which brings a\n"
                              "small one)")  # fmt: skip
    prepare.add_argument("--check", action="store_true", help="read every file, list what is missing or damaged, and stop there\n"
                              "(vgmidi needs --out for it, where its pieces are rendered)")  # fmt: skip
    prepare.add_argument("--features", choices=("full", "tiny"), default="full",
                         help="full: 51 x 128 patches, as published\ntiny: 11 x 32, for --preset tiny (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--embedding", choices=EMBEDDINGS, default=FeatureConfig.embedding,
                         help="global embedding (default: %(default)s)\nspectral: statistics of the mel bands, nothing learned, fast\n"
                              "musicnn: what a music tagger hears; nothing to download\n"
                              "musicnn-spectral: both, side by side\n"
                              "imagebind: its audio tower, at the rate it was trained on\n"
                              "imagebind-reference: the same, fed 44.1 kHz as published")  # fmt: skip
    prepare.add_argument("--embedding-per", choices=("clip", "step"), default="clip",
                         help="clip: one embedding per window of 30 s\nstep: one for the 30 s around every step (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--embedding-dtype", choices=("float32", "bfloat16"), default="float32",
                         help="in which ImageBind computes; bfloat16 is for accelerators, 1 %% off (default: %(default)s)")  # fmt: skip
    add_imagebind_weights(prepare)
    prepare.add_argument("--songs", type=int, help="only so many songs (synthetic: make so many; default 400)")  # fmt: skip
    prepare.add_argument("--audio-start", type=float, metavar="SECONDS",
                         help="deam, pmemo: the sound files are excerpts that begin at this second of the song")  # fmt: skip
    prepare.add_argument("--flat", choices=("keep", "drop"),
                         help="traces of single raters that hardly move: keep them (default), or drop them in the\n"
                              "dimension in which they are flat, as published")  # fmt: skip
    add_convention(prepare, "folder, wide")
    prepare.add_argument("--dimension", choices=("arousal", "valence"), help="wide: what the ratings are kept as (default: arousal)")  # fmt: skip
    prepare.add_argument(
        "--name", help="folder, wide: name of the corpus (default: that of the folder)"
    )
    prepare.add_argument("--annotators", type=int, default=100, help="synthetic: how many listeners (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--seed", type=int, default=0, help="synthetic: of the corpus (default: %(default)s)")  # fmt: skip
    prepare.add_argument("--workers", type=positive, help="processes (default: all cores)")
    prepare.add_argument("--beam-runner", metavar="RUNNER",
                         help="write the shards by Apache Beam (extra [beam]): DirectRunner, FlinkRunner, ...\n"
                              "--root and --out must be seen by every worker under the same path")  # fmt: skip
    prepare.add_argument("--beam-options", default="", metavar="FLAGS",
                         help="flags of the runner, in one string: --beam-options='--flink_master=host:8081'")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml prepare`."""
    from data_prep.card import CARD_FOLDER, LEFT_OUT_FILE, write_left_out
    from data_prep.prepare import prepare
    from data_prep.shards import read_facts
    from data_prep.validation import Checked, check
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    if options.songs is not None and options.songs < 3:
        raise UsageError("--songs must be 3 or more, one each for training, validation and test")
    if options.out is None and options.corpus == "vgmidi":
        raise UsageError("--out is needed: the folder for prepared data, and for what is rendered")
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
            named = f" ({'; '.join(checked.lines())})" if options.quiet else ""
            raise DataError(
                f"files are missing or damaged{named}; 'prepare' without --check leaves them out"
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
    if options.audio_start is not None and options.corpus not in EXCERPTS:
        raise UsageError(
            f"--audio-start is for {' and '.join(EXCERPTS)}: elsewhere times count from the file's start"
        )
    if options.flat is not None and options.corpus in MEANS_ONLY:
        raise UsageError(
            f"--flat is for corpora with single raters; {options.corpus} has their mean alone"
        )
    if options.soundfont is not None and options.corpus != "vgmidi":
        raise UsageError("--soundfont is for vgmidi, whose pieces are MIDI files")
    for option in ("time_unit", "scale", "max_gap"):
        if getattr(options, option) is not None and options.corpus not in OWN_TABLES:
            raise UsageError(
                f"--{option.replace('_', '-')} is for {' and '.join(OWN_TABLES)}, tables of one's own; what "
                f"{options.corpus} means is known"
            )
    if options.name is not None and options.corpus not in OWN_TABLES:
        raise UsageError(f"--name is for {' and '.join(OWN_TABLES)}; {options.corpus} has one")
    if options.dimension is not None and options.corpus != "wide":
        raise UsageError("--dimension is for wide, tables of one dimension")
    return READERS[options.corpus](options, console)


def _read_deam(options: argparse.Namespace, _: Console) -> AnnotatedCorpus:
    from data_prep.deam import read_deam

    return read_deam(
        options.root, audio_start=options.audio_start or 0.0, flat=options.flat or "keep"
    )


def _read_pmemo(options: argparse.Namespace, _: Console) -> AnnotatedCorpus:
    from data_prep.pmemo import read_pmemo

    return read_pmemo(options.root, audio_start=options.audio_start or 0.0)


def _read_folder(options: argparse.Namespace, _: Console) -> AnnotatedCorpus:
    from data_prep.folder import read_folder

    return read_folder(
        options.root,
        options.name,
        flat=options.flat or "keep",
        convention=convention_of(options),
    )


def _read_wide(options: argparse.Namespace, _: Console) -> AnnotatedCorpus:
    from data_prep.wide import read_wide

    return read_wide(
        options.root,
        options.name,
        dimension=options.dimension or "arousal",
        flat=options.flat or "keep",
        convention=convention_of(options),
    )


def _read_merp(options: argparse.Namespace, _: Console) -> AnnotatedCorpus:
    from data_prep.merp import read_merp

    return read_merp(options.root, flat=options.flat or "keep")


def _read_vgmidi(options: argparse.Namespace, console: Console) -> AnnotatedCorpus:
    from data_prep.midi import RENDERED, render_songs
    from data_prep.vgmidi import read_vgmidi

    corpus = read_vgmidi(options.root, flat=options.flat or "keep")
    with console.counter("rendering", "song") as progress:
        return render_songs(
            corpus,
            options.out / corpus.name / RENDERED,
            soundfont=options.soundfont,
            limit=options.songs,
            workers=options.workers,
            progress=progress,
        )


def _compose(options: argparse.Namespace, console: Console) -> AnnotatedCorpus:
    from data_prep.synthetic import read_synthetic, write_corpus

    with console.counter("composing") as progress:
        write_corpus(
            options.root,
            songs=options.songs or 400,
            annotators=options.annotators,
            seed=options.seed,
            workers=options.workers,
            progress=progress,
        )
    return read_synthetic(options.root, flat=options.flat or "keep")


Reader = Callable[[argparse.Namespace, "Console"], "AnnotatedCorpus"]
READERS: dict[str, Reader] = {
    "deam": _read_deam,
    "pmemo": _read_pmemo,
    "vgmidi": _read_vgmidi,
    "merp": _read_merp,
    "folder": _read_folder,
    "wide": _read_wide,
    "synthetic": _compose,
}
"""What reads each corpus; another one is added here, and to the help of `corpus` above."""

EXCERPTS = ("deam", "pmemo")
"""Corpora whose sound may be excerpts."""

OWN_TABLES = ("folder", "wide")
"""Studies of one's own, whose numbers may mean something else."""

MEANS_ONLY = ("pmemo",)
"""Corpora without ratings by single people."""


def _feature_config(options: argparse.Namespace) -> FeatureConfig:
    from data_prep.features import TINY, needs_imagebind

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
