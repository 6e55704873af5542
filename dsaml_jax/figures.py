"""Figures, drawn by matplotlib without a display, the same bytes every time."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from data_prep.figures import COLORS, STYLE, any_glyphs, name_corners, set_name
from dsaml_jax.base import STEPS_PER_SECOND
from dsaml_jax.evaluation import ListenerCurves

TRUTH, UNADAPTED, ADAPTED = "#111827", "#9ca3af", "#2563eb"


def song_curve(curve: np.ndarray, title: str) -> Figure:
    """Arousal and valence over time, and the path through the plane of both.

    Args:
      curve: `[n, 2]`.
      title: above the figure.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2.4, 1.0))
        time = np.arange(len(curve)) / STEPS_PER_SECOND
        for column, (name, color) in enumerate(COLORS.items()):
            left.plot(time, curve[:, column], color=color, label=name)
        left.axhline(0.0, color="#9ca3af", linewidth=0.8)
        left.set(xlabel="time [s]", ylabel="from -1 to 1", ylim=(-1.05, 1.05), xlim=(0, time[-1]))
        left.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)
        set_name(left, title, loc="left")
        right.plot(curve[:, 1], curve[:, 0], color="#6b7280", linewidth=0.8)
        points = right.scatter(curve[:, 1], curve[:, 0], c=time, s=9, cmap="viridis")
        figure.colorbar(points, ax=right, label="time [s]")
        right.set(xlabel="valence", ylabel="arousal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        right.set_aspect("equal")
        name_corners(right)
        return figure


def listener_curves(shown: ListenerCurves) -> Figure:
    """One column per listener: what they drew, the model before and after adapting."""
    people = len(shown.annotators)
    with rc_context(STYLE):
        figure = Figure(figsize=(max(2.3 * people, 4.6), 4.4), layout="constrained")
        axes = figure.subplots(2, people, sharex=True, sharey="row", squeeze=False)
        time = np.arange(shown.truth.shape[1]) / STEPS_PER_SECOND
        for column, person in enumerate(shown.annotators):
            set_name(axes[0, column], person, fontsize=9)
            axes[1, column].set_xlabel("time [s]")
            for row in range(2):
                axis = axes[row, column]
                for curves, color, label, width in (
                    (shown.truth, TRUTH, "annotated", 1.8),
                    (shown.unadapted, UNADAPTED, "unadapted", 1.4),
                    (shown.adapted, ADAPTED, "adapted on one other song", 1.4),
                ):
                    axis.plot(
                        time, curves[column, :, row], color=color, label=label, linewidth=width
                    )
        axes[0, 0].set_ylabel("arousal")
        axes[1, 0].set_ylabel("valence")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return figure


def attention_maps(attention: np.ndarray, titles: tuple[str, ...]) -> Figure:
    """Last layer's maps, averaged over heads.

    Args:
      attention: `[S, L, H, T, T]` of one window.
      titles: S of them.
    """
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.6 * len(titles), 3.2), layout="constrained")
        axes = figure.subplots(1, len(titles), squeeze=False)[0]
        for axis, maps, title in zip(axes, attention, titles, strict=True):
            extent = (0.0, maps.shape[-1] / STEPS_PER_SECOND) * 2
            image = axis.imshow(
                maps[-1].mean(axis=0), cmap="magma", origin="lower", extent=extent, vmin=0.0
            )
            axis.set(xlabel="attends to [s]", ylabel="step [s]", title=title)
            figure.colorbar(image, ax=axis)
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


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page."""
    text = io.StringIO()
    with rc_context(STYLE), any_glyphs():
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
