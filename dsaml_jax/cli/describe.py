"""`dsaml describe`: the data card."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsaml_jax.cli.arguments import Register


def add(register: Register) -> None:
    """Registers `dsaml describe` and its arguments."""
    describe = register("describe", run, "Show the data card of a prepared corpus")
    describe.add_argument("--data", type=Path, required=True, help="folder of prepared data")


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml describe`."""
    from data_prep.card import CARD_FOLDER, read_card
    from data_prep.shards import find_dataset
    from dsaml_jax.progress import show

    folder = find_dataset(options.data)
    show(read_card(folder))
    show(f"The same with its figures: {folder / CARD_FOLDER}")
