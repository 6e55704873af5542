"""Models ready to predict, read from a run's folder or written to one of their own.

A run's directory holds `run.json` (configuration, features, where the data came from) and `checkpoints/`. The
directory a personalised model lives in has the same two, with one checkpoint, so whatever reads one reads the
other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsaml_jax.config import with_settings
from dsaml_jax.errors import UsageError
from dsaml_jax.models import build_model
from dsaml_jax.runs.export import read_export
from dsaml_jax.runs.info import RunInfo, read_run_info, write_run_info
from dsaml_jax.runs.listener_files import (
    read_listeners,
    read_person,
    write_listeners,
    write_person,
)
from dsaml_jax.runs.listeners import Listeners, Person
from dsaml_jax.runs.store import CheckpointStore
from dsaml_jax.runs.variables import LoadedModel, variables_like


def save_model(
    directory: Path,
    variables: Mapping[str, Any],
    info: RunInfo,
    *,
    step: int = 0,
    listeners: Listeners | None = None,
    person: Person | None = None,
    replace: bool = False,
) -> None:
    """Writes a model by itself, for prediction: to a new or empty folder, whole or not at all.

    Args:
      directory: the folder.
      variables: of the model.
      info: what it is.
      step: of the checkpoint that it comes from.
      listeners: how single people differ from it.
      person: whose it is.
      replace: a model that is there already.

    Raises:
      UsageError: the folder holds something that is not to be replaced.
    """
    if not replace:
        require_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name[:40]}."))
    try:
        store = CheckpointStore(temporary)
        try:
            store.save(step, variables, score=0.0)
        finally:
            store.close()
        write_run_info(temporary, info)
        if listeners is not None:
            write_listeners(temporary, dataclasses.replace(listeners, step=step))
        if person is not None:
            write_person(temporary, person)
        temporary.chmod(0o755)
        if replace and directory.exists():
            old = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name[:40]}."))
            os.replace(directory, old)
            os.replace(temporary, directory)
            _remove(old)
        else:
            os.replace(temporary, directory)
    except BaseException:
        _remove(temporary)
        raise


def _remove(directory: Path) -> None:
    """Removes a folder that writers of a failed save may still put files in, directories made anew for them."""
    for _ in range(10):
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.1)
        if not directory.exists():
            return


def require_free(directory: Path) -> None:
    """Raises UsageError unless `directory` is missing or an empty folder."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} exists and is not an empty folder; choose another --out")


def load_model(directory: Path | str, *, network: str = "") -> LoadedModel:
    """The best model of a run, a personalised one, or an exported file.

    Args:
      directory: or the file.
      network: `package.module:Class` that the model may be, where it is a network of somebody's own.

    Raises:
      UsageError: it is none of them, or what it holds does not fit its own configuration.
    """
    directory = Path(directory)
    if directory.suffix == ".safetensors" and not directory.is_dir():
        return read_export(directory, network)
    info = read_run_info(directory)
    model = build_model(info.config.model, trusted=network)
    store = CheckpointStore(directory, read_only=True)
    try:
        if not store.steps():
            raise UsageError(f"{directory}: has no checkpoint yet")
        step = store.best_step()
        assert step is not None
        like = variables_like(info.config, info.features, model)
        listeners = read_listeners(directory)
        if (
            listeners is not None and listeners.step != step
        ):  # of a checkpoint that is not the best any more
            listeners = None
        return LoadedModel(
            model, store.restore_model(step, like), info, step, listeners, read_person(directory)
        )
    finally:
        store.close()


def at_strength(loaded: LoadedModel, strength: float | None) -> LoadedModel:
    """The same model, adapting by another share of the way, whichever way it adapts; None: as it is.

    Raises:
      UsageError: not in [0, 1].
    """
    if strength is None:
        return loaded
    config = with_settings(loaded.info.config, [f"meta.strength={strength}"])
    listeners = loaded.listeners and dataclasses.replace(loaded.listeners, strength=strength)
    info = dataclasses.replace(loaded.info, config=config)
    return dataclasses.replace(loaded, info=info, listeners=listeners)


def weights_digest(loaded: LoadedModel) -> str:
    """Digest of all numbers of a model."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(loaded.variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
