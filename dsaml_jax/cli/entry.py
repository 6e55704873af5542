"""The command `dsaml`. Bad input ends in one line that says what to do, and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from data_prep.base import DataError, printable
from dsaml_jax import __version__
from dsaml_jax.cli import (
    checkpoint,
    compare,
    convert,
    demo,
    describe,
    evaluate,
    experiment,
    personalize,
    predict,
    prepare,
    runs,
    studio,
    train,
)
from dsaml_jax.errors import Interrupted, UsageError

COMMANDS = (
    demo,
    prepare,
    describe,
    train,
    evaluate,
    compare,
    personalize,
    predict,
    convert,
    studio,
    checkpoint,
    runs,
    experiment,
)
"""In the order of the help; each has `add` for its arguments and `run` for what it does."""

_EPILOG = (
    "Every command: --quiet says nothing, --debug shows tracebacks. '{} --help' explains a command."
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        _enable_compile_cache()
        if not options.debug:
            _silence_background_threads()
        command: Callable[[argparse.Namespace], None] = options.run
        with _terminable():
            command(options)
        return 0
    except Interrupted as error:
        print(f"dsaml: {error}", file=sys.stderr)
        return 0 if error.signal == signal.SIGTERM else 128 + error.signal
    except _Terminated:
        if not options.goes_on:
            return _fail(options, _Terminated(), "terminated", 128 + signal.SIGTERM)
        print("dsaml: stopped; what is done is kept, and the same command goes on", file=sys.stderr)
        return 0
    except (UsageError, DataError) as error:
        return _fail(options, error, str(error), 2)
    except KeyboardInterrupt as error:
        return _fail(options, error, "interrupted; start the same command again", 130)
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        return _fail(
            options,
            error,
            f"not enough memory ({error}); a smaller --features, fewer --workers or meta.tasks_at_once=1 take less",
            1,
        )
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(options, error, f"{place}{error.strerror or error}", 1)


def _fail(options: argparse.Namespace, error: BaseException, message: str, status: int) -> int:
    if options.debug:
        raise error
    print(f"dsaml: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


class _Terminated(BaseException):
    """SIGTERM came to a command that does not catch it itself."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into an exception, so that nothing is left half-written."""

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _silence_background_threads() -> None:
    """Orbax writes in threads and raises their errors again here; nobody needs to read them twice.

    (It also closes its event loop while a failed thread still reports to it.)
    """
    import logging
    import warnings

    from absl import logging as absl_logging

    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


def _enable_compile_cache() -> None:
    """Keeps compiled programs between commands, in $DSAML_CACHE or the user's cache folder."""
    import jax

    base = os.environ.get("DSAML_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dsaml_jax"
    )
    jax.config.update("jax_compilation_cache_dir", base)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# ---- What they accept.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsaml",
        description="Predicts how arousal and valence of music move, for listeners in general and, after one "
        "annotated song, for one listener.",
        epilog=_EPILOG.format("dsaml COMMAND"),
    )
    parser.add_argument("--version", action="version", version=f"dsaml_jax {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def register(
        name: str,
        run: Callable[[argparse.Namespace], None],
        summary: str,
        more: str = "",
        *,
        goes_on: bool = False,
    ) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary}. {more}",
            formatter_class=argparse.RawTextHelpFormatter,
        )
        command.set_defaults(run=run, goes_on=goes_on)
        command.add_argument("--quiet", action="store_true", help="print nothing but errors")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        return command

    for command in COMMANDS:
        command.add(register)
    return parser
