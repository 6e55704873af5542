"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from data_prep.audio import MAX_GB, MAX_HOURS, RATES
from data_prep.shards import STREAM_ABOVE_GB
from dsaml_jax.pretrained import MODEL

Register = Callable[..., argparse.ArgumentParser]
"""`(name, run, summary, more="", *, goes_on=False) -> parser`: makes a command of `dsaml`; see :mod:`dsaml_jax.cli.entry`."""

LIMITS = (
    f"Sound may be {MAX_HOURS:g} hours long ($DSAML_MAX_HOURS changes that) and, all channels decoded\n"
    f"to float32, {MAX_GB:g} GB large ($DSAML_MAX_GB), at {RATES[0]:,} to {RATES[1]:,} Hz."
)


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    """`--checkpoint`, of commands that predict."""
    command.add_argument(
        "--checkpoint",
        type=Path,
        default=MODEL,
        help="folder of a run or of a personal model, or an exported file\n"
        "(default: the model that comes with the package, learned from DEAM)",
    )


def add_strength(command: argparse.ArgumentParser) -> None:
    """`--strength`, of commands that adapt."""
    command.add_argument("--strength", type=float, metavar="SHARE",
                         help="how far to adapt, from 0 to 1; all the way gains more in the mean, for fewer listeners\n"
                              "(default: the checkpoint's, 0.4 with our presets)")  # fmt: skip


def add_imagebind_weights(command: argparse.ArgumentParser) -> None:
    """`--imagebind-weights`, of commands that read sound."""
    command.add_argument(
        "--imagebind-weights",
        type=Path,
        metavar="FILE",
        default=os.environ.get("DSAML_IMAGEBIND"),
        help="for ImageBind embeddings: what 'dsaml convert imagebind' wrote (default: $DSAML_IMAGEBIND)",
    )


def add_stream_above(command: argparse.ArgumentParser) -> None:
    """`--stream-above`, of commands that read prepared data."""
    command.add_argument(
        "--stream-above",
        type=float,
        metavar="GB",
        default=STREAM_ABOVE_GB,
        help="features larger than this stay on disk and are streamed (default: %(default)g)",
    )


def add_folds(command: argparse.ArgumentParser) -> None:
    """`--folds`, `--song-folds` and `--fold`: who is held out."""
    command.add_argument("--folds", type=int, metavar="K",
                         help="deal people and songs into K parts by a hash of their ids, and hold one part out\n"
                              "(default: the corpus's own split)")  # fmt: skip
    command.add_argument("--song-folds", type=int, metavar="K", help="parts of the songs, where not as many as of the people")  # fmt: skip
    command.add_argument("--fold", type=int, metavar="F", help="which part is held out, from 0 (default: 0)")  # fmt: skip


def positive(text: str) -> int:
    """Type of an argument: a whole number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number
