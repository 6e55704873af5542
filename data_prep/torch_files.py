"""PyTorch's files, read without running code from them (extra `[torch]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.base import DataError


def read_state_dict(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Reads a state dict: names to tensors as large as what the file stores of them.

    Args:
      path: of the file.
      mapped: leave the numbers on disk until they are used.

    Raises:
      DataError: PyTorch is not installed, no such file, or something other than a plain state dict.
    """
    try:
        import torch
    except ImportError:
        raise DataError(
            f"{path}: reading a .pth file needs PyTorch: pip install 'dsaml_jax[torch]'"
        ) from None
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    path.open("rb").close()  # where it may not be read, the system says so; torch does not
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds here, none of them documented
        raise DataError(
            f"{path}: not a state dict that loads safely ({type(error).__name__}); download it again"
        ) from None
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in loaded.items()
    ):
        raise DataError(f"{path}: holds something other than a state dict of tensors")
    for name, tensor in loaded.items():
        # A tensor can repeat one stored number a trillion times, be sparse, or have no numbers at all.
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        plain = plain and not tensor.is_quantized and not tensor.is_complex()
        size = tensor.numel() * tensor.element_size()
        if not plain or size > tensor.untyped_storage().nbytes():
            raise DataError(f"{path}: {name} is no plain tensor of real numbers, each stored once")
    return loaded
