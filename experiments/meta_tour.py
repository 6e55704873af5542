"""A tour of `dsaml_jax.meta`: the sinusoid regression of Finn et al. 2017 (arXiv 1703.03400, section 5.1, figures 2 and 3).

A task is a sine `a sin(x - b)`; a network sees 5 of its points and is judged on the rest. It reads from top to bottom, like a
notebook (`# %%` begins a cell), and needs `pip install ./dsaml_jax/meta matplotlib` and no more.

Claim: a network that was meta-trained with one inner step fits an unseen sine after one step, and better after ten, though it
never saw more than one. A network that was trained on all sines at once, with the best rate it can have, does not.
Command: `python experiments/meta_tour.py` (`--quick`: some seconds, and numbers that show nothing).
Sizes: as in the paper, but 10,000 meta-steps instead of 70,000. Time: 1:50 minutes on two CPU cores.
Result: `results/meta_tour.md` and `results/meta_tour.svg`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from benchmarks.timing import measured_on

from dsaml_jax import meta

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="a hundredth of the meta-steps")
parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
options = parser.parse_args()

META_STEPS = 100 if options.quick else 10_000
TASKS = 25  # per meta-step
STEPS = 10  # inner steps that are looked at
RATE = 0.01  # of the inner steps
UNSEEN = 20 if options.quick else 600

Batch = tuple[jax.Array, jax.Array]


# %% Tasks
# Amplitude from 0.1 to 5, phase from 0 to pi, x from -5 to 5. All arrays have a leading axis of tasks.
def sines(key: jax.Array, tasks: int, points: int) -> Batch:
    """`(x, y)`, each `[tasks, points, 1]`."""
    of_amplitude, of_phase, of_x = jax.random.split(key, 3)
    amplitude = jax.random.uniform(of_amplitude, (tasks, 1, 1), minval=0.1, maxval=5.0)
    phase = jax.random.uniform(of_phase, (tasks, 1, 1), maxval=jnp.pi)
    x = jax.random.uniform(of_x, (tasks, points, 1), minval=-5.0, maxval=5.0)
    return x, amplitude * jnp.sin(x - phase)


def support_and_query(key: jax.Array, shots: int, tasks: int, points: int = 10) -> Any:
    """Points to adapt to, and others of the same sines to be judged on."""
    x, y = sines(key, tasks, shots + points)
    return (x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:])


# %% A network and its loss
# Any tree of arrays, and any function of it and of one task's batch. Weights begin as in the paper's code, nearly 0.
LAYERS = (1, 40, 40, 1)


def initial(key: jax.Array, scale: Any = lambda inputs: 0.01) -> list[dict[str, jax.Array]]:
    """Weights and biases of each layer; `scale` of its weights by its number of inputs."""
    keys = jax.random.split(key, len(LAYERS) - 1)
    shapes = zip(LAYERS, LAYERS[1:], strict=False)
    return [
        {
            "w": scale(shape[0]) * jax.random.truncated_normal(k, -2.0, 2.0, shape),
            "b": jnp.zeros(shape[1]),
        }
        for k, shape in zip(keys, shapes, strict=True)
    ]


def network(params: Any, x: jax.Array) -> jax.Array:
    """`[points, 1]` to `[points, 1]`."""
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def squared_error(params: Any, batch: Batch) -> jax.Array:
    """Mean over the points of one task."""
    x, y = batch
    return jnp.mean(jnp.square(network(params, x) - y))


# %% Meta-training
# The same lines and the same sines for every algorithm: its gradient goes to an optimiser as any other does. `step` is for
# those that anneal. Gradients are clipped because those of MAML++ at its beginning can be large.
def meta_train(name: str, algorithm: meta.Algorithm, shots: int, start: Any) -> Any:
    """What the algorithm learns, from these parameters on."""
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))

    def meta_step(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        (learned, moments), (step, support, query) = carry, inputs
        value, gradient = meta.meta_gradient(
            squared_error, learned, support, query, algorithm=algorithm, step=step
        )
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(learned, updates), moments), value

    learned = algorithm.init(start)
    tasks = support_and_query(jax.random.key(1), shots, META_STEPS * TASKS)
    tasks = jax.tree.map(lambda x: x.reshape(META_STEPS, TASKS, *x.shape[1:]), tasks)
    inputs = (jnp.arange(META_STEPS), *tasks)
    began = time.perf_counter()
    run = jax.jit(lambda carry, inputs: jax.lax.scan(meta_step, carry, inputs))
    (learned, _), values = jax.block_until_ready(run((learned, optimizer.init(learned)), inputs))
    assert jnp.isfinite(values).all(), f"{name} ran away"
    seconds = time.perf_counter() - began
    print(f"{name}: {META_STEPS} meta-steps in {seconds:.0f} s, error {values[-100:].mean():.2f}")
    return learned


PULL, CLIP = 0.5, optax.clip_by_global_norm(10.0)
ALGORITHMS: dict[str, meta.Algorithm] = {
    "MAML": meta.algorithm("maml", steps=1, learning_rate=RATE),
    "Meta-SGD": meta.algorithm("meta-sgd", steps=1, learning_rate=RATE),
    "MAML++, 5 steps": meta.algorithm("maml++", steps=5, learning_rate=RATE, multi_step_until=META_STEPS // 4),
    # It asks for the minimum that the steps reach, not for the way there, so the steps may be anything that gets there.
    "iMAML, 10 steps": meta.algorithm("imaml", steps=STEPS, learning_rate=RATE / 2, proximal=PULL, transform=CLIP),
}  # fmt: skip
START = initial(jax.random.key(0))
learned = {name: meta_train(name, algorithm, 5, START) for name, algorithm in ALGORITHMS.items()}
ten_shots = meta_train("MAML, 10 shots", ALGORITHMS["MAML"], 10, START)

# The paper's other side: no inner step at all, which is to learn the mean of all sines. It begins at common weights: from nearly
# 0 on it learned no more than two straight lines in 10,000 steps.
USUAL = initial(jax.random.key(0), lambda inputs: inputs**-0.5)
NOTHING = meta.algorithm("fomaml", steps=0, learning_rate=RATE)
pretrained = {shots: meta_train("pretrained", NOTHING, shots, USUAL) for shots in (5, 10)}


# %% Adapting to unseen sines, and looking after every step
# `unroll` shows what `adapt` passes through. Rates are one number, one for each parameter by its path (Meta-SGD), or one for
# each step as well (MAML++). Learned rates are for as many steps as they were trained with: with Meta-SGD's, which are large,
# 232 of 600 tasks run away within ten.
def errors(params: Any, rate: Any, tasks: Any, steps: int = STEPS, *, pull: float = 0.0, **more: Any) -> np.ndarray:  # fmt: skip
    """Squared error of each task before the first step and after each, `[tasks, steps + 1]`."""

    def inner_loss(inner: Any, batch: Batch) -> jax.Array:
        away = sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (inner, params)), strict=True))  # fmt: skip
        return squared_error(inner, batch) + 0.5 * pull * away  # iMAML's inner steps are held back

    def one_task(support: Batch, query: Batch) -> jax.Array:
        _, after = meta.unroll(
            inner_loss, meta.InnerState(params), support, steps=steps, learning_rate=rate,
            visit=lambda adapted: squared_error(adapted, query), **more,
        )  # fmt: skip
        return jnp.concatenate([squared_error(params, query)[None], after])

    return np.asarray(jax.jit(jax.vmap(one_task))(*tasks))


unseen = {
    shots: support_and_query(jax.random.key(2), shots, tasks=UNSEEN, points=100)
    for shots in (5, 10)
}

# The pretrained network gets the rate that is best after ten steps on a hundred other sines.
RATES = (0.0003, 0.001, 0.003, 0.01, 0.02, 0.03)
best = {}
for shots, params in pretrained.items():
    others = support_and_query(jax.random.key(3), shots, tasks=100, points=100)
    best[shots] = min(RATES, key=lambda rate: np.nan_to_num(errors(params, rate, others)[:, -1].mean(), nan=np.inf))  # fmt: skip

curves = {
    "MAML": errors(learned["MAML"], RATE, unseen[5]),
    "pretrained": errors(pretrained[5], best[5], unseen[5]),
    "Meta-SGD": errors(learned["Meta-SGD"].params, learned["Meta-SGD"].rates, unseen[5], steps=1),
    "MAML++, 5 steps": errors(
        learned["MAML++, 5 steps"].params, learned["MAML++, 5 steps"].rates, unseen[5], steps=5, rates_per_step=True
    ),
    "iMAML, 10 steps": errors(learned["iMAML, 10 steps"], RATE / 2, unseen[5], pull=PULL, transform=CLIP),
    "MAML, 10 shots": errors(ten_shots, RATE, unseen[10]),
    "pretrained, 10 shots": errors(pretrained[10], best[10], unseen[10]),
}  # fmt: skip


# A few tasks run away where there are more steps than were trained, or rates are large. One of them would be the mean, so they
# are counted, and left out of it. A sine's own variance is 12.5 at most.
stay = {name: (found < 100.0).all(axis=1) for name, found in curves.items()}  # not where it is NaN
means = {name: found[stay[name]].mean(axis=0) for name, found in curves.items()}


# %% The table
def cell(values: np.ndarray) -> str:
    """Mean and half the width of its 95 % interval over tasks."""
    return f"{values.mean():.2f} ± {1.96 * values.std(ddof=1) / len(values) ** 0.5:.2f}"


SHOWN = (0, 1, 2, 5, 10)
lines = [
    f"| inner steps | {' | '.join(map(str, SHOWN))} | ran away |",
    "|---|" + "---|" * (len(SHOWN) + 1),
    *(
        f"| {name} | {' | '.join(cell(found[stay[name], k]) if k < found.shape[1] else '' for k in SHOWN)} "
        f"| {(~stay[name]).sum()} |"
        for name, found in curves.items()
    ),
]

# %% The picture: one sine as in figure 2, and the error by step as in figure 3
SINE, PHASE = 4.0, 0.9
points = jnp.asarray([-4.6, -3.9, -2.7, -1.5, -0.6])[:, None]  # all in one half, as in the paper
support = (points, SINE * jnp.sin(points - PHASE))
grid = jnp.linspace(-5.0, 5.0, 300)[:, None]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
sides = {"MAML": (learned["MAML"], RATE), "pretrained": (pretrained[5], best[5])}
for axis, (name, (params, rate)) in zip(axes, sides.items(), strict=False):
    axis.plot(grid, SINE * jnp.sin(grid - PHASE), color="0.75", linewidth=4, label="the sine")
    for steps, style in ((0, "k:"), (1, "C0--"), (10, "C3-")):
        adapted = meta.adapt(squared_error, params, support, steps=steps, learning_rate=rate)
        axis.plot(grid, network(adapted, grid), style, label=f"{steps} step{'s' * (steps != 1)}")
    axis.plot(*support, "k^", label="5 points")
    axis.set(title=f"{name}, rate {rate:g}", xlabel="x", ylim=(-8, 5))
axes[0].legend(fontsize=8, ncols=3, loc="lower center")
for name, found in curves.items():
    if not name.endswith("shots"):
        style = {"MAML": "C3-o", "pretrained": "k-s"}.get(name, "--.")
        axes[2].plot(np.arange(found.shape[1]), means[name], style, markersize=4, label=name)
axes[2].set(title=f"{UNSEEN} unseen sines, 5 points", xlabel="inner steps", ylabel="squared error", ylim=(0, None))  # fmt: skip
axes[2].legend(fontsize=8)

# %% What is kept
options.out.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out / "meta_tour.svg", metadata={"Date": None})
text = f"""# Sinusoids, as in Finn et al. 2017

Squared error on {UNSEEN} unseen sines (100 points each), mean and 95 % interval over them, after so many inner steps on 5
points, or 10 where it says so. {META_STEPS:,} meta-steps of {TASKS} tasks (the paper: 70,000), one seed. MAML and Meta-SGD were
trained with one step. Tasks that ran away (an error above 100 at any step that is shown) are counted and left out of the means,
which are of the others. The pretrained network's rate is the best of {len(RATES)} on other sines: {best[5]:g} and {best[10]:g}.

{chr(10).join(lines)}

![Left and middle: one sine; right: error by inner step](meta_tour.svg)

{measured_on("jax", "optax")}"""
(options.out / "meta_tour.md").write_text(text + "\n")
print("\n".join(lines))
