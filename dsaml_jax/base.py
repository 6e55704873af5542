"""Records shared by the whole library, and the letters their shapes use.

`B` is the batch of windows, `T` the half-second steps of a window, `F` the spectral frames of a
step, `M` the mel bands, `E` the width of the global embedding, `D` the width of the model, `S` the
attention scales (local, global), `L` the encoder layers, `H` the heads.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal

import chex
import flax.struct

from dsaml_jax.errors import UsageError

PyTree = Any
PositionType = Literal["relative_key", "relative_key_query", "absolute"]
ActivationType = Literal["float32", "bfloat16"]
PrecisionType = Literal["default", "high", "highest"]

MIN_LABELLED_STEPS = 10
"""Labelled steps without which a window teaches nothing: 5 s."""


_LARGEST = {
    "width": 2**16, "num_heads": 2**16, "num_layers": 100, "ffn_width": 2**18, "max_position": 2**16,
    "embedding_width": 2**16,
}  # fmt: skip
"""Far beyond use: a file that asks for more is damaged, and would take the machine with it."""


def check_choice(key: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises UsageError unless a setting is one of these."""
    if value not in choices:
        raise UsageError(f"{key} {value!r} is none of {', '.join(map(str, choices))}")


def check_rate(key: str, value: float) -> None:
    """Raises UsageError unless a setting is positive and finite."""
    if not (value > 0.0 and math.isfinite(value)):
        raise UsageError(f"{key} {value} must be a positive number")


def check_choices(config: Any, section: str) -> None:
    """Raises UsageError unless every setting with a Literal type is one of its values."""
    for field, kind in typing.get_type_hints(type(config)).items():
        if typing.get_origin(kind) is Literal:
            check_choice(f"{section}.{field}", getattr(config, field), typing.get_args(kind))


def check_positive(config: Any, section: str, fields: tuple[str, ...]) -> None:
    """Raises UsageError unless these settings are 1 or more."""
    for field in fields:
        if getattr(config, field) < 1:
            raise UsageError(f"{section}.{field} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and options of :class:`dsaml_jax.DSAML`; defaults are the paper's full size.

    Attributes:
      width: `D`, width of the fused feature and of the encoder; a multiple of 4 and of `num_heads`.
      num_heads: `H`, attention heads.
      num_layers: `L`, encoder layers; the local and the global pass share them.
      ffn_width: width of the encoder's feed-forward hidden layer.
      local_context: the local pass lets step i see the steps j with |i - j| <= local_context.
      global_context: the same for the global pass (30 of 60 in the paper, so not full attention).
      position: `relative_key`, `relative_key_query`, or `absolute`, which here means no position
        information at all, as in the reference.
      max_position: the distance table has `2 * max_position - 1` rows, so it bounds `T`.
      dropout: rate on attention probabilities, after the dense layers of the encoder, and in the
        predictor. Active only in train mode.
      embedding_width: `E`, width of the global embedding. None means `width`, the case of the
        paper (1024 both), where the embedding is added as it is; another number adds a learned
        projection in front.
      use_local, use_global: ablations; without both the fused features go to the predictor as they are.
      use_adapter: ablation; without it the global embedding is not read.
      standardize: inputs are standardised, each mel band and each number of the embedding by its mean and spread in the
        songs of training, see :class:`dsaml_jax.models.levels.Standardizer`. Not in the paper.
      level_centres: songs, at most, that the head which adds the level of both curves is fitted on, see
        :class:`dsaml_jax.models.levels.LevelHead`; needs `standardize`. 0: no such head, as in the paper.
      listener_centres: songs of one listener that the head of a personal model has room for.
      diagonal_weight: weight of the diagonal attention loss; 0 is the ablation.
      local_diagonal, global_diagonal: what that loss pulls the diagonals of the last maps to.
      class_: `package.module:Class` of another network, see :func:`dsaml_jax.models.build_model`; empty: DSAML.
      activations: what the layers hand on, and the factors of their matrix products. Parameters and
        their gradients, every sum (softmax, LayerNorm, BatchNorm, the state of the LSTM, losses) and
        the model's output are float32 in both cases.
      precision: of products of float32 factors. `default`: what JAX means by it (or `jax.default_matmul_precision` around the
        call), which is TF32 on an NVIDIA GPU and bfloat16 on a TPU, and float32 on a CPU. `high`: three passes of those;
        `highest`: float32. The last layer, and what the losses multiply, are `highest` always.
    """

    width: int = 1024
    num_heads: int = 16
    num_layers: int = 3
    ffn_width: int = 2048
    local_context: int = 5
    global_context: int = 30
    position: PositionType = "relative_key"
    max_position: int = 512
    dropout: float = 0.1
    embedding_width: int | None = None
    use_local: bool = True
    use_global: bool = True
    use_adapter: bool = True
    standardize: bool = False
    level_centres: int = 0
    listener_centres: int = 64
    diagonal_weight: float = 1.0
    local_diagonal: float = 0.9
    global_diagonal: float = 0.1
    activations: ActivationType = "float32"
    precision: PrecisionType = "default"
    class_: str = ""

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"model.{name} {value} must be from 1 to {most}")
        if self.local_context < 0 or self.global_context < 0:
            raise UsageError("model.local_context and model.global_context must be 0 or more")
        if self.width % 4 or self.width % self.num_heads:
            raise UsageError(
                f"model.width {self.width} must be a multiple of 4 and of num_heads {self.num_heads}"
            )
        check_choices(self, "model")
        for name, least in (("level_centres", 0), ("listener_centres", 1)):
            if not least <= getattr(self, name) <= _LARGEST["width"]:
                raise UsageError(
                    f"model.{name} {getattr(self, name)} must be from {least} to {_LARGEST['width']}"
                )
        if self.level_centres and not self.standardize:
            raise UsageError("model.level_centres needs model.standardize=true")
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"model.dropout {self.dropout} must be in [0, 1)")

    @property
    def draws(self) -> bool:
        """Whether training needs keys: for dropout, or whatever a network of one's own does where it trains."""
        return self.dropout > 0.0 or bool(self.class_)

    @property
    def contexts(self) -> tuple[int, ...]:
        """Context of each scale in use, local first."""
        scales = ((self.use_local, self.local_context), (self.use_global, self.global_context))
        return tuple(context for used, context in scales if used)

    @property
    def diagonal_targets(self) -> tuple[float, ...]:
        """Target of the diagonal attention loss of each scale in use, local first."""
        scales = ((self.use_local, self.local_diagonal), (self.use_global, self.global_diagonal))
        return tuple(target for used, target in scales if used)


@flax.struct.dataclass
class ModelOutput:
    """What :class:`dsaml_jax.DSAML` returns.

    Attributes:
      arousal: `[B, T]`, trained towards [-1, 1] but not clipped.
      valence: `[B, T]`.
      attention: `[B, S, L, H, T, T]`, probabilities after the softmax and before dropout; scale 0
        is local, 1 global (only the one in use when the other is ablated). None of a network that has none: then there
        is no diagonal attention loss.
    """

    arousal: chex.Array
    valence: chex.Array
    attention: chex.Array | None = None


@flax.struct.dataclass
class SongBatch:
    """`B` windows of songs with the curves one listener (or the mean listener) drew for them.

    Attributes:
      log_mel: `[B, T, F, M]` log-mel patches.
      embedding: `[B, 1, E]` one global embedding per window, or `[B, T, E]` one per step.
      arousal: `[B, T]` labels in [-1, 1]; any finite value where `labelled` is false.
      valence: `[B, T]` likewise.
      present: `[B, T]` bool, the steps that exist in the song.
      labelled: `[B, T, 2]` bool, the steps whose arousal and whose valence counts.
    """

    log_mel: chex.Array
    embedding: chex.Array
    arousal: chex.Array
    valence: chex.Array
    present: chex.Array
    labelled: chex.Array
