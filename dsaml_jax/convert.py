"""Between the published implementation's `state_dict` and this library's variables.

The map is linear and one to one: transposes, reshapes and stacking only. So it also carries
gradients, differences and optimiser moments from one world to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from data_prep.torch_files import read_state_dict
from dsaml_jax.base import ModelConfig
from dsaml_jax.errors import UsageError

Array = np.ndarray
_Path = tuple[str, ...]

ENCODER = "multi_scale_attention.encoder.encoder"
ALIASES = "multi_scale_attention.multi_scale_attention."
"""The reference registers its encoder three times; names that start like this repeat tensors."""


def _transpose(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def _conv_from_torch(x: Array) -> Array:
    return x.transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]


def _conv_to_torch(x: Array) -> Array:
    return x.transpose(3, 2, 0, 1)


def _directions_from_torch(x: Array) -> Array:
    return x.transpose(2, 0, 1)  # [direction, gates, in] -> [in, direction, gates]


def _directions_to_torch(x: Array) -> Array:
    return x.transpose(1, 2, 0)


def _same(x: Array) -> Array:
    return x


_TO_OURS: dict[str, Callable[[Array], Array]] = {
    "linear": _transpose,
    "conv": _conv_from_torch,
    "directions": _directions_from_torch,
    "vector": _same,
}
_TO_TORCH: dict[str, Callable[[Array], Array]] = {
    "linear": _transpose,
    "conv": _conv_to_torch,
    "directions": _directions_to_torch,
    "vector": _same,
}


def _names(config: ModelConfig) -> dict[_Path, tuple[str, tuple[str, ...]]]:
    """Our path -> (kind, the reference's names); two names are stacked on a new first axis."""
    names: dict[_Path, tuple[str, tuple[str, ...]]] = {}

    def weight_and_bias(ours: _Path, theirs: str, kind: str = "linear") -> None:
        names["params", *ours, "kernel"] = (kind, (f"{theirs}.weight",))
        names["params", *ours, "bias"] = ("vector", (f"{theirs}.bias",))

    def norm(ours: _Path, theirs: str) -> None:
        names["params", *ours, "scale"] = ("vector", (f"{theirs}.weight",))
        names["params", *ours, "bias"] = ("vector", (f"{theirs}.bias",))

    extractor = "spectrogram_feature_extractor"
    for block in range(2):
        theirs = f"{extractor}.feature_extractor.{block}"
        weight_and_bias(("spectrogram", f"conv{block}"), f"{theirs}.conv", "conv")
        ours = ("spectrogram", f"norm{block}")
        norm(ours, f"{theirs}.bn")
        names["batch_stats", *ours, "mean"] = ("vector", (f"{theirs}.bn.running_mean",))
        names["batch_stats", *ours, "var"] = ("vector", (f"{theirs}.bn.running_var",))
    weight_and_bias(("spectrogram", "conv_out"), f"{extractor}.conv1x1", "conv")

    weight_and_bias(("adapter", "spectrogram"), "fusion_model.spectrogram_feature_project")
    weight_and_bias(("adapter", "fusion"), "fusion_model.fusion_project")

    for layer in range(config.num_layers):
        ours, theirs = ("encoder", f"layer{layer}"), f"{ENCODER}.layer.{layer}"
        for part in ("query", "key", "value"):
            weight_and_bias((*ours, "attention", part), f"{theirs}.attention.attention.{part}")
        if config.position != "absolute":
            names["params", *ours, "attention", "distance"] = (
                "vector",
                (f"{theirs}.attention.attention.distance_embedding.weight",),
            )
        weight_and_bias((*ours, "attention_out"), f"{theirs}.attention.output.dense")
        norm((*ours, "attention_norm"), f"{theirs}.attention.output.LayerNorm")
        weight_and_bias((*ours, "ffn_in"), f"{theirs}.intermediate.dense")
        weight_and_bias((*ours, "ffn_out"), f"{theirs}.output.dense")
        norm((*ours, "ffn_norm"), f"{theirs}.output.LayerNorm")

    lstm = "sequence_predict_model.bilstm"
    for ours_name, theirs_name, kind in (
        ("input_kernel", "weight_ih", "directions"),
        ("hidden_kernel", "weight_hh", "linear"),
        ("input_bias", "bias_ih", "vector"),
        ("hidden_bias", "bias_hh", "vector"),
    ):
        names["params", "predictor", "bilstm", ours_name] = (
            kind,
            (f"{lstm}.{theirs_name}_l0", f"{lstm}.{theirs_name}_l0_reverse"),
        )
    weight_and_bias(("predictor", "hidden"), "sequence_predict_model.layers.0")
    weight_and_bias(("predictor", "out"), "sequence_predict_model.layers.2")
    return names


def from_torch(state_dict: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Variables of :class:`dsaml_jax.DSAML` from the reference's `state_dict`.

    Args:
      state_dict: the reference's names to numpy arrays; the aliases of the encoder and
        `num_batches_tracked` are ignored.
      config: must agree in layers and position type (widths follow the arrays).

    Returns:
      `{"params": ..., "batch_stats": ...}` of numpy arrays.

    Raises:
      UsageError: a name is missing, left over, or of a shape that no layer of its kind has, and which.
    """
    remaining = {
        name
        for name in state_dict
        if not name.startswith(ALIASES) and not name.endswith("num_batches_tracked")
    }
    flat: dict[_Path, Array] = {}
    for path, (kind, theirs) in _names(config).items():
        missing = [name for name in theirs if name not in state_dict]
        if missing:
            raise UsageError(
                f"the state dict has no {missing[0]}; is the model's configuration right?"
            )
        arrays = [np.asarray(state_dict[name]) for name in theirs]
        try:
            flat[path] = _TO_OURS[kind](np.stack(arrays) if len(arrays) > 1 else arrays[0])
        except ValueError:
            shapes = ", ".join(str(list(array.shape)) for array in arrays)
            raise UsageError(
                f"{theirs[0]} has the shape {shapes}, which no such layer has"
            ) from None
        remaining -= set(theirs)
    if remaining:
        raise UsageError(f"the state dict has {sorted(remaining)[0]}, which this model has not")
    return flax.traverse_util.unflatten_dict(flat)


def to_torch(variables: Mapping[str, Any], config: ModelConfig) -> dict[str, Array]:
    """Inverse of :func:`from_torch`, without aliases and without `num_batches_tracked`.

    Collections that `variables` lacks are left out, so gradients convert as `{"params": grads}`. So are learned inner rates, of
    which the reference has none.

    Raises:
      UsageError: a model that is not one of the reference's, and why.
    """
    require_counterpart(config)
    kept = {name: tree for name, tree in variables.items() if name != "rates"}
    flat = flax.traverse_util.flatten_dict(kept)
    ours = _names(config)
    unknown = [path for path in flat if path not in ours]
    if unknown:
        raise UsageError(f"the reference has nothing like {'/'.join(unknown[0])}")
    state_dict: dict[str, Array] = {}
    for path, (kind, theirs) in ours.items():
        if path[0] not in variables:
            continue
        array = _TO_TORCH[kind](np.asarray(flat[path]))
        state_dict |= zip(theirs, array if len(theirs) > 1 else [array], strict=True)
    return state_dict


def require_counterpart(config: ModelConfig) -> None:
    """Refuses a model whose parts the reference does not have.

    Raises:
      UsageError: which part it is. What has a counterpart reads an embedding as wide as the model, through the adapter.
    """
    width = config.embedding_width or config.width
    if not config.use_adapter:
        raise UsageError("a model without the adapter has no counterpart in the reference")
    if width != config.width:
        raise UsageError(
            f"this model reads an embedding of {width} numbers, and is {config.width} wide; the reference knows only "
            "models that are as wide as their embedding (1024, with ImageBind)"
        )


def infer_config(state_dict: Mapping[str, Any]) -> ModelConfig:
    """The configuration a `state_dict` of the reference fits: sizes from shapes, contexts as published.

    Raises:
      UsageError: not a state dict of the reference.
    """
    try:
        width = len(state_dict["fusion_model.fusion_project.bias"])
        ffn_width = len(state_dict[f"{ENCODER}.layer.0.intermediate.dense.bias"])
    except KeyError as error:
        raise UsageError(
            f"the state dict has no {error.args[0]}: not a model of the reference"
        ) from None
    except TypeError:  # a single number has no length
        raise UsageError(
            "a bias in the state dict is no vector: not a model of the reference"
        ) from None
    layers = {name.split(".")[4] for name in state_dict if name.startswith(f"{ENCODER}.layer.")}
    table = state_dict.get(f"{ENCODER}.layer.0.attention.attention.distance_embedding.weight")
    if table is None:
        raise UsageError(
            "the state dict has no distance embedding; its number of heads is not known"
        )
    if table.ndim != 2 or not table.shape[1]:
        raise UsageError(f"the distance embedding has the shape {list(table.shape)}, not two sizes")
    return ModelConfig(
        width=width,
        num_heads=width // table.shape[1],
        num_layers=len(layers),
        ffn_width=ffn_width,
        max_position=(table.shape[0] + 1) // 2,
    )


def load_torch_file(path: Path) -> dict[str, Array]:
    """Reads a PyTorch checkpoint (extra `[torch]`) without running any code from it.

    Raises:
      DataError: PyTorch is not installed, or the file is not a plain state dict.
    """
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in read_state_dict(path).items()
    }
