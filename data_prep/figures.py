"""How figures look, and those of the data card; drawn by matplotlib without a display, the same bytes every time."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.base import DIMENSIONS, SPLITS, Song, printable, replacing
from data_prep.statistics import cronbach_alpha

COLORS = {"arousal": "#c2410c", "valence": "#0f766e"}
SPLIT_COLORS = {"train": "#94a3b8", "validation": "#2563eb", "test": "#111827"}
MAX_TITLE = 60
"""Characters; a longer name leaves no room for the curves."""

STYLE: Any = {
    "svg.hashsalt": "dsaml",
    "svg.fonttype": "path",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
}


@contextmanager
def any_glyphs() -> Iterator[None]:
    """Letters that the font lacks are drawn as boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def set_name(axis: Axes, name: str, most: int = MAX_TITLE, **properties: Any) -> None:
    """Titles an axis with a name from somebody else's file: no mathematics in it, and at most `most` letters."""
    text = printable(" ".join(name.split()))
    axis.set_title(text if len(text) <= most else f"{text[:most]}…", parse_math=False, **properties)


def write_png(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as temporary, any_glyphs():
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def name_corners(axis: Axes) -> None:
    """Writes what the corners of the valence-arousal plane feel like."""
    for x, y, word in ((-1, 1, "tense"), (1, 1, "happy"), (-1, -1, "sad"), (1, -1, "calm")):
        axis.text(0.97 * x, 0.93 * y, word, color="#6b7280", va="center",
                  ha="left" if x < 0 else "right")  # fmt: skip


def label_histograms(songs: Sequence[Song]) -> Figure:
    """How often each value was given: by the mean curves, and by single raters where there are any."""
    with rc_context(STYLE):
        there = _annotated_in(songs)
        figure = Figure(figsize=(4.0 * len(there), 2.8), layout="constrained")
        axes = figure.subplots(1, len(there), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, there, strict=True):
            means = np.concatenate([getattr(song, name) for song in songs])
            rated = [getattr(rating, name) for song in songs for rating in song.ratings]
            bins = np.linspace(-1.0, 1.0, 41)
            for values, label, style in (
                (means, "mean curves", {"color": COLORS[name], "alpha": 0.75}),
                (np.concatenate(rated) if rated else np.zeros(0), "single raters",
                 {"histtype": "step", "color": "#111827"}),
            ):  # fmt: skip
                values = values[np.isfinite(values)]
                if len(values):
                    share = np.full(len(values), 100.0 / len(values))
                    axis.hist(values, bins=bins, weights=share, label=label, **style)
            axis.set(xlabel=name, xlim=(-1.0, 1.0))
            axis.legend(frameon=False, loc="upper left")
            axis.margins(y=0.35)
        figure.axes[0].set_ylabel("% of all steps")
        return figure


def _annotated_in(songs: Sequence[Song]) -> list[str]:
    """The dimensions that anything is annotated in."""
    curves = [curves for song in songs for curves in (song, *song.ratings)]
    return [x for x in DIMENSIONS if any(np.isfinite(getattr(c, x)).any() for c in curves)] or list(DIMENSIONS)  # fmt: skip


def song_plane(songs: Sequence[Song]) -> Figure:
    """Every song's mean arousal and valence, by split."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        axis = figure.subplots()
        for split in SPLITS:
            levels = [_level(song) for song in songs if song.split == split]
            if levels:
                arousal, valence = zip(*levels, strict=True)
                axis.scatter(valence, arousal, s=12, color=SPLIT_COLORS[split], alpha=0.7,
                             linewidths=0, label=f"{split} ({len(levels)})")  # fmt: skip
        axis.set(xlabel="valence", ylabel="arousal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        axis.set_aspect("equal")
        name_corners(axis)
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=3)
        return figure


def _level(song: Song) -> tuple[float, float]:
    arousal, valence = (
        curve[np.isfinite(curve)].mean() if np.isfinite(curve).any() else np.nan
        for curve in (song.arousal, song.valence)
    )
    return float(arousal), float(valence)


def rater_figure(songs: Sequence[Song]) -> Figure:
    """How many songs each annotator rated, and how far the raters of a song agree."""
    counts = Counter(rating.annotator_id for song in songs for rating in song.ratings)
    with rc_context(STYLE):
        figure = Figure(figsize=(8.0, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        rated = np.array(list(counts.values()))
        width = max(1, -(-int(np.ptp(rated) + 1) // 40))
        edges = np.arange(rated.min(), rated.max() + width + 1, width) - 0.5
        left.hist(rated, bins=edges, color="#64748b")
        left.set(xlabel="songs rated", ylabel="annotators")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.yaxis.get_major_locator().set_params(integer=True)
        bins = np.linspace(-1.0, 1.0, 41)
        for name in DIMENSIONS:
            alphas = [
                cronbach_alpha(np.stack([getattr(rating, name) for rating in song.ratings]))
                for song in songs
                if len(song.ratings) >= 2
            ]
            alphas = [max(alpha, -1.0) for alpha in alphas if np.isfinite(alpha)]
            right.hist(alphas, bins=bins, histtype="step", color=COLORS[name], label=name)
        right.set(xlabel="Cronbach's alpha of a song (-1: or less)", ylabel="songs")
        right.legend(frameon=False, loc="upper left")
        return figure
