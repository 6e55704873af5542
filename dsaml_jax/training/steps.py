"""What a step of training does: pure functions, jitted once, that never talk to the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from dsaml_jax import meta
from dsaml_jax.adaptation import inner_algorithm, query_loss, support_loss
from dsaml_jax.base import PyTree
from dsaml_jax.config import RunConfig, TrainingConfig
from dsaml_jax.corpus import DeviceCorpus, TaskArrays, WindowArrays, gather_windows
from dsaml_jax.training.fitting import first_that_fits, tasks_side_by_side

Terms = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """What training changes.

    Attributes:
      learned: what the optimiser trains: the model's parameters, and inner rates where those are learned.
      batch_stats: running statistics of BatchNorm.
      optimizer: optax's state.
      healthy: scalar bool. After a loss or gradient that is not finite it is False for good, and the others
        stay what they were before that step, so that the step can be looked into.
    """

    learned: PyTree
    batch_stats: PyTree
    optimizer: PyTree
    healthy: chex.Array


Step = Callable[..., tuple[TrainState, Terms]]
"""`(state, corpus, drawn, first, seed) -> (state, terms)`: steps `first`, `first + 1`, ..., one for each entry of `drawn`.

`terms` have a leading axis of steps: those of the loss, and `gradient_norm` before clipping. Jitted; the state is
donated.
"""


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Adam, behind a clip by global norm where one is asked for."""
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    adam = optax.adam(rate)
    if not config.clip_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def added_terms(config: RunConfig) -> dict[str, float]:
    """Weights of what is added to the loss of the paper, see :func:`dsaml_jax.losses.dsaml_loss`."""
    if config.training.task == "pdmer":
        return {"squared_error_weight": config.meta.squared_error_weight}
    names = ("squared_error_weight", "batch_ccc_weight")
    return {name: getattr(config.training, name) for name in names}


def step_key(seed: chex.Numeric, index: chex.Numeric) -> jax.Array:
    """The PRNG key of a step."""
    return jax.random.fold_in(jax.random.key(seed), index)


def make_dmer_step(
    model: nn.Module,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    sharding: jax.sharding.Sharding | None = None,
) -> Step:
    """Steps of DMER; `drawn` is :class:`~dsaml_jax.corpus.WindowArrays`. Results go to `sharding`."""
    dropout = model.config.draws

    def step(
        corpus: DeviceCorpus,
        state: TrainState,
        windows: WindowArrays,
        index: jax.Array,
        key: jax.Array,
    ) -> tuple[TrainState, Terms]:
        batch = gather_windows(corpus, windows.song, windows.window)
        loss = query_loss(
            model,
            state.batch_stats,
            batch_norm=True,
            **added_terms(config),
        )
        (_, (terms, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.learned, batch, key if dropout else None
        )
        return _update(optimizer, state, gradient, stats, terms)

    return _several(step, sharding)


def make_pdmer_step(
    model: nn.Module,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    sharding: jax.sharding.Sharding | None = None,
    devices: int = 1,
) -> Step:
    """Meta-steps; `drawn` is :class:`~dsaml_jax.corpus.TaskArrays`. Results go to `sharding`."""
    dropout = model.config.draws
    algorithm = inner_algorithm(config.meta)
    by_batch = config.meta.batch_norm == "batch"

    def step(
        together: int,
        corpus: DeviceCorpus,
        state: TrainState,
        tasks: TaskArrays,
        index: jax.Array,
        key: jax.Array,
    ) -> tuple[TrainState, Terms]:
        def gathering(loss: Callable[..., Any]) -> Callable[..., Any]:
            """The loss of windows by their indices, so that only the tasks at work are in memory."""
            return lambda params, places, *key: loss(params, gather_windows(corpus, *places), *key)

        (_, (terms, stats)), gradient = meta.meta_gradient(
            gathering(support_loss(model, config.meta, state.batch_stats)),
            state.learned,
            (tasks.support_song, tasks.support_window, tasks.support),
            (tasks.query_song, tasks.query_window, tasks.query),
            algorithm=algorithm,
            query_loss_fn=gathering(
                query_loss(
                    model,
                    state.batch_stats,
                    batch_norm=by_batch,
                    **added_terms(config),
                )  # fmt: skip
            ),
            has_aux=True,
            key=key if dropout else None,
            step=index,
            tasks_at_once=together,
        )
        # What is the same in all tasks stays the same to the bit.
        stats, terms = jax.tree.map(lambda x: x[0] + jnp.mean(x - x[:1], axis=0), (stats, terms))
        return _update(optimizer, state, gradient, stats, terms)

    def with_tasks_at_once(together: int) -> Step:
        return _several(partial(step, together), sharding)

    if config.meta.tasks_at_once:
        return with_tasks_at_once(config.meta.tasks_at_once)
    if jax.default_backend() == "cpu":
        # Nothing is gained there by computing tasks side by side, and each one's arrays leave the cache.
        return with_tasks_at_once(devices)
    return first_that_fits(with_tasks_at_once, tasks_side_by_side(config.meta.tasks, devices))


def _several(step: Callable[..., Any], sharding: jax.sharding.Sharding | None) -> Step:
    """Steps one after the other in one program, without a word to the host in between."""

    def run(
        state: TrainState, corpus: DeviceCorpus, drawn: Any, first: jax.Array, seed: jax.Array
    ) -> tuple[TrainState, Terms]:
        def one(state: TrainState, inputs: tuple[jax.Array, Any]) -> tuple[TrainState, Any]:
            index, now = inputs
            return step(corpus, state, now, index, step_key(seed, index))

        steps = jax.tree.leaves(drawn)[0].shape[0]
        return jax.lax.scan(one, state, (first + jnp.arange(steps), drawn))

    return jax.jit(run, donate_argnums=0, out_shardings=sharding)


def _update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradient: PyTree,
    stats: PyTree,
    terms: Terms,
) -> tuple[TrainState, Terms]:
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is float ** int
        norm = optax.tree.norm(gradient)
        updates, new_optimizer = optimizer.update(gradient, state.optimizer, state.learned)
    new = TrainState(
        learned=optax.apply_updates(state.learned, updates),
        batch_stats=stats,
        optimizer=new_optimizer,
        healthy=state.healthy & jnp.isfinite(norm) & jnp.isfinite(terms["total_loss"]),
    )
    kept = jax.tree.map(lambda after, before: jnp.where(new.healthy, after, before), new, state)
    return kept.replace(healthy=new.healthy), terms | {"gradient_norm": norm}
