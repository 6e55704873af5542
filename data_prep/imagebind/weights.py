"""The audio tower's weights: from the published checkpoint to a small file, and into the encoder.

The published file (4.5 GB, every modality) is read once, with PyTorch; what is kept of it is the audio
tower (345 MB, safetensors) under its published names and in its published layout, so that the file
can be compared to the original tensor by tensor.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from data_prep.base import DataError, replacing
from data_prep.imagebind.encoder import AudioEncoder
from data_prep.torch_files import read_state_dict

PREFIXES = tuple(
    f"modality_{part}.audio." for part in ("preprocessors", "trunks", "heads", "postprocessors")
)
"""What the names of the audio tower start with; the other modalities' names do not."""

FORMAT = "imagebind-audio-1"
LICENCE = "CC-BY-NC 4.0"
URL = "https://github.com/facebookresearch/ImageBind"
CITATION = (
    "Girdhar, El-Nouby, Liu, Singh, Alwala, Joulin, Misra 2023, "
    "ImageBind: One Embedding Space To Bind Them All, arXiv 2305.05665"
)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One of the encoder's parameters, and what it is in the published state dict.

    Attributes:
      path: of the parameter.
      name: published; `{}` stands for the number of a block, over which it is then stacked.
      shape: published.
      convert: from the published layout.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray]

    def names(self, encoder: AudioEncoder) -> list[str]:
        if "{}" not in self.name:
            return [self.name]
        return [self.name.format(block) for block in range(encoder.num_layers)]


def _tensors(encoder: AudioEncoder) -> list[_Tensor]:
    """Every parameter of the encoder."""
    width, ffn_width = encoder.width, encoder.ffn_width
    tensors: list[_Tensor] = []

    def vector(path: str, name: str, shape: tuple[int, ...]) -> None:
        tensors.append(_Tensor(tuple(path.split("/")), name, shape, np.squeeze))

    def linear(path: str, name: str, inputs: int, outputs: int) -> None:
        tensors.append(_Tensor((*path.split("/"), "kernel"), name, (outputs, inputs), np.transpose))

    def norm(path: str, name: str) -> None:
        vector(f"{path}/scale", f"{name}.weight", (width,))
        vector(f"{path}/bias", f"{name}.bias", (width,))

    before, block, head, after = PREFIXES
    block += "blocks.{}."
    patch = (width, 1, encoder.patch, encoder.patch)
    tensors.append(
        _Tensor(("stem", "kernel"), f"{before}rgbt_stem.proj.weight", patch, _conv_kernel)
    )
    norm("stem_norm", f"{before}rgbt_stem.norm_layer")
    vector("class_token", f"{before}cls_token", (1, 1, width))
    positions = (1, encoder.tokens, width)
    vector("position", f"{before}pos_embedding_helper.pos_embed", positions)

    norm("blocks/norm1", f"{block}norm_1")
    linear("blocks/attention/qkv", f"{block}attn.in_proj_weight", width, 3 * width)
    vector("blocks/attention/qkv/bias", f"{block}attn.in_proj_bias", (3 * width,))
    vector("blocks/attention/extra_key", f"{block}attn.bias_k", (1, 1, width))
    vector("blocks/attention/extra_value", f"{block}attn.bias_v", (1, 1, width))
    linear("blocks/attention/out", f"{block}attn.out_proj.weight", width, width)
    vector("blocks/attention/out/bias", f"{block}attn.out_proj.bias", (width,))
    norm("blocks/norm2", f"{block}norm_2")
    linear("blocks/ffn_in", f"{block}mlp.fc1.weight", width, ffn_width)
    vector("blocks/ffn_in/bias", f"{block}mlp.fc1.bias", (ffn_width,))
    linear("blocks/ffn_out", f"{block}mlp.fc2.weight", ffn_width, width)
    vector("blocks/ffn_out/bias", f"{block}mlp.fc2.bias", (width,))

    norm("head_norm", f"{head}0")
    linear("head", f"{head}2.weight", width, encoder.embedding_width)
    vector("log_scale", f"{after}1.log_logit_scale", ())
    return tensors


def _conv_kernel(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], encoder: AudioEncoder) -> None:
    """Raises DataError unless these are the shapes of exactly the encoder's tensors."""
    expected = {
        name: tensor.shape for tensor in _tensors(encoder) for name in tensor.names(encoder)
    }
    for name, shape in expected.items():
        if name not in shapes:
            raise DataError(f"not ImageBind's audio tower: there is no {name}")
        if tuple(shapes[name]) != shape:
            raise DataError(
                f"not ImageBind's audio tower: {name} has the shape {list(shapes[name])} "
                f"instead of {list(shape)}"
            )
    surplus = sorted(set(shapes) - set(expected))
    if surplus:
        raise DataError(f"not ImageBind's audio tower: it has no {surplus[0]}")


def from_torch(
    state_dict: Mapping[str, Any], encoder: AudioEncoder = AudioEncoder()
) -> dict[str, Any]:
    """Variables of the encoder from ImageBind's `state_dict`.

    Args:
      state_dict: the published names to arrays; those of other modalities are ignored.
      encoder: whose sizes the arrays must have.

    Returns:
      `{"params": ...}` of float32 numpy arrays, those of the blocks stacked.

    Raises:
      DataError: a tensor is missing, left over, of another shape, or holds numbers that are not
        finite, and which.
    """
    audio = {
        name: np.asarray(array, np.float32)
        for name, array in state_dict.items()
        if name.startswith(PREFIXES)
    }
    _check_shapes({name: array.shape for name, array in audio.items()}, encoder)
    for name, array in audio.items():
        if not np.isfinite(array).all():
            raise DataError(f"damaged weights: {name} holds numbers that are not finite")
    flat = {}
    for tensor in _tensors(encoder):
        parts = [tensor.convert(audio[name]) for name in tensor.names(encoder)]
        flat[tensor.path] = np.stack(parts) if "{}" in tensor.name else parts[0]
    return {"params": flax.traverse_util.unflatten_dict(flat)}


def read_published(path: Path) -> dict[str, np.ndarray]:
    """Reads the audio tower out of the published checkpoint, without running code from the file.

    The file is mapped, not loaded: of its 4.5 GB only the audio tower comes into memory.

    Args:
      path: `imagebind_huge.pth`.

    Returns:
      published name to float32 array; nothing of the other modalities.

    Raises:
      DataError: PyTorch is not installed; no such file; or not a state dict with an audio tower.
    """
    audio = {
        name: tensor
        for name, tensor in read_state_dict(path, mapped=True).items()
        if name.startswith(PREFIXES)
    }
    if not audio:
        raise DataError(f"{path}: a state dict without ImageBind's audio tower")
    return {
        name: np.array(tensor.detach().float().numpy())  # a copy: the file is let go
        for name, tensor in audio.items()
    }


def save(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    source: str,
    encoder: AudioEncoder = AudioEncoder(),
) -> None:
    """Writes the audio tower with whose it is and on what terms; whole or not at all.

    Args:
      path: of the safetensors file.
      tensors: published name to array, see :func:`read_published`.
      source: name of the file they came from.
      encoder: whose sizes they must have.

    Raises:
      DataError: not exactly the tensors of the encoder.
    """
    _check_shapes({name: array.shape for name, array in tensors.items()}, encoder)
    metadata = {
        "format": FORMAT,
        "what": "audio tower of ImageBind, published names and layout",
        "licence": LICENCE,
        "source": f"{URL}, {source}",
        "citation": CITATION,
    }
    arrays = {name: np.array(array, np.float32, order="C") for name, array in tensors.items()}
    with replacing(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata)


def load(
    path: Path, encoder: AudioEncoder = AudioEncoder()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads what :func:`save` wrote. Names, types and sizes are checked before any tensor is read.

    Args:
      path: of the safetensors file.
      encoder: whose sizes the tensors must have.

    Returns:
      variables of the encoder, and the file's metadata.

    Raises:
      DataError: no such file, or damaged, or not an audio tower of these sizes.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(f"not the format {FORMAT}; make it from ImageBind's .pth file")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            for name, part in slices.items():
                if part.get_dtype() != "F32":
                    raise DataError(f"{name} is {part.get_dtype()} instead of F32")
            _check_shapes({name: tuple(x.get_shape()) for name, x in slices.items()}, encoder)
            variables = from_torch({name: file.get_tensor(name) for name in slices}, encoder)
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file, or cut short ({error})") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return variables, metadata


def digest(path: Path) -> str:
    """First 8 hexadecimal digits of the SHA-256 of a file: which weights made an embedding.

    Raises:
      DataError: no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
