"""`dsaml demo`: the whole way in one command."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsaml_jax.cli.arguments import Register


def add(register: Register) -> None:
    """Registers `dsaml demo` and its arguments."""
    demo = register("demo", run, "Make a corpus, train, evaluate, personalise and write a report",
               "A few minutes on two cores. Start it again to go on after an interruption.", goes_on=True)  # fmt: skip
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


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml demo`."""
    from dsaml_jax.cli.demo_stages import run_demo
    from dsaml_jax.progress import Console

    console = Console(options.quiet)
    run_demo(options.workdir, quick=options.quick, seed=options.seed, console=console)
