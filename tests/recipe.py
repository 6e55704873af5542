"""The weights and inputs behind the stored arrays: numpy draws in a fixed order.

Written after the description that comes with the arrays.
"""

from __future__ import annotations

import numpy as np

SEED = 1234
"""Of the stored arrays: the weights are drawn by it, everything else by a number a little above."""

_HALF = ("distance_embedding.weight", "cls_token", "pos_embed", "bias_k", "bias_v")


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """One standard normal per tensor in the order of the names, scaled by what the tensor is."""
    random = np.random.RandomState(seed)
    out = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        draw = np.asarray(random.standard_normal(shape or None)).reshape(shape)
        if name.endswith("num_batches_tracked"):
            out[name] = np.zeros(shape, np.int64)
            continue
        if name.endswith("log_logit_scale"):
            value = np.full(shape, np.log(20.0))
        elif name.endswith("running_var"):
            value = 1 + 0.1 * np.abs(draw)
        elif len(shape) == 1 and name.endswith(".weight"):
            value = 1 + 0.1 * draw
        elif len(shape) <= 1:
            value = 0.05 * draw
        elif name.endswith(_HALF):
            value = 0.5 * draw
        else:
            value = draw / np.sqrt(np.prod(shape[1:]))
        out[name] = value.astype(np.float32)
    return out


def inputs(seed: int, batch: int, steps: int, width: int) -> tuple[np.ndarray, ...]:
    """Log-mel patches, global embedding, arousal, valence."""
    random = np.random.RandomState(seed)
    mel = 2 * random.standard_normal((batch, steps, 51, 128))
    mel = mel + 1.5 * random.standard_normal((batch, steps, 1, 1)) - 4
    embedding = random.standard_normal((batch, 1, width))

    def walk() -> np.ndarray:
        level = 0.3 * random.standard_normal((batch, 1))
        steps_ = np.cumsum(0.08 * random.standard_normal((batch, steps)), axis=1)
        return np.clip(level + steps_, -1, 1)

    return tuple(x.astype(np.float32) for x in (mel, embedding, walk(), walk()))


def waveform(seed, seconds, rate):
    """Four modulated tones and some noise, drawn as for the stored arrays."""
    random = np.random.RandomState(seed)
    count = round(seconds * rate)
    time = np.arange(count) / rate
    pitch, phase = random.uniform(80, 6000, 4), random.uniform(0, 2 * np.pi, 4)
    level = random.uniform(0.05, 0.15, 4)
    tones = sum(
        level[k]
        * np.sin(2 * np.pi * pitch[k] * time + phase[k])
        * (1 + 0.5 * np.sin(2 * np.pi * 0.7 * (k + 1) * time))
        for k in range(4)
    )
    return (tones + 0.02 * random.standard_normal(count)).astype(np.float32)
