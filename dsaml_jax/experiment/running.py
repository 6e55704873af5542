"""Trains what an experiment compares and judges it; what is there already is used again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_prep.base import replacing
from data_prep.plain import parse_json
from data_prep.shards import Corpus
from dsaml_jax.config import MetaConfig, RunConfig, preset, with_settings
from dsaml_jax.corpus import OWN_SPLIT, Fold, held_out, identity, pool_of
from dsaml_jax.errors import UsageError
from dsaml_jax.evaluation import (
    COLUMNS,
    LEVELS,
    VALIDATION_SUPPORTS,
    Judging,
    PartName,
    Protocol,
    Settings,
    Trial,
    agreed_judging,
    agreed_trial,
    best_of,
    fitting,
    level_errors,
    listener_judging,
    listener_trial,
    methods,
    score_curves,
    share_of,
)
from dsaml_jax.experiment.base import Experiment, Judged, Method, Outcome, Scale, Training, pooled
from dsaml_jax.experiment.regression import regression_curves
from dsaml_jax.models import song_space
from dsaml_jax.progress import Console
from dsaml_jax.reporting import commit, environment
from dsaml_jax.runs import LoadedModel, load_model, read_status, weights_digest
from dsaml_jax.training import judging_lines, train


class Runner:
    """One experiment on one corpus, in one folder.

    Runs are in `runs/TRAINING/seedN`, or `runs/TRAINING/foldF/seedN`, so that experiments in the same folder share
    them; scores are in `EXPERIMENT/scores`. The curves of all folds are judged together.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        scale: Scale,
        corpus: Corpus,
        out: Path,
        *,
        seeds: int,
        settings: Settings = (),
        folds: Sequence[Fold] = (OWN_SPLIT,),
        console: Console | None = None,
    ) -> None:
        """Checks the plan; nothing is run yet.

        Args:
          name: of the experiment.
          experiment: what to run.
          scale: how large.
          corpus: on what.
          out: folder of all experiments on this corpus.
          seeds: 0, 1, ... of training.
          settings: of every model, on top of all others.
          folds: who is held out; models are trained for each.
          console: where progress goes.

        Raises:
          UsageError: settings that are none, or a corpus without annotators for a PDMER experiment.
        """
        parts = corpus.features.embedding_parts.keys()
        methods = {name: method for name, method in experiment.methods.items() if parts >= set(method.features)}  # fmt: skip
        experiment = dataclasses.replace(experiment, methods=methods)
        self.experiment, self.scale, self.corpus, self.out = experiment, scale, corpus, out
        self.folder = out / name
        self.seeds, self.settings, self.folds = seeds, settings, tuple(folds)
        self.console = console or Console(quiet=True)
        self._trials: dict[tuple[PartName, Protocol, int, Fold], Trial] = {}
        for name_of_training, training in experiment.trainings.items():
            if training.as_long_as is None:
                self.config(name_of_training, 0, self.folds[0])
        if not len(corpus.rating_song) and any(
            training.task == "pdmer" for training in experiment.trainings.values()
        ):
            raise UsageError(
                f"{corpus.name} has mean curves only; {name} needs annotations by each rater "
                "(deam, vgmidi, merp, synthetic, or a folder of your own)"
            )

    def judging(self) -> list[str]:
        """What will be judged, in lines; said before the work.

        Raises:
          UsageError: nothing can be judged, or nobody has songs enough to make a task.
        """
        lines = []
        for fold in self.folds:
            self._require_tasks(fold)
            lines += judging_lines(self.corpus, self.config(next(iter(self.experiment.trainings)), 0, fold))[:1]  # fmt: skip
            for protocol in self.experiment.protocols:
                if self.experiment.task == "dmer":
                    judging = agreed_judging(self.corpus, "test", fold=fold)
                else:
                    judging, _ = listener_judging(
                        self.corpus, "test", **self._trial_settings("test", protocol), fold=fold
                    )
                lines += [f"{protocol}: {line}" for line in judging.lines()]
        return lines

    def _require_tasks(self, fold: Fold) -> None:
        """Refuses before the hours of the first training what would end the second."""
        training = held_out(self.corpus, fold)["train"]
        for name, one in self.experiment.trainings.items():
            if one.task == "pdmer" and one.as_long_as is None:
                pool_of(self.corpus, training.ratings, min_songs=self.config(name, 0, fold).meta.min_songs)  # fmt: skip

    def _trial_settings(self, part: PartName, protocol: Protocol) -> dict[str, Any]:
        return {
            "protocol": protocol,
            "shots": self.experiment.shots,
            "supports": self.scale.supports if part == "test" else VALIDATION_SUPPORTS,
            "most": self.scale.tasks if protocol == "reference" else None,
        }

    # ---- Models.

    def run_folder(self, training: str, seed: int, fold: Fold | None = None) -> Path:
        """Where a model is trained, of the first fold where none is named."""
        fold = fold or self.folds[0]
        place = self.out / "runs" / training.replace(" ", "-")
        return place / (f"fold{fold.fold}/seed{seed}" if fold.folds else f"seed{seed}")

    def config(self, name: str, seed: int, fold: Fold | None = None) -> RunConfig:
        """Configuration of a training, of the first fold where none is named."""
        fold = fold or self.folds[0]
        training = self.experiment.trainings[name]
        common = self.scale.dmer if training.task == "dmer" else self.scale.pdmer
        own = [f"training.task={training.task}", f"training.seed={seed}"]
        if fold.everyone:
            own.append("training.protocol=reference")
        if fold.folds:
            own += [f"training.folds={fold.folds}", f"training.song_folds={fold.song_folds}", f"training.fold={fold.fold}"]  # fmt: skip
        if training.start:
            own.append(f"training.init_from={self.run_folder(training.start, seed, fold)}")
        config = with_settings(
            preset(self.scale.preset), [*common, *training.settings, *self.settings, *own]
        )
        if training.share != 1.0:
            steps = _whole(config, training.share * config.training.steps)
            config = with_settings(config, [f"training.steps={steps}"])
        if training.as_long_as is not None:
            steps = self._steps_in_the_time_of(*training.as_long_as, config)
            config = with_settings(config, [f"training.steps={steps}"])
        return config

    def _steps_in_the_time_of(self, mine: str, other: str, config: RunConfig) -> int:
        """Measured once, with seed 0, and kept: a run that goes on needs the steps it began with."""
        path = self.folder / "pace.json"
        kept: dict[str, int] = parse_json(path.read_text()) if path.is_file() else {}
        key = f"{mine} in the time of {other}"
        if key not in kept:
            seconds_per_step = {}
            for name in (mine, other):
                status = read_status(self.run_folder(name, 0))
                if status is None or not status.steps_per_second:
                    raise UsageError(f"{self.run_folder(name, 0)} has not told its pace; remove it")
                seconds_per_step[name] = 1.0 / status.steps_per_second
            fitting = self.config(other, 0).training.steps * (
                seconds_per_step[other] / seconds_per_step[mine]
            )
            kept[key] = _whole(config, fitting)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(kept, indent=1) + "\n")
        return kept[key]

    def train_all(self) -> None:
        """Trains every model with every seed, in order; finished ones are left as they are."""
        for seed in range(self.seeds):
            for fold in self.folds:
                for name, training in self.experiment.trainings.items():
                    self._train(name, training, seed, fold)

    def _train(self, name: str, training: Training, seed: int, fold: Fold) -> None:
        workdir = self.run_folder(name, seed, fold)
        self.console.say(f"[seed {seed}] {training.task.upper()}: {name}, in {workdir}")
        train(self.config(name, seed, fold), self.corpus, workdir, self.console)
        _let_programs_go()

    def model(self, training: str, seed: int, fold: Fold | None = None) -> LoadedModel:
        """A trained model, by its best checkpoint on validation; of the first fold where none is named."""
        return load_model(self.run_folder(training, seed, fold))

    # ---- Scores.

    def trial(
        self, part: PartName, protocol: Protocol, shots: int, fold: Fold | None = None
    ) -> Trial:
        """What is asked; every method is asked about the same songs. Of the first fold where none is named."""
        fold = fold or self.folds[0]
        key = part, protocol, shots, fold
        if key not in self._trials:
            most = self.experiment.shots
            if self.experiment.task == "dmer":
                self._trials[key] = agreed_trial(self.corpus, part, fold=fold)
            elif shots < most:
                self._trials[key] = self.trial(part, protocol, most, fold).with_shots(shots)
            else:
                self._trials[key] = listener_trial(
                    self.corpus, part, **self._trial_settings(part, protocol), fold=fold
                )
        return self._trials[key]

    def judge_all(self, protocol: Protocol) -> Outcome:
        """Scores of every method on the test part."""
        judged: dict[str, list[Judged]] = {}
        for name, method in self.experiment.methods.items():
            seeds = range(self.seeds) if method.training else range(1)
            judged[name] = [
                pooled([self._judge(name, method, protocol, seed, fold) for fold in self.folds])
                for seed in seeds
            ]
            _let_programs_go()
        trials = [self.trial("test", protocol, 1, fold) for fold in self.folds]
        facts = {
            "corpus": f"{self.corpus.name}, {len(self.corpus.song_ids)} songs",
            "features": self.corpus.features.name,
            "global embedding": self.corpus.features.embedding,
            "scale": f"{self.scale.name}, preset {self.scale.preset}",
            "seeds": str(self.seeds),
            "held out": ", ".join(str(fold) for fold in self.folds),
            "test songs": str(len(set().union(*(trial.asked.tolist() for trial in trials)))),
        }
        if self.experiment.task == "pdmer":
            people = set().union(*(trial.listeners.annotator.tolist() for trial in trials))
            facts["test annotators"] = str(len(people))
            facts["tasks"] = str(sum(len(trial.listeners.annotator) for trial in trials))
            facts |= _who([trial.judging for trial in trials])
        here = commit()
        if here:
            facts["commit"] = here
        return Outcome(self.experiment, protocol, judged, facts | environment())

    def _judge(
        self, name: str, method: Method, protocol: Protocol, seed: int, fold: Fold
    ) -> Judged:
        """From the file of an earlier start, where that was made of the same."""
        model = self.model(method.training, seed, fold) if method.training else None
        made_of = self._made_of(method, protocol, model, fold)
        part = f"-fold{fold.fold}" if fold.folds else ""
        path = self.folder / "scores" / f"{protocol}-{_slug(name)}{part}-seed{seed}.npz"
        trial = self.trial("test", protocol, method.shots, fold)
        if path.is_file():
            with np.load(path) as stored:
                if str(stored["made_of"]) == made_of:
                    columns = {name: stored[name] for name in COLUMNS + LEVELS if name in stored}
                    return Judged(trial.labels(), columns, tuple(stored["chosen"].tolist()))
        self.console.say(f"[seed {seed}] judging: {name}")
        chosen = self._choose(method, protocol, model, seed, fold) if method.choices else ()
        predicted = self.predict(trial, method, model, chosen)
        scores = score_curves(predicted, trial.truth)
        if self.experiment.task == "dmer":
            scores |= level_errors(predicted, trial.truth)
        judged = Judged(trial.labels(), scores, chosen)
        with replacing(path) as temporary, temporary.open("wb") as file:
            named: dict[str, Any] = {"made_of": made_of, "chosen": np.array(chosen, dtype=str)}
            np.savez_compressed(file, **(named | judged.scores))
        return judged

    def _made_of(
        self, method: Method, protocol: Protocol, model: LoadedModel | None, fold: Fold
    ) -> str:
        """Digest of all that a score depends on."""
        parts: Mapping[str, Any] = {
            "corpus": identity(self.corpus),
            "method": dataclasses.asdict(method),
            "trial": [protocol, dataclasses.asdict(self.scale), self.experiment.shots, str(fold)],
            "model": None
            if model is None
            else [dataclasses.asdict(model.info.config), model.step, weights_digest(model)],
            "listeners": model and model.listeners and dataclasses.asdict(model.listeners),
        }
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def meta_config(self, model: LoadedModel, settings: Settings) -> MetaConfig:
        """How a model adapts: as it was trained to, but for these settings."""
        return with_settings(model.info.config, settings).meta

    def _choose(
        self, method: Method, protocol: Protocol, model: LoadedModel | None, seed: int, fold: Fold
    ) -> Settings:
        """The choice with the best score on the validation part."""
        trial = self.trial("validation", protocol, method.shots, fold)
        choices: Sequence[Settings] = method.choices
        if method.kind == "adapted":
            assert model is not None
            known = model.variables
            choices = fitting(choices, lambda one: self.meta_config(model, one), known)
        choices = choices[: self.scale.choices]
        best = best_of(choices, trial, lambda one: self.predict(trial, method, model, one))
        self.console.say(f"[seed {seed}] validation chooses {', '.join(best) or 'no change'}")
        return best

    def predict(
        self, trial: Trial, method: Method, model: LoadedModel | None, chosen: Settings = ()
    ) -> np.ndarray:
        """Curves of a method, `[..., n, 2]`."""
        if method.kind == "constant":
            return methods.constant(trial)
        if method.kind == "support mean":
            return methods.support_mean(trial)
        if method.kind == "others":
            return methods.others(trial, share_of(chosen) if chosen else 0.0)
        if method.kind in ("ridge", "svr"):
            validation = self.trial("validation", "clean", 1, trial.judging.fold)
            return regression_curves(
                trial, validation, regressor=method.kind, features=method.features
            )
        assert model is not None
        if method.kind == "adapted":
            config = self.meta_config(model, (*method.settings, *chosen))
            return methods.adapted(trial, model.model, config, model.variables)
        curves = methods.curves_of_songs(trial, model.model, model.variables)
        if method.kind == "affine":
            return methods.calibrated(trial, curves)
        if method.kind == "best offset":
            return methods.with_best_offset(trial, curves)
        if method.kind == "prior":
            if model.listeners is None:
                raise UsageError(
                    f"{method.training} does not know how listeners differ: too few people in validation"
                )
            return methods.with_prior(trial, curves, model.listeners, song_space(model.variables))
        if method.kind == "offset":
            return methods.with_offset(trial, curves, share_of(chosen))
        return curves.of(trial.song)


def _who(judgings: Sequence[Judging]) -> dict[str, str]:
    """How evenly the judged people have songs, and who is not judged, in all folds."""
    songs = [count for judging in judgings for count in judging.songs_of_person]
    left_out: Counter[str] = Counter()
    for judging in judgings:
        left_out.update(judging.left_out)
    return {
        "songs of an annotator": f"{min(songs)} to {max(songs)} (median {np.median(songs):g}); the one with most has "
        f"{max(songs) / sum(songs):.0%} of all, and counts as one",
        "left out": "; ".join(f"{count}: {why}" for why, count in left_out.items() if count)
        or "nobody",
    }


def _let_programs_go() -> None:
    """Forgets compiled programs: on Linux each keeps some memory maps, of which a process may have 65,530."""
    jax.clear_caches()


def _whole(config: RunConfig, steps: float) -> int:
    """The nearest number of steps that ends with a line of the metrics."""
    every = config.training.log_every
    return max(every, round(steps / every) * every)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
