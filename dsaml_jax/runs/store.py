"""Orbax checkpoints of one folder: whole or not at all, with checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from data_prep.base import sync, sync_folder
from data_prep.plain import parse_json
from dsaml_jax.base import PyTree
from dsaml_jax.devices import is_first
from dsaml_jax.errors import UsageError
from dsaml_jax.runs.log import RUN_FILE

CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"
SCHEMA_VERSION = 2
"""Of a checkpoint. 1 had neither version nor checksums."""

_MODEL, _OPTIMIZER, _EXTRA = "model", "optimizer", "extra"
_DELETED = ".deleted"


class DamagedCheckpoint(UsageError):
    """A checkpoint that cannot be read, or whose numbers are not those that were written."""


class CheckpointStore:
    """The checkpoints of one folder: the two latest and the one with the best score.

    A checkpoint appears whole or not at all, also when the process is killed while writing it, and is on the disk
    when `save` returns. It carries a checksum of its numbers, which every restore compares.
    """

    def __init__(
        self,
        directory: Path,
        sharding: jax.sharding.Sharding | None = None,
        *,
        folder: str = CHECKPOINTS,
        read_only: bool = False,
    ) -> None:
        """Opens `directory/folder`.

        Args:
          directory: of a run.
          sharding: where restored arrays go, whatever devices wrote them; None: to the first device.
          folder: of the checkpoints.
          read_only: nothing is made or changed, so that a run can be read while it trains.

        Raises:
          UsageError: the folder's name is no text.
        """
        if any("\ud800" <= letter <= "\udfff" for letter in str(directory)):
            raise UsageError(
                f"{directory}: checkpoints need a name that is text in UTF-8; choose another"
            )
        self._sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self._folder = (directory / folder).resolve()
        self._read_only = read_only
        self._manager: ocp.CheckpointManager | None = None

    @property
    def _orbax(self) -> ocp.CheckpointManager:
        """Opened late, since Orbax reads all scores then: damaged ones must be out of its way."""
        if self._manager is None:
            policies = ocp.checkpoint_managers
            keep = policies.AnyPreservationPolicy(
                [
                    policies.LatestN(2),
                    policies.BestN(get_metric_fn=lambda metrics: metrics["score"], n=1),
                ]
            )
            with _errors_only():  # Orbax warns that it does as it is told
                self._manager = ocp.CheckpointManager(
                    self._folder,
                    options=ocp.CheckpointManagerOptions(
                        best_fn=lambda metrics: metrics["score"],
                        best_mode="max",
                        preservation_policy=keep,
                        enable_async_checkpointing=False,
                        cleanup_tmp_directories=not self._read_only,  # of saves that were killed
                        todelete_subdir=_DELETED,  # renamed first: a kill leaves no half of one
                        read_only=self._read_only,
                        create=not self._read_only,
                    ),
                )
        return self._manager

    def save(
        self,
        step: int,
        variables: Mapping[str, Any],
        score: float,
        optimizer: PyTree | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a model with its validation score.

        Args:
          step: of the run.
          variables: of the model.
          score: the higher the better.
          optimizer: the optimiser's state, where training goes on.
          extra: plain values for JSON, where there is more to remember.

        Raises:
          OSError: writing failed.
        """
        trees: dict[str, PyTree] = {_MODEL: dict(variables)}
        if optimizer is not None:
            trees[_OPTIMIZER] = optimizer
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        if extra is not None:
            items[_EXTRA] = ocp.args.JsonSave(dict(extra))
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "sha256": {name: checksum(tree) for name, tree in trees.items()},
        }
        try:
            self._orbax.save(
                step, args=ocp.args.Composite(**items), metrics={"score": score}, custom_metadata=manifest
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:  # how Orbax says that a disk is full
            raise OSError(
                f"{self._folder / str(step)}: writing failed; is the disk full? ({_reason(error)})"
            ) from None
        if is_first():
            sync(self._folder / str(step))
            sync_folder(self._folder)
            shutil.rmtree(self._folder / _DELETED, ignore_errors=True)

    def steps(self) -> list[int]:
        """Of the checkpoints, ascending; damaged ones too."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def best_step(self) -> int | None:
        """Step of the best checkpoint.

        Raises:
          DamagedCheckpoint: there is one whose score cannot be read.
        """
        for step in self.steps():
            self.score(step)
        return self._orbax.best_step()

    def score(self, step: int) -> float:
        """Validation score of a step.

        Raises:
          DamagedCheckpoint: it cannot be read.
        """
        path = self._folder / str(step) / "metrics" / "metrics"
        try:
            return float(parse_json(path.read_text())["score"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(step, error) from None

    def manifest(self, step: int) -> dict[str, Any] | None:
        """Schema version and checksums; None for a checkpoint of a version that wrote none.

        Raises:
          DamagedCheckpoint: it cannot be read.
          UsageError: it was written by a later version.
        """
        path = self._folder / str(step) / "_CHECKPOINT_METADATA"
        try:
            manifest = parse_json(path.read_text())["custom_metadata"]
            version = int(manifest.get("schema_version", 1))
            if manifest:
                manifest["sha256"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(step, error) from None
        if version > SCHEMA_VERSION:
            raise UsageError(
                f"{self._folder / str(step)}: written by a later version (schema {version}; this one reads "
                f"{SCHEMA_VERSION}); update dsaml_jax"
            )
        return manifest or None

    def restore_model(self, step: int, like: PyTree) -> dict[str, Any]:
        """The variables of a step; names and shapes must be those of `like`."""
        return self._restore(_MODEL, step, like)

    def restore_optimizer(self, step: int, like: PyTree) -> PyTree:
        """The optimiser's state of a step, structured as `like`."""
        return self._restore(_OPTIMIZER, step, like)

    def has_optimizer(self, step: int) -> bool:
        """Whether training can go on from a step; a model by itself has none."""
        return (self._folder / str(step) / _OPTIMIZER).is_dir()

    def restore_extra(self, step: int) -> dict[str, Any]:
        """The plain values of a step; none where none were saved."""
        if not (self._folder / str(step) / _EXTRA).is_dir():
            return {}
        return self._read(_EXTRA, step, ocp.args.JsonRestore())

    def _restore(self, item: str, step: int, like: PyTree) -> Any:
        manifest = self.manifest(step)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding), like
        )
        restored = jax.device_get(self._read(item, step, ocp.args.StandardRestore(abstract)))
        if manifest and manifest["sha256"].get(item) != checksum(restored):
            raise self._damaged(step, f"the checksum of {item} differs")
        # Orbax commits arrays to a device; a step would compile once for these and again for its own.
        return jax.tree.map(jax.numpy.asarray, restored)

    def _read(self, item: str, step: int, how: Any) -> Any:
        self.score(step)
        try:
            return self._orbax.restore(step, args=ocp.args.Composite(**{item: how}))[item]
        except FileNotFoundError as error:
            raise self._damaged(step, error) from None
        except (OSError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # of this moment, not of the checkpoint
        except Exception as error:  # Orbax and TensorStore raise whatever they come across
            raise self._damaged(step, error) from None

    def _damaged(self, step: int, reason: object) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"{self._folder / str(step)}: damaged, or of another model than {RUN_FILE} says ({_reason(reason)}); "
            f"'dsaml checkpoint verify {self._folder.parent}' tells which are whole"
        )

    def put_aside(self, step: int) -> Path:
        """Moves a checkpoint out of the way; returns where it is now. For one process."""
        place = self._folder.parent / DAMAGED / f"{self._folder.name}-{step}"
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(self._folder / str(step), place)
        return place

    def reload(self) -> None:
        """Looks anew which checkpoints there are, after some were put aside."""
        if self._manager is not None:
            self._manager.reload()

    def close(self) -> None:
        """Releases the folder."""
        if self._manager is not None:
            # Saves are synchronous: whatever Orbax raises here, `save` has raised before.
            with contextlib.suppress(ValueError, RuntimeError):
                self._manager.close()


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Keeps what is less than an error out of absl's log."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def checksum(tree: PyTree) -> str:
    """SHA-256 over names, dtypes, shapes and numbers of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(jax.device_get(leaf))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _reason(error: object) -> str:
    return " ".join(str(error).split())[:200]
