"""The evaluation of a run, with every baseline that needs no further training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data_prep.shards import Corpus
from dsaml_jax import meta
from dsaml_jax.config import MetaConfig, with_settings
from dsaml_jax.corpus import WHOLE, Fold, Overlap, fold_of, identities, identity, require_unseen
from dsaml_jax.errors import UsageError
from dsaml_jax.evaluation.choosing import (
    FINE_TUNING,
    OFFSETS,
    VALIDATION_SUPPORTS,
    Settings,
    best_of,
    fitting,
    share_of,
)
from dsaml_jax.evaluation.methods import (
    adapted,
    calibrated,
    constant,
    curves_of_songs,
    support_mean,
    with_offset,
    with_prior,
)
from dsaml_jax.evaluation.results import Evaluation, combined, over_units
from dsaml_jax.evaluation.scores import level_agreement, score_curves
from dsaml_jax.evaluation.trials import (
    Protocol,
    Trial,
    agreed_trial,
    judged_corpora,
    listener_trial,
)
from dsaml_jax.models import song_space
from dsaml_jax.progress import Console
from dsaml_jax.runs import LoadedModel


@dataclasses.dataclass(frozen=True)
class ListenerCurves:
    """Curves of several listeners for one song, to draw.

    Attributes:
      song: its id.
      annotators: who.
      truth, unadapted, adapted: `[A, n, 2]` each.
    """

    song: str
    annotators: tuple[str, ...]
    truth: np.ndarray
    unadapted: np.ndarray
    adapted: np.ndarray


def evaluate(
    run: LoadedModel,
    corpus: Corpus,
    *,
    protocol: Protocol | None = None,
    dmer: LoadedModel | None = None,
    seen_songs: bool = False,
    fold: Fold | None = None,
    console: Console | None = None,
) -> tuple[Evaluation, ListenerCurves | None]:
    """Evaluates a run on the test part, with every baseline that needs no further training.

    On another corpus than that of its training all songs and people are unseen, and all of them are judged. The
    constant is then the mean of the labels that are judged, so that no constant is better.

    Each of several corpora is evaluated as if it were given alone, and all of them together, by the mean over all people or
    songs.

    Args:
      run: the model, by the best checkpoint on validation.
      corpus: with the features the run was trained on.
      protocol: see :mod:`dsaml_jax.evaluation`; None: that of the training. DMER has only one.
      dmer: a DMER run, for the baselines that start from it.
      seen_songs: judge also by songs and people that a model was trained on; the result says how many.
      fold: which part of another corpus is the test, where not all of it is. On a run's own corpus it is the run's.
      console: where progress goes.

    Returns:
      the evaluation, and for PDMER the curves of the song most test annotators share.

    Raises:
      UsageError: no test songs or annotators, or features that do not fit.
    """
    console = console or Console(quiet=True)
    if corpus.members:
        _require_all_or_none(run, corpus)
        asked: dict[str, Any] = {"protocol": protocol, "dmer": dmer, "seen_songs": seen_songs, "fold": fold}  # fmt: skip
        found = {
            one.name: evaluate(run, one, **asked, console=console)
            for one in judged_corpora(corpus, run.info.config.training.task)
        }
        alone = {name: evaluation for name, (evaluation, _) in found.items()}
        return combined(alone), next(iter(found.values()))[1]
    fold = _fold_to_judge(run, corpus, fold)
    if dmer is not None and dmer.info.data == run.info.data:
        its = fold_of(dmer.info.config.training)
        own = fold_of(run.info.config.training)
        if own != its:
            raise UsageError(f"the run is of {own}, the DMER run of {its}; take one of the same")
    seen: dict[str, Any] = {}
    for name, model in (("model", run), ("DMER model", dmer)):
        if model is not None:
            overlap = require_fitting_data(model, corpus, fold, seen_songs)
            seen[name] = dataclasses.asdict(overlap)
            if overlap.line():
                console.say(f"{name}: {overlap.line()}")
    trained = run.info.config.training.protocol
    protocol = protocol or trained
    if run.info.config.training.task == "dmer":
        if protocol not in ("clean", trained):
            raise UsageError("a DMER run adapts to nobody; it has the protocol clean alone")
        trial = agreed_trial(corpus, "test", fold=fold)
        predicted = {
            "constant": constant(trial),
            "DMER": curves_of_songs(trial, run.model, run.variables).of(trial.song),
        }
        facts = {"songs": len(trial.songs), "seen_in_training": seen, "checkpoint_step": run.step}
        return _tabulate(run, "clean", trial, predicted, facts), None
    if protocol == "clean" and trained == "reference" and is_of(run, corpus):
        raise UsageError(
            "the run was trained as published, with nobody held out: --protocol clean has no unseen people"
        )
    return _evaluate_pdmer(run, corpus, protocol, dmer, seen, fold, console)


def is_of(run: LoadedModel, corpus: Corpus) -> bool:
    """Whether a run was trained on a corpus of this name, or corpora of all these, in whatever state."""
    trained_on = identities(run.info.data)
    return all(one.name in trained_on for one in corpus.each)


def _require_all_or_none(run: LoadedModel, corpus: Corpus) -> None:
    known = [one.name for one in corpus.members if is_of(run, one)]
    if known and len(known) < len(corpus.members):
        raise UsageError(
            f"of {corpus.name} the run was trained on {', '.join(known)} alone, of which a part is judged, of the others "
            "everything; judge them in two commands"
        )


def _fold_to_judge(run: LoadedModel, corpus: Corpus, asked: Fold | None) -> Fold:
    own = fold_of(run.info.config.training)
    if is_of(run, corpus):
        if asked not in (None, own):
            raise UsageError(
                f"the run is of {own}: who is held out of its corpus is the run's to say"
            )
        return own
    return WHOLE if asked is None else asked


def require_fitting_data(
    model: LoadedModel, corpus: Corpus, fold: Fold, seen_songs: bool = False
) -> Overlap:
    """Other features cannot be read, and what was trained on is no test."""
    if model.info.features != corpus.features:
        raise UsageError(
            f"the model reads {model.info.features.name}; the data has {corpus.features.name}"
        )
    info = model.info
    own = fold_of(info.config.training)
    return require_unseen(info.data, info.seen, own, corpus, fold, "the model", allow=seen_songs)


def _evaluate_pdmer(
    run: LoadedModel,
    corpus: Corpus,
    protocol: Protocol,
    dmer: LoadedModel | None,
    seen: dict[str, Any],
    fold: Fold,
    console: Console,
) -> tuple[Evaluation, ListenerCurves]:
    config = run.info.config.meta
    asked: dict[str, Any] = {"protocol": protocol, "shots": config.support_songs, "fold": fold}
    trial = listener_trial(corpus, "test", **asked)
    for line in trial.judging.lines():
        console.say(line)
    tasks = trial.listeners
    choose = _Chooser(corpus, asked, console)

    def after_adapting(loaded: LoadedModel, adapting: MetaConfig) -> np.ndarray:
        with console.bar(len(tasks.annotator), "adapting", "task") as bar:
            return adapted(trial, loaded.model, adapting, loaded.variables, bar)

    predicted = {"constant": constant(trial), "support mean": support_mean(trial)}
    if dmer:
        curves = curves_of_songs(trial, dmer.model, dmer.variables)
        predicted["DMER"] = curves.of(trial.song)
        predicted["DMER + affine"] = calibrated(trial, curves)
        if choose.has_people:
            predicted["DMER + offset"] = with_offset(trial, curves, choose.share("DMER", dmer))
        if dmer.listeners is not None:
            space = song_space(dmer.variables)
            predicted["DMER + prior"] = with_prior(trial, curves, dmer.listeners, space)
        predicted["DMER fine-tuned"] = after_adapting(dmer, choose.fine_tuning(dmer, run))
    curves = curves_of_songs(trial, run.model, run.variables)
    title = meta.algorithm_title(config.algorithm)
    before, after = f"{title} unadapted", f"{title} adapted"
    predicted[before] = curves.of(trial.song)
    if choose.has_people:
        predicted[f"{title} + offset"] = with_offset(trial, curves, choose.share(title, run))
    if run.listeners is not None:
        space = song_space(run.variables)
        predicted[f"{title} + prior"] = with_prior(trial, curves, run.listeners, space)
    predicted[after] = after_adapting(run, config)
    facts = {
        "annotators": trial.judging.people,
        "largest_share_of_one_annotator": trial.judging.largest_share,
        "annotators_left_out": dict(trial.judging.left_out),
        "songs": len(trial.asked),
        "seen_in_training": seen,
        "tasks": len(tasks.annotator),
        "adapting": f"{title} adapts {config.adapts} by {config.steps} inner steps, {config.strength:g} of the way",
        "checkpoint_step": run.step,
        "chosen_on_validation": choose.chosen,
    }
    evaluation = _tabulate(run, protocol, trial, predicted, facts)
    shown = most_shared_song(trial, predicted[before], predicted[after])
    return evaluation, shown


class _Chooser:
    """Chooses for the baselines by the people of the validation part."""

    def __init__(self, corpus: Corpus, asked: dict[str, Any], console: Console) -> None:
        self.chosen: dict[str, str] = {}
        self._trial: Trial | None = None
        try:
            self._trial = listener_trial(
                corpus, "validation", supports=VALIDATION_SUPPORTS, **asked
            )
        except UsageError as error:
            console.say(f"nothing is chosen for the baselines: {error}")

    @property
    def has_people(self) -> bool:
        """Whether anybody can be asked."""
        return self._trial is not None

    def share(self, name: str, loaded: LoadedModel) -> float:
        """Of the mean error on the support songs."""
        trial = self._trial
        assert trial is not None
        curves = curves_of_songs(trial, loaded.model, loaded.variables)
        best = best_of(OFFSETS, trial, lambda one: with_offset(trial, curves, share_of(one)))
        self.chosen[f"{name} + offset"] = " ".join(best)
        return share_of(best)

    def fine_tuning(self, dmer: LoadedModel, run: LoadedModel) -> MetaConfig:
        """How a model that was not trained for it adapts, by the inner steps of one that was."""

        def config(settings: Settings) -> MetaConfig:
            return with_settings(run.info.config, settings).meta

        trial = self._trial
        choices = fitting(FINE_TUNING, config, dmer.variables)
        if trial is None or not choices:
            return run.info.config.meta
        best = best_of(
            choices,
            trial,
            lambda one: adapted(trial, dmer.model, config(one), dmer.variables),
        )
        self.chosen["DMER fine-tuned"] = " ".join(best)
        return config(best)


def _tabulate(
    run: LoadedModel,
    protocol: str,
    trial: Trial,
    predicted: dict[str, np.ndarray],
    facts: dict[str, Any],
) -> Evaluation:
    labels = trial.labels()
    units = trial.units()
    rows: list[dict[str, Any]] = []
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for method, curves in predicted.items():
        columns = score_curves(curves, trial.truth)
        summary[method] = {name: over_units(units, values) for name, values in columns.items()}
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        rows += [
            {"method": method}
            | label
            | {name: x for name, x in zip(columns, row, strict=True) if np.isfinite(x)}
            for label, row in zip(labels, values, strict=True)
        ]
    features, fold = trial.corpus.features, trial.judging.fold
    facts = {
        "trained_on": run.info.data,
        "judged_on": identity(trial.corpus),
        "corpus": trial.corpus.name,
        "another_corpus": not is_of(run, trial.corpus),
        "held_out": str(fold),
        "part": "" if fold.whole or is_of(run, trial.corpus) else _short(fold),
        "features": features.name,
        "embedding": features.embedding,
        "rows_per_method": len(labels),
    } | facts
    task, levels = run.info.config.training.task, {}
    if task == "dmer":
        levels = {
            method: level_agreement(curves, trial.truth, trial.constant)
            for method, curves in predicted.items()
        }
    return Evaluation(protocol, task, rows, summary, facts, levels)


def _short(fold: Fold) -> str:
    """A part of a corpus, for the name of a folder."""
    songs = f"s{fold.song_folds}" if fold.song_folds else ""
    return f"fold{fold.fold}of{fold.folds}{songs}" if fold.folds else "own-split"


def most_shared_song(
    trial: Trial, unadapted: np.ndarray, adapted: np.ndarray, most: int = 6
) -> ListenerCurves:
    """The song with most annotators, each by their first task that has it in its query.

    Args:
      trial: of PDMER.
      unadapted: `[tasks, Q, n, 2]`.
      adapted: likewise.
      most: annotators.
    """
    tasks, corpus = trial.listeners, trial.corpus
    first: dict[tuple[int, int], tuple[int, int]] = {}
    for task, place in np.argwhere(tasks.query >= 0).tolist():
        key = (int(tasks.query_song[task, place]), int(tasks.annotator[task]))
        first.setdefault(key, (task, place))
    counts: dict[int, int] = {}
    for song, _ in first:
        counts[song] = counts.get(song, 0) + 1
    best = max(counts, key=lambda song: (counts[song], -song))
    chosen = [(person, place) for (song, person), place in first.items() if song == best][:most]
    steps = corpus.song_steps[best]

    def picked(curves: np.ndarray) -> np.ndarray:
        return np.stack([curves[place][:steps] for _, place in chosen])

    return ListenerCurves(
        song=corpus.song_ids[best],
        annotators=tuple(corpus.annotator_ids[person] for person, _ in chosen),
        truth=picked(trial.truth),
        unadapted=picked(unadapted),
        adapted=picked(adapted),
    )
