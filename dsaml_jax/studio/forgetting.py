"""Deletes somebody from a study: from its database, and all files that are theirs or hold something of theirs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Container
from pathlib import Path

import filelock

from dsaml_jax.errors import UsageError
from dsaml_jax.studio.ratings import listener_id
from dsaml_jax.studio.store import Participant, Store

DATABASE = "study.sqlite"


def lock_of(study: Path) -> filelock.FileLock:
    """Held by whoever works on a study; `acquire` raises `filelock.Timeout` where somebody else does."""
    return filelock.FileLock(study / ".lock", timeout=0.0)


def own_export(study: Path, who: Participant) -> Path:
    """Where the file lies that a participant takes with them."""
    name = hashlib.sha256(who.token.encode()).hexdigest()[:16]
    return study / "export" / f"{name}.zip"


def corpus_export(study: Path) -> Path:
    """Where the corpus lies that the owner takes with them."""
    return study / "export" / "corpus.zip"


def forget(study: Path, store: Store, who: Participant, own: Container[int] = ()) -> None:
    """Deletes a person: takes, adaptations, models, curves, trials, exports, and songs that they alone brought.

    The database comes last: a stop in between leaves somebody who can be deleted again. Nothing may work for them meanwhile.

    Args:
      study: its folder.
      store: its database.
      who: is deleted.
      own: numbers of songs that are the study's own, also where somebody brought them once.
    """
    songs = [song for song in store.brought_by_alone(who) if song.number not in own]
    for number in store.all_adaptations(who):
        for folder in (study / "models" / str(number), *(study / "models").glob(f".{number}.*")):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(study / "cache" / "curves" / f"adapted-{number}", ignore_errors=True)
    for song in songs:
        delete_song(study, song.digest)
    for path in (own_export(study, who), corpus_export(study)):
        path.unlink(missing_ok=True)
    store.forget(who, songs)


def delete_song(study: Path, digest: str) -> None:
    """Deletes the sound of a song that was brought, its features and its curves."""
    for folder in ("uploads", "cache"):
        for path in list((study / folder).rglob(f"{digest}*")):
            path.unlink(missing_ok=True)


def forget_by_name(study: Path, name: str) -> str:
    """Deletes the participant of a study that no studio serves; returns who it was.

    Args:
      study: its folder.
      name: the one that the owner gave, or the id, such as listener003.

    Raises:
      UsageError: there is no such study or person, several have the name, or a studio runs there.
    """
    if not (study / DATABASE).is_file():
        raise UsageError(f"{study}: no study is here; --study is its folder")
    try:
        with lock_of(study):
            store = Store(study / DATABASE)
            people = store.participants()
            found = [who for who in people if name in (who.name, listener_id(who))]
            if len(found) != 1:
                there = ", ".join(f"{listener_id(who)} ({who.name})" for who in found or people)
                what = "several people are" if found else "nobody is"
                raise UsageError(f"{what} called {name}; there are {there or 'none'}")
            forget(study, store, found[0])
            return listener_id(found[0])
    except filelock.Timeout:
        raise UsageError(f"{study}: a studio runs here; delete on the owner's page, or stop it") from None  # fmt: skip
