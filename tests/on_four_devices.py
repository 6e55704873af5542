"""What `test_meta_devices.py` runs in a process with four virtual devices: prints `{case: [relative error, ...]}` as JSON."""

from __future__ import annotations

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsaml_jax import meta
from tests.problems import mlp, mlp_loss

ALL, DEALT = PartitionSpec(), PartitionSpec("tasks")
HEAD = {"adapts": lambda name: name == "w2"}
OPTIONS = {"anil": HEAD, "boil": HEAD, "cavia": {"adapts": lambda name: name == "b1"}}
PARAMS, SUPPORT, QUERY = mlp(tasks=8)
AUTO = jax.make_mesh((4,), ("tasks",), axis_types=(AxisType.Auto,))
EXPLICIT = jax.make_mesh((4,), ("tasks",), axis_types=(AxisType.Explicit,))


def meta_gradient(algorithm, learned, support, query, **options):
    return meta.meta_gradient(mlp_loss, learned, support, query, algorithm=algorithm, **options)


def closing_over(algorithm, learned, support, query):
    """The support is no argument of the loss: only the loss itself shows that it varies."""

    def task(support, query):
        loss = lambda params, _: mlp_loss(params, support)  # noqa: E731
        return mlp_loss(algorithm.adapt(loss, learned, None), query)

    return jnp.mean(jax.vmap(task)(support, query))


def on_mesh(algorithm, learned, fn):
    """`fn` of each device's tasks, and the mean over devices."""

    def local(learned, support, query):
        return jax.lax.pmean(fn(algorithm, learned, support, query), "tasks")

    everywhere = jax.shard_map(
        local, mesh=AUTO, in_specs=(ALL, DEALT, DEALT), out_specs=ALL, check_vma=True
    )
    return jax.jit(everywhere)(learned, SUPPORT, QUERY)


def on_explicit_mesh(algorithm, learned, fn, *, placed):
    support, query = jax.device_put((SUPPORT, QUERY), NamedSharding(EXPLICIT, DEALT))
    if placed:
        learned = jax.device_put(learned, NamedSharding(EXPLICIT, ALL))
    return jax.jit(partial(fn, algorithm))(learned, support, query)


def with_everything(learned, support, query, weights):
    """Adam, a running mean in the loss, a weight for each task."""
    algorithm = meta.algorithm(
        "maml", steps=3, learning_rate=0.01, transform=optax.scale_by_adam(eps_root=1e-8)
    )

    def loss(params, batch, state):
        hidden = jnp.tanh(batch[0] @ params["w1"] + params["b1"][None])
        mean = 0.5 * state["mean"] + 0.5 * hidden.mean(axis=0)
        error = (hidden - mean[None]) @ params["w2"] - batch[1]
        return jnp.mean(jnp.square(error)), {"mean": mean, "count": state["count"] + 1}

    state = {"mean": jnp.zeros(16), "count": jnp.asarray(0)}
    (value, (_, left)), gradient = meta.meta_gradient(
        loss, learned, support, query, algorithm=algorithm, state=state, weights=weights
    )
    return value, gradient, left["mean"].mean(axis=0)


def everything():
    """In `jax.shard_map` and on an explicit mesh, each with what one device says; devices have the same sum of weights."""
    weights = jnp.tile(jnp.asarray([1.5, 0.5]), 4)
    expected = jax.jit(with_everything)(PARAMS, SUPPORT, QUERY, weights)
    local = lambda *x: jax.lax.pmean(with_everything(*x), "tasks")  # noqa: E731
    dealt = jax.shard_map(local, mesh=AUTO, in_specs=(ALL, DEALT, DEALT, DEALT), out_specs=ALL)
    placed = jax.device_put((SUPPORT, QUERY, weights), NamedSharding(EXPLICIT, DEALT))
    return (jax.jit(dealt)(PARAMS, SUPPORT, QUERY, weights), expected), (jax.jit(with_everything)(PARAMS, *placed), expected)  # fmt: skip


def padded(algorithm):
    """In `jax.shard_map`: devices with two tasks that count, with one, and with none, whose data is not a number."""
    weights = jnp.asarray([1.0, 3.0, 1.0, 0.5, 2.0, 0.0, 0.0, 0.0])
    unread = jax.tree.map(lambda x: x.at[5:].set(jnp.nan), (SUPPORT, QUERY))

    def local(support, query, weights):
        found = meta_gradient(algorithm, PARAMS, support, query, weights=weights)
        total = jax.lax.psum(weights.sum(), "tasks")
        return jax.tree.map(lambda x: jax.lax.psum(x * weights.sum(), "tasks") / total, found)

    dealt = jax.shard_map(local, mesh=AUTO, in_specs=(DEALT, DEALT, DEALT), out_specs=ALL)
    expected = jax.jit(partial(meta_gradient, algorithm, PARAMS))(SUPPORT, QUERY, weights=weights)
    return jax.jit(dealt)(*unread, weights), expected


def joint(algorithm):
    """One task whose support is dealt over the devices: the loss sums over them, so inner steps are shared."""
    support, query = jax.tree.map(lambda x: x[:1], (SUPPORT, QUERY))

    def run(loss):
        return lambda *data: meta.meta_gradient(loss, PARAMS, *data, algorithm=algorithm)

    mean = lambda params, batch: jax.lax.pmean(mlp_loss(params, batch), "tasks")  # noqa: E731
    spec = PartitionSpec(None, "tasks")
    dealt = jax.shard_map(run(mean), mesh=AUTO, in_specs=(spec, spec), out_specs=ALL)
    return jax.jit(dealt)(support, query), jax.jit(run(mlp_loss))(support, query)


def errors(actual, expected):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return [float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0)) for a, b in pairs]


def compare(names):
    found = {}
    for name in names:
        name, _, memory = name.partition(":")
        options = OPTIONS.get(name, {}) | ({"memory": memory} if memory else {})
        algorithm = meta.algorithm(name, steps=3, learning_rate=0.05, **options)
        learned = algorithm.init(PARAMS)
        expected = jax.jit(partial(meta_gradient, algorithm))(learned, SUPPORT, QUERY)
        case = f"{name}:{memory}" if memory else name
        found[f"{case} shard_map"] = errors(on_mesh(algorithm, learned, meta_gradient), expected)
        found[f"{case} explicit"] = errors(
            on_explicit_mesh(algorithm, learned, meta_gradient, placed=False), expected
        )
        if case not in ("maml", "imaml"):
            continue
        if case == "maml":
            by_map, explicit = everything()
            found["maml everything, shard_map"] = errors(*by_map)
            found["maml everything, explicit"] = errors(*explicit)
            found["maml padded, shard_map"] = errors(*padded(algorithm))
        found[f"{case} explicit, placed"] = errors(
            on_explicit_mesh(algorithm, learned, meta_gradient, placed=True), expected
        )
        grouped = partial(meta_gradient, tasks_at_once=1)
        found[f"{case} shard_map, one at once"] = errors(
            on_mesh(algorithm, learned, grouped), expected
        )
        grouped = partial(meta_gradient, tasks_at_once=4)
        found[f"{case} explicit, four at once"] = errors(
            on_explicit_mesh(algorithm, learned, grouped, placed=False), expected
        )
        value = on_mesh(algorithm, learned, closing_over)
        found[f"{case} closing over"] = errors(value, expected[0])
        found[f"{case} joint"] = errors(*joint(algorithm))
        try:
            on_explicit_mesh(algorithm, learned, partial(meta_gradient, tasks_at_once=2), placed=False)  # fmt: skip
        except ValueError as error:
            found[f"{case} refused"] = str(error)
    return found


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1:])))
