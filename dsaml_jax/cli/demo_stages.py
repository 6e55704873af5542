"""The main job from nothing to a report: corpus, features, meta-training, evaluation, one listener.

Every stage is the function its own command calls; a demo that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_prep import synthetic
from data_prep.deam import AUDIO
from data_prep.features import TINY
from data_prep.prepare import prepare
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.config import preset, with_settings
from dsaml_jax.corpus import gather_windows, held_out, to_device
from dsaml_jax.evaluation import Evaluation, ListenerCurves, evaluate, table, write_evaluation
from dsaml_jax.listener import (
    annotated_song,
    band_of,
    personalize,
    predict_file,
    save_personalized,
    write_curve,
)
from dsaml_jax.pretrained import EXAMPLE, MODEL
from dsaml_jax.progress import Console
from dsaml_jax.reporting import Picture, figures, write_report
from dsaml_jax.runs import LoadedModel, load_model, read_metrics
from dsaml_jax.training import train


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything, and what share of the time each stage takes (measured on 2 cores)."""

    songs: int
    annotators: int
    dmer: tuple[str, ...]
    pdmer: tuple[str, ...]
    seconds: tuple[int, ...]


FULL = Size(
    songs=400,
    annotators=100,
    dmer=("training.steps=600", "training.validate_every=100"),
    pdmer=("training.steps=300", "training.learning_rate=5e-4", "training.validation_tasks=64"),
    seconds=(20, 15, 50, 230, 25, 20),
)
QUICK = Size(
    songs=60,
    annotators=30,
    dmer=("training.steps=60", "training.validate_every=30"),
    pdmer=(
        "training.steps=10",
        "training.validate_every=10",
        "training.validation_tasks=8",
        "meta.tasks=4",
        "meta.query_songs=2",
    ),
    seconds=(6, 6, 15, 25, 12, 12),
)
STAGES = (
    "composing music and simulating listeners",
    "features into TFDS shards",
    "training DMER: what listeners agree on",
    "meta-training PDMER: one task per annotator",
    "evaluating on unseen songs and listeners",
    "personalising on one song, and the report",
)


def run_demo(workdir: Path, *, quick: bool, seed: int, console: Console) -> Evaluation:
    """Runs all stages in `workdir`; a second start goes on where the first stopped.

    Args:
      workdir: gets `corpus/`, `data/`, `dmer/`, `run/`, `mine/`, `report.html`, `results.json`.
      quick: the small size.
      seed: of the corpus and of training.
      console: where progress goes.
    """
    size = QUICK if quick else FULL

    def stage(number: int) -> None:
        expected = sum(size.seconds[:number])
        pace = max(1.0, console.elapsed() / max(expected, 1))  # of this machine
        left = round(sum(size.seconds[number:]) * pace)
        console.say(
            f"[{number + 1}/{len(STAGES)}] {STAGES[number]} (about {left // 60}:{left % 60:02d} left)"
        )

    stage(0)
    with console.counter("composing", "song") as progress:
        root = synthetic.write_corpus(
            workdir / "corpus",
            songs=size.songs,
            annotators=size.annotators,
            seed=seed,
            progress=progress,
        )
    stage(1)
    prepare(synthetic.read_synthetic(root), workdir / "data", TINY, display=console.counter)
    corpus = read_corpus(workdir / "data")

    stage(2)
    tiny = with_settings(preset("tiny"), [f"training.seed={seed}"])
    dmer_dir, run_dir = workdir / "dmer", workdir / "run"
    train(with_settings(tiny, ["training.task=dmer", *size.dmer]), corpus, dmer_dir, console)
    stage(3)
    settings = [*size.pdmer, f"training.init_from={dmer_dir}"]
    train(with_settings(tiny, settings), corpus, run_dir, console)

    stage(4)
    run = load_model(run_dir)
    evaluation, shown = evaluate(run, corpus, dmer=load_model(dmer_dir), console=console)
    assert shown is not None
    write_evaluation(evaluation, workdir)
    console.say(table(evaluation))
    findings = describe(evaluation)
    for finding in findings:
        console.say(finding)

    stage(5)
    personal = _personalize_one(run, corpus, root, workdir)
    console.say(personal)
    write_report(
        workdir / "report.html",
        evaluation=evaluation,
        pictures=_pictures(run, corpus, dmer_dir, run_dir, shown),
        findings=[*findings, personal],
        facts={
            "corpus": f"{size.songs} synthetic songs, {size.annotators} simulated listeners, seed {seed}",
            "global embedding": f"{corpus.features.embedding} (no ImageBind weights)",
            "test": f"{evaluation.facts['annotators']} listeners, {evaluation.facts['songs']} songs",
            "model": f"{sum(x.size for x in jax.tree.leaves(run.variables['params'])):,} parameters",
            "adaptation": f"{run.info.config.meta.algorithm}, {run.info.config.meta.steps} inner steps "
            f"at {run.info.config.meta.learning_rate:g}, one support song",
            "time": f"{console.elapsed() / 60:.1f} minutes",
        },
    )
    console.say(f"report: {workdir / 'report.html'}")
    return evaluation


def describe(evaluation: Evaluation) -> list[str]:
    """The comparison that matters, in words: the adapted model, which is the last row, against everything else."""
    *_, ours = evaluation.summary
    adapted = evaluation.summary[ours]

    def mean(columns: dict[str, dict[str, float]], metric: str) -> float:
        return float(np.mean([columns[f"{d}_{metric}"]["mean"] for d in ("arousal", "valence")]))

    lines = []
    for method, columns in evaluation.summary.items():
        if method != ours:
            ccc, rmse = (mean(adapted, m) - mean(columns, m) for m in ("ccc", "rmse"))
            lines.append(
                f"{ours} against {method}: CCC {ccc:+.3f} ({'better' if ccc > 0 else 'not better'}), "
                f"RMSE {rmse:+.3f} ({'better' if rmse < 0 else 'not better'}), mean of arousal and valence"
            )
    return lines


def _personalize_one(run: LoadedModel, corpus: Corpus, root: Path, workdir: Path) -> str:
    """Takes one test listener and one of their songs through the sound-file path, as a user would."""
    part = held_out(corpus)["test"]
    rating = int(part.ratings[0])
    song = corpus.rating_song[rating]
    name, person = corpus.song_ids[song], corpus.annotator_ids[corpus.rating_annotator[rating]]
    first = corpus.rating_first[rating]
    curve = corpus.ratings[first : first + corpus.song_steps[song]]
    audio = root / AUDIO / f"{name}.flac"
    annotations = workdir / "mine.csv"
    with annotations.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "arousal", "valence"])
        writer.writerows([15.0 + 0.5 * i, *map(float, row)] for i, row in enumerate(curve))
    result = personalize(run, [annotated_song(run, audio, annotations)])
    if not (workdir / "mine").exists():
        save_personalized(workdir / "mine", result, [audio.name])
    write_curve(workdir / "mine_prediction.csv", predict_file(load_model(workdir / "mine"), audio))
    return (
        f"{person} personalised on song {name}: RMSE on that song {np.nanmean(result.before):.3f} before, "
        f"{np.nanmean(result.after):.3f} after; the model is in {workdir / 'mine'}"
    )


def _pictures(
    run: LoadedModel, corpus: Corpus, dmer_dir: Path, run_dir: Path, shown: ListenerCurves
) -> list[Picture]:
    song = np.array([corpus.song_ids.index(shown.song)], np.int32)
    device = to_device(corpus, corpus.mean)
    batch = gather_windows(device, song, np.zeros(1, np.int32))
    out: Any = run.model.apply(run.variables, batch.log_mel, batch.embedding)
    context = run.info.config.model
    return [
        Picture(
            f"Song {shown.song}, as several unseen listeners heard it",
            "Black: what the listener drew. Grey: the model for everyone, the same in every column. Blue: after "
            "a few gradient steps on one other song of that listener.",
            figures.listener_curves(shown),
        ),
        Picture(
            "Attention at both scales",
            f"Last layer, mean over heads, song {shown.song}. The local pass sees {context.local_context} steps "
            f"to each side and is pulled towards its diagonal ({context.local_diagonal}); the global pass sees "
            f"{context.global_context} and is pushed away from it ({context.global_diagonal}).",
            figures.attention_maps(
                np.asarray(out.attention[0]), ("local", "global"), context.diagonal_targets
            ),
        ),
        Picture(
            "Learning: what listeners agree on",
            "DMER. Loss per logged line, and the score (mean of CCC, PCC and 1 - RMSE) on held-out songs.",
            figures.learning_curve(read_metrics(dmer_dir), "DMER"),
        ),
        Picture(
            "Learning to adapt",
            "Meta-training from the DMER model. Validation: held-out listeners on held-out songs, adapted.",
            figures.learning_curve(read_metrics(run_dir), "PDMER"),
        ),
        _real_music(),
    ]


def _real_music() -> Picture:
    """What all of this is for."""
    loaded = load_model(MODEL)
    curve = predict_file(loaded, EXAMPLE)
    return Picture(
        "Real music",
        "Brahms, Hungarian Dance No. 5, by the model that comes with the package (dsaml predict --example): what people "
        "hear in the mean, and the band in which 80 % of what single people draw is expected.",
        figures.draw_song_curve(curve.clip(-1.0, 1.0), EXAMPLE.stem, band_of(loaded, curve)),
    )
