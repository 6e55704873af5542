"""`dsaml checkpoint`: what a run has saved."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsaml_jax.cli.arguments import Register
from dsaml_jax.errors import UsageError


def add(register: Register) -> None:
    """Registers `dsaml checkpoint` and its arguments."""
    checkpoint = register("checkpoint", run, "Look at the checkpoints of a run, check or export them")  # fmt: skip
    checkpoint.add_argument("action", choices=("ls", "verify", "export"),
                            help="ls: steps, scores, sizes\nverify: read every number and compare checksums\n"
                                 "export: the best one as safetensors")  # fmt: skip
    checkpoint.add_argument("directory", type=Path, help="folder of a run or of a personal model")
    checkpoint.add_argument("--out", type=Path, metavar="FILE", help="export: the .safetensors file")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml checkpoint`."""
    from dsaml_jax.cli.inspection import checkpoint_lines, stay_on_the_host
    from dsaml_jax.progress import show
    from dsaml_jax.runs import export_model, load_model, read_listeners

    stay_on_the_host()

    if options.action == "export":
        if options.out is None:
            raise UsageError("--out is needed: the .safetensors file")
        count = export_model(load_model(options.directory), options.out)
        show(f"exported: {options.out} ({count:,} numbers of the best checkpoint)")
        return
    verify = options.action == "verify"
    lines = checkpoint_lines(options.directory, verify=verify)
    scores = [line.score for line in lines if line.score is not None]
    for line in lines:
        score = "-" if line.score is None else f"{line.score:.4f}"
        mark = " (best)" if scores and line.score == max(scores) else ""
        show(f"step {line.step}: score {score}{mark}, {line.size / 1e6:.1f} MB, {line.state}")
    listeners = read_listeners(options.directory)
    for said in [] if listeners is None else listeners.lines():
        show(said)
    damaged = [line for line in lines if "damaged" in line.state]
    if verify and damaged:
        raise UsageError(
            f"{len(damaged)} of {len(lines)} checkpoints are damaged; 'dsaml train' with the same settings puts "
            "them aside and goes on from the newest whole one"
        )
