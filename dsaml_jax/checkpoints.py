"""Orbax checkpoints: training states that resume, and models that predict.

A run's directory holds `run.json` (configuration, features, where the data came from) and `checkpoints/`. The
directory a personalised model lives in has the same two, with one checkpoint, so whatever reads one reads the
other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from data_prep.base import DataError, replacing
from data_prep.features import FeatureConfig
from dsaml_jax.adaptation import to_learned, to_variables
from dsaml_jax.base import PyTree
from dsaml_jax.config import FORMAT_VERSION, RunConfig, from_json, to_json
from dsaml_jax.errors import UsageError
from dsaml_jax.models.dsaml import DSAML

RUN_FILE = "run.json"
_MODEL, _OPTIMIZER = "model", "optimizer"


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What `run.json` says.

    Attributes:
      config: of the run.
      features: what its model reads.
      data: what it was trained on, see :func:`dsaml_jax.corpus.identity`.
      note: one line on where the model came from, for people.
    """

    config: RunConfig
    features: FeatureConfig
    data: str
    note: str = ""


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
        values = json.loads(path.read_text())
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path}: format version {version}; this version reads {FORMAT_VERSION}"
            )
        return RunInfo(
            from_json(values["config"], str(path)),
            FeatureConfig(**values["features"]),
            str(values["data"]),
            str(values["note"]),
        )
    except (ValueError, KeyError, TypeError, DataError) as error:
        raise UsageError(f"{path}: damaged or of another version ({error})") from None


class CheckpointStore:
    """The checkpoints of one directory: the two latest and the one with the best score.

    A checkpoint appears whole or not at all, also when the process is killed while writing it.
    """

    def __init__(self, directory: Path, sharding: jax.sharding.Sharding | None = None) -> None:
        """Opens, and makes if need be, `directory/checkpoints`.

        Args:
          directory: of a run.
          sharding: where restored arrays go, whatever devices wrote them; None: to the first device.
        """
        self._sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        policies = ocp.checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(get_metric_fn=lambda metrics: metrics["score"], n=1),
            ]
        )
        self._manager = ocp.CheckpointManager(
            (directory / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics["score"],
                best_mode="max",
                preservation_policy=keep,
                enable_async_checkpointing=False,
            ),
        )

    def save(
        self, step: int, variables: Mapping[str, Any], score: float, optimizer: PyTree | None = None
    ) -> None:
        """Writes a model with its validation score, and the optimiser's state where training goes on."""
        items = {_MODEL: ocp.args.StandardSave(dict(variables))}
        if optimizer is not None:
            items[_OPTIMIZER] = ocp.args.StandardSave(optimizer)
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={"score": score})
        except (ValueError, RuntimeError) as error:  # how Orbax says that a disk is full
            reason = " ".join(str(error).split())[:200]
            raise OSError(
                f"{self._manager.directory}/{step}: writing failed; is the disk full? ({reason})"
            ) from None

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the best checkpoint."""
        return self._manager.best_step()

    def restore_model(self, step: int, like: PyTree) -> dict[str, Any]:
        """The variables of a step; names and shapes must be those of `like`."""
        return self._restore(_MODEL, step, like)

    def restore_optimizer(self, step: int, like: PyTree) -> PyTree:
        """The optimiser's state of a step, structured as `like`."""
        return self._restore(_OPTIMIZER, step, like)

    def _restore(self, item: str, step: int, like: PyTree) -> Any:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding), like
        )
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
        try:
            restored = self._manager.restore(step, args=args)[item]
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"{self._manager.directory}/{step}: damaged, or of another model than {RUN_FILE} says "
                f"({reason})"
            ) from None
        # Orbax commits arrays to a device; a step would compile once for these and again for its own.
        return jax.tree.map(jax.numpy.asarray, jax.device_get(restored))

    def close(self) -> None:
        """Releases the directory."""
        # Saves are synchronous: whatever Orbax raises here, `save` has raised before.
        with contextlib.suppress(ValueError, RuntimeError):
            self._manager.close()


def save_model(
    directory: Path, variables: Mapping[str, Any], info: RunInfo, *, step: int = 0
) -> None:
    """Writes a model by itself, for prediction: to a new or empty folder, whole or not at all.

    Raises:
      UsageError: the folder holds something.
    """
    require_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
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
    if not (directory / "checkpoints").is_dir():
        raise UsageError(f"{directory}: has no checkpoint yet")
    model = DSAML(info.config.model)
    store = CheckpointStore(directory)
    try:
        step = store.best_step()
        if step is None:
            raise UsageError(f"{directory}: has no finished checkpoint yet")
        like = variables_like(info.config, info.features)
        return LoadedModel(model, store.restore_model(step, like), info, step)
    finally:
        store.close()


def initial_variables(model: DSAML, features: FeatureConfig, key: jax.Array) -> dict[str, Any]:
    """Freshly drawn `params` and `batch_stats` for these features."""
    log_mel = jax.numpy.zeros((1, 2, features.frames, features.mel_bands))
    width = model.config.embedding_width or model.config.width
    embedding = jax.numpy.zeros((1, 1, width))
    return dict(model.init(key, log_mel, embedding))


def variables_like(config: RunConfig, features: FeatureConfig) -> dict[str, Any]:
    """Shapes of the variables that a run's checkpoints hold."""

    def make() -> dict[str, Any]:
        variables = initial_variables(DSAML(config.model), features, jax.random.key(0))
        if config.training.task == "dmer":
            return variables
        return to_variables(to_learned(config.meta, variables), variables["batch_stats"])

    return jax.eval_shape(make)
