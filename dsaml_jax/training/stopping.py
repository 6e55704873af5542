"""Stopping when asked: a signal sets a flag, the loop looks at it between steps and saves."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from dsaml_jax.devices import largest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While the block runs, SIGINT and SIGTERM ask to stop; a second one of either insists.

    Attributes:
      signal: the one that came; 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.signal and kind is None:  # too late for the block, but not for whoever began it
            signal.raise_signal(self.signal)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self) -> int:
        """The signal that any of the processes that train together has got; 0 for none.

        All processes must call this at the same steps.
        """
        return largest(self.signal)
