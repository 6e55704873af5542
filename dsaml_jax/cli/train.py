"""`dsaml train`: a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsaml_jax.cli.arguments import (
    PROTOCOLS,
    Register,
    add_data,
    add_folds,
    add_stream_above,
    positive,
)
from dsaml_jax.errors import UsageError


def add(register: Register) -> None:
    """Registers `dsaml train` and its arguments."""
    train = register("train", run, "Train, or go on with, a run",
                "The same --workdir with the same settings continues after an interruption. SIGTERM and ctrl-C save\n"
                "first; a second one insists.", goes_on=True)  # fmt: skip
    add_data(train)
    train.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    add_stream_above(train)
    train.add_argument("--task", choices=("pdmer", "dmer"),
                       help="pdmer: meta-learning over annotators (default)\ndmer: the mean curve")  # fmt: skip
    train.add_argument("--protocol", choices=PROTOCOLS,
                       help="clean: hold out people and songs (default)\nreference: as published, hold out songs alone; DMER then learns the corpus's own mean curves.\nPDMER takes people with more than 15 songs with --preset reference")  # fmt: skip
    add_folds(train)
    train.add_argument("--steps", type=int, help="optimiser steps (default: the preset's)")
    train.add_argument("--seed", type=int, help="of everything random (default: 0)")
    train.add_argument("--preset", choices=("reference", "default", "tiny", "levels"), default="default",
                       help="reference: the published settings\ndefault: the same network, adapting as we found better\ntiny: for a CPU, with --features tiny\nlevels: it, and how high songs lie; for real music")  # fmt: skip
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                       help="any setting, e.g. --set meta.steps=4; a wrong key lists the known ones")  # fmt: skip
    train.add_argument("--distributed", action="store_true",
                       help="this is one of several processes that train together; each is started with the same\n"
                            "command and sees the same --data and --workdir. Slurm, Open MPI, Kubernetes and TPU pods\n"
                            "say who is who; elsewhere the three options below do")  # fmt: skip
    train.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first process")
    train.add_argument("--processes", type=positive, metavar="N", help="how many there are")
    train.add_argument("--process", type=int, metavar="I", help="which this is, from 0")


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml train`."""
    import jax

    from data_prep.several import read_corpora
    from dsaml_jax.config import preset, with_settings
    from dsaml_jax.corpus import fold_of
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
        corpus = read_corpora(
            *options.data, stream_above_gb=options.stream_above, progress=progress
        )
    cache = jax.config.values["jax_compilation_cache_dir"]
    console.say(f"{describe_devices()}; compiled programs are kept in {cache}")
    if corpus.log_mel is None:
        console.say(f"features are larger than {options.stream_above:g} GB: streamed from disk")
    train(config, corpus, options.workdir, console)
    data = " ".join(f"--data {folder}" for folder in options.data)
    following = f"dsaml evaluate {data} --workdir {options.workdir}"
    if not fold_of(config.training).holds_out:  # nothing is left to be judged on
        following = f"dsaml predict --checkpoint {options.workdir} SONG"
    console.say(f"run: {options.workdir}; next: {following}")


def _join_processes(options: argparse.Namespace) -> None:
    from dsaml_jax.devices import join_processes

    asked = (options.coordinator, options.processes, options.process)
    if options.distributed:
        join_processes(*asked)
    elif any(value is not None for value in asked):
        raise UsageError("--coordinator, --processes and --process need --distributed")
