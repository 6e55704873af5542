"""Part e: adapting to a listener and predicting, and ImageBind's audio tower, for one song."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problem import annotated, initial, song

from accelerator_parts.programs import seconds_of
from accelerator_parts.report import Report
from accelerator_parts.sizes import Size
from data_prep.imagebind.encoder import Embedder
from data_prep.imagebind.fbank import CLIPS
from dsaml_jax import DSAML, ModelConfig
from dsaml_jax.adaptation import adapt_to_listener
from dsaml_jax.config import MetaConfig, preset
from dsaml_jax.listener import predict_song

MINUTES = 0.75
"""Length of a song of DEAM."""

TOWER_WINDOWS = (2, 64)
"""Windows of 30 s: a song of 45 s, and 32 such songs."""


def one_song(report: Report, size: Size) -> None:
    """Times both presets' adaptation with a prediction, then the tower."""
    for name in ("reference", "default"):
        for activations in ("float32", "bfloat16"):
            model = dataclasses.replace(
                size.model, activations=activations, embedding_width=size.model.width
            )
            case = f"preset {name}, {activations}"
            meta = preset(name).meta
            report.case(case, _adapting, report, case, model, meta)
    for dtype in ("float32", "bfloat16"):
        report.case(f"ImageBind, {dtype}", _tower, report, size, dtype)
    report.note(
        f"A song of {MINUTES * 60:.0f} s, two windows; features in host memory, curves and embeddings back there; compiled "
        "before. Sound is not read, and no features are made of it. ImageBind's tower: random weights, three clips of 2 s "
        "a window; its float32 is full float32, without TF32."
    )


def _adapting(report: Report, case: str, config: ModelConfig, meta: MetaConfig) -> None:
    model, variables = DSAML(config), initial(config)
    features = song(MINUTES, config.width)
    support = annotated(features)
    adapt = jax.jit(adapt_to_listener, static_argnums=(0, 1))

    def predict(own: Any) -> np.ndarray:
        return predict_song(model, own, **features, per_step=False)

    own = adapt(model, meta, variables, support)
    report.row(
        "Adapting to one annotated song and predicting another",
        what=case,
        inner_steps=meta.steps,
        adapt_ms=seconds_of(adapt, model, meta, variables, support) * 1e3,
        predict_ms=seconds_of(predict, own) * 1e3,
        both_ms=seconds_of(lambda: predict(adapt(model, meta, variables, support))) * 1e3,
    )


def _tower(report: Report, size: Size, dtype: str) -> None:
    encoder = dataclasses.replace(size.tower, dtype=jnp.dtype(dtype))
    clip = jnp.zeros((1, 1, *encoder.mel_shape))
    # The weights' values do not matter here, so they are drawn as for training.
    embedder = Embedder(jax.jit(encoder.init)(jax.random.key(0), clip), encoder)
    random = np.random.default_rng(0)
    for windows in TOWER_WINDOWS if size.name == "full" else TOWER_WINDOWS[:1]:
        clips = random.standard_normal((windows, CLIPS, 1, *encoder.mel_shape), np.float32)
        seconds = seconds_of(embedder.embed, clips)
        songs = windows / TOWER_WINDOWS[0]
        report.row(
            "ImageBind's audio tower",
            activations=dtype, songs=int(songs), ms=seconds * 1e3, ms_a_song=seconds / songs * 1e3,
            songs_per_second=songs / seconds,
        )  # fmt: skip
