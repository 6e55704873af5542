"""`dsaml personalize`: a model of one person."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dsaml_jax.cli.arguments import (
    LIMITS,
    Register,
    add_checkpoint,
    add_convention,
    add_imagebind_weights,
    add_strength,
    convention_of,
)


def add(register: Register) -> None:
    """Registers `dsaml personalize` and its arguments."""
    personalize = register("personalize", run, "Adapt a model to one listener by one annotated song", LIMITS)  # fmt: skip
    add_checkpoint(personalize)
    personalize.add_argument("--audio", type=Path, required=True, help="the song")
    personalize.add_argument("--annotations", type=Path, required=True,
                             help="CSV with the columns time [s], arousal, valence (or one of the two; in [-1, 1]), any rate")  # fmt: skip
    add_convention(personalize)
    personalize.add_argument("--out", type=Path, required=True, help="folder for the personal model")  # fmt: skip
    add_strength(personalize)
    add_imagebind_weights(personalize)


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml personalize`."""
    from dsaml_jax.listener import personalize, save_personalized
    from dsaml_jax.progress import Console
    from dsaml_jax.runs import at_strength, load_model, require_free

    console = Console(options.quiet)
    convention = convention_of(options)
    require_free(options.out)
    loaded = at_strength(load_model(options.checkpoint), options.strength)
    result = personalize(
        loaded, options.audio, options.annotations, options.imagebind_weights, convention
    )
    save_personalized(options.out, loaded, result, options.audio.name)
    for name, before, after in zip(
        ("arousal", "valence"), result.before, result.after, strict=True
    ):
        if not math.isfinite(before):
            continue
        console.say(f"{name}: RMSE on your song {before:.3f} before, {after:.3f} after")
    if result.empty_cells:
        console.say(f"{result.empty_cells} cells are empty or nan, and were not adapted to")
    if result.leaves_gaps:
        gap = f"{convention.max_gap:g} s"
        console.say(f"most points are over {gap} apart, and not joined; --max-gap joins them")
    console.say(
        f"adapted to {result.labelled_seconds:g} s of annotation; "
        f"next: dsaml predict --checkpoint {options.out} SONG --out DIR"
    )
