"""An ordered map over processes, and what fits one program at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

Progress = Callable[[int, int], None]
"""Called with items done and items in all."""

AHEAD = 2
"""Results each process may be ahead of who reads them: memory stays flat in the number of items."""


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(
    function: Callable[[In], Out], items: Iterable[In], workers: int | None = None
) -> Iterator[Out]:
    """Results in the order of `items`, computed a little ahead of the reader.

    Processes are spawned, not forked: JAX's threads do not survive a fork.

    Args:
      function: importable by name, with picklable arguments.
      items: what to map.
      workers: processes; None takes all cores, 1 stays in this process.
    """
    items = list(items)
    workers = min(workers or available_cores(), len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_worker) as pool:
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _quiet_worker() -> None:
    """Ctrl-C is the parent's; mp3 decoding prints to stderr what is raised as an exception anyway."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """A parent that was killed does not tell its workers, which would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def batch_sizes(count: int, limit: int) -> Iterator[int]:
    """Powers of two up to `limit` that add up to `count`, largest first: few shapes, no padding."""
    while count:
        size = min(limit, 1 << (count.bit_length() - 1))
        yield size
        count -= size
