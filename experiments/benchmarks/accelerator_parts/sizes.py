"""How large everything is: the paper's size for an accelerator, about a tenth of it for a rehearsal on a CPU."""

from __future__ import annotations

import dataclasses

from problem import MODELS, QUERIES, STEPS

from data_prep.imagebind.encoder import AudioEncoder
from dsaml_jax import ModelConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the measurements.

    Attributes:
      name: `full` or `tiny`.
      model: the network, without dropout.
      tasks: annotators of a meta-step.
      steps: inner steps.
      queries: query songs of a task.
      rounds: that sides take turns.
      songs, annotators: of the corpus in memory.
      song_steps: half seconds of a song of it.
      meta_steps: of an end-to-end run; a multiple of 10.
      matrix: side of the square product whose speed is the device's limit.
      copied: numbers in the array whose copying is the device's limit.
      memory: bytes that second order may take.
      more_steps: inner steps tried for the largest that fits.
      tower: ImageBind's audio encoder.
    """

    name: str
    model: ModelConfig
    tasks: int
    steps: int
    queries: int
    rounds: int
    songs: int
    annotators: int
    song_steps: int
    meta_steps: int
    matrix: int
    copied: int
    memory: float
    more_steps: tuple[int, ...]
    tower: AudioEncoder


FULL = Size(
    name="full", model=MODELS["full size"], tasks=16, steps=STEPS, queries=QUERIES, rounds=5,
    songs=300, annotators=40, song_steps=90, meta_steps=30, matrix=8192, copied=2**28, memory=80e9,
    more_steps=(64, 256), tower=AudioEncoder(),
)  # fmt: skip

TINY = Size(
    name="tiny",
    model=ModelConfig(width=64, num_heads=4, num_layers=1, ffn_width=128, dropout=0.0),
    tasks=2, steps=2, queries=1, rounds=3, songs=30, annotators=12, song_steps=90, meta_steps=10,
    matrix=512, copied=2**22, memory=0.5e9, more_steps=(4,),
    tower=AudioEncoder(width=48, num_heads=4, num_layers=2, ffn_width=96),
)  # fmt: skip
"""Of the width a sixteenth, an eighth of tasks and inner steps, one query: every line runs, no figure counts."""

SIZES = {size.name: size for size in (FULL, TINY)}
