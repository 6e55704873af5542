"""`dsaml studio`: the same in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsaml_jax.cli.arguments import (
    Register,
    add_checkpoint,
    add_imagebind_weights,
    add_strength,
    positive,
)
from dsaml_jax.errors import UsageError


def add(register: Register) -> None:
    """Registers `dsaml studio` and its arguments."""
    studio = register("studio", run, "Annotate a song in the browser and get a model of your ears (needs the extra [studio])",
                 "Starts a local web page and prints its links; Ctrl-C ends it, the same command goes on.\n"
                 "Everything that is done there is kept in the study's folder.", goes_on=True)  # fmt: skip
    add_checkpoint(studio)
    studio.add_argument("--songs", type=Path, help="folder with sound files of 5 s to 15 minutes, also in folders of it")  # fmt: skip
    studio.add_argument("--study", type=Path, default=Path("dsaml_study"), help="folder for what people do (default: %(default)s)")  # fmt: skip
    studio.add_argument("--forget", metavar="NAME", help="delete this participant, by name or id, and all that is theirs from --study, and stop there")  # fmt: skip
    studio.add_argument("--everyone", type=Path, metavar="RUN", help="a DMER run, for everyone's curves (default: what the checkpoint began from)")  # fmt: skip
    studio.add_argument("--blind", action="store_true", help="a listening study: participants see no curves before they have rated")  # fmt: skip
    studio.add_argument("--ratings", type=positive, default=10, metavar="N", help="songs that each participant rates (default: %(default)s)")  # fmt: skip
    studio.add_argument("--no-uploads", action="store_true", help="participants cannot bring songs")
    studio.add_argument("--host", default="127.0.0.1", help="address to listen on; others than this machine's own need a\n"
                        "password for the owner in $DSAML_STUDIO_PASSWORD (default: %(default)s)")  # fmt: skip
    studio.add_argument("--port", type=int, default=8765, help="0: any that is free (default: %(default)s)")  # fmt: skip
    studio.add_argument("--allow-host", action="append", default=[], metavar="NAME[:PORT]",
                        help="a further name that browsers call this server by, such as a proxy's")  # fmt: skip
    add_strength(studio)
    add_imagebind_weights(studio)


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml studio`."""
    import os

    try:
        from dsaml_jax.studio import Settings, forget_by_name, serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the studio needs more packages ({error.name}): pip install 'dsaml_jax[studio]'"
        ) from None
    from dsaml_jax.progress import Console, show

    console = Console(options.quiet)
    if options.forget is not None:
        who = forget_by_name(options.study, options.forget)
        console.say(
            f"{who} is deleted from {options.study}; what was exported before is not reached"
        )
        return
    if options.songs is None:
        raise UsageError("--songs is needed: a folder with sound files")
    console.say("reading songs, and compiling what adapting needs")
    settings = Settings(
        checkpoint=options.checkpoint, songs=options.songs, study=options.study, everyone=options.everyone,
        host=options.host, port=options.port, allowed_hosts=tuple(options.allow_host),
        password=os.environ.get("DSAML_STUDIO_PASSWORD", ""), blind=options.blind, ratings=options.ratings,
        uploads=not options.no_uploads, weights=options.imagebind_weights, strength=options.strength,
    )  # fmt: skip
    serve(settings, show)
