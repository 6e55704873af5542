"""`dsaml describe`: the data card."""

from __future__ import annotations

import argparse

from dsaml_jax.cli.arguments import Register, add_data


def add(register: Register) -> None:
    """Registers `dsaml describe` and its arguments."""
    describe = register("describe", run, "Show the data cards of prepared corpora")
    add_data(describe, together=False)


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml describe`."""
    from data_prep.card import CARD_FOLDER, read_card
    from data_prep.shards import find_dataset
    from dsaml_jax.progress import show

    for folder in [find_dataset(data) for data in options.data]:
        show(read_card(folder))
        show(f"The same with its figures: {folder / CARD_FOLDER}")
