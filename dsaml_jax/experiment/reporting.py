"""What an experiment leaves: a page of Markdown, tables for programs and papers, figures."""

from __future__ import annotations

from pathlib import Path

import jax

from data_prep.base import replacing
from data_prep.listeners import FEW
from dsaml_jax.evaluation import METRICS, Protocol
from dsaml_jax.experiment.base import Outcome
from dsaml_jax.experiment.figures import draw
from dsaml_jax.experiment.running import Runner
from dsaml_jax.experiment.tables import (
    averaged,
    differences_table,
    levels_table,
    pairs,
    scores_table,
    songs_table,
    to_markdown,
    unit_of,
    unit_scores,
    write_tables,
)
from dsaml_jax.reporting import write_vector

PROTOCOLS: dict[Protocol, str] = {
    "clean": "Protocol clean: songs and listeners unseen in training; adapt on other songs of the listener.",
    "reference": "Protocol reference: as published; adapt on the first 30 s of the very song that is asked about, be judged on its rest (where there is none, on them).",
}


def write_outcomes(runner: Runner, outcomes: list[Outcome], command: str) -> Path:
    """Writes everything an experiment has found, and returns the page.

    Args:
      runner: that ran it.
      outcomes: one for each protocol; figures are of the first.
      command: that ran it, for the page.
    """
    experiment, folder = runner.experiment, runner.folder
    lines = [f"# {experiment.title}", "", experiment.claim, "", f"Command: `{command}`", ""]
    for outcome in outcomes:
        write_tables(outcome, folder / outcome.protocol)
        lines += _of_protocol(outcome)
    lines += ["## Figures", ""]
    for name in experiment.figures:
        for file, picture in draw(name, runner, outcomes[0]).items():
            write_vector(picture.figure, folder / "figures" / file)
            lines += [f"![{picture.title}](figures/{file}.svg)", "", f"*{picture.title}.* {picture.caption}", ""]  # fmt: skip
    lines += ["## What was run", ""]
    lines += [f"- {name}: {value}" for name, value in outcomes[0].facts.items()]
    lines += [f"- training {name}: {_described(runner, name)}" for name in experiment.trainings]
    page = folder / "table.md"
    with replacing(page) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return page


def _of_protocol(outcome: Outcome) -> list[str]:
    unit = unit_of(outcome)
    seeds = max(len(judged) for judged in outcome.judged.values())
    lines = [f"## {'Scores' if unit == 'song' else PROTOCOLS[outcome.protocol]}", ""]
    lines += [to_markdown(scores_table(outcome)), ""]
    spread = f", then mean ± standard deviation over {seeds} seeds of training" if seeds > 1 else ""
    lines += [
        f"Mean over {unit}s, each the mean of {'their songs' if unit == 'annotator' else 'its curves'}{spread}.",
        "",
    ]
    levels = levels_table(outcome)
    if levels is not None:
        lines += ["Levels: how much of the variance between songs each explains (R² of the mean of a curve; 1 minus the squared error over that of the constant), and minus that of the model all are compared to, with 95 % intervals over songs" + (" and seeds" if seeds > 1 else "") + ":", ""]  # fmt: skip
        lines += [to_markdown(levels), ""]
    if unit == "annotator":
        lines += ["Beside it, with every song of every annotator counting the same, so that who rated more counts for more:", ""]  # fmt: skip
        lines += [to_markdown(songs_table(outcome)), ""]
    random = " and ".join([*(["annotators"] if unit == "annotator" else []), "songs", *(["seeds"] if seeds > 1 else [])])  # fmt: skip
    units = len(unit_scores(next(iter(outcome.judged.values())), "rmse", unit))
    if units < FEW:
        lines += [f"Only {units} {unit}s: intervals over fewer than {FEW} are not to be trusted.", ""]  # fmt: skip
    for what, compared in pairs(outcome).items():
        lines += [f"### {what[0].upper()}{what[1:]}", ""]
        lines += [to_markdown(differences_table(outcome, compared)), ""]
        lines += [
            f"Of each metric the {averaged(outcome)}; differences paired by {unit}. 95 % intervals by the bootstrap over {random}. "
            f"Bold: the first is better, and surely so in all rows and metrics at once (Bonferroni, {len(compared) * len(METRICS)} comparisons).",
            "",
        ]
    chosen = {
        name: [", ".join(one.chosen) or "no change" for one in judged]
        for name, judged in outcome.judged.items()
        if outcome.experiment.methods[name].choices
    }
    part = "the validation part of the first fold" if len(outcome.facts.get("held out", "").split(", ")) > 1 else "the validation part"  # fmt: skip
    lines += [f"- {name}: {part} chose {'; '.join(settings)}" for name, settings in chosen.items()]  # fmt: skip
    return [*lines, ""] if chosen else lines


def _described(runner: Runner, name: str) -> str:
    """A training in a line: what was set, how long it took."""
    training = runner.experiment.trainings[name]
    scale = runner.scale.dmer if training.task == "dmer" else runner.scale.pdmer
    parts = [training.task, *scale, *training.settings, *runner.settings]
    if training.start:
        parts.append(f"from {training.start}")
    model = runner.model(name, 0)
    parts.append(f"{model.info.config.training.steps} steps, best at {model.step} (seed 0)")
    size = sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
    return ", ".join([*parts, f"{size:,} parameters"])
