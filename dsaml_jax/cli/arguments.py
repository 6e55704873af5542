"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep.audio import MAX_GB, MAX_HOURS, RATES
from data_prep.convention import Convention
from data_prep.curves import MAX_GAP_SECONDS
from data_prep.shards import STREAM_ABOVE_GB
from dsaml_jax.pretrained import MODEL

PROTOCOLS = ("clean", "reference")
"""Of judging. Not from :mod:`dsaml_jax.config`, which imports JAX: help and wrong arguments are answered without it."""

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
                              "(default: by prior what the songs bear out, by steps what the run was trained with)")  # fmt: skip


def add_convention(command: argparse.ArgumentParser, corpus: str = "") -> None:
    """`--time-unit`, `--scale` and `--max-gap`, of commands that read a table of annotations.

    Args:
      command: takes them.
      corpus: the name of the one that they are for, where not all are.
    """
    of = f"{corpus}: " if corpus else ""
    command.add_argument("--time-unit", choices=("s", "ms"),
                         help=f"{of}what the table's times are in (default: s, refused where it looks like ms)")  # fmt: skip
    command.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"),
                         help=f"{of}ends of the table's scale, such as 1 9; they become -1 and 1 (default: -1 1,\n"
                              "refused where it looks like another scale)")  # fmt: skip
    command.add_argument("--max-gap", type=float, metavar="SECONDS",
                         help=f"{of}points up to so far apart are joined by lines, wider gaps stay unlabelled; for a\n"
                              f"rating every 2 to 5 s, or once per bar, give as much (default: {MAX_GAP_SECONDS:g})")  # fmt: skip


def convention_of(options: argparse.Namespace) -> Convention:
    """What these three say.

    Raises:
      DataError: a scale or a gap that is none.
    """
    gap = MAX_GAP_SECONDS if options.max_gap is None else options.max_gap
    scale = None if options.scale is None else (options.scale[0], options.scale[1])
    return Convention(options.time_unit, scale, gap)


def add_imagebind_weights(command: argparse.ArgumentParser) -> None:
    """`--imagebind-weights`, of commands that read sound."""
    command.add_argument(
        "--imagebind-weights",
        type=Path,
        metavar="FILE",
        default=os.environ.get("DSAML_IMAGEBIND"),
        help="for ImageBind embeddings: what 'dsaml convert imagebind' wrote (default: $DSAML_IMAGEBIND)",
    )


def add_data(command: argparse.ArgumentParser, *, together: bool = True) -> None:
    """`--data`, of commands that take several corpora; `together`: as one, so that features have to be alike."""
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        action="append",
        metavar="FOLDER",
        help="folder of prepared data; given again, of another corpus"
        + (" with the same features" if together else ""),
    )


class OneCorpus(argparse.Action):
    """`--data` of commands that take one corpus: given twice it is refused, where argparse would take the last."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Keeps the value, if it is the first."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice, and this command takes one corpus; "
                         "'dsaml train' and 'dsaml evaluate' take several")  # fmt: skip
        setattr(namespace, self.dest, values)


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
