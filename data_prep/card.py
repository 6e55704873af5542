"""The data card of a prepared corpus: Markdown and figures, made from the facts that are stored with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.base import DIMENSIONS, SPLITS, Song, printable, replacing
from data_prep.listeners import FEW

CARD_FOLDER = "card"
CARD_FILE = "README.md"
LEFT_OUT_FILE = "left_out.txt"

_EMBEDDINGS = {
    "spectral": "spectral: eight statistics of every mel band; no weights",
    "musicnn": "MSD_musicnn, a tagger that has heard the Million Song Dataset (Pons and Serra 2019; weights ISC)",
    "musicnn-spectral": "MSD_musicnn (Pons and Serra 2019; weights ISC), and eight statistics of every mel band behind it",
    "imagebind": "ImageBind's audio tower, at the 16 kHz it was trained on (weights CC-BY-NC 4.0)",
    "imagebind-reference": "ImageBind's audio tower fed 44.1 kHz, as the published implementation does "
    "(weights CC-BY-NC 4.0)",
}


def write_card(
    folder: Path,
    facts: dict[str, Any],
    annotated: Sequence[Song],
    prepared: Sequence[Song],
    *,
    everything: Sequence[str] = (),
) -> None:
    """Writes the card into the dataset's folder.

    Args:
      folder: of the dataset.
      facts: as in `dataset.json`.
      annotated: all songs of the corpus: what is said of the annotations.
      prepared: those with features, and their splits.
      everything: a line for each file that is missing, damaged or short, where the card tells the gist only.
    """
    from data_prep import figures  # matplotlib takes a while; only the writer of a card needs it

    place = folder / CARD_FOLDER
    place.mkdir(exist_ok=True)
    figures.write_png(figures.label_histograms(annotated), place / "labels.png")
    if len(_dimensions(facts["statistics"])) > 1:
        figures.write_png(figures.song_plane(prepared), place / "plane.png")
    if any(song.ratings for song in annotated):
        figures.write_png(figures.rater_figure(annotated), place / "raters.png")
    if everything:
        write_left_out(place / LEFT_OUT_FILE, everything)
    with replacing(place / CARD_FILE) as temporary:
        temporary.write_text(card_text(facts), encoding="utf-8")


def write_left_out(path: Path, lines: Sequence[str]) -> None:
    """Writes what is wrong with each file, a line each."""
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8", errors="backslashreplace")


def read_card(folder: Path) -> str:
    """The card's Markdown."""
    return (folder / CARD_FOLDER / CARD_FILE).read_text(encoding="utf-8")


def card_text(facts: dict[str, Any]) -> str:
    """Markdown of the card.

    Args:
      facts: as in `dataset.json`.
    """
    annotated, source = facts["statistics"], facts["provenance"]
    parts = [
        f"# {facts['name']}",
        _table(
            ("", ""),
            [
                ("source", source["citation"]),
                ("licence", source["licence"]),
                *([("from", source["url"])] if source["url"] else []),
                ("scale", source["scale"]),
                ("fingerprint", facts["fingerprint"]),
            ],
        ),
        "## Annotations, as read",
        _annotations(annotated, facts.get("drawn")),  # data of earlier versions has none
        "![How often each value was given](labels.png)",
    ]
    if annotated["ratings"]:
        parts += [_raters(annotated), *([_flat(facts["flat"])] if facts.get("flat") else [])]
        parts += ["![Ratings per annotator and agreement](raters.png)"]
        if facts.get("listeners"):  # data of earlier versions has none
            parts += [_listeners(facts["listeners"])]
    parts += ["### Left out", _dropped(facts["dropped"])]
    parts += [
        "## Prepared",
        _prepared(facts),
        *(
            ["![Songs on the valence-arousal plane](plane.png)"]
            if len(_dimensions(annotated)) > 1
            else []
        ),
        "### Features",
        _features(facts["features"]),
        "### Files missing, damaged or short",
        _list(facts["left_out"], "None."),
        "## Notes",
        _list(facts["notes"], "None."),
    ]
    return "\n\n".join(parts) + "\n"


def _dimensions(statistics: dict[str, Any]) -> list[str]:
    """Those that anything is annotated in."""
    there = [name for name in DIMENSIONS if statistics[name]["points"]]
    return there or list(DIMENSIONS)


def _annotations(statistics: dict[str, Any], drawn: dict[str, Any] | None) -> str:
    steps = statistics["steps_per_song"]
    lines = [
        ("songs", f"{statistics['songs']:,}"),
        ("hours annotated", f"{statistics['hours']:.2f}"),
        ("points per song (2 a second)", _spread(steps)),
        ("annotators", f"{statistics.get('annotators_read', statistics['annotators']):,}"),
        ("ratings by single annotators", f"{statistics.get('ratings_read', statistics['ratings']):,}"),
    ]  # fmt: skip
    if drawn:
        joined = f"{drawn['points']:,}, joined over gaps of up to {drawn['max_gap']:g} s"
        lines.append(("points that the annotators drew", joined))
    both = [(name, statistics[name]) for name in _dimensions(statistics)]
    rows = [
        ("points", *(f"{x['points']:,}" for _, x in both)),
        ("share of steps labelled", *(_share(x.get("labelled")) for _, x in both)),
        ("mean over songs", *(_show(x["mean"]) for _, x in both)),
        ("sd between songs", *(_show(x["sd_between_songs"]) for _, x in both)),
        ("sd within a song", *(_show(x["sd_within_songs"]) for _, x in both)),
        ("mean curves that are flat (sd under 0.01 over 30 s)", *(f"{x['flat_curves']:,}" for _, x in both)),
    ]  # fmt: skip
    if any(x["correlation_with_static"] is not None for _, x in both):
        rows.append(
            (
                "correlation of song levels with the song-level labels",
                *(_show(x["correlation_with_static"]) for _, x in both),
            )  # fmt: skip
        )
    return (
        _table(("", ""), lines) + "\n\n" + _table(("mean curves", *_dimensions(statistics)), rows)
    )


def _raters(statistics: dict[str, Any]) -> str:
    both = [statistics[name] for name in _dimensions(statistics)]
    lines = [
        ("annotators with a rating that is kept", f"{statistics['annotators']:,}"),
        ("ratings that are kept", f"{statistics['ratings']:,}"),
        ("ratings per song", _spread(statistics["ratings_per_song"])),
        ("songs per annotator", _spread(statistics["songs_per_annotator"])),
        ("annotators with more than 15 songs", f"{statistics['annotators_over_15_songs']:,}"),
    ]
    rows = [
        ("sd between raters", *(_show(x["sd_between_raters"]) for x in both)),
        ("share of steps labelled", *(_share(x.get("labelled_by_raters")) for x in both)),
        (
            "Cronbach's alpha, median and quartiles over songs",
            *(_of_songs(x["cronbach_alpha"]) for x in both),
        ),
        ("pairwise correlation, likewise", *(_of_songs(x["pairwise_correlation"]) for x in both)),
    ]
    return (
        "### Raters\n\n"
        + _table(("", ""), lines)
        + "\n\n"
        + _table(("single raters", *_dimensions(statistics)), rows)
    )


def _flat(flat: dict[str, dict[str, int]]) -> str:
    """What the reader was told to keep or drop."""
    rows = [
        (name, f"{x['traces']:,}", f"{x['flat']:,} ({x['flat'] / max(x['traces'], 1):.0%})", f"{x['people']:,}")
        for name, x in flat.items()
    ]  # fmt: skip
    return "Traces that hardly move (mean absolute deviation under 0.01 over 30 s):\n\n" + _table(
        ("", "traces", "flat", "people who drew one"), rows
    )


def _listeners(listeners: dict[str, Any]) -> str:
    """How personal they are: see :mod:`data_prep.listeners`."""
    both = {name: listeners[name] for name in DIMENSIONS if name in listeners}
    rows = []
    for trait in ("level", "movement"):
        for part in ("song", "person", "rest"):
            cells = (_part(x[trait]["components"], part) for x in both.values())
            rows.append((f"{trait}: variance of {part}", *cells))
        cells = (_with_interval(x[trait]["icc"]) for x in both.values())
        rows.append((f"{trait}: intraclass correlation of a person's residuals", *cells))
    if all("typical_sd" in x for x in both.values()):
        rows.append(
            (
                "movement: median sd of a trace that moves",
                *(_show(x["typical_sd"]) for x in both.values()),
            )
        )
    text = [
        "### How personal the listeners are",
        "Level: mean of a trace over time. Movement: log of its standard deviation. Residual: the difference from the song's other raters. Brackets: 95 % "
        "intervals, of variances over people and songs, of correlations over people. Percent: share of the three variances.",
        _table(("", *both), rows),
    ]  # fmt: skip
    if listeners["correlation"] is not None:
        text.append(f"Correlation of people's mean residuals in the two dimensions: {listeners['correlation']:.2f} (of people with enough songs for the table below).")  # fmt: skip
    judged = {name: x["ceiling"] for name, x in both.items() if x["ceiling"]}
    if judged:
        text += [
            "The most that K songs of a person can tell about their others: RMSE gained over a perfect model of everybody (the mean of the other raters) by "
            "adding the best share of the person's mean residual on K songs. People count the same.",
            _ceiling_table(judged),
        ]  # fmt: skip
        if min(x["people"] for x in judged.values()) < FEW:
            text.append(f"Fewer than {FEW} people: these intervals are not to be trusted.")
    return "\n\n".join(text)


def _ceiling_table(judged: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, x in judged.items():
        rows.append((name, "0", f"{x['rmse']:.4f}", "", "", f"{x['people']:,}"))
        for one in x["shots"]:
            change = f"{-one['gain']:+.4f}"
            if one["low"] is not None:
                change += f" [{-one['high']:+.4f}, {-one['low']:+.4f}]"
            share, gaining = f"{one['share']:.1f}", f"{one['gaining']:.0%}"
            rows.append((name, str(one["songs"]), change, share, gaining, ""))
    return _table(("", "songs K", "RMSE, then its change", "best share", "people who gain", "people"), rows)  # fmt: skip


def _part(components: dict[str, dict[str, float]] | None, part: str) -> str:
    if components is None:
        return "-"
    whole = sum(one["value"] for one in components.values())
    share = components[part]["value"] / whole if whole else 0.0
    return f"{_with_interval(components[part])}, {share:.0%}"


def _with_interval(one: dict[str, float] | None) -> str:
    return "-" if one is None else f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _dropped(dropped: dict[str, int]) -> str:
    return _list([f"{count:,} {reason}" for reason, count in dropped.items() if count], "Nothing.")


def _prepared(facts: dict[str, Any]) -> str:
    hours = facts["hours_prepared"]
    rows: list[tuple[str, str, str]] = [
        (split, f"{facts['songs'][split]:,}", f"{hours[split]:.2f}") for split in SPLITS
    ]
    rows.append(("all", f"{sum(facts['songs'].values()):,}", f"{sum(hours.values()):.2f}"))
    return _table(("split", "songs", "hours"), rows)


def _features(features: dict[str, Any]) -> str:
    per = {"clip": "each window of 30 s", "step": "the 30 s around each step"}
    rows = [
        ("log-mel patches", f"{features['mel_bands']} bands, {features['frame_ms']} ms frames every "
                            f"{features['hop_ms']} ms, {features['sample_rate']} Hz, stored as {features['dtype']}"),
        ("global embedding", _EMBEDDINGS[features["embedding"]]),
        ("one for", per[features["embedding_per"]]),
    ]  # fmt: skip
    if features["weights"]:
        rows.append(("weights (digest)", features["weights"]))
        rows.append(("computed in", features["embedding_dtype"]))
    return _table(("", ""), rows)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread(counts: dict[str, Any]) -> str:
    if counts["mean"] is None:
        return "-"
    return f"{counts['mean']:.1f} ({counts['min']:,} to {counts['max']:,})"


def _of_songs(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    if not value.get("quartiles"):  # data of earlier versions
        return f"mean {value['mean']:.3f} ({value['songs']:,} songs)"
    low, median, high = value["quartiles"]
    return f"{median:.3f} [{low:.3f}, {high:.3f}] ({value['songs']:,} songs)"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _list(lines: Sequence[str], otherwise: str) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines) or otherwise


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    cells = [[_plain(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """One line without a tag, a link or a picture: names come from other people's files."""
    line = " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    line = line.replace("\\", "\\\\")
    return re.sub(r"\](?=[(\[:])", r"\\]", line)
