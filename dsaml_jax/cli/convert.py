"""`dsaml convert`: published weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.base import DataError, printable
from dsaml_jax.cli.arguments import Register
from dsaml_jax.errors import UsageError


def add(register: Register) -> None:
    """Registers `dsaml convert` and its arguments."""
    convert = register("convert", run, "Bring published weights over (needs the extra [torch])")  # fmt: skip
    convert.add_argument("kind", choices=("reference", "imagebind"),
                         help="reference: the state_dict of the published implementation -> a checkpoint\n"
                              "imagebind: imagebind_huge.pth -> its audio tower as safetensors")  # fmt: skip
    convert.add_argument("file", type=Path, help="the .pth file")
    convert.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, or the .safetensors file")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Runs `dsaml convert`."""
    if not options.file.is_file():
        raise UsageError(f"{options.file}: no such file")
    if options.kind == "reference":
        _convert_reference(options)
    else:
        _convert_imagebind(options)


def _convert_reference(options: argparse.Namespace) -> None:
    from data_prep.features import FeatureConfig
    from dsaml_jax import convert
    from dsaml_jax.config import RunConfig
    from dsaml_jax.progress import Console
    from dsaml_jax.runs import RunInfo, require_free, require_variables, save_model

    require_free(options.out)
    state_dict = convert.load_torch_file(options.file)
    model = convert.infer_config(state_dict)
    features = FeatureConfig(embedding="spectral")  # 1024 numbers, as ImageBind has
    if model.width != features.embedding_width:
        raise UsageError(
            f"{options.file}: width {model.width}; the features give {features.embedding_width} numbers"
        )
    variables = convert.from_torch(state_dict, model)
    require_variables(variables, model, features, str(options.file))
    note = f"converted from {options.file.name}"
    save_model(options.out, variables, RunInfo(RunConfig(model=model), features, "imported", note))
    console = Console(options.quiet)
    console.say(f"converted: {options.out} (width {model.width}, {model.num_layers} layers)")
    console.say(
        "the published model was trained on ImageBind embeddings; with others (prepare --embedding spectral) it is a "
        "start for training (--set training.init_from=...), not a finished model"
    )


def _convert_imagebind(options: argparse.Namespace) -> None:
    from data_prep.imagebind import weights
    from dsaml_jax.progress import Console

    if options.out.exists():
        raise UsageError(f"{options.out} exists; choose another --out")
    tensors = weights.read_published(options.file)
    try:
        weights.save(options.out, tensors, source=printable(options.file.name))
    except DataError as error:
        raise DataError(f"{options.file}: {error}") from None
    console = Console(options.quiet)
    console.say(f"converted: {options.out}, the audio tower of ImageBind ({weights.LICENCE})")
    console.say(f"next: dsaml prepare ... --embedding imagebind --imagebind-weights {options.out}")
