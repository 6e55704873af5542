"""Two runs that were evaluated on the same songs and people, compared by pairs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.listeners import FEW
from data_prep.plain import parse_json
from dsaml_jax.errors import UsageError
from dsaml_jax.evaluation import COLUMNS, METRICS, dimensions_of
from dsaml_jax.experiment.base import Judged
from dsaml_jax.experiment.tables import difference_of, over_seeds

_KEYS = ("annotator", "support", "song")


def compare(first: Path, second: Path, methods: Sequence[str] = ()) -> list[str]:
    """What the latest evaluations of two runs say of their difference, in lines.

    Args:
      first: folder of a run.
      second: of another; the same one, to compare two methods of it.
      methods: a row of either evaluation, or one for both; empty: the model's own, which is the last.

    Raises:
      UsageError: a run that was not evaluated, on other data, or another way; an unknown method; no curve that both were asked for.
    """
    asked = [*methods] * 2 if len(methods) == 1 else [*methods] or [""] * 2
    if len(asked) != 2:
        raise UsageError("--method is given once for both runs, or once for each")
    results = [_results(run) for run in (first, second)]
    for what in ("judged_on", "held_out", "protocol"):
        values = [result["facts"].get(what) or result.get(what) for result in results]
        if values[0] != values[1]:
            raise UsageError(
                f"{first} and {second} were not judged alike: {what.replace('_', ' ')} is {values[0]} and {values[1]}; "
                "evaluate both by the same protocol on the same data"
            )
    tables = [_rows(run, result, method) for run, result, method in zip((first, second), results, asked, strict=True)]  # fmt: skip
    names = [name for name, _ in tables]
    ours, theirs = _paired(tables[0][1], tables[1][1])
    unit = "annotator" if results[0]["task"] == "pdmer" else "song"
    if len({label[unit] for label in ours.labels}) < 2:
        raise UsageError(f"the two evaluations have fewer than two {unit}s in common")
    there = dimensions_of(ours.scores)
    columns = [f"{dimension}_{metric}" for metric in METRICS for dimension in there]
    lines = [f"{first}: {names[0]}", f"{second}: {names[1]}", ""]
    lines.append(f"{'':14}{'first':>8}{'second':>8}  first minus second, 95 % interval   {unit}s better/worse")  # fmt: skip
    people = 0
    for column in columns:
        means = [over_seeds([one], column, unit)[0] for one in (ours, theirs)]
        one = difference_of([ours], [theirs], column, unit, comparisons=len(columns))
        people = len({label[unit] for label in ours.labels})
        sure = f"  {one.verdict}, surely so in all {len(columns)}" if one.verdict else ""
        lines.append(
            f"{column.replace('_', ' '):14}{means[0]:8.3f}{means[1]:8.3f}  {one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
            f"{'':8}{one.better}/{one.worse}{sure}"
        )
    lines.append("")
    lines.append(f"paired by {unit}: {people}, {len(ours.labels)} curves that both were asked for; one training of each, so nothing is said of other seeds")  # fmt: skip
    if people < FEW:
        lines.append(f"intervals over fewer than {FEW} {unit}s are not to be trusted")
    return lines


def _results(run: Path) -> dict[str, Any]:
    path = run / "results.json"
    if not path.is_file():
        raise UsageError(f"{run}: not evaluated yet; 'dsaml evaluate' writes {path.name}")
    try:
        values = parse_json(path.read_text())
        return {"facts": dict(values["facts"]), "task": str(values["task"]), "protocol": str(values["protocol"]),
                "summary": dict(values["summary"])}  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: damaged ({error}); evaluate the run again") from None


def _rows(run: Path, result: dict[str, Any], method: str) -> tuple[str, dict[tuple[str, ...], dict[str, float]]]:  # fmt: skip
    """A method's scores of each curve, by whose and of what it is."""
    known = tuple(result["summary"])
    name = method or known[-1]
    if name not in known:
        raise UsageError(f"{run}: no method {name!r}; there are {', '.join(known)}")
    found: dict[tuple[str, ...], dict[str, float]] = {}
    path = run / "per_song.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["method"] == name:
                    scores = {x: float(row[x]) for x in COLUMNS if row.get(x)}
                    found[tuple(row[key] for key in _KEYS)] = scores
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); evaluate the run again") from None
    return name, found


def _paired(
    first: dict[tuple[str, ...], dict[str, float]], second: dict[tuple[str, ...], dict[str, float]]
) -> tuple[Judged, Judged]:
    """What both were asked for, in the same order."""
    both = sorted(first.keys() & second.keys())
    if not both:
        raise UsageError("the two evaluations have no curve in common")
    labels = [dict(zip(_KEYS, key, strict=True)) for key in both]
    columns = [x for x in COLUMNS if any(x in first[key] and x in second[key] for key in both)]
    judged = [
        Judged(labels, {x: np.array([rows[key].get(x, np.nan) for key in both]) for x in columns})
        for rows in (first, second)
    ]
    return judged[0], judged[1]
