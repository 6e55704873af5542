"""Orbax checkpoints: training states that resume, and models that predict.

A run's directory holds `run.json` (configuration, features, where the data came from) and `checkpoints/`. The
directory a personalised model lives in has the same two, with one checkpoint, so whatever reads one reads the
other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from data_prep.base import DataError, replacing, sync, sync_folder
from data_prep.features import FeatureConfig
from data_prep.plain import from_plain, parse_json
from dsaml_jax.adaptation import to_learned, to_variables
from dsaml_jax.base import DIMENSIONS, ModelConfig, PyTree
from dsaml_jax.config import FORMAT_VERSION, RunConfig, from_json, to_json, with_settings
from dsaml_jax.devices import is_first
from dsaml_jax.errors import UsageError
from dsaml_jax.models.dsaml import DSAML
from dsaml_jax.runs import RUN_FILE
from dsaml_jax.seen import Seen

CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"
SCHEMA_VERSION = 2
"""Of a checkpoint. 1 had neither version nor checksums."""

_MODEL, _OPTIMIZER, _EXTRA = "model", "optimizer", "extra"
_DELETED = ".deleted"


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What `run.json` says.

    Attributes:
      config: of the run.
      features: what its model reads.
      data: what it was trained on, see :func:`dsaml_jax.corpus.identity`.
      note: one line on where the model came from, for people.
      dimensions: what it was trained on, and so what its output means something in.
      seen: songs and people that it must not be judged by.
    """

    config: RunConfig
    features: FeatureConfig
    data: str
    note: str = ""
    dimensions: tuple[str, ...] = DIMENSIONS
    seen: Seen = Seen()


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict.

    Attributes:
      model: the network.
      variables: `params`, `batch_stats` and, where they were learned, the inner `rates`.
      info: of the run it came from.
      step: of the checkpoint.
    """

    model: DSAML
    variables: dict[str, Any]
    info: RunInfo
    step: int


def write_run_info(directory: Path, info: RunInfo) -> None:
    """Writes `run.json`, whole or not at all."""
    values = {
        "format_version": FORMAT_VERSION,
        "config": to_json(info.config),
        "features": dataclasses.asdict(info.features),
        "data": info.data,
        "note": info.note,
        "dimensions": info.dimensions,
        "seen": {name: " ".join(digests) for name, digests in vars(info.seen).items()},
    }
    with replacing(directory / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def read_run_info(directory: Path) -> RunInfo:
    """Reads `run.json`.

    Raises:
      UsageError: it is missing, damaged, or of another version.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        raise UsageError(f"{directory}: not a run or a personalised model (it has no {RUN_FILE})")
    try:
        values = parse_json(path.read_text())
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path}: format version {version}; this version reads {FORMAT_VERSION}"
            )
        return RunInfo(
            from_json(values["config"], str(path)),
            from_plain(FeatureConfig, values["features"]),
            str(values["data"]),
            str(values["note"]),
            _read_dimensions(values.get("dimensions", DIMENSIONS)),
            _read_seen(values.get("seen", {})),
        )
    except (ValueError, KeyError, TypeError, DataError) as error:
        raise UsageError(f"{path}: damaged or of another version ({error})") from None


def _read_dimensions(names: Any) -> tuple[str, ...]:
    found = tuple(name for name in DIMENSIONS if name in names)
    if not found or len(found) != len(names):
        raise ValueError(f"dimensions {names!r}")
    return found


def _read_seen(values: Any) -> Seen:
    fields = from_plain(_SeenLines, values)
    return Seen(**{name: tuple(digests.split()) for name, digests in vars(fields).items()})


@dataclasses.dataclass(frozen=True)
class _SeenLines:
    """As in the file: digests with spaces between them."""

    songs: str = ""
    sounds: str = ""
    people: str = ""


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


def save_model(
    directory: Path, variables: Mapping[str, Any], info: RunInfo, *, step: int = 0
) -> None:
    """Writes a model by itself, for prediction: to a new or empty folder, whole or not at all.

    Raises:
      UsageError: the folder holds something.
    """
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
        temporary.chmod(0o755)
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


def load_model(directory: Path) -> LoadedModel:
    """The best model of a run, or a personalised one.

    Raises:
      UsageError: `directory` holds neither, or what it holds does not fit its own configuration.
    """
    info = read_run_info(directory)
    model = DSAML(info.config.model)
    store = CheckpointStore(directory, read_only=True)
    try:
        if not store.steps():
            raise UsageError(f"{directory}: has no checkpoint yet")
        step = store.best_step()
        assert step is not None
        like = variables_like(info.config, info.features)
        return LoadedModel(model, store.restore_model(step, like), info, step)
    finally:
        store.close()


def at_strength(loaded: LoadedModel, strength: float | None) -> LoadedModel:
    """The same model, adapting by another share of the way (`meta.strength`); None: as it is.

    Raises:
      UsageError: not in [0, 1].
    """
    if strength is None:
        return loaded
    config = with_settings(loaded.info.config, [f"meta.strength={strength}"])
    return dataclasses.replace(loaded, info=dataclasses.replace(loaded.info, config=config))


def weights_digest(loaded: LoadedModel) -> str:
    """Digest of all numbers of a model."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(loaded.variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def initial_variables(model: DSAML, features: FeatureConfig, key: jax.Array) -> dict[str, Any]:
    """Freshly drawn `params` and `batch_stats` for these features."""
    log_mel = jax.numpy.zeros((1, 2, features.frames, features.mel_bands))
    width = model.config.embedding_width or model.config.width
    embedding = jax.numpy.zeros((1, 1, width))
    return dict(model.init(key, log_mel, embedding))


def require_variables(
    variables: Mapping[str, Any], model: ModelConfig, features: FeatureConfig, where: str
) -> None:
    """Raises UsageError unless these are finite numbers in the shapes of the model's `params` and `batch_stats`."""

    def init() -> dict[str, Any]:
        return initial_variables(DSAML(model), features, jax.random.key(0))

    expected = traverse_util.flatten_dict(jax.eval_shape(init), sep="/")
    found = traverse_util.flatten_dict(dict(variables), sep="/")
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found:
            what = "is missing" if name in expected else "is not of this model"
            raise UsageError(f"{where}: {name!r} {what}")
        if tuple(found[name].shape) != expected[name].shape:
            raise UsageError(
                f"{where}: {name!r} has the shape {list(found[name].shape)} instead of "
                f"{list(expected[name].shape)}"
            )
        if not np.isfinite(found[name]).all():
            raise UsageError(f"{where}: {name!r} holds numbers that are not finite")


def variables_like(config: RunConfig, features: FeatureConfig) -> dict[str, Any]:
    """Shapes of the variables that a run's checkpoints hold."""

    def make() -> dict[str, Any]:
        variables = initial_variables(DSAML(config.model), features, jax.random.key(0))
        if config.training.task == "dmer":
            return variables
        return to_variables(to_learned(config.meta, variables), variables["batch_stats"])

    return jax.eval_shape(make)
