"""The error a person can mend, in a module that loads nothing else."""


class UsageError(Exception):
    """Something the user can mend. The message is one line and says how."""
