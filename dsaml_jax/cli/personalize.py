"""`dsaml personalize`: a model of one person."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.base import DIMENSIONS, printable
from dsaml_jax.cli.arguments import (
    LIMITS,
    Register,
    add_checkpoint,
    add_convention,
    add_imagebind_weights,
    add_strength,
    convention_of,
)
from dsaml_jax.errors import UsageError

if TYPE_CHECKING:
    from dsaml_jax.progress import Console


SUGGESTED = 5
"""Songs that are suggested."""


def add(register: Register) -> None:
    """Registers `dsaml personalize` and its arguments."""
    personalize = register("personalize", run, "Adapt a model to one listener by songs that they annotated",
                           "By one song, several, or a folder of them. Curves move by the share of the mean difference that\n"
                           f"listeners in general bear out on further songs: the more songs, the more.\n{LIMITS}")  # fmt: skip
    add_checkpoint(personalize)
    personalize.add_argument("--song", nargs=2, type=Path, action="append", default=[], metavar=("AUDIO", "CSV"),
                             help="a song and its annotations; may be given again and again\n"
                                  "CSV with the columns time [s], arousal, valence (or one of the two; in [-1, 1]), any rate")  # fmt: skip
    personalize.add_argument("--audio", type=Path, help="the song, where there is one")
    personalize.add_argument("--annotations", type=Path, help="its CSV")
    personalize.add_argument("--folder", type=Path, metavar="STUDY",
                             help="all songs of a folder with audio/ and annotations.csv, which has a column song_id too; of one person")  # fmt: skip
    add_convention(personalize)
    personalize.add_argument("--add", action="store_true",
                             help="--checkpoint is a personal model, which learns these songs besides: the same as all at once")  # fmt: skip
    personalize.add_argument("--out", type=Path, help="folder for the personal model (with --add: the same, if it is not named)")  # fmt: skip
    personalize.add_argument("--suggest", type=Path, metavar="FOLDER",
                             help=f"print the {SUGGESTED} songs of a folder that would tell most about how you hear the rest of it, and stop there;\n"
                                  "what --checkpoint, a personal model, knows already is reckoned with")  # fmt: skip
    personalize.add_argument("--by", choices=("prior", "steps"),
                             help="prior: by how listeners in general differ (default, where the model knows)\n"
                                  "steps: by the inner steps of meta-learning")  # fmt: skip
    add_strength(personalize)
    add_imagebind_weights(personalize)


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml personalize`."""
    from dsaml_jax.listener import (
        annotated_song,
        how_sure,
        how_you_hear,
        personalize,
        save_personalized,
    )
    from dsaml_jax.progress import Console
    from dsaml_jax.runs import at_strength, load_model, require_free

    console = Console(options.quiet)
    if options.suggest is not None:
        _suggest(options, console)
        return
    convention = convention_of(options)
    out = options.out or (options.checkpoint if options.add else None)
    if out is None:
        raise UsageError("--out is needed: the folder for the personal model")
    in_place = options.add and out.resolve() == Path(options.checkpoint).resolve()
    if not in_place:
        require_free(out)
    pairs = _pairs(options)
    loaded = at_strength(load_model(options.checkpoint), options.strength)
    if options.add and loaded.person is None:
        raise UsageError(
            f"{options.checkpoint}: --add is for a personal model that was made by prior"
        )
    if loaded.person is not None and not options.add:
        raise UsageError(
            f"{options.checkpoint} is a personal model; with --add it learns these songs besides"
        )
    songs = []
    with console.bar(len(pairs), "listening", "song") as bar:
        for audio, table in pairs:
            songs.append(
                annotated_song(loaded, audio, table, options.imagebind_weights, convention)
            )
            bar.update()
    result = personalize(loaded, songs, options.by)
    names = [song.name for song in songs]
    save_personalized(out, result, names, convention, replace=in_place)
    for name, before, after in zip(DIMENSIONS, result.before, result.after, strict=True):
        if math.isfinite(before):
            what = "your song" if len(songs) == 1 else f"your {len(songs)} songs"
            console.say(f"{name}: RMSE on {what} {before:.3f} before, {after:.3f} after")
    person = result.loaded.person
    if person is not None and loaded.listeners is not None:
        about = how_you_hear(person), how_sure(loaded.listeners, person)
        console.say(" ".join(filter(None, about)))
    empty = sum(song.empty_cells for song in songs)
    if empty:
        console.say(f"{empty} cells are empty or nan, and were not adapted to")
    if any(song.leaves_gaps for song in songs):
        gap = f"{convention.max_gap:g} s"
        console.say(f"most points are over {gap} apart, and not joined; --max-gap joins them")
    console.say(
        f"adapted to {result.labelled_seconds:g} s of annotation; "
        f"next: dsaml predict --checkpoint {out} SONG --out DIR"
    )


def _suggest(options: argparse.Namespace, console: Console) -> None:
    """Prints which songs of a folder to annotate next."""
    import numpy as np

    from data_prep.analysis import embedder
    from data_prep.audio import files_below
    from data_prep.base import DataError
    from dsaml_jax.listener import features_of_file, song_embedding, sound_digest, suggest
    from dsaml_jax.progress import show
    from dsaml_jax.runs import load_model

    files = files_below(options.suggest) if options.suggest.is_dir() else []
    if not files:
        raise UsageError(f"{options.suggest}: no sound files in this folder or below it")
    loaded = load_model(options.checkpoint)
    config = loaded.info.features
    embed = embedder(config, options.imagebind_weights)
    found: dict[str, tuple[Path, np.ndarray]] = {}
    with console.bar(len(files), "listening", "song") as bar:
        for path in files:
            try:
                features = features_of_file(path, config, embed)
                found.setdefault(sound_digest(path), (path, song_embedding(features)))
            except DataError as error:
                console.say(f"left out: {error}")
            bar.update()
    if not found:
        raise DataError(f"{options.suggest}: none of its sound files can be used")
    drawn = set(loaded.person.songs) if loaded.person else set()
    known = [place for place, digest in enumerate(found) if digest in drawn]
    chosen = suggest(np.stack([embedding for _, embedding in found.values()]), known, SUGGESTED)
    if not chosen:
        raise UsageError(f"{options.suggest}: all songs are annotated; name a folder with others")
    if len(drawn) > len(known):
        console.say(f"{len(drawn) - len(known)} annotated songs are not in this folder, and not reckoned with")  # fmt: skip
    console.say(
        "unlike what you annotated, and like many others; they would tell most, in this order:"
    )
    paths = [path.relative_to(options.suggest) for path, _ in found.values()]
    show("\n".join(printable(str(paths[place])) for place in chosen))


def _pairs(options: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Sound files and their tables.

    Raises:
      UsageError: none are named, or a song twice.
    """
    if (options.audio is None) != (options.annotations is None):
        raise UsageError("--audio and --annotations belong together")
    pairs = [tuple(pair) for pair in options.song]
    if options.audio is not None:
        pairs.append((options.audio, options.annotations))
    if options.folder is not None:
        from dsaml_jax.listener import annotated_in

        pairs += annotated_in(options.folder)
    if not pairs:
        raise UsageError("name what was annotated: --song AUDIO CSV, or --folder STUDY")
    files = [audio.resolve() for audio, _ in pairs]
    for audio, _ in pairs:
        if files.count(audio.resolve()) > 1:
            raise UsageError(f"{audio} is named twice")
    return pairs
