"""The figures of an experiment, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dsaml_jax.corpus import gather_windows
from dsaml_jax.evaluation import METRICS, dimensions_of, methods, most_shared_song
from dsaml_jax.experiment.base import Outcome
from dsaml_jax.experiment.running import Runner
from dsaml_jax.experiment.tables import averaged, columns_of, over_seeds, unit_of, unit_scores
from dsaml_jax.reporting import Picture, figures
from dsaml_jax.runs import read_metrics, read_status

Pictures = dict[str, Picture]
"""File name without ending -> picture."""


def draw(name: str, runner: Runner, outcome: Outcome) -> Pictures:
    """A figure, or several of one kind."""
    return _FIGURES[name](runner, outcome)


def _over_seeds(runner: Runner) -> str:
    if runner.seeds == 1:
        return "One seed."
    return f"Mean over {runner.seeds} seeds; the band is their standard deviation."


def _subject(outcome: Outcome) -> str:
    """The method that is drawn."""
    experiment = outcome.experiment
    return (*experiment.subjects, experiment.against)[0]


def _listeners(runner: Runner, outcome: Outcome) -> Pictures:
    subject = _subject(outcome)
    method, judged = outcome.experiment.methods[subject], outcome.judged[subject][0]
    model = runner.model(method.training, 0)
    trial = runner.trial("test", outcome.protocol, method.shots)
    after = runner.predict(trial, method, model, judged.chosen)
    before = methods.curves_of_songs(trial, model.model, model.variables).of(trial.song)
    shown = most_shared_song(trial, before, after)
    what = (
        f"Song {shown.song}, as several unseen listeners heard it (seed 0). Black: what the listener drew. Grey: the "
        "model for everyone. Blue: after adapting to one other song of that listener."
    )
    curves = Picture("One song, several listeners", what, figures.listener_curves(shown))
    if len(dimensions_of(columns_of(outcome))) == 1:
        return {"listeners": curves}
    plane = Picture(
        "The same in the valence-arousal plane",
        "Paths over the annotated part of the song; the dot is its end.",
        figures.plane_paths(shown),
    )
    return {"listeners": curves, "plane": plane}


def _attention(runner: Runner, outcome: Outcome) -> Pictures:
    method = outcome.experiment.methods[_subject(outcome)]
    model = runner.model(method.training, 0)
    config = model.info.config.model
    trial = runner.trial("test", outcome.protocol, 1)
    song = np.array([trial.songs[0]], np.int32)
    batch = gather_windows(trial.device, song, np.zeros(1, np.int32))
    out: Any = model.model.apply(model.variables, batch.log_mel, batch.embedding)
    if out.attention is None:
        return {}
    titles = [f"{name}, {context} steps to each side" for name, context, used in (
        ("local", config.local_context, config.use_local),
        ("global", config.global_context, config.use_global),
    ) if used]  # fmt: skip
    targets = config.diagonal_targets if config.diagonal_weight else ()
    what = (
        f"Last layer, mean over heads, song {runner.corpus.song_ids[int(song[0])]}, seed 0. Below: what each step "
        "keeps for itself, and what the diagonal attention loss pulls that to."
    )
    drawn = figures.attention_maps(np.asarray(out.attention[0]), tuple(titles), targets)
    return {"attention": Picture("Attention at both scales", what, drawn)}


def _annotators(runner: Runner, outcome: Outcome) -> Pictures:
    against, subject = outcome.experiment.against, _subject(outcome)
    before, after = (
        unit_scores(outcome.judged[name], "rmse", "annotator") for name in (against, subject)
    )
    ours = np.array([after[name] for name in before])
    what = (
        f"{against} and {subject}; {averaged(outcome)} over the songs of each test "
        f"listener{f' and {runner.seeds} seeds' if runner.seeds > 1 else ''}."
    )
    drawn = figures.before_and_after(
        np.array(list(before.values())), ours, "error of each listener"
    )
    return {"annotators": Picture("Who gains by adapting", what, drawn)}


def _learning(runner: Runner, outcome: Outcome) -> Pictures:
    """Validation scores while training, tasks apart: their validations are not the same."""
    pictures = {}
    for task in ("dmer", "pdmer"):
        lines = {}
        for name, training in outcome.experiment.trainings.items():
            if training.task == task:
                lines[name] = _validation_curve(runner, name)
        if lines:
            drawn = figures.series(lines, x="step", y="validation score", title=task.upper())
            what = _over_seeds(runner)
            pictures[f"learning-{task}"] = Picture(f"Learning, {task.upper()}", what, drawn)
    return pictures


def _validation_curve(runner: Runner, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seeds = []
    for seed in range(runner.seeds):
        lines = read_metrics(runner.run_folder(name, seed))
        validations = [line for line in lines if line["kind"] == "validation"]
        seeds.append(np.array([line["score"] for line in validations]))
        steps = np.array([line["step"] for line in validations])
    return steps, np.mean(seeds, axis=0), np.std(seeds, axis=0)


def _time(runner: Runner, outcome: Outcome) -> Pictures:
    lines = {}
    for name, training in outcome.experiment.trainings.items():
        if training.task == "pdmer" and not training.as_long_as:
            steps, mean, spread = _validation_curve(runner, name)
            status = read_status(runner.run_folder(name, 0))
            assert status is not None
            lines[name] = steps / status.steps_per_second / 60.0, mean, spread
    what = f"Without compiling, with validation, at the pace of seed 0. {_over_seeds(runner)}"
    drawn = figures.series(lines, x="minutes", y="validation score")
    return {"time": Picture("Learning, by the clock", what, drawn)}


def _shots(runner: Runner, outcome: Outcome) -> Pictures:
    """Methods are named `WAY, N songs`; those without a number are lines across."""
    pictures = {}
    named = outcome.experiment.methods
    shots = sorted({method.shots for method in named.values()})
    for metric in ("ccc", "rmse"):
        lines: dict[str, Any] = {}
        for name, method in named.items():
            mean, spread = over_seeds(outcome.judged[name], metric, unit_of(outcome))
            way, _, songs = name.rpartition(", ")
            if songs.endswith(("song", "songs")):
                lines.setdefault(way, []).append((shots.index(method.shots), mean, spread))
            else:
                lines[name] = [(place, mean, spread) for place in range(len(shots))]
        drawn = figures.series(
            {label: tuple(np.array(points).T) for label, points in lines.items()},
            x="songs adapted to",
            y=f"{metric.upper()}, {averaged(outcome)}",
            categories=tuple(map(str, shots)),
        )
        what = f"{_over_seeds(runner)} Everyone is asked about the same songs."
        pictures[f"shots-{metric}"] = Picture(f"Support songs: {metric.upper()}", what, drawn)
    return pictures


def _columns(runner: Runner, outcome: Outcome) -> Pictures:
    """Scores of each method as points, one for every annotator or song."""
    unit = unit_of(outcome)
    names = tuple(outcome.judged)
    pictures = {}
    for metric in METRICS:
        values = {}
        for name in names:
            means = unit_scores(outcome.judged[name][:1], metric, unit)
            values[name] = np.array(list(means.values()))
        drawn = figures.spread(values, f"{metric.upper()}, {averaged(outcome)}")
        what = f"A box for the middle half of the {unit}s, seed 0."
        pictures[f"spread-{metric}"] = Picture(f"{metric.upper()} over {unit}s", what, drawn)
    return pictures


_FIGURES: dict[str, Callable[[Runner, Outcome], Pictures]] = {
    "listeners": _listeners,
    "attention": _attention,
    "annotators": _annotators,
    "learning": _learning,
    "time": _time,
    "shots": _shots,
    "spread": _columns,
}
