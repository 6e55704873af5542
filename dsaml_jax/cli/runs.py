"""`dsaml runs`: how runs are doing."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsaml_jax.cli.arguments import Register


def add(register: Register) -> None:
    """Registers `dsaml runs` and its arguments."""
    runs = register("runs", run, "See how runs are doing, also while they train")
    runs.add_argument("action", choices=("ls", "show", "replay"),
                      help="ls: a line for each run at or below PATH\nshow: one run, and its report as a page\n"
                           "replay: compute a step again whose loss was not finite, from the file it left")  # fmt: skip
    runs.add_argument("path", type=Path, metavar="PATH", nargs="?", default=Path(),
                      help="ls: a folder (default: this one); show: a run; replay: its failures/step-N.safetensors")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml runs`."""
    from dsaml_jax.cli.inspection import stay_on_the_host
    from dsaml_jax.progress import show

    if options.action != "replay":
        stay_on_the_host()
    if options.action == "ls":
        from dsaml_jax.cli.inspection import runs_table

        show(runs_table(options.path))
    elif options.action == "show":
        from dsaml_jax.cli.inspection import run_lines
        from dsaml_jax.reporting import write_run_report
        from dsaml_jax.runs import REPORT_FILE

        show("\n".join(run_lines(options.path)))
        write_run_report(options.path)
        show(f"report: {options.path / REPORT_FILE}")
    else:
        from dsaml_jax.training import read_bundle, replay, replay_lines

        bundle = read_bundle(options.path)
        show("\n".join(replay_lines(bundle, replay(bundle))))
