"""`dsaml predict`: curves of sound files."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.base import DataError
from dsaml_jax.cli.arguments import LIMITS, Register, add_imagebind_weights
from dsaml_jax.errors import UsageError


def add(register: Register) -> None:
    """Registers `dsaml predict` and its arguments."""
    predict = register("predict", run, "Predict curves of sound files: SONG.csv and SONG.png", LIMITS)  # fmt: skip
    predict.add_argument("--checkpoint", type=Path, required=True, help="folder of a run or of a personal model, or an exported file")  # fmt: skip
    predict.add_argument("songs", type=Path, nargs="+", metavar="SONG", help="any file libsndfile reads, 5 s or more")  # fmt: skip
    predict.add_argument("--out", type=Path, required=True, help="folder for the results")
    add_imagebind_weights(predict)


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml predict`."""
    from data_prep.figures import write_png
    from dsaml_jax.listener import predict_file, write_curve
    from dsaml_jax.progress import Console
    from dsaml_jax.reporting import draw_song_curve
    from dsaml_jax.runs import load_model

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
                figure = draw_song_curve(curve.clip(-1.0, 1.0), song.name)
                write_png(figure, options.out / f"{song.stem}.png")
            except DataError as error:
                failed.append(str(error))
            bar.update()
    done = len(options.songs) - len(failed)
    if done:
        console.say(f"written: {done} x CSV and PNG in {options.out}")
    if failed:
        raise DataError("; ".join(failed))
