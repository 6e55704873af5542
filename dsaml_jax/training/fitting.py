"""How many tasks an accelerator computes side by side: the most whose program fits into its free memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from dsaml_jax import meta
from dsaml_jax.devices import largest
from dsaml_jax.errors import UsageError

SHARE = 0.9
"""Of the free memory that a program may plan with: fragments and what validation keeps are not in the compiler's figure."""


def tasks_side_by_side(tasks: int, devices: int) -> list[int]:
    """Numbers to try, the most first; each gives every device the same number of tasks."""
    return [together * devices for together in meta.halves(tasks // devices)]


def free_memory() -> int | None:
    """Bytes that are free on the fullest of this process's devices; None where devices do not say."""
    found = [device.memory_stats() for device in jax.local_devices()]
    if not all(stats and {"bytes_limit", "bytes_in_use"} <= stats.keys() for stats in found):
        return None
    return min(stats["bytes_limit"] - stats["bytes_in_use"] for stats in found if stats)


def first_that_fits(make: Callable[[int], Any], sizes: Sequence[int]) -> Callable[..., Any]:
    """`make(size)` of the first size whose program fits, found when it is called first.

    Args:
      make: gives a jitted function.
      sizes: the one that needs most first; where devices do not say what is free, the first is taken.

    Raises:
      UsageError: (when called) the last needs more than there is.
    """
    made: list[Any] = []

    def run(*arguments: Any) -> Any:
        if not made:
            made.append(make(sizes[_fitting(make, sizes, arguments)]))
        return made[0](*arguments)

    return run


def _fitting(make: Callable[[int], Any], sizes: Sequence[int], arguments: tuple[Any, ...]) -> int:
    free = free_memory()
    number, needed = 0, 0
    if free is not None:
        inputs = meta.shapes(arguments)
        for number, size in enumerate(sizes):  # noqa: B007
            cost = meta.cost_of(make(size), inputs)
            # The arguments are there already, and are not free.
            needed = cost.peak - cost.inputs
            if needed <= SHARE * free:
                break
    agreed = largest(number)  # all processes run the same program
    if free is not None and agreed == len(sizes) - 1 and needed > free:
        raise UsageError(
            f"a meta-step needs {needed / 1e9:.1f} GB even with {sizes[-1]} tasks at once, and {free / 1e9:.1f} GB are free; "
            "set meta.memory=mixed-sqrt or model.activations=bfloat16, or lower meta.query_songs"
        )
    return agreed
