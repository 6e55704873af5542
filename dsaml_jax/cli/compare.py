"""`dsaml compare`: two runs, paired by person."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsaml_jax.cli.arguments import Register


def add(register: Register) -> None:
    """Registers `dsaml compare` and its arguments."""
    compare = register("compare", run, "Compare two evaluated runs, paired by person, with intervals",
                       "Both have been evaluated ('dsaml evaluate') on the same data, fold and protocol.")  # fmt: skip
    compare.add_argument("first", type=Path, metavar="RUN", help="folder of a run")
    compare.add_argument("second", type=Path, metavar="RUN", help="folder of another; the same one, with two --method")  # fmt: skip
    compare.add_argument("--method", action="append", default=[], metavar="NAME",
                         help="a row of the evaluation, for both runs or given twice (default: the model's own, the last)")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml compare`."""
    from dsaml_jax.experiment import compare
    from dsaml_jax.progress import show

    show("\n".join(compare(options.first, options.second, options.method)))
