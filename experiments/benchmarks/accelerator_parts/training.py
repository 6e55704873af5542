"""Part d: meta-steps per second of training from a corpus in memory, and what the host does meanwhile."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from problem import initial

from accelerator_parts.corpora import MemoryCorpus, run_config
from accelerator_parts.programs import compiled
from accelerator_parts.report import Report
from accelerator_parts.sizes import Size
from dsaml_jax import DSAML
from dsaml_jax.config import RunConfig
from dsaml_jax.devices import Devices
from dsaml_jax.training import TrainState, make_optimizer, make_pdmer_step

LOG_EVERY = 10
"""Meta-steps after which the trainer reads its numbers, and so waits for the device."""

SEED = np.uint32(0)


def training(report: Report, size: Size) -> None:
    """Runs the trainer's loop with one and with ten meta-steps in a program."""
    config = run_config(size)
    corpus = MemoryCorpus(size)
    devices = Devices(config.meta.tasks)
    here = devices.replicate(corpus.device)
    step, state = training_step(config, devices)
    wanted = {
        f"{together} meta-steps a program": (
            step,
            _arguments(corpus, devices, here, state, together),
        )
        for together in (1, LOG_EVERY)
    }
    programs = dict(compiled(report, wanted))
    for together, name in zip((1, LOG_EVERY), wanted, strict=True):
        if name in programs:
            report.case(
                name,
                _measure,
                report,
                size,
                programs[name],
                corpus,
                devices,
                here,
                config,
                together,
            )
    stored = corpus.corpus.log_mel
    assert stored is not None
    report.note(
        f"{size.songs} songs of {size.song_steps // 2} s and {size.annotators} listeners in memory "
        f"({stored.nbytes / 1e9:.2f} GB on the device), {size.meta_steps} meta-steps after {LOG_EVERY} that do not count; "
        f"numbers are read every {LOG_EVERY}. The loop is the trainer's: tasks drawn on the host, indices moved, the step "
        "dispatched; validation and checkpoints are not in it. waiting: share of the time in which the host waits for the "
        "device, or for a dispatch that waits for it. Device idle: 1 - the same programs one after the other without a "
        "host in between, over the time."
    )


def training_step(config: RunConfig, devices: Devices | None = None) -> tuple[Any, TrainState]:
    """The jitted step of the trainer, and a state to begin with."""
    model, optimizer = DSAML(config.model), make_optimizer(config.training)
    sharding, count = (devices.everywhere, devices.count) if devices else (None, 1)
    return make_pdmer_step(model, config, optimizer, sharding, count), first_state(config, devices)


def first_state(config: RunConfig, devices: Devices | None = None) -> TrainState:
    """The state that a seed gives; a new copy each time, because a step takes it for itself."""
    variables, optimizer = initial(config.model), make_optimizer(config.training)
    params = variables["params"]
    state = TrainState(params, variables["batch_stats"], optimizer.init(params), np.True_)
    return devices.replicate(state) if devices else jax.device_put(state)


def _arguments(corpus: MemoryCorpus, devices: Devices, here: Any, state: Any, together: int) -> Any:
    _, drawn = next(corpus.batches(together + 1, together))
    return state, here, devices.split(drawn), np.int32(1), SEED


def _measure(
    report: Report,
    size: Size,
    program: Any,
    corpus: MemoryCorpus,
    devices: Devices,
    here: Any,
    config: RunConfig,
    together: int,
) -> None:
    """Adds a row: the loop as the trainer has it, and the device's time for the same programs."""
    state = first_state(config, devices)
    waited, begin, done = 0.0, 0.0, 0
    pending: list[Any] = []
    for _, drawn in corpus.batches(LOG_EVERY + size.meta_steps + 1, together):
        if done == LOG_EVERY:
            begin, waited = time.perf_counter(), 0.0
        now = devices.split(drawn)
        start = time.perf_counter()
        state, terms = program(state, here, now, np.int32(done + 1), SEED)
        waited += time.perf_counter() - start
        pending.append(terms)
        done += together
        if done % LOG_EVERY == 0:
            start = time.perf_counter()
            jax.device_get(pending)
            waited += time.perf_counter() - start
            pending = []
    total = (time.perf_counter() - begin) / size.meta_steps
    alone = _device_seconds(size, program, corpus, devices, here, state, together)
    report.row(
        "Training",
        meta_steps_a_program=together,
        meta_steps_per_second=1 / total,
        ms_a_meta_step=total * 1e3,
        host_ms=total * 1e3 - waited / size.meta_steps * 1e3,
        host_waiting=f"{waited / size.meta_steps / total:.1%}",
        device_ms=alone * 1e3,
        device_idle=f"{max(0.0, 1 - alone / total):.1%}",
    )


def _device_seconds(
    size: Size, program: Any, corpus: MemoryCorpus, devices: Devices, here: Any, state: Any, together: int
) -> float:  # fmt: skip
    """Seconds a meta-step when everything the host does has been done before."""
    drawn = [devices.split(drawn) for _, drawn in corpus.batches(size.meta_steps + 1, together)]
    jax.block_until_ready((state, drawn))
    start = time.perf_counter()
    for number, now in enumerate(drawn):
        state, _ = program(state, here, now, np.int32(number * together + 1), SEED)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / size.meta_steps
