"""What a meta-gradient costs in memory, read off the compiled program before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax

from dsaml_jax.meta.base import Algorithm, LossFn, PyTree
from dsaml_jax.meta.gradients import meta_gradient
from dsaml_jax.meta.memory import MEMORY_MODES, MemoryMode


@dataclasses.dataclass(frozen=True)
class Cost:
    """Memory of one way to compute a meta-gradient.

    Attributes:
      memory: mode; empty for an algorithm that has none.
      tasks_at_once: tasks side by side.
      temporaries: bytes the program needs besides its inputs and outputs.
      peak: bytes with them.
    """

    memory: str
    tasks_at_once: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What :func:`plan` found.

    Attributes:
      costs: of every way that was compiled, the fastest kind first.
      chosen: the first that fits the budget (the first of all without a budget); None if none does.
      algorithm: the given one with the chosen mode; None if none fits.
    """

    costs: tuple[Cost, ...]
    chosen: Cost | None
    algorithm: Algorithm | None

    def table(self) -> str:
        """The costs as Markdown, in MB (10^6 bytes)."""
        lines = [
            "| memory | tasks at once | temporaries [MB] | peak [MB] | |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {cost.memory or '-'} | {cost.tasks_at_once} | {cost.temporaries / 1e6:.1f} "
            f"| {cost.peak / 1e6:.1f} | {'chosen' if cost is self.chosen else ''} |"
            for cost in self.costs
        ]
        return "\n".join(lines)


def plan(
    loss_fn: LossFn,
    params: PyTree,
    support: PyTree,
    query: PyTree,
    *,
    algorithm: Algorithm,
    budget: float | None = None,
    modes: Sequence[MemoryMode] = MEMORY_MODES,
    tasks_at_once: Sequence[int] | None = None,
    query_loss_fn: Callable[..., Any] | None = None,
    has_aux: bool = False,
    key: chex.PRNGKey | None = None,
) -> Plan:
    """Compiles :func:`meta_gradient` in several ways, and picks the fastest kind that fits.

    Nothing runs, and only shapes are read, so `params`, `support` and `query` may be `jax.ShapeDtypeStruct`. Every way
    takes a compilation: with a budget it stops at the first that fits; without one it compiles them all.

    Args:
      loss_fn: this and all that is not explained here is as for :func:`meta_gradient`.
      params: what is learned.
      support: with a leading task axis.
      query: with the same.
      algorithm: the mode it has is not looked at.
      budget: bytes that the program may take, its inputs and outputs included.
      modes: of :mod:`dsaml_jax.meta.memory`, the fastest first.
      tasks_at_once: how many tasks side by side, in the order to be tried; None: all, then half of them and so on.
        Fewer tasks side by side cost less time than a more frugal mode on a CPU, and more on an accelerator; all modes
        are tried before fewer tasks are.
      query_loss_fn: outer loss.
      has_aux: whether it returns more than a loss.
      key: PRNG key.
    """
    tasks = jax.tree.leaves(support)[0].shape[0]
    modal = any(field.name == "memory" for field in dataclasses.fields(algorithm))
    changes: list[dict[str, Any]] = [{"memory": mode} for mode in modes] if modal else [{}]
    ways = [dataclasses.replace(algorithm, **change) for change in changes]
    arguments = jax.eval_shape(lambda *x: x, params, support, query, key)

    def compiled(way: Algorithm, together: int) -> Cost:
        def run(params: PyTree, support: PyTree, query: PyTree, key: Any) -> Any:
            return meta_gradient(
                loss_fn, params, support, query, algorithm=way, query_loss_fn=query_loss_fn,
                has_aux=has_aux, key=key, tasks_at_once=together,
            )  # fmt: skip

        return _cost(run, arguments, getattr(way, "memory", ""), together)

    costs: list[Cost] = []
    for together in _halves(tasks) if tasks_at_once is None else tasks_at_once:
        for way in ways:
            cost = compiled(way, together)
            costs.append(cost)
            if budget is not None and cost.peak <= budget:
                return Plan(tuple(costs), cost, way)
    fits_none = budget is not None
    return Plan(tuple(costs), None if fits_none else costs[0], None if fits_none else ways[0])


def _cost(run: Callable[..., Any], arguments: Any, memory: str, together: int) -> Cost:
    analysis: Any = jax.jit(run).lower(*arguments).compile().memory_analysis()
    temporaries = int(analysis.temp_size_in_bytes)
    outside = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return Cost(memory, together, temporaries, temporaries + int(outside))


def _halves(tasks: int) -> list[int]:
    """`tasks`, then half of them as long as that is whole, and 1."""
    sizes = [tasks]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes if sizes[-1] == 1 else [*sizes, 1]
