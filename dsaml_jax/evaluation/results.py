"""What an evaluation finds, its tables and its files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.base import csv_text, plain_cell, replacing
from dsaml_jax.corpus import AND, identities
from dsaml_jax.evaluation.scores import COLUMNS, METRICS, Unit, dimensions_of, unit_means


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of several methods on the same songs.

    Attributes:
      protocol: `clean` or `reference`.
      task: `dmer` or `pdmer`.
      rows: one dict per method and song: `method`, `annotator`, `support`, `song`, and the columns of the dimensions
        that the curve is labelled in.
      summary: method -> column -> `{"mean", "sd"}` over annotators, each by the mean of their songs, so that nobody
        counts for having more of them; of DMER over songs. The standard deviation is the sample's (n - 1).
      facts: what was evaluated on what.
      levels: of DMER: method -> dimension -> `{"correlation", "r2"}` of songs' levels, see
        :func:`dsaml_jax.evaluation.level_agreement`.
      corpora: of several: name -> the evaluation on that one alone.
    """

    protocol: str
    task: str
    rows: list[dict[str, Any]]
    summary: dict[str, dict[str, dict[str, float]]]
    facts: dict[str, Any]
    levels: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    corpora: dict[str, Evaluation] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the folder that it is kept in: by what protocol, which checkpoint, on what, beside what."""
        judged_on = self.facts["judged_on"]
        if self.corpora:  # a file's name may not be as long as all of that
            judged_on = "+".join(
                "-".join(x.split("/")[::2]) for x in identities(judged_on).values()
            )
        parts = [self.protocol, f"step{self.facts['checkpoint_step']}", judged_on]
        parts += ["with-dmer"] if any(method.startswith("DMER") for method in self.summary) and self.task == "pdmer" else []  # fmt: skip
        parts += [self.facts["part"]] if self.facts.get("part") else []
        return "-".join(parts).replace("/", "-")

    def tidy(self) -> list[dict[str, Any]]:
        """One score a row: `method`, `annotator`, `support`, `song`, `dimension`, `metric`, `value`."""
        names = ("method", "annotator", "support", "song")
        return [
            {name: row[name] for name in names} | {"dimension": dimension, "metric": metric, "value": row[column]}
            for row in self.rows
            for column in self.columns
            if column in row
            for dimension, _, metric in [column.partition("_")]
        ]  # fmt: skip

    def per_unit(self) -> list[dict[str, Any]]:
        """One person a row (of DMER one song): `method`, `annotator` or `song`, `songs`, and the mean of each column over their songs.

        A song of a person that was asked about after several supports counts once, by the mean of them: the numbers that
        :attr:`summary` averages.
        """
        unit = "annotator" if self.task == "pdmer" else "song"
        rows = []
        for method in self.summary:
            of_unit: dict[str, dict[str, list[dict[str, Any]]]] = {}
            for row in self.rows:
                if row["method"] == method:
                    of_unit.setdefault(row[unit], {}).setdefault(row["song"], []).append(row)
            for name, songs in sorted(of_unit.items()):
                means = {}
                for column in self.columns:
                    values = [
                        [x[column] for x in curves if column in x] for curves in songs.values()
                    ]
                    if any(values):
                        means[column] = float(np.mean([np.mean(x) for x in values if x]))
                rows.append({"method": method, unit: name, "songs": len(songs)} | means)
        return rows

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of :data:`COLUMNS` that there are labels for."""
        return tuple(next(iter(self.summary.values())))


def over_units(units: list[Unit], values: np.ndarray) -> dict[str, float]:
    """Mean and standard deviation over people, or songs, each by the mean of their songs."""
    _, means = unit_means(units, values)
    return {"mean": float(means.mean()), "sd": float(means.std(ddof=1)) if len(means) > 1 else 0.0}


def combined(of_corpora: Mapping[str, Evaluation]) -> Evaluation:
    """Evaluations of one run on several corpora as one: by the mean over all people, or songs, of the methods that all have.

    Songs and people are called `corpus/id`. There are no levels of all songs together: a model would be praised for telling
    corpora apart.

    Args:
      of_corpora: name -> evaluation on that corpus.
    """
    evaluations = list(of_corpora.values())
    first = evaluations[0]
    methods = [name for name in first.summary if all(name in one.summary for one in evaluations)]
    rows = [
        row | {who: f"{name}/{row[who]}" for who in ("annotator", "support", "song") if row[who]}
        for name, one in of_corpora.items()
        for row in one.rows
    ]
    unit = "annotator" if first.task == "pdmer" else "song"
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        units = [(row[unit], row["song"]) for row in mine]
        columns = [x for x in COLUMNS if any(x in row for row in mine)]
        summary[method] = {
            column: over_units(units, np.array([row.get(column, np.nan) for row in mine]))
            for column in columns
        }
    counted = ("songs", "annotators", "tasks", "rows_per_method")
    facts = {
        name: sum(one.facts[name] for one in evaluations) if name in counted else value
        for name, value in first.facts.items()
        if name in counted or all(one.facts.get(name) == value for one in evaluations)
    }
    judged_on = AND.join(one.facts["judged_on"] for one in evaluations)
    facts |= {"judged_on": judged_on, "corpus": "+".join(of_corpora)}
    return Evaluation(first.protocol, first.task, rows, summary, facts, corpora=dict(of_corpora))


# ---- Files and the screen.


def table(evaluation: Evaluation) -> str:
    """The summary as an aligned table: mean and standard deviation over annotators, or songs."""
    there = dimensions_of(evaluation.columns)
    titles = [f"{d[0].upper()} {m.upper()}" for d in there for m in METRICS]
    width = max(len(method) for method in evaluation.summary) + 2
    lines = ["".ljust(width) + "".join(title.rjust(15) for title in titles)]
    for method, columns in evaluation.summary.items():
        cells = [f"{columns[c]['mean']:.3f} ± {columns[c]['sd']:.3f}" for c in columns]
        lines.append(method.ljust(width) + "".join(cell.rjust(15) for cell in cells))
    return "\n".join(lines)


def levels_table(evaluation: Evaluation) -> str:
    """Correlation and R² of songs' levels as an aligned table; empty where they were not asked for."""
    there = next(iter(evaluation.levels.values()), {})
    width = max(map(len, evaluation.levels), default=0) + 2
    titles = [f"{d[0].upper()} {what}" for d in there for what in ("level r", "level R²")]
    lines = ["".ljust(width) + "".join(title.rjust(15) for title in titles)]
    for method, dimensions in evaluation.levels.items():
        cells = [
            f"{one[what]:.3f}" for one in dimensions.values() for what in ("correlation", "r2")
        ]
        lines.append(method.ljust(width) + "".join(cell.rjust(15) for cell in cells))
    return "\n".join(lines) if there else ""


KEPT = "evaluations"
"""Folder in that of a run: every evaluation of it, by protocol and corpus."""


def keep_evaluation(evaluation: Evaluation, run: Path) -> Path:
    """Writes an evaluation into its own folder below that of the run, and over the run's latest one; that on each corpus too.

    Returns:
      the folder of its own.
    """
    for one in evaluation.corpora.values():
        write_evaluation(one, run / KEPT / one.name)
    place = run / KEPT / evaluation.name
    for directory in (place, run):
        write_evaluation(evaluation, directory)
    return place


def write_evaluation(evaluation: Evaluation, directory: Path) -> None:
    """Writes `results.json`, `per_song.csv` and, of PDMER, `per_annotator.csv`, each whole or not at all.

    In the tables a name that a spreadsheet would take for a formula begins with an apostrophe.
    """
    tables: dict[str, tuple[tuple[str, ...], tuple[str, ...], list[dict[str, Any]]]] = {
        "per_song.csv": (("annotator", "support", "song"), (), evaluation.rows)
    }
    if evaluation.task == "pdmer":
        tables["per_annotator.csv"] = (("annotator",), ("songs",), evaluation.per_unit())
    for file, (names, counts, rows) in tables.items():
        header = ["method", *names, *counts, *evaluation.columns]
        plain = [row | {name: plain_cell(row[name]) for name in names} for row in rows]
        with replacing(directory / file) as temporary:
            text = csv_text(header, ([row.get(column, "") for column in header] for row in plain))
            temporary.write_text(text, encoding="utf-8")
    with replacing(directory / "results.json") as temporary:
        values = {"protocol": evaluation.protocol, "task": evaluation.task, **_of(evaluation)}
        if evaluation.corpora:
            values["corpora"] = {name: _of(one) for name, one in evaluation.corpora.items()}
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def _of(evaluation: Evaluation) -> dict[str, Any]:
    return {name: getattr(evaluation, name) for name in ("facts", "summary", "levels")}
