"""JSON that somebody else may have written: parsed, and every value of the type its field names."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar

_Record = TypeVar("_Record")


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
      ValueError: it is no JSON, or is nested deeper than Python goes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_plain(kind: type[_Record], values: Any) -> _Record:
    """A flat dataclass from the values of a JSON object.

    Args:
      kind: whose fields are numbers, strings, truth values, choices of strings, or None.
      values: field to value; fields with a default may be missing.

    Raises:
      ValueError: no object, an unknown or missing field, or a value of another type, and which.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{_shown(values)} where the fields of {kind.__name__} belong")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"{kind.__name__} has no {_shown(name)}")
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} cannot be {_shown(value)}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise ValueError(f"{name} is missing")
    return kind(**values)


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if isinstance(value, bool) or kind not in (int, float):
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if isinstance(value, int):
        return abs(value) < 2**63
    return kind is float and isinstance(value, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
