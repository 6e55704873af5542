"""The report of a run: one HTML file in its work directory, from the files that the run has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.plain import parse_json
from dsaml_jax.config import flatten
from dsaml_jax.errors import UsageError
from dsaml_jax.progress import duration
from dsaml_jax.runs import REPORT_FILE, RunStatus, read_metrics, read_run_info, read_status

SCORES = {"score": "mean of CCC, PCC and 1 - RMSE", "rmse": "1 - RMSE"}
"""What `training.choose_by` makes of a validation, in words."""


def write_run_report(workdir: Path) -> None:
    """Writes `report.html` of a run, however far it is.

    Raises:
      UsageError: `workdir` is no run, or what 'dsaml evaluate' wrote into it is damaged.
      OSError: it cannot be written.
    """
    # Drawing is loaded here, so that a start of training does not wait for it.
    from dsaml_jax.evaluation import COLUMNS, METRICS, dimensions_of
    from dsaml_jax.reporting import figures
    from dsaml_jax.reporting.report import Picture, best_methods, drawn, environment, render

    info = read_run_info(workdir)
    status = read_status(workdir)  # a model by itself has none
    lines = read_metrics(workdir)
    validations = [line for line in lines if line["kind"] == "validation"]
    results = _results(workdir, COLUMNS)
    columns = tuple(next(iter(results["summary"].values()))) if results else ()
    picture = Picture(
        "Learning",
        "Loss and norm of the gradient, mean of the steps since the point before; and the score on the "
        f"validation part ({SCORES[info.config.training.choose_by]}, after adapting where the run adapts).",
        figures.learning_curve(lines, info.config.training.task.upper()),
    )
    render(
        workdir / REPORT_FILE,
        "run.html",
        name=workdir.resolve().name,
        status=status,
        headline=headline(status) if status else info.note,
        pictures=drawn([picture]) if lines else [],
        results=results,
        best=best_methods(results["summary"]) if results else {},
        columns=columns,
        dimensions=dimensions_of(columns),
        metrics=METRICS,
        validations=validations,
        validation_columns=[
            x  # of single corpora the score alone
            for x in (validations or [{}])[0]
            if x not in ("step", "kind") and ("/" not in x or x.endswith("/score"))
        ],
        data={"corpus": info.data, "features": info.features.name},
        settings=flatten(info.config),
        facts=environment(),
    )


def headline(status: RunStatus) -> str:
    """A run in one sentence."""
    text = f"{status.state.capitalize()} at step {status.step} of {status.steps}, after {duration(status.seconds)}."
    if status.best_step:
        text += f" Best validation score {status.best_score:.3f}, at step {status.best_step}."
    return text


def _results(workdir: Path, columns: tuple[str, ...]) -> dict[str, Any] | None:
    """What `dsaml evaluate` wrote, if it has."""
    path = workdir / "results.json"
    if not path.is_file():
        return None
    try:
        values = parse_json(path.read_text())
        summary = {
            method: {
                column: {name: float(row[column][name]) for name in ("mean", "sd")}
                for column in columns
                if column in row
            }
            for method, row in values["summary"].items()
        }
        if not summary or not all(summary.values()):
            raise ValueError("no scores")
        over = "songs" if values["task"] == "dmer" else "listeners"
        return {"protocol": str(values["protocol"]), "summary": summary, "over": over}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path}: damaged; 'dsaml evaluate' writes it anew") from None
