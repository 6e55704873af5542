"""An outcome as Markdown, CSV and LaTeX, with every annotator's and every song's scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_prep.base import csv_text, plain_cell, replacing
from data_prep.curves import labelled_mean
from dsaml_jax.evaluation import COLUMNS, LEVELS, METRICS, Scores, better_when, dimensions_of
from dsaml_jax.experiment.base import Judged, Outcome
from dsaml_jax.experiment.statistics import Difference, paired_difference


def all_columns(scores: Scores) -> Scores:
    """Each metric as the mean of arousal and valence (of what the curve is labelled in), and the columns."""
    there = dimensions_of(scores)
    means = {
        metric: labelled_mean(np.stack([scores[f"{dimension}_{metric}"] for dimension in there]))
        for metric in METRICS
    }
    return means | scores


def columns_of(outcome: Outcome) -> tuple[str, ...]:
    """Columns of the dimensions that there are labels for."""
    there = next(iter(outcome.judged.values()))[0].scores
    return tuple(column for column in COLUMNS if column in there)


def averaged(outcome: Outcome) -> str:
    """What a metric without a dimension is, in words."""
    there = dimensions_of(columns_of(outcome))
    return there[0] if len(there) == 1 else "mean of arousal and valence"


def over_seeds(judged: Sequence[Judged], column: str, unit: str) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 of one) over seeds of the mean over units, each the mean of their songs."""
    means = [float(np.mean(list(unit_scores([one], column, unit).values()))) for one in judged]
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else 0.0


def over_songs(judged: Sequence[Judged], column: str, unit: str) -> float:
    """Mean over seeds of the mean over all songs of all units, in which who has more songs counts for more."""
    _, table = score_table(judged, column, unit)
    return float(np.nanmean(table, axis=(1, 2)).mean())


def unit_scores(judged: Sequence[Judged], column: str, unit: str) -> dict[str, float]:
    """Mean of a column for each annotator (of their songs, each the mean of its curves) or song, over seeds."""
    units, table = score_table(judged, column, unit)
    return dict(zip(units, labelled_mean(table.mean(axis=0), axis=-1).tolist(), strict=True))


def score_table(judged: Sequence[Judged], column: str, unit: str) -> tuple[list[str], np.ndarray]:
    """A column of one method, ready to be paired with that of another.

    Args:
      judged: one for each seed, with the same labels.
      column: of :func:`all_columns`.
      unit: `annotator`, or `song`, which has no songs below it.

    Returns:
      names of the units, sorted, and `[seeds, units, songs]`: means over curves, NaN where there is none.
    """
    labels = judged[0].labels
    names, who = np.unique([label[unit] for label in labels], return_inverse=True)
    below = [label["song"] if unit == "annotator" else "" for label in labels]
    songs, what = np.unique(below, return_inverse=True)
    cell = who * len(songs) + what
    table = np.full((len(judged), len(names), len(songs)), np.nan)
    for row, one in zip(table.reshape(len(judged), -1), judged, strict=True):
        values = all_columns(one.scores)[column]
        there = np.isfinite(values)
        count = np.bincount(cell[there], minlength=len(row))
        total = np.bincount(cell[there], values[there], minlength=len(row))
        row[count > 0] = total[count > 0] / count[count > 0]
    known = np.isfinite(table).any(axis=(0, 2))
    return names[known].tolist(), table[:, known]


def unit_of(outcome: Outcome) -> str:
    """What is drawn again in the intervals: annotators, or songs where there are none."""
    return "annotator" if outcome.experiment.task == "pdmer" else "song"


def difference(
    outcome: Outcome, column: str, ours: str, theirs: str, comparisons: int = 1
) -> Difference:
    """One method minus another, as one of so many comparisons."""
    return difference_of(
        outcome.judged[ours], outcome.judged[theirs], column, unit_of(outcome), comparisons
    )


def difference_of(
    ours: Sequence[Judged], theirs: Sequence[Judged], column: str, unit: str, comparisons: int = 1
) -> Difference:
    """One method minus another that was asked about the same curves."""
    (_, first), (_, second) = (score_table(judged, column, unit) for judged in (ours, theirs))
    return paired_difference(
        first, second, lower_is_better=better_when(column) == "lower", comparisons=comparisons
    )


def pairs(outcome: Outcome) -> dict[str, dict[str, tuple[str, str]]]:
    """Comparisons of an experiment: what the table says -> row -> (one method, the method it is compared to)."""
    experiment = outcome.experiment
    names = list(outcome.judged)
    tables = {
        f"each minus {experiment.against}": {
            name: (name, experiment.against) for name in names if name != experiment.against
        }
    }
    for subject in experiment.subjects:
        tables[f"{subject} minus each"] = {
            name: (subject, name) for name in names if name != subject
        }
    return tables


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; `marked` ones are `(row, column)` that are better beyond doubt."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[tuple[int, int]] = frozenset()


def _titles(outcome: Outcome) -> tuple[str, ...]:
    there = dimensions_of(columns_of(outcome))
    return ("method", *(f"{d} {m.upper()}" for d in there for m in METRICS))


def songs_table(outcome: Outcome) -> Table:
    """Every column as a mean over songs, see :func:`over_songs`."""
    rows = [
        (name, *(f"{over_songs(judged, x, unit_of(outcome)):.3f}" for x in columns_of(outcome)))
        for name, judged in outcome.judged.items()
    ]
    return Table(_titles(outcome), tuple(rows))


def scores_table(outcome: Outcome) -> Table:
    """Mean ± sd over seeds of every column; a mean is over units, see :func:`unit_of`."""
    columns, unit = columns_of(outcome), unit_of(outcome)
    rows = []
    for method, judged in outcome.judged.items():
        cells = []
        for column in columns:
            mean, spread = over_seeds(judged, column, unit)
            cells.append(f"{mean:.3f} ± {spread:.3f}" if len(judged) > 1 else f"{mean:.3f}")
        rows.append((method, *cells))
    return Table(_titles(outcome), tuple(rows))


def differences_table(outcome: Outcome, compared: dict[str, tuple[str, str]]) -> Table:
    """Paired differences with their intervals; marked where the first is better, all rows and metrics taken together."""
    unit = unit_of(outcome)
    header = ["method"]
    for metric in METRICS:
        header += [metric.upper(), f"{unit}s better/worse"]
    rows, marked = [], set()
    for number, (name, (ours, theirs)) in enumerate(compared.items()):
        cells = [name]
        for metric in METRICS:
            one = difference(
                outcome, metric, ours, theirs, comparisons=len(compared) * len(METRICS)
            )
            if one.verdict == "better":
                marked.add((number, len(cells)))
            interval = f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
            cells += [interval, f"{one.better}/{one.worse}"]
        rows.append(tuple(cells))
    return Table(tuple(header), tuple(rows), frozenset(marked))


def levels_table(outcome: Outcome) -> Table | None:
    """How much of the variance of songs' levels each method explains; None where that is not asked.

    R² is 1 minus the squared error of the level over that of the constant, which knows the mean of training.
    """
    known = outcome.judged.get("constant")
    columns = [column for column in LEVELS if known and column in known[0].scores]
    if not known or not columns:
        return None
    header = ["method"]
    for column in columns:
        dimension = column.partition("_")[0]
        header += [f"{dimension} R²", f"minus {outcome.experiment.against}"]
    errors = {
        (name, column): score_table(_squared(judged, column), column, "song")[1]
        for name, judged in outcome.judged.items()
        for column in columns
    }
    explained = {  # [seeds, songs, 1], of which the mean is R²
        (name, column): 1.0 - error / errors["constant", column].mean()
        for (name, column), error in errors.items()
    }
    rows, marked = [], set()
    for number, name in enumerate(outcome.judged):
        cells = [name]
        for column in columns:
            ours, theirs = explained[name, column], explained[outcome.experiment.against, column]
            cells.append(f"{ours.mean():.3f}")
            if name == outcome.experiment.against:
                cells.append("")
                continue
            one = paired_difference(ours, theirs, lower_is_better=False, comparisons=(len(outcome.judged) - 1) * len(columns))  # fmt: skip
            if one.verdict == "better":
                marked.add((number, len(cells)))
            cells.append(f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]")
        rows.append(tuple(cells))
    return Table(tuple(header), tuple(rows), frozenset(marked))


def _squared(judged: Sequence[Judged], column: str) -> list[Judged]:
    return [
        dataclasses.replace(one, scores=one.scores | {column: one.scores[column] ** 2})
        for one in judged
    ]


def to_markdown(table: Table) -> str:
    """A table for a page; marked cells are bold."""
    lines = ["| " + " | ".join(table.header) + " |", "|---" * len(table.header) + "|"]
    for number, row in enumerate(table.rows):
        cells = [
            f"**{cell}**" if (number, place) in table.marked else cell.replace("|", "\\|")
            for place, cell in enumerate(row)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "±": r"$\pm$", "$": r"\$", "{": r"\{",
          "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          "\\": r"\textbackslash{}", "+": "$+$", "−": "$-$", "-": "$-$"}  # noqa: RUF001  # fmt: skip


def _latex(text: str, *, numbers: bool) -> str:
    kept = "" if numbers else "+-"
    return "".join(letter if letter in kept else _LATEX.get(letter, letter) for letter in text)


def to_latex(table: Table, caption: str) -> str:
    """A `tabular` with the rules of the package booktabs; marked cells are bold."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption, numbers=False)}}}",
             rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule",
             " & ".join(_latex(cell, numbers=False) for cell in table.header) + r" \\", r"\midrule"]  # fmt: skip
    for number, row in enumerate(table.rows):
        cells = []
        for place, cell in enumerate(row):
            text = _latex(cell, numbers=place > 0)
            cells.append(rf"\textbf{{{text}}}" if (number, place) in table.marked else text)
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


# ---- Files.


def write_tables(outcome: Outcome, folder: Path) -> None:
    """Writes `table.csv`, `table.tex`, `per_annotator.csv` (PDMER) and `per_song.csv`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "table.csv", csv_text(_CSV_HEADER, _csv_rows(outcome)))
    title = outcome.experiment.title
    tables = [to_latex(scores_table(outcome), f"{title}: mean ± sd over seeds")]
    for what, compared in pairs(outcome).items():
        caption = f"{title}: {what}, 95 % intervals"
        tables.append(to_latex(differences_table(outcome, compared), caption))
    _write(folder / "table.tex", "\n".join(tables))
    units = ["annotator", "song"] if unit_of(outcome) == "annotator" else ["song"]
    for unit in units:
        columns = [*columns_of(outcome), *(x for x in LEVELS if x in next(iter(outcome.judged.values()))[0].scores)]  # fmt: skip
        _write(folder / f"per_{unit}.csv", csv_text(("method", "seed", unit, *columns), _per_unit(outcome, unit, columns)))  # fmt: skip


_CSV_HEADER = ("method", "column", "mean", "sd_over_seeds", "mean_over_songs", "minus", "difference", "low", "high", "better", "worse")  # fmt: skip


def _csv_rows(outcome: Outcome) -> Iterable[tuple[object, ...]]:
    for column in METRICS + columns_of(outcome):
        for method, judged in outcome.judged.items():
            mean, spread = over_seeds(judged, column, unit_of(outcome))
            of_songs = over_songs(judged, column, unit_of(outcome))
            means = (f"{value:.6f}" for value in (mean, spread, of_songs))
            yield method, column, *means, *[""] * 6
        for compared in pairs(outcome).values():
            for ours, theirs in compared.values():
                one = difference(outcome, column, ours, theirs)
                numbers = (f"{value:.6f}" for value in (one.mean, one.low, one.high))
                yield ours, column, "", "", "", theirs, *numbers, one.better, one.worse


def _per_unit(outcome: Outcome, unit: str, columns: Sequence[str]) -> Iterable[tuple[object, ...]]:
    for method, judged in outcome.judged.items():
        for seed, one in enumerate(judged):
            found = {column: unit_scores([one], column, unit) for column in columns}
            for name in sorted({name for values in found.values() for name in values}):
                values = (f"{x[name]:.6f}" if name in x else "" for x in found.values())
                yield method, seed, plain_cell(name), *values


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
