"""Part c: where a first-order meta-step's time goes, part by part, against the device's limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from problem import BANDS, FRAMES, META, RATE, initial, songs

from accelerator_parts.corpora import MemoryCorpus
from accelerator_parts.counts import FLOAT, Work, gradient_work
from accelerator_parts.programs import Program, compiled, limits, seconds_of
from accelerator_parts.report import Report, amount
from accelerator_parts.sizes import Size
from data_prep.base import WINDOW_STEPS
from dsaml_jax import DSAML, ModelConfig
from dsaml_jax.adaptation import support_loss
from dsaml_jax.corpus import gather_windows
from dsaml_jax.models import (
    DualScaleEncoder,
    ImageBindAdapter,
    SequencePredictor,
    SpectrogramBranch,
)

Part = tuple[Program, Work, int]
"""Program, what it has to do, and how often a meta-step does it."""


def profile(report: Report, size: Size) -> None:
    """Times each part by itself, with each task's own weights, as the inner steps and as the outer loss need it."""
    variables = initial(size.model)
    params = variables["params"]
    own = jax.jit(lambda p: jax.tree.map(lambda x: jnp.stack([x] * size.tasks), p))(params)
    parts: dict[str, Part] = {}
    for when, count, times in (("inner", 1, size.steps), ("outer", size.queries, 1)):
        counted = gradient_work(size.model, params, count)
        for name, program in _gradients(size, variables, own, count).items():
            # Of the whole the count is the parts' sum.
            work = counted.get(name) or sum(counted.values(), Work(0.0, 0.0))
            parts[f"{when}: {name}"] = program, work * size.tasks, times
    parts |= _updates(size, params, own) | _gathering(size)

    wanted = {name: program for name, (program, _, _) in parts.items()}
    programs = dict(compiled(report, wanted))
    speed = limits(size)
    report.fact("limits", speed)
    for name, program in programs.items():
        report.case(name, _measure, report, name, program, parts[name], speed)
    report.note(
        f"{size.tasks} tasks side by side, float32 at the default precision; inner: 1 song of each task, times "
        f"{size.steps}; outer: {size.queries} songs. Each row is a program of its own, loss and gradient; a whole is all "
        "three parts and the loss. GB/s and TFLOP/s are of what the arithmetic asks for (`counts.py`); of a copy, of a "
        f"product: shares of what this device reaches, {amount(speed['bytes'], 'B/s')} and "
        f"{amount(speed['float32'], 'FLOP/s')}; bound: the larger of the two, as a time."
    )


def _measure(report: Report, name: str, program: Any, part: Part, speed: dict[str, float]) -> None:
    (_, arguments), work, times = part
    seconds = seconds_of(program, *arguments)
    memory, arithmetic = work.bytes / seconds, work.flop / seconds
    report.row(
        "Parts of a meta-step",
        part=name, ms=seconds * 1e3, times=times, ms_of_a_meta_step=seconds * times * 1e3,
        bound_ms=work.seconds(speed["float32"], speed["bytes"]) * 1e3,
        GB_per_s=memory / 1e9, of_a_copy=memory / speed["bytes"],
        TFLOP_per_s=arithmetic / 1e12, of_a_product=arithmetic / speed["float32"],
        temporaries_GB=program.memory_analysis().temp_size_in_bytes / 1e9,
    )  # fmt: skip


def _gradients(size: Size, variables: Any, own: Any, count: int) -> dict[str, Program]:
    """Value and gradient of each part of the model, `[tasks, count, ...]` in."""
    config, steps = size.model, WINDOW_STEPS
    batch = jax.device_put(songs(config, size.tasks, count, 5))
    lead = (size.tasks, count, steps)

    def random(*shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(len(shape)), (*lead, *shape))

    patches = batch.log_mel.reshape(size.tasks, count * steps, FRAMES, BANDS)
    whole = support_loss(DSAML(config), META, variables["batch_stats"])
    norms = {"batch_stats": variables["batch_stats"]["spectrogram"]}

    def front_end(p: Any, patches: jax.Array) -> jax.Array:
        variables = {"params": p} | norms
        out: Any = SpectrogramBranch().apply(variables, patches, use_batch_statistics=True)
        return out

    def encoder(p: Any, features: jax.Array, embedding: jax.Array) -> jax.Array:
        return _encoded(config, p, features, embedding)

    def predictor(p: Any, x: jax.Array) -> jax.Array:
        module = SequencePredictor(config.width, 0.0)
        out: Any = module.apply({"params": p}, x, deterministic=True)
        return out

    attending = {name: own[name] for name in ("adapter", "encoder")}
    # Parts whose input has a gradient give it too, as they would within the model.
    return {
        "front end": (_each(front_end, 1), (own["spectrogram"], patches)),
        "adapter and encoder": (_each(encoder, 2), (attending, random(476), batch.embedding)),
        "LSTM and head": (_each(predictor, 2), (own["predictor"], random(config.width))),
        "whole": (jax.vmap(jax.value_and_grad(whole)), (own, batch)),
    }


def _encoded(config: ModelConfig, p: Any, features: jax.Array, embedding: jax.Array) -> jax.Array:
    adapter = ImageBindAdapter(config.width, config.embedding_width or config.width)
    fused = adapter.apply({"params": p["adapter"]}, features, embedding)
    encoder = DualScaleEncoder(config)
    out: Any = encoder.apply({"params": p["encoder"]}, fused, deterministic=True)
    scales, maps = out
    # The loss reads the last maps' diagonals, so that their gradient is part of the work.
    return scales.sum(0) + jnp.trace(maps[:, :, -1].mean((0, 1, 2)))


def _each(apply: Callable[..., jax.Array], differentiated: int) -> Callable[..., Any]:
    """Value and gradient of the mean square, by the first arguments, of every task."""

    def loss(*arguments: Any) -> jax.Array:
        return jnp.mean(jnp.square(apply(*arguments)))

    return jax.vmap(jax.value_and_grad(loss, argnums=tuple(range(differentiated))))


def _updates(size: Size, params: Any, own: Any) -> dict[str, Part]:
    """SGD of an inner step on every task's weights, and Adam of a meta-step."""
    number = sum(x.size for x in jax.tree.leaves(params))
    adam = optax.adam(5e-5)

    def inner(p: Any, gradient: Any) -> Any:
        return jax.tree.map(lambda x, g: x - RATE * g, p, gradient)

    def outer(p: Any, gradient: Any, state: Any) -> Any:
        updates, state = adam.update(gradient, state, p)
        return optax.apply_updates(p, updates), state

    # Weights and gradient in, weights out; Adam's two moments in and out, too.
    return {
        "inner: SGD": (
            (inner, (own, own)),
            Work(2.0 * number, 3.0 * FLOAT * number) * size.tasks,
            size.steps,
        ),
        "outer: Adam": (
            (outer, (params, params, adam.init(params))),
            Work(12.0 * number, 7.0 * FLOAT * number),
            1,
        ),
    }


def _gathering(size: Size) -> dict[str, Part]:
    """All windows of a meta-step out of the corpus in memory."""
    corpus = MemoryCorpus(size)
    drawn = corpus.draw(1)
    places = (drawn.query_song, drawn.query_window, drawn.query)
    read = drawn.query.size * WINDOW_STEPS * FRAMES * BANDS
    work = Work(0.0, read * (corpus.item_bytes + FLOAT))  # read as stored, written in float32
    run = jax.vmap(gather_windows, in_axes=(None, 0, 0, 0))
    return {"outer: gathering": ((run, (corpus.device, *places)), work, 1)}
