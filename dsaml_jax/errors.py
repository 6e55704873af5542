"""What ends a command early, in a module that loads nothing else."""


class UsageError(Exception):
    """Something the user can mend. The message is one line and says how."""


class Interrupted(Exception):
    """Somebody asked the run to stop; it has saved itself. The message is one line.

    Attributes:
      signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
