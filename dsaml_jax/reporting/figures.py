"""Figures, drawn by matplotlib without a display, the same bytes every time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.base import DIMENSIONS, STEPS_PER_SECOND, replacing
from data_prep.figures import COLORS, STYLE, any_glyphs, name_corners, set_name
from dsaml_jax.evaluation import ListenerCurves
from dsaml_jax.listener import Band

TRUTH, UNADAPTED, ADAPTED = "#111827", "#9ca3af", "#2563eb"
MAX_PANEL_TITLE = 14
"""Letters that fit over a panel as narrow as a listener's: crowd workers' ids are long."""
SERIES = (
    ("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", "-."), ("#cc79a7", "D", ":"),
    ("#e69f00", "v", "-"), ("#56b4e9", "P", "--"), ("#111827", "X", "-."), ("#6b7280", "*", ":"),
)  # fmt: skip
"""Color (Okabe and Ito's, told apart by everybody), marker and line, so that print without color tells them apart."""


def draw_song_curve(curve: np.ndarray, title: str, band: Band | None = None) -> Figure:
    """Arousal and valence over time, and the path through the plane of both; or one of them over time.

    Args:
      curve: `[n, 2]`, one column of it may be NaN.
      title: above the figure.
      band: its bounds.
    """
    there = np.isfinite(curve).any(axis=0)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0 if there.all() else 6.2, 3.2), layout="constrained")
        panels = 2 if there.all() else 1
        axes = figure.subplots(1, panels, width_ratios=(2.4, 1.0)[:panels], squeeze=False)[0]
        left, time = axes[0], np.arange(len(curve)) / STEPS_PER_SECOND
        for column, (name, color) in enumerate(COLORS.items()):
            if there[column]:
                left.plot(time, curve[:, column], color=color, label=name)
                if band is not None:
                    low, high = (bound[:, column] for bound in band)
                    left.fill_between(time, low, high, color=color, alpha=0.05, linewidth=0)
                    for bound in (
                        low,
                        high,
                    ):  # two bands that lie on each other are told apart by their edges
                        left.plot(time, bound, color=color, linewidth=0.8, linestyle=":")
        left.axhline(0.0, color="#9ca3af", linewidth=0.8)
        left.set(xlabel="time [s]", ylabel="from -1 to 1", ylim=(-1.05, 1.05), xlim=(0, time[-1]))
        left.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)
        set_name(left, title, loc="left")
        if there.all():
            _draw_path(figure, axes[1], curve, time)
        return figure


def _draw_path(figure: Figure, axis: Axes, curve: np.ndarray, time: np.ndarray) -> None:
    """The way through the valence-arousal plane."""
    axis.plot(curve[:, 1], curve[:, 0], color="#6b7280", linewidth=0.8)
    points = axis.scatter(curve[:, 1], curve[:, 0], c=time, s=9, cmap="viridis")
    figure.colorbar(points, ax=axis, label="time [s]")
    axis.set(xlabel="valence", ylabel="arousal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
    axis.set_aspect("equal")
    name_corners(axis)


def listener_curves(shown: ListenerCurves) -> Figure:
    """One column per listener, one row per dimension that they drew: theirs, the model before and after adapting."""
    people = len(shown.annotators)
    drawn = [row for row in range(2) if np.isfinite(shown.truth[..., row]).any()]
    with rc_context(STYLE):
        size = (max(2.3 * people, 4.6), 1.0 + 1.7 * len(drawn))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(drawn), people, sharex=True, sharey="row", squeeze=False)
        time = np.arange(shown.truth.shape[1]) / STEPS_PER_SECOND
        for column, person in enumerate(shown.annotators):
            set_name(axes[0, column], person, MAX_PANEL_TITLE, fontsize=9)
            axes[-1, column].set_xlabel("time [s]")
            for axis, row in zip(axes[:, column], drawn, strict=True):
                for curves, color, label, width in (
                    (shown.truth, TRUTH, "annotated", 1.8),
                    (shown.unadapted, UNADAPTED, "unadapted", 1.4),
                    (shown.adapted, ADAPTED, "adapted on one other song", 1.4),
                ):
                    axis.plot(
                        time, curves[column, :, row], color=color, label=label, linewidth=width
                    )
        for axis, row in zip(axes[:, 0], drawn, strict=True):
            axis.set_ylabel(DIMENSIONS[row])
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return figure


def plane_paths(shown: ListenerCurves) -> Figure:
    """One plane per listener: the path they drew, and the model's before and after adapting."""
    people = len(shown.annotators)
    with rc_context(STYLE):
        figure = Figure(figsize=(max(2.3 * people, 4.6), 2.9), layout="constrained")
        axes = figure.subplots(1, people, sharex=True, sharey=True, squeeze=False)[0]
        for axis, person, *curves in zip(
            axes, shown.annotators, shown.truth, shown.unadapted, shown.adapted, strict=True
        ):
            set_name(axis, person, MAX_PANEL_TITLE, fontsize=9)
            for curve, color, label in zip(
                curves,
                (TRUTH, UNADAPTED, ADAPTED),
                ("annotated", "unadapted", "adapted on one other song"),
                strict=True,
            ):
                axis.plot(curve[:, 1], curve[:, 0], color=color, label=label, linewidth=1.0)
                axis.plot(curve[-1:, 1], curve[-1:, 0], "o", color=color, markersize=4)
            axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xlabel="valence", aspect="equal")
            name_corners(axis)
        axes[0].set_ylabel("arousal")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return figure


def attention_maps(
    attention: np.ndarray, titles: tuple[str, ...], targets: tuple[float, ...] = ()
) -> Figure:
    """Last layer's maps, averaged over heads, and below them what each step keeps for itself.

    Args:
      attention: `[S, L, H, T, T]` of one window.
      titles: S of them.
      targets: of the diagonal attention loss, S of them; empty where it was off.
    """
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.6 * len(titles), 4.2), layout="constrained")
        axes = figure.subplots(2, len(titles), squeeze=False, height_ratios=(3.0, 1.0))
        seconds = attention.shape[-1] / STEPS_PER_SECOND
        for place, (maps, title) in enumerate(zip(attention, titles, strict=True)):
            above, below = axes[:, place]
            mean = maps[-1].mean(axis=0)
            image = above.imshow(
                mean, cmap="magma", origin="lower", extent=(0.0, seconds) * 2, vmin=0.0
            )
            above.set(xlabel="attends to [s]", ylabel="step [s]", title=title)
            figure.colorbar(image, ax=above)
            time = (np.arange(len(mean)) + 0.5) / STEPS_PER_SECOND
            below.plot(time, np.diagonal(mean), color=ADAPTED, label="diagonal")
            if targets:
                below.axhline(targets[place], color=TRUTH, linestyle=":", label="its target")
            below.set(xlabel="step [s]", ylim=(0.0, 1.0), xlim=(0.0, seconds))
            below.legend(frameon=False, fontsize=7, loc="center right")
        return figure


def before_and_after(before: np.ndarray, after: np.ndarray, title: str) -> Figure:
    """Each listener's error before adapting and after, sorted by what they gained.

    Args:
      before: `[A]` RMSE.
      after: likewise.
      title: above the figure.
    """
    order = np.argsort(after - before)
    place = np.arange(len(order))
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        errors, gains = figure.subplots(1, 2, width_ratios=(2.0, 1.0))
        errors.vlines(place, before[order], after[order], color="#6b7280", linewidth=0.9)
        errors.plot(place, before[order], "o", color=UNADAPTED, markersize=4, label="unadapted")
        errors.plot(place, after[order], "^", color=ADAPTED, markersize=4, label="adapted")
        errors.set(xlabel="listener, by gain", ylabel="RMSE", xticks=[])
        errors.set_title(title, loc="left")
        errors.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
        gains.hist(after - before, bins=20, color=ADAPTED)
        gains.axvline(0.0, color=TRUTH, linewidth=1.0)
        better = float(np.mean(after < before))
        gains.set(xlabel="change of RMSE", ylabel="listeners", title=f"{better:.0%} gain")
        return figure


def series(
    lines: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    x: str,
    y: str,
    title: str = "",
    categories: tuple[str, ...] = (),
) -> Figure:
    """Several lines with bands.

    Args:
      lines: label -> positions, means, half widths of the band; `[k]` each.
      x: below.
      y: beside.
      title: above.
      categories: names of the positions 0, 1, ...
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axis = figure.subplots()
        for (label, (at, mean, spread)), (color, marker, line) in zip(
            lines.items(), SERIES * 9, strict=False
        ):
            axis.plot(
                at, mean, color=color, marker=marker, linestyle=line, label=label, markersize=4
            )
            axis.fill_between(
                at, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0
            )
        axis.set(xlabel=x, ylabel=y)
        axis.set_title(title, loc="left")
        if categories:
            axis.set_xticks(range(len(categories)), categories)
        figure.legend(loc="outside right upper", frameon=False)
        return figure


def spread(values: dict[str, np.ndarray], x: str) -> Figure:
    """A box for each name: median, middle half, and the rest as points.

    Args:
      values: name -> `[k]`.
      x: below.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.8 + 0.32 * len(values)), layout="constrained")
        axis = figure.subplots()
        axis.boxplot(
            list(values.values())[::-1], orientation="horizontal", flierprops={"markersize": 3},
            medianprops={"color": ADAPTED, "linewidth": 2.0},
        )  # fmt: skip
        axis.set_yticks(range(1, len(values) + 1), list(values)[::-1])
        axis.set(xlabel=x)
        return figure


def learning_curve(lines: list[dict[str, Any]], title: str) -> Figure:
    """Loss and gradient in training, score in validation, from a run's metrics."""
    training = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    norms = [line for line in training if "gradient_norm" in line]  # earlier versions wrote none
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.8), layout="constrained")
        loss, gradient, score = figure.subplots(1, 3)
        for axis, rows, column, style, name in (
            (loss, training, "total_loss", "-", f"{title}: training loss"),
            (gradient, norms, "gradient_norm", "-", "norm of the gradient"),
            (score, validation, "score", "o-", "validation score"),
        ):
            axis.plot([x["step"] for x in rows], [x[column] for x in rows], style, color=ADAPTED)
            axis.set(xlabel="step", title=name)
        if norms:
            gradient.set_yscale("log")
        return figure


def write_vector(figure: Figure, path: Path) -> None:
    """Writes `path` with the endings `.svg` and `.pdf`, the same bytes every time."""
    nothing = {
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    for kind, metadata in nothing.items():
        with (
            replacing(path.with_name(f"{path.name}.{kind}")) as temporary,
            rc_context(STYLE | {"pdf.fonttype": 42}),
            any_glyphs(),
        ):
            figure.savefig(temporary, format=kind, metadata=metadata)


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page."""
    text = io.StringIO()
    with rc_context(STYLE), any_glyphs():
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
