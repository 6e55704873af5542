"""What a meta-gradient costs in memory, read off the compiled program before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax

from dsaml_jax.meta.base import Algorithm, LossFn, ParameterFilter, PyTree
from dsaml_jax.meta.gradients import meta_gradient
from dsaml_jax.meta.memory import MEMORY_MODES, MemoryMode
from dsaml_jax.meta.tasks import number_of_tasks


@dataclasses.dataclass(frozen=True)
class Cost:
    """Memory of one way to compute a meta-gradient, on each device.

    Attributes:
      memory: mode; empty for an algorithm to which it makes no difference.
      tasks_at_once: tasks side by side.
      temporaries: bytes the program needs besides its inputs and outputs.
      peak: bytes with them.
      inputs: bytes of its inputs.
    """

    memory: str
    tasks_at_once: int
    temporaries: int
    peak: int
    inputs: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What :func:`plan` found.

    Attributes:
      costs: of every way that was compiled, in the order of :func:`plan`.
      chosen: the first that fits the budget; without a budget the algorithm's own mode (where it is not among `modes`, the
        first of them) with the first of `tasks_at_once`; None if none fits.
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
    step: jax.Array | None = None,
    state: PyTree = None,
    weights: jax.Array | None = None,
    learns: ParameterFilter | None = None,
) -> Plan:
    """Compiles :func:`meta_gradient` in several ways, and picks the fastest kind that fits.

    Nothing runs, and only shapes are read, so `params`, `support` and `query` may be `jax.ShapeDtypeStruct`. Every way
    takes a compilation: with a budget it stops at the first that fits; without one it compiles them all.

    Args:
      loss_fn: this and all that is not explained here is as for :func:`meta_gradient`.
      params: what is learned, and whatever else is in the tree.
      support: with a leading task axis.
      query: with the same.
      algorithm: its own mode is chosen where there is no budget; with one it is not looked at.
      budget: bytes that the program may take on a device, its inputs and outputs included.
      modes: of :mod:`dsaml_jax.meta.memory`, the fastest first.
      tasks_at_once: how many tasks side by side, in the order to be tried; None: all, then half of them and so on.
        Fewer tasks side by side cost less time than a more frugal mode on a CPU, and more on an accelerator; all modes
        are tried before fewer tasks are.
      query_loss_fn: outer loss.
      has_aux: whether it returns more than a loss.
      key: PRNG key.
      step: any step, for algorithms that anneal: the program then holds what each part of the annealing needs.
      state: of the loss.
      weights: of the tasks.
      learns: what is learned.
    """
    tasks = number_of_tasks(support, query)
    ways: list[Any] = [
        dataclasses.replace(algorithm, memory=mode)  # type: ignore[call-arg]
        for mode in modes
        if mode in algorithm.memory_modes
    ]
    ways = ways or [algorithm]
    leaves, structure = jax.tree.flatten(params)
    arrays = [leaf if hasattr(leaf, "shape") else None for leaf in leaves]
    given = {"support": support, "query": query, "key": key, "step": step, "state": state, "weights": weights}  # fmt: skip
    arguments = shapes((arrays, given))

    def compiled(way: Algorithm, together: int) -> Cost:
        def run(arrays: list[Any], given: dict[str, Any]) -> Any:
            whole = [leaf if x is None else x for x, leaf in zip(arrays, leaves, strict=True)]
            return meta_gradient(
                loss_fn, jax.tree.unflatten(structure, whole), **given, algorithm=way, query_loss_fn=query_loss_fn,
                has_aux=has_aux, tasks_at_once=together, learns=learns,
            )  # fmt: skip

        mode = getattr(way, "memory", "") if way.memory_modes else ""
        return cost_of(jax.jit(run), arguments, mode, together)

    own = algorithm if algorithm in ways else ways[0]
    chosen = None
    costs: list[Cost] = []
    for together in halves(tasks) if tasks_at_once is None else tasks_at_once:
        for way in ways:
            costs.append(compiled(way, together))
            if budget is None:
                chosen = costs[-1] if chosen is None and way == own else chosen
            elif costs[-1].peak <= budget:
                return Plan(tuple(costs), costs[-1], way)
    return Plan(tuple(costs), chosen, None if chosen is None else own)


def cost_of(
    program: Any, arguments: tuple[Any, ...], memory: str = "", tasks_at_once: int = 0
) -> Cost:
    """What a jitted program will need for arguments of these shapes; it is compiled, and does not run."""
    analysis: Any = program.lower(*arguments).compile().memory_analysis()
    temporaries = int(analysis.temp_size_in_bytes)
    inputs = int(analysis.argument_size_in_bytes)
    outputs = int(analysis.output_size_in_bytes - analysis.alias_size_in_bytes)  # donated inputs
    return Cost(memory, tasks_at_once, temporaries, temporaries + inputs + outputs, inputs)


def shapes(tree: PyTree) -> PyTree:
    """`jax.ShapeDtypeStruct` of every leaf, and where it is: a program on several devices needs less on each."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding if getattr(leaf, "committed", False) else None
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        plain = jax.eval_shape(lambda: leaf)
        return jax.ShapeDtypeStruct(plain.shape, plain.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)


def halves(tasks: int) -> list[int]:
    """`tasks`, then half of them as long as that is whole, and 1."""
    sizes = [tasks]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes if sizes[-1] == 1 else [*sizes, 1]
