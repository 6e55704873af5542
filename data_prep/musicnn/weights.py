"""The published weights of MSD_musicnn: under TensorFlow's names in the file that comes with the package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from data_prep.musicnn.network import TEMPORAL, TIMBRAL

FILE = "msd_musicnn.safetensors"
LICENCE = "ISC"
CITATION = "Pons and Serra 2019, musicnn: pre-trained convolutional neural networks for music audio tagging, arXiv 1909.06654"

_FRONT = (*(f"timbral{bands}" for _, bands in TIMBRAL), *(f"temporal{x}" for x in TEMPORAL))
_CONVOLUTIONS = (*_FRONT, *(f"middle{layer}" for layer in range(3)))
_NORMS = ("input_norm", *(f"{name}_norm" for name in _CONVOLUTIONS), "pool_norm", "dense_norm")
"""In the order of TensorFlow's numbers."""


def from_tensorflow(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables of :class:`~data_prep.musicnn.Musicnn`.

    Args:
      tensors: TensorFlow's names, `conv2d/kernel`, `batch_normalization_1/beta`, ..., to arrays in its layout.
    """
    params: dict[str, dict[str, np.ndarray]] = {}
    statistics: dict[str, dict[str, np.ndarray]] = {}
    for number, name in enumerate(_CONVOLUTIONS):
        kernel = tensors[f"{_numbered('conv2d', number)}/kernel"]
        if name.startswith("middle"):  # [time, features, 1, filters]: all features high
            kernel = kernel[:, :, 0]
        params[name] = {"kernel": kernel, "bias": tensors[f"{_numbered('conv2d', number)}/bias"]}
    for number, name in enumerate(("dense", "tags")):
        theirs = _numbered("dense", number)
        params[name] = {part: tensors[f"{theirs}/{part}"] for part in ("kernel", "bias")}
    for number, name in enumerate(_NORMS):
        theirs = _numbered("batch_normalization", number)
        params[name] = {"scale": tensors[f"{theirs}/gamma"], "bias": tensors[f"{theirs}/beta"]}
        statistics[name] = {
            "mean": tensors[f"{theirs}/moving_mean"],
            "var": tensors[f"{theirs}/moving_variance"],
        }
    return {"params": params, "batch_stats": statistics}


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


@lru_cache(maxsize=1)
def load() -> dict[str, Any]:
    """Variables with the published weights."""
    from safetensors.numpy import load as read

    return from_tensorflow(read((resources.files("data_prep.musicnn") / FILE).read_bytes()))
