"""Floating-point operations and bytes that the arithmetic asks for, whatever the program does.

A multiplication and an addition are two operations; backward costs twice as much as forward. Bytes are those of
float32 that must pass through the device's memory at least once: weights, and arrays that are too large for a cache.
`T` steps of a window, `D` width, `S` scales. Multiplying by fewer digits changes the speed and not the counts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from problem import BANDS, FRAMES

from data_prep.base import WINDOW_STEPS
from dsaml_jax import ModelConfig
from dsaml_jax.models import output_size

FLOAT = 4
"""Bytes."""

FORWARD_AND_BACKWARD = 3
"""Times the work of forward alone."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be done.

    Attributes:
      flop: floating-point operations.
      bytes: to and from the device's memory.
    """

    flop: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flop + other.flop, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.flop * times, self.bytes * times)

    def seconds(self, flop_per_second: float, bytes_per_second: float) -> float:
        """The least time: arithmetic and memory at once, each at its limit."""
        return max(self.flop / flop_per_second, self.bytes / bytes_per_second)


def gradient_work(config: ModelConfig, params: Any, songs: int) -> dict[str, Work]:
    """Loss and gradient of one task with weights of its own, by part of the model.

    Weights are read forward and backward, and their gradient is written: three times their size.

    Args:
      config: of the model.
      params: of the model.
      songs: windows in the batch.
    """
    steps, width = WINDOW_STEPS, config.width
    tokens, scales = songs * steps, len(config.contexts)
    weights = {part: _size(params[part]) * FLOAT * 3 for part in params}

    def dense(number: float) -> float:
        return FORWARD_AND_BACKWARD * 2 * number * tokens

    # The first layer's queries, keys and values are the same for all scales.
    layer = 4 * width**2 + 2 * width * config.ffn_width
    encoder = dense(scales * config.num_layers * layer - (scales - 1) * 3 * width**2)
    # Queries by keys, by the 2 T - 1 distances, and probabilities by values.
    pairs = steps * (2 * steps + 2 * steps - 1) * width
    encoder += FORWARD_AND_BACKWARD * 2 * scales * config.num_layers * songs * pairs
    predictor = dense(_matrices(params["predictor"]))
    return {
        "front end": front_end_work(songs) + Work(0.0, weights["spectrogram"]),
        "adapter and encoder": Work(
            encoder + dense(_matrices(params["adapter"])), weights["encoder"] + weights["adapter"]
        ),
        "LSTM and head": Work(predictor, weights["predictor"]),
    }


def front_end_work(songs: int) -> Work:
    """Of the convolutions and their largest arrays; see :mod:`dsaml_jax.models.spectrogram`.

    The input is read forward and backward. The maps after the first pooling, and those before the second, whose
    statistics must be known before they can be normalised, are written, read forward and backward, and so is
    their gradient written and read: five times.
    """
    first = output_size((FRAMES, BANDS), (3, 1), (2, 1))
    pooled = (first[0] // 2 + 1, first[1] // 2 + 1)
    second = output_size(pooled, (3, 3), (1, 1))
    last = (second[0] // 2 + 1, second[1] // 2 + 1)
    flop = 2 * (math.prod(first) * 3 * 8 + math.prod(second) * 9 * 8 * 16 + math.prod(last) * 16)
    numbers = 2 * FRAMES * BANDS + 5 * (math.prod(pooled) * 8 + math.prod(second) * 16)
    patches = songs * WINDOW_STEPS
    return Work(FORWARD_AND_BACKWARD * flop * patches, FLOAT * numbers * patches)


def first_order_work(
    config: ModelConfig, params: Any, *, tasks: int, steps: int, queries: int
) -> dict[str, Work]:
    """A first-order meta-step without the optimiser: the inner steps, and the outer loss with its gradient.

    An inner step also reads weights and gradient and writes new weights; two of these three are counted, as the
    update can be part of the product that makes the gradient, or of nothing.

    Args:
      config: of the model.
      params: of the model.
      tasks: side by side.
      steps: inner ones, each on one song.
      queries: songs of the outer loss.
    """
    update = Work(2.0 * _size(params), 2.0 * FLOAT * _size(params))
    inner = sum(gradient_work(config, params, 1).values(), update)
    outer = sum(gradient_work(config, params, queries).values(), Work(0.0, 0.0))
    return {"inner": inner * (tasks * steps), "outer": outer * tasks}


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _matrices(tree: Any) -> int:
    """Numbers in weights that are multiplied by every step: all but the biases."""
    named = jax.tree.leaves_with_path(tree)
    return sum(leaf.size for path, leaf in named if "bias" not in jax.tree_util.keystr(path[-1:]))
