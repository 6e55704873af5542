"""What leaves a study: annotations that `dsaml prepare` reads, ratings, and a listener's own model."""

from __future__ import annotations

import datetime
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_prep.base import DIMENSIONS, STEPS_PER_SECOND, csv_text, plain_cell, replacing
from data_prep.curves import fit, mean_curve
from data_prep.deam import ANNOTATION_START, AUDIO, AVERAGED, PER_RATER
from dsaml_jax.listener import curve_table
from dsaml_jax.reporting import draw_song_curve, to_svg
from dsaml_jax.studio.library import Library, StudioSong
from dsaml_jax.studio.modelling import Modelling
from dsaml_jax.studio.ratings import fits, listener_id, summary_of_study
from dsaml_jax.studio.store import Participant, Row, Store

README = f"""Annotations of a study, as two corpora of the same sound.

deam/    DEAM's layout, 2 Hz from second {ANNOTATION_START:g} on, where DEAM begins:
           dsaml prepare deam --root deam --out DATA
folder/  all that was drawn, from the first second on:
           dsaml prepare folder --root folder --out DATA
songs.csv says which file a song was; what participants brought has no name there.
"""


def _numbers(curve: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.4f}" for value in curve]


# ---- Annotations.


def write_corpus(path: Path, store: Store, library: Library, modelling: Modelling) -> None:
    """A ZIP file with the annotations of everybody and the sound of the songs, see :data:`README`."""
    drawn = {
        song: curves
        for song in library
        if (curves := [(who, labels) for who in store.participants()
                       if (labels := modelling.labels(who, song)) is not None])
    }  # fmt: skip
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:  # fmt: skip
        archive.writestr("README.txt", README)
        named = ((song.number, plain_cell(song.name) if song.brought_by is None else "") for song in drawn)  # fmt: skip
        archive.writestr("songs.csv", csv_text(("song_id", "file"), named))
        archive.writestr("folder/annotations.csv", csv_text(("song_id", "annotator_id", "time", "arousal", "valence"), _points(drawn)))  # fmt: skip
        for name, text in _deam_tables(drawn).items():
            archive.writestr(f"deam/{name}", text)
        for song in drawn:
            for folder in (f"deam/{AUDIO}", "folder/audio"):
                name = f"{folder}/{song.number}{song.path.suffix.lower()}"
                archive.write(song.path, name, zipfile.ZIP_STORED)


Drawn = dict[StudioSong, list[tuple[Participant, np.ndarray]]]


def _points(drawn: Drawn) -> Iterable[tuple[object, ...]]:
    for song, curves in drawn.items():
        for who, labels in curves:
            for step in np.flatnonzero(np.isfinite(labels).any(axis=1)):
                yield song.number, listener_id(who), step / STEPS_PER_SECOND, *_numbers(labels[step])  # fmt: skip


def _deam_tables(drawn: Drawn) -> dict[str, str]:
    """File name to table: a row for each rater of a song, and the averages over raters."""
    tables = {}
    skipped = round(ANNOTATION_START * STEPS_PER_SECOND)
    averages: dict[str, list[list[str]]] = {dimension: [] for dimension in DIMENSIONS}
    most = 0
    for song, curves in drawn.items():
        # As long as the song, or shorter where nobody drew its end: DEAM has no empty last columns.
        longest = max(len(labels) for _, labels in curves)
        stack = np.stack([fit(labels, longest)[skipped:] for _, labels in curves])
        known = np.isfinite(stack).any(axis=2)
        if not known.any():
            continue
        steps = int(np.flatnonzero(known.any(axis=0))[-1]) + 1
        most = max(most, steps)
        for column, dimension in enumerate(DIMENSIONS):
            if not np.isfinite(stack[..., column]).any():
                continue
            rows = [
                [listener_id(who), *_numbers(curve)]
                for (who, _), curve in zip(curves, stack[:, :steps, column], strict=True)
                if np.isfinite(curve).any()
            ]
            name = f"{PER_RATER}/{dimension}/{song.number}.csv"
            tables[name] = csv_text(("WorkerId", *_samples(steps)), rows)
            averages[dimension].append([str(song.number), *_numbers(mean_curve(stack[:, :steps, column]))])  # fmt: skip
    for dimension, rows in averages.items():
        name = f"{AVERAGED}/{dimension}.csv"
        tables[name] = csv_text(("song_id", *_samples(most)), rows)
    return tables


def _samples(steps: int) -> list[str]:
    times = ANNOTATION_START + np.arange(steps) / STEPS_PER_SECOND
    return [f"sample_{round(1000 * time)}ms" for time in times]


def recorded_table(store: Store) -> str:
    """CSV of every entry as it was recorded, erased ones too."""
    rows = store.rows(
        "SELECT printf('listener%03d', participant), song, take, dimension, practice, finished IS NOT NULL, number, at, "
        "arousal, valence, until FROM entry JOIN take ON take.id = take ORDER BY take, number"
    )
    header = ("participant", "song", "take", "dimension", "practice", "finished", "entry", "seconds", "arousal", "valence", "erased_until")  # fmt: skip
    return csv_text(header, (tuple("" if x is None else x for x in row) for row in rows))


# ---- Ratings.


def ratings_table(store: Store) -> str:
    """CSV of every trial; comments cannot become formulas."""
    header = ("participant", "position", "song", "adapted_side", "chosen_side", "chose_adapted", "fit_adapted", "fit_unadapted",
              "fit_left", "fit_right", "listened_seconds", "rated", "blind", "adaptation", "difference", "control", "comment")  # fmt: skip

    def row(who: Participant, trial: Row) -> tuple[object, ...]:
        adapted = trial["adapted_side"]
        fit_adapted, fit_unadapted = fits(trial)
        return (
            listener_id(who), trial["position"] + 1, trial["song"], adapted, trial["chosen_side"],
            int(trial["chosen_side"] == adapted), fit_adapted, fit_unadapted,
            trial["fit_left"], trial["fit_right"], round(trial["listened"], 1),
            datetime.datetime.fromtimestamp(trial["rated"], datetime.UTC).isoformat(timespec="seconds"),
            trial["blind"], trial["adaptation"],
            "" if trial["difference"] is None else f"{trial['difference']:.4f}", trial["control"], plain_cell(trial["comment"]),
        )  # fmt: skip

    return csv_text(
        header,
        (row(who, trial) for who in store.participants() for trial in store.trials(who) if trial["rated"] is not None),
    )  # fmt: skip


def summary_json(store: Store) -> str:
    """Preferences and fits with their intervals."""
    return json.dumps(summary_of_study(store), indent=1) + "\n"


# ---- One listener.


def write_own(path: Path, who: Participant, store: Store, library: Library, modelling: Modelling) -> None:  # fmt: skip
    """A ZIP file with what a participant drew, their model, its curves and figures."""
    adaptations, songs = store.adaptations(who), library.of(who)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:  # fmt: skip
        for song in songs:
            name = f"{song.number}"
            labels = modelling.labels(who, song)
            if labels is not None:
                archive.writestr(f"annotations/{name}.csv", curve_table(labels))
            own = modelling.curve(str(adaptations[-1]["id"]), song) if adaptations else None
            if own is not None:
                archive.writestr(f"curves/{name}.csv", curve_table(own))
                archive.writestr(f"figures/{name}.svg", to_svg(draw_song_curve(own, song.name)))
        archive.writestr("songs.csv", csv_text(("song_id", "file"), ((song.number, plain_cell(song.name)) for song in songs)))  # fmt: skip
        if adaptations:
            folder = modelling.model_folder(adaptations[-1]["id"])
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, f"model/{file.relative_to(folder)}")
