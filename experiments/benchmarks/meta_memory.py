"""Second order: memory of its modes, and its time against first order.

Claim: with 64 inner steps and the paper's 15 query songs second order needs at most 1.5 times the temporaries of first
order (1.06 with the square root), where plain differentiation needs 14 times as much; with 16 steps the default mode takes
at most 3 times as long. With a single query song first order itself is small, and the parameters that are kept show: what
the best mode needs beyond 1.5 times first order is less than one set of adapted parameters for every eighth step and
again for the eight steps in between. `remat-sqrt` runs most steps three times forward and is the slowest.
Command: `python experiments/benchmarks/meta_memory.py`.
Result: `experiments/results/meta_memory.md`. Time: about 20 minutes, most of it compiling.

Memory is the compiled program's own figure, for 8 tasks side by side, as on an accelerator. Time is measured one task
after the other, as on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import jax
from problem import META, MODELS, QUERIES, RATE, STEPS, initial, meta_gradient_of, songs
from timing import interleaved, measured_on, table, write_result

from dsaml_jax import DSAML, ModelConfig, meta
from dsaml_jax.adaptation import query_loss, support_loss
from dsaml_jax.meta import MEMORY_MODES

TASKS = 8


def temporaries(config: ModelConfig, steps: int, queries: int) -> dict[str, float]:
    """MB of each mode, first order first."""
    model, variables = DSAML(config), initial(config)
    batches = songs(config, TASKS, 1, 0), songs(config, TASKS, queries, 1)

    def costs(algorithm: meta.Algorithm, modes: tuple[str, ...]) -> list[meta.Cost]:
        found = meta.plan(
            support_loss(model, META, variables["batch_stats"]), variables["params"], *batches,
            algorithm=algorithm, modes=modes, tasks_at_once=[TASKS], has_aux=True,
            query_loss_fn=query_loss(model, variables["batch_stats"], batch_norm=True),
        )  # fmt: skip
        return list(found.costs)

    first = costs(meta.algorithm("fomaml", steps=steps, learning_rate=RATE), MEMORY_MODES[:1])
    second = costs(meta.algorithm("maml", steps=steps, learning_rate=RATE), MEMORY_MODES)
    return {"first order": first[0].temporaries / 1e6} | {
        cost.memory: cost.temporaries / 1e6 for cost in second
    }


def memory_table(config: ModelConfig) -> str:
    """Markdown: modes by numbers of inner steps and query songs."""
    settings = [(16, 1), (64, 1), (16, QUERIES), (64, QUERIES)]
    columns = [temporaries(config, *setting) for setting in settings]
    titles = " | ".join(f"K = {k}, {q} query" for k, q in settings)
    lines = [f"| | {titles} |", "|---|" + "---|" * len(settings)]
    for mode in columns[0]:
        cells = [f"{c[mode]:.0f} ({c[mode] / c['first order']:.2f})" for c in columns]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(config: ModelConfig, rounds: int, modes: Sequence[meta.MemoryMode]) -> str:
    """Markdown: seconds of a task in each mode."""
    variables = initial(config)
    data = jax.device_put(
        (variables["params"], songs(config, 1, 1, 2), songs(config, 1, QUERIES, 3))
    )

    def side(algorithm: meta.Algorithm) -> Callable[[], object]:
        compiled = jax.jit(meta_gradient_of(config, variables["batch_stats"], algorithm, 1))
        return lambda: jax.block_until_ready(compiled(*data))

    sides = {"first order": side(meta.algorithm("fomaml", steps=STEPS, learning_rate=RATE))}
    for mode in modes:
        algorithm = meta.algorithm("maml", steps=STEPS, learning_rate=RATE, memory=mode)
        sides[mode] = side(algorithm)
    return table(interleaved(sides, rounds), "first order")


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = MODELS["width 64"]
    stored = sum(x.size for x in jax.tree.leaves(initial(config)["params"])) * 4 * TASKS / 1e6
    parts = [
        "# Second order: memory and time", "",
        f"## Temporaries in MB (times first order), width 64, {TASKS} tasks side by side", "",
        memory_table(config), "",
        f"One set of adapted parameters of {TASKS} tasks is {stored:.1f} MB: {64 * stored:.0f} MB for 64 steps, "
        f"{16 * stored:.0f} MB for the 16 that the square root keeps.", "",
    ]  # fmt: skip
    for size, model in MODELS.items():
        # At full size a common machine has no memory for `plain`.
        modes = [mode for mode in MEMORY_MODES if mode != "plain" or model is config]
        parts += [f"## Time, {size}, K = {STEPS}, {QUERIES} query songs, one task", "",
                  time_table(model, options.rounds, modes), ""]  # fmt: skip
    write_result("meta_memory", "\n".join([*parts, measured_on("jax")]))


if __name__ == "__main__":
    main()
