"""A model as one safetensors file: for other programs, and for people to pass on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from data_prep.base import replacing
from data_prep.plain import parse_json
from dsaml_jax.errors import UsageError
from dsaml_jax.models import build_model
from dsaml_jax.runs.info import info_from, info_values
from dsaml_jax.runs.listener_files import listeners_from
from dsaml_jax.runs.variables import LoadedModel, variables_like

SUFFIX = ".safetensors"


def export_model(loaded: LoadedModel, out: Path) -> int:
    """Writes a model, names of its arrays with dots; returns how many numbers it holds.

    What `run.json` says stands in the metadata, in JSON but for texts.

    Raises:
      UsageError: `out` exists, or has another suffix.
    """
    from safetensors.numpy import save_file

    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: an exported model is a {SUFFIX} file")
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out")
    flat = traverse_util.flatten_dict(dict(loaded.variables), sep=".")
    arrays = {name: np.asarray(value, order="C") for name, value in flat.items()}
    metadata = {"format": "dsaml_jax", "step": str(loaded.step)}
    for name, value in info_values(loaded.info).items():
        metadata[name] = value if isinstance(value, str) else json.dumps(value)
    if loaded.listeners is not None:
        metadata["listeners"] = json.dumps(dataclasses.asdict(loaded.listeners))
    with replacing(out) as temporary:
        save_file(arrays, temporary, metadata)
    return sum(value.size for value in arrays.values())


def read_export(path: Path, network: str = "") -> LoadedModel:
    """Reads what :func:`export_model` wrote.

    Raises:
      UsageError: it is no such file, or its numbers are not those of the model it describes.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if metadata.get("format") != "dsaml_jax":
            raise ValueError("no model of this package")
        step = int(metadata["step"])
        values = {
            name: text if name in ("data", "note") else parse_json(text)
            for name, text in metadata.items()
            if name not in ("format", "step")
        }
        told = values.pop("listeners", None)
        listeners = None if told is None else listeners_from(told)
    except (
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: not an exported model ({reason})") from None
    info = info_from(values, str(path))
    model = build_model(info.config.model, trusted=network)
    like = variables_like(info.config, info.features, model)
    return LoadedModel(model, _checked(flat, like, path), info, step, listeners)


def _checked(flat: dict[str, np.ndarray], like: dict[str, Any], path: Path) -> dict[str, Any]:
    """These arrays as the variables of the model, if names, shapes and dtypes are right."""
    places = traverse_util.flatten_dict(like)
    wanted = {".".join(place): (place, leaf) for place, leaf in places.items()}
    different = sorted(
        name
        for name in wanted.keys() | flat.keys()
        if name not in flat
        or name not in wanted
        or (flat[name].shape, flat[name].dtype) != (wanted[name][1].shape, wanted[name][1].dtype)
    )
    if different:
        raise UsageError(
            f"{path}: its numbers are not those of the model that it describes ({different[0]})"
        )
    tree = traverse_util.unflatten_dict(
        {wanted[name][0]: jax.numpy.asarray(value) for name, value in flat.items()}
    )
    return {name: tree.get(name, {}) for name in like}
