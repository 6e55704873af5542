"""`run.json`: what a run, or a model by itself, is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from data_prep.base import DIMENSIONS, DataError, replacing
from data_prep.features import FeatureConfig
from data_prep.plain import from_plain, parse_json
from dsaml_jax.config import FORMAT_VERSION, RunConfig, from_json, to_json
from dsaml_jax.corpus import Seen
from dsaml_jax.errors import UsageError
from dsaml_jax.runs.log import RUN_FILE


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


def write_run_info(directory: Path, info: RunInfo) -> None:
    """Writes `run.json`, whole or not at all."""
    values = {"format_version": FORMAT_VERSION, **info_values(info)}
    with replacing(directory / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def info_values(info: RunInfo) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "config": to_json(info.config),
        "features": dataclasses.asdict(info.features),
        "data": info.data,
        "note": info.note,
        "dimensions": info.dimensions,
        "seen": {name: " ".join(digests) for name, digests in vars(info.seen).items()},
    }


def info_from(values: Any, where: str) -> RunInfo:
    """Inverse of :func:`info_values`.

    Raises:
      UsageError: values are missing, or of another version.
    """
    try:
        return RunInfo(
            from_json(values["config"], where),
            from_plain(FeatureConfig, values["features"]),
            str(values["data"]),
            str(values["note"]),
            _read_dimensions(values.get("dimensions", DIMENSIONS)),
            _read_seen(values.get("seen", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise UsageError(f"{where}: damaged or of another version ({error})") from None


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
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: damaged or of another version ({error})") from None
    if version != FORMAT_VERSION:
        raise UsageError(f"{path}: format version {version}; this version reads {FORMAT_VERSION}")
    return info_from(values, str(path))


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
