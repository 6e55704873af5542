"""The command `dsaml`: one file a command, with its arguments and what it does."""

from dsaml_jax.cli.entry import main

__all__ = ["main"]
