"""`dsaml predict`: curves of sound files."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_prep.audio import files_below, without_suffix
from data_prep.base import DataError
from dsaml_jax.cli.arguments import LIMITS, Register, add_checkpoint, add_imagebind_weights
from dsaml_jax.errors import UsageError
from dsaml_jax.pretrained import EXAMPLE


def add(register: Register) -> None:
    """Registers `dsaml predict` and its arguments."""
    predict = register("predict", run, "Predict curves of sound files: SONG.csv and SONG.png", LIMITS)  # fmt: skip
    predict.add_argument("songs", type=Path, nargs="*", metavar="SONG",
                         help="a sound file (mp3, flac, m4a, opus, wma, ...) or a video, 5 s or more;\nor a folder, with all that is below it")  # fmt: skip
    predict.add_argument("--example", action="store_true", help="a recording that comes with the package: Brahms, Hungarian Dance No. 5")  # fmt: skip
    add_checkpoint(predict)
    predict.add_argument("--out", type=Path, default=Path("curves"), help="folder for the results (default: %(default)s)")  # fmt: skip
    add_imagebind_weights(predict)


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml predict`."""
    from data_prep.figures import write_png
    from dsaml_jax.listener import band_of, predict_file, write_curve
    from dsaml_jax.progress import Console
    from dsaml_jax.reporting import draw_song_curve
    from dsaml_jax.runs import load_model

    console = Console(options.quiet)
    songs = _apart(_songs([*options.songs, *([EXAMPLE] if options.example else [])]))
    if not songs:
        raise UsageError("name a sound file or a folder of them, or --example")
    loaded = load_model(options.checkpoint)
    if loaded.info.note:
        console.say(f"model: {loaded.info.note}")
    failed = []
    with console.bar(len(songs), "predicting", "song") as bar:
        for song, name in songs:
            try:
                curve = predict_file(loaded, song, options.imagebind_weights)
                band = band_of(loaded, curve)
                write_curve(options.out / f"{name}.csv", curve, band)
                figure = draw_song_curve(curve.clip(-1.0, 1.0), song.name, band)
                write_png(figure, options.out / f"{name}.png")
            except DataError as error:
                failed.append(str(error))
            bar.update()
    done = len(songs) - len(failed)
    if done:
        console.say(f"written: {done} x CSV and PNG in {options.out}")
    if failed:
        raise DataError("; ".join(failed))


def _apart(songs: Iterable[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Each file once; those of one name keep their suffixes, `x.mp3` and `x.flac`.

    Raises:
      UsageError: two would still be written to one file.
    """
    once = list({song.resolve(): (song, name) for song, name in songs}.values())
    count = Counter(name for _, name in once)
    named: dict[Path, Path] = {}
    for song, name in once:
        full = name if count[name] == 1 else name.with_name(name.name + song.suffix)
        if full in named:
            raise UsageError(
                f"two songs, {named[full]} and {song}, would both be written to {full}.csv; predict them apart"
            )
        named[full] = song
    return [(song, name) for name, song in named.items()]


def _songs(named: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Each sound file, and where its results go: its name, below a folder with the folders in between.

    Raises:
      UsageError: there is no such file, or a folder holds no sound.
    """
    for path in named:
        if path.is_dir():
            found = files_below(path)
            if not found:
                raise UsageError(f"{path}: no sound files in this folder or below it")
            for song in found:
                inside = song.relative_to(path)
                yield song, inside.with_name(without_suffix(inside.name))
        elif path.is_file():
            yield path, Path(path.stem)
        else:
            raise UsageError(f"{path}: no such sound file")
