"""Reports: one HTML file each, with everything in it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from data_prep.base import replacing
from dsaml_jax.evaluation import METRICS, Evaluation, dimensions_of
from dsaml_jax.reporting.figures import to_svg

_PACKAGES = ("dsaml_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with what it shows, in a sentence or two."""

    title: str
    caption: str
    figure: Figure


def environment() -> dict[str, str]:
    """Where this ran: machine, devices, versions."""
    devices = jax.devices()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processor": _processor(),
        "cores": str(cores),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the source tree this runs from, `+` where files differ; empty where it is no checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        done = [
            subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=10.0)
            for words in (
                [
                    "ls-files",
                    "--error-unmatch",
                    __file__,
                ],  # no file of the repository it was installed in
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "-uno"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    _, head, changed = (one.stdout.strip() for one in done)
    return head + ("+" if changed else "")


def write_report(
    path: Path,
    *,
    evaluation: Evaluation,
    pictures: list[Picture],
    findings: list[str],
    facts: dict[str, str],
) -> None:
    """Writes the page of the demo.

    Args:
      path: of the HTML file.
      evaluation: for the table.
      pictures: in order.
      findings: what the table says, in words, one line each.
      facts: what was run, beside the environment.
    """
    render(
        path,
        "report.html",
        evaluation=evaluation,
        columns=evaluation.columns,
        dimensions=dimensions_of(evaluation.columns),
        metrics=METRICS,
        best=best_methods(evaluation.summary),
        findings=findings,
        pictures=drawn(pictures),
        facts=facts | environment(),
    )


def best_methods(summary: dict[str, dict[str, dict[str, float]]]) -> dict[str, str]:
    """Column -> the method with the best mean."""
    return {
        column: (min if column.endswith("rmse") else max)(
            (row[column]["mean"], method) for method, row in summary.items()
        )[1]
        for column in next(iter(summary.values()))
    }


def drawn(pictures: list[Picture]) -> list[tuple[str, str, Markup]]:
    """Title, caption and SVG of each."""
    return [(p.title, p.caption, Markup(to_svg(p.figure))) for p in pictures]


def render(path: Path, template: str, **values: object) -> None:
    """Fills a template; what is put into it is text, whatever it holds."""
    templates = Environment(
        loader=PackageLoader("dsaml_jax.reporting"), autoescape=True, undefined=StrictUndefined
    )
    page = templates.get_template(template).render(**values)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
