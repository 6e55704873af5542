"""Ways to predict a trial: constants, a model as it is, and models adapted to each listener."""

from __future__ import annotations

import dataclasses
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_prep.base import DIMENSIONS
from data_prep.curves import labelled_mean
from data_prep.shards import Corpus
from dsaml_jax.adaptation import adapt_to_listener, inner_algorithm, part_of_the_way, to_learned
from dsaml_jax.config import MetaConfig
from dsaml_jax.corpus import DeviceCorpus, embeddings_of, gather_windows, song_embeddings
from dsaml_jax.evaluation.scores import score_curves, unit_means
from dsaml_jax.evaluation.trials import Trial
from dsaml_jax.listener import Variables, blended, song_curve
from dsaml_jax.meta import Adapting, LearnedRates, hoist
from dsaml_jax.models import SongSpace, is_split
from dsaml_jax.runs import Listeners, Told

TASKS_PER_BLOCK = 16


def constant(trial: Trial) -> np.ndarray:
    """The mean of the labels of training, everywhere."""
    return np.broadcast_to(trial.constant, trial.truth.shape)


def support_mean(trial: Trial) -> np.ndarray:
    """The mean of what the listener drew for the support songs, everywhere.

    In a dimension that they did not draw, the mean of the labels of training.
    """
    seen = trial.support_truth.reshape(len(trial.song), -1, 2)  # all support steps in a row
    mean = labelled_mean(seen, axis=1)
    mean = np.where(np.isfinite(mean), mean, trial.constant)
    return np.broadcast_to(mean[:, None, None], trial.truth.shape)


def others(trial: Trial, share: float) -> np.ndarray:
    """The mean of a song's other raters, moved by a share of what the listener differed from it on the support songs.

    What a perfect model of everybody would say, and the most that an offset can add: a ceiling, no model, since it
    reads the answers of others. Where nobody else drew, the mean of the labels of training.
    """
    mean = _OthersMean(trial.corpus, trial.shape[0], trial.constant)
    query = np.stack([mean.of(rating) for rating in trial.listeners.query.reshape(-1).tolist()])
    support = np.stack([mean.of(rating) for rating in trial.support_ratings.reshape(-1).tolist()])
    on_support = support.reshape(trial.support_truth.shape)
    return query.reshape(trial.truth.shape) + _mean_error(trial.support_truth, on_support, share)


class _OthersMean:
    """Mean curves of all raters of a song but one."""

    def __init__(self, corpus: Corpus, length: int, otherwise: np.ndarray) -> None:
        self._corpus, self._length, self._otherwise = corpus, length, otherwise
        steps = corpus.song_steps[corpus.rating_song]
        offset = np.concatenate([np.arange(count) for count in steps])
        drawn = corpus.ratings[np.repeat(corpus.rating_first, steps) + offset]
        row = np.repeat(corpus.song_start[corpus.rating_song], steps) + offset
        known = np.isfinite(drawn)
        self._total, self._count = (np.zeros(corpus.mean.shape) for _ in range(2))
        np.add.at(self._total, row, np.where(known, drawn, 0.0))
        np.add.at(self._count, row, known)

    def of(self, rating: int) -> np.ndarray:
        """`[n, 2]`; zero where `rating` is below 0, and beyond the song."""
        corpus, curve = self._corpus, np.zeros((self._length, 2), np.float32)
        if rating < 0:
            return curve
        song = corpus.rating_song[rating]
        steps = corpus.song_steps[song]
        here = slice(corpus.song_start[song], corpus.song_start[song] + steps)
        mine = corpus.ratings[corpus.rating_first[rating] : corpus.rating_first[rating] + steps]
        count = self._count[here] - np.isfinite(mine)
        total = self._total[here] - np.where(np.isfinite(mine), mine, 0.0)
        curve[:steps] = np.where(count > 0, total / np.maximum(count, 1), self._otherwise)
        return curve


@dataclasses.dataclass(frozen=True)
class CurvesOfSongs:
    """One curve for each song of a trial, the same for everybody.

    Attributes:
      songs: `[k]` sorted.
      curves: `[k, n, 2]`.
    """

    songs: np.ndarray
    curves: np.ndarray

    def of(self, song: np.ndarray) -> np.ndarray:
        """`[..., n, 2]` of songs `[...]`; where 0 pads, any curve."""
        return self.curves[np.searchsorted(self.songs, song)]


def curves_of_songs(trial: Trial, model: nn.Module, variables: Variables) -> CurvesOfSongs:
    """A model's curves for every song of a trial, as it is."""
    songs = trial.songs
    curves = _curves(model, variables, trial.device, jnp.asarray(songs, jnp.int32), trial.shape)
    return CurvesOfSongs(songs, np.asarray(curves))


def with_offset(trial: Trial, curves: CurvesOfSongs, share: float) -> np.ndarray:
    """A model's curves, moved by a share of its mean error on each listener's support songs.

    In a dimension that they did not draw there, the curves are left as they are.
    """
    on_support = curves.of(trial.support_songs)
    return curves.of(trial.song) + _mean_error(trial.support_truth, on_support, share)


def with_prior(
    trial: Trial, curves: CurvesOfSongs, listeners: Listeners, space: SongSpace | None
) -> np.ndarray:
    """A model's curves, moved as `dsaml personalize` moves them: by what each one's support songs tell of the others.

    Args:
      trial: with tasks.
      curves: of all its songs.
      listeners: how they differ from these.
      space: where songs lie for the model, see :func:`dsaml_jax.models.song_space`.
    """
    predicted = np.clip(curves.of(trial.support_songs), -1.0, 1.0)
    differences = labelled_mean((trial.support_truth - predicted).astype(np.float64), axis=2)
    moved = curves.of(trial.song).copy()
    shifts = None if space is None else _Shifts(trial, space)
    for task, (support, of_task) in enumerate(zip(trial.support_songs, differences, strict=True)):
        told = listeners.told(of_task, shifts.likeness(support) if shifts else None)
        if shifts is None:
            moved[task] += told.level.astype(np.float32)
            continue
        for place in np.flatnonzero(trial.listeners.query[task] >= 0):
            shift = shifts.of(int(trial.song[task, place]), support, told)
            moved[task, place, : len(shift)] += shift
    return moved


class _Shifts:
    """How far a person's curves of songs lie from everyone's, by likeness where a model knows which songs are alike."""

    def __init__(self, trial: Trial, space: SongSpace) -> None:
        self._corpus = corpus = trial.corpus
        self._per_step = corpus.features.embedding_per == "step"
        self._support = np.unique(trial.support_songs)
        places = space.place(song_embeddings(corpus, self._support)).astype(np.float16)
        self._alike = space.likeness(places, places)
        embeddings = zip(trial.asked.tolist(), embeddings_of(corpus, trial.asked), strict=True)
        self._of_asked = {song: space.likeness(space.place(x), places) for song, x in embeddings}

    def likeness(self, support: np.ndarray) -> np.ndarray:
        """`[K, K]` of songs to each other."""
        known = np.searchsorted(self._support, support)
        return self._alike[np.ix_(known, known)]

    def of(self, song: int, support: np.ndarray, told: Told) -> np.ndarray:
        """`[n, 2]` of a song, by what the songs `[K]` of a person tell."""
        alike = self._of_asked[song][:, np.searchsorted(self._support, support)]
        shift = told.shift(alike)
        if self._per_step:
            return shift
        first, steps = self._corpus.window_first[song], int(self._corpus.song_steps[song])
        return blended(shift, self._corpus.window_start[first : first + len(shift)], steps)


def with_best_offset(trial: Trial, curves: CurvesOfSongs) -> np.ndarray:
    """The same, moved by the share of the mean error that is best for the curves that are asked about, in each dimension.

    The most that one share for everybody can gain, a ceiling: it knows the answers. Best is the least RMSE, people weighted
    equally.
    """
    units, shares = trial.units(), np.linspace(0.0, 1.0, 21)
    best, least = np.zeros(2), np.full(2, np.inf)
    for share in shares.tolist():
        columns = score_curves(with_offset(trial, curves, share), trial.truth)
        for dimension, name in enumerate(DIMENSIONS):
            if f"{name}_rmse" in columns:
                error = float(unit_means(units, columns[f"{name}_rmse"])[1].mean())
                if error < least[dimension]:
                    best[dimension], least[dimension] = share, error
    moved = with_offset(trial, curves, 1.0) - curves.of(trial.song)
    return curves.of(trial.song) + best.astype(np.float32) * moved


def _mean_error(truth: np.ndarray, predicted: np.ndarray, share: float) -> np.ndarray:
    """A share of the mean of `truth - predicted`, `[tasks, S, n, 2]`, as `[tasks, 1, 1, 2]`; 0 where nothing is known."""
    error = labelled_mean((truth - predicted).reshape(len(truth), -1, 2), axis=1)
    return share * np.where(np.isfinite(error), error, 0.0)[:, None, None]


def calibrated(trial: Trial, curves: CurvesOfSongs) -> np.ndarray:
    """Gain and offset of each dimension, by least squares on the support songs of each listener."""
    truth = trial.support_truth.reshape(len(trial.song), -1, 2)
    on_support = curves.of(trial.support_songs).reshape(truth.shape)
    return _calibrate(curves.of(trial.song), on_support, truth)


def _calibrate(query: np.ndarray, support: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Least squares `truth = gain * support + offset` per task and dimension, applied to the query.

    Args:
      query: `[tasks, Q, n, 2]`.
      support: `[tasks, n, 2]` predictions for the support songs.
      truth: `[tasks, n, 2]`, NaN where unknown or not shown to adaptation either; a dimension without labels is
        left as it is.
    """
    known = np.isfinite(truth)
    x = np.where(known, support, np.nan)
    mean_x, mean_y = labelled_mean(x, axis=1), labelled_mean(truth, axis=1)
    covariance = labelled_mean((x - mean_x[:, None]) * (truth - mean_y[:, None]), axis=1)
    variance = labelled_mean(np.square(x - mean_x[:, None]), axis=1)
    gain = np.divide(covariance, variance, out=np.zeros_like(variance), where=variance > 1e-12)
    fitted = gain[:, None, None] * (query - mean_x[:, None, None]) + mean_y[:, None, None]
    return np.where(known.any(axis=1)[:, None, None], fitted, query)


def adapted(
    trial: Trial,
    model: nn.Module,
    config: MetaConfig,
    variables: Variables,
    bar: tqdm | None = None,
) -> np.ndarray:
    """`[tasks, Q, n, 2]`: curves of each task's query songs after adapting to its support.

    What adaptation does not change is computed once for each song, not for each listener who is asked about it.
    Tasks go to the device in blocks of one shape, so there is one compilation and `bar` can move; the strength, and rates
    that can be learned, are numbers to it, so that trying several costs no other.
    """
    tasks = trial.listeners
    strength = jnp.float32(config.strength)
    learned = to_learned(config, variables)
    config = dataclasses.replace(config, strength=1.0)
    if isinstance(learned, LearnedRates):
        variables = {**variables, "rates": learned.rates}
        if config.algorithm in ("meta-sgd", "maml++"):  # not where matrices are learned
            config = dataclasses.replace(config, learning_rate=1.0)  # that of the rates counts
    songs = trial.asked
    place = np.searchsorted(songs, tasks.query_song)  # 0 where padded
    fixed = (model, config, variables, trial.device, trial.shape)
    known = _known_of_songs(*fixed, jnp.asarray(songs, jnp.int32))
    count = len(tasks.annotator)
    block = min(TASKS_PER_BLOCK, count)
    blocks = []
    for first in range(0, count, block):
        rows = np.minimum(np.arange(first, first + block), count - 1)
        part = {name: getattr(tasks, name)[rows] for name in _USED} | {"place": place[rows]}
        blocks.append(np.asarray(_adapted_curves(*fixed, strength, known, part)))
        if bar is not None:
            bar.update(min(block, count - first))
    return np.concatenate(blocks)[:count]


_USED = ("support", "support_song", "support_window", "query_song")


# ---- On the device.


def _curve(
    model: nn.Module,
    variables: Variables,
    device: DeviceCorpus,
    song: jax.Array,
    shape: tuple[int, int],
) -> jax.Array:
    """`[n, 2]` of one song of the corpus, by index."""
    length, slots = shape
    steps, windows = device.song_steps[song], device.window_count[song]
    offset = jnp.minimum(jnp.arange(length), steps - 1)
    slot = jnp.minimum(jnp.arange(slots), windows - 1)
    return song_curve(
        model,
        variables,
        device.log_mel[device.feature_start[song] + offset].astype(jnp.float32),
        device.embedding[device.embedding_first[song] + (offset if device.per_step else slot)],
        device.window_start[device.window_first[song] + slot],
        steps=steps,
        windows=windows,
        per_step=device.per_step,
    )


@partial(jax.jit, static_argnames=("model", "shape"))
def _curves(
    model: nn.Module,
    variables: Variables,
    device: DeviceCorpus,
    songs: jax.Array,
    shape: tuple[int, int],
) -> jax.Array:
    return jax.lax.map(lambda song: _curve(model, variables, device, song, shape), songs)


class _SongSplit:
    """A song's curve, cut where adaptation begins to matter.

    Attributes:
      adapting: says which parameters do.
      rest: `(known, chosen) -> curve`.
      known: arrays; those that are no song's own, such as frozen parameters, are left out by :meth:`own`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: MetaConfig,
        variables: Variables,
        device: DeviceCorpus,
        shape: tuple[int, int],
        song: jax.Array,
    ) -> None:
        self.adapting = inner_algorithm(config).adapting
        parts = Adapting(variables["params"], self.adapting)

        def curve(chosen: list[jax.Array]) -> jax.Array:
            changed = {**variables, "params": parts.merge(chosen)}
            return _curve(model, changed, device, song, shape)

        self.rest, self.known = hoist(curve, parts.chosen)
        everywhere = {id(leaf) for leaf in jax.tree.leaves((variables, device))}
        self._own = [id(array) not in everywhere for array in self.known]

    def own(self) -> list[jax.Array]:
        """Those of the known arrays that belong to the song."""
        return [array for array, own in zip(self.known, self._own, strict=True) if own]

    def with_own(self, own: list[jax.Array]) -> list[jax.Array]:
        """All known arrays, with these for the song's own."""
        mine = iter(own)
        return [
            next(mine) if is_own else array
            for array, is_own in zip(self.known, self._own, strict=True)
        ]


def _front_end_adapts(model: nn.Module, config: MetaConfig, variables: Variables) -> bool:
    """Whether nothing worth keeping is known before adaptation: then each song's own would be its patches.

    Of a network without a front end of its own nobody knows.
    """
    if not is_split(model):
        return True
    names = Adapting(variables["params"], inner_algorithm(config).adapting).names
    return any(name.startswith("spectrogram/") for name in names)


@partial(jax.jit, static_argnames=("model", "config", "shape"))
def _known_of_songs(
    model: nn.Module,
    config: MetaConfig,
    variables: Variables,
    device: DeviceCorpus,
    shape: tuple[int, int],
    songs: jax.Array,
) -> list[jax.Array]:
    """What of each song's curve does not depend on the listener, `[songs, ...]` each."""
    if _front_end_adapts(model, config, variables):
        return []
    return jax.lax.map(
        lambda song: _SongSplit(model, config, variables, device, shape, song).own(), songs
    )


@partial(jax.jit, static_argnames=("model", "config", "shape"))
def _adapted_curves(
    model: nn.Module,
    config: MetaConfig,
    variables: Variables,
    device: DeviceCorpus,
    shape: tuple[int, int],
    strength: jax.Array,
    known: list[jax.Array],
    tasks: dict[str, chex.Array],
) -> jax.Array:
    """`[tasks, Q, n, 2]`: each task adapts, then predicts its query songs."""
    split = None
    if not _front_end_adapts(model, config, variables):  # of any song: all are cut alike
        split = _SongSplit(model, config, variables, device, shape, jnp.int32(0))

    def one_task(task: dict[str, chex.Array]) -> jax.Array:
        support = gather_windows(
            device, task["support_song"], task["support_window"], task["support"]
        )
        adapted = adapt_to_listener(model, config, variables, support)
        adapted = part_of_the_way(variables, adapted["params"], strength)

        def query(which: tuple[jax.Array, jax.Array]) -> jax.Array:
            song, place = which
            if split is None:
                return _curve(model, adapted, device, song, shape)
            chosen = Adapting(adapted["params"], split.adapting).chosen
            return split.rest(split.with_own([array[place] for array in known]), chosen)

        return jax.lax.map(query, (task["query_song"], task["place"]))

    return jax.lax.map(one_task, tasks)
