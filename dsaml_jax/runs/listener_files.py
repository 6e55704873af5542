"""`listeners.json` and `person.json`: what is kept beside a model's numbers of listeners in general, and of one of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from data_prep.base import DIMENSIONS, replacing
from data_prep.plain import from_plain, parse_json
from dsaml_jax.errors import UsageError
from dsaml_jax.runs.listeners import Listeners, Person
from dsaml_jax.runs.spread import Correlations, Spread

_Record = TypeVar("_Record")

LISTENERS_FILE = "listeners.json"
PERSON_FILE = "person.json"


def write_listeners(directory: Path, listeners: Listeners) -> None:
    """Writes `listeners.json`, whole or not at all."""
    _write(directory / LISTENERS_FILE, listeners)


def read_listeners(directory: Path) -> Listeners | None:
    """Reads `listeners.json`; None where there is none.

    Raises:
      UsageError: it is damaged.
    """
    return _read(directory / LISTENERS_FILE, listeners_from)


def listeners_from(values: Any) -> Listeners:
    """From plain values of JSON.

    Raises:
      ValueError: they are no such thing.
    """
    if not isinstance(values, dict) or not all(name in values for name in DIMENSIONS):
        raise ValueError("no spread of arousal and valence")
    spreads = {
        name: None if values[name] is None else from_plain(Spread, values[name])
        for name in DIMENSIONS
    }
    together = from_plain(Correlations, values.get("together", {}))
    read = {*spreads, "together"}
    counts = from_plain(_Counts, {name: x for name, x in values.items() if name not in read})
    return Listeners(spreads["arousal"], spreads["valence"], together=together, **dataclasses.asdict(counts))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Counts:
    """The numbers of :class:`Listeners`."""

    people: int
    curves: int
    step: int = 0
    strength: float | None = None


def write_person(directory: Path, person: Person) -> None:
    """Writes `person.json`, whole or not at all."""
    _write(directory / PERSON_FILE, person)


def read_person(directory: Path) -> Person | None:
    """Reads `person.json`; None where there is none.

    Raises:
      UsageError: it is damaged.
    """
    return _read(directory / PERSON_FILE, _person_from)


def _person_from(values: Any) -> Person:
    base, level = (_pair(values[name], missing=False) for name in ("base", "level"))
    songs = {name: _pair(pair, missing=True) for name, pair in values["songs"].items()}
    return Person(base, songs, level, _pair(values["deviation"], missing=True))  # type: ignore[arg-type]


def _write(path: Path, record: Listeners | Person) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def _read(path: Path, parse: Callable[[Any], _Record]) -> _Record | None:
    if not path.is_file():
        return None
    try:
        return parse(parse_json(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: damaged or of another version ({error})") from None


def _pair(values: Any, *, missing: bool) -> tuple[float | None, float | None]:
    first, second = values
    for value in (first, second):
        if not (missing and value is None) and not (
            isinstance(value, float) and math.isfinite(value)
        ):
            raise ValueError(f"{str(value)[:40]} is no number")
    return first, second
