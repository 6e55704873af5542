"""Do similar songs share a person's taste, and does it help to choose which song somebody annotates next?

A person's level of a song, less what a model says of it that has not heard it, is a level of the person and a rest. Part of
the rest (`taste`) may be shared by songs whose embeddings are alike: a Gaussian process over songs, see
`dsaml_jax.listener.suggesting`. Measured on DEAM's raters:

1. how large that part is, by moments and by likelihood;
2. whether songs of a person that nothing else is known of predict their other songs better with it (leave people out);
3. whether songs that the process suggests tell more than random ones, for people with 40 songs or more.

Command: `python experiments/suggesting.py --data DATA`, after `dsaml prepare deam ... --out DATA` with the default embedding.
Result (`experiments/results/suggesting.md`, 98 people): similar songs do share something of a person's taste, about half of the variance between a
  person's songs, likeliest with gamma 0.3 (log-likelihood +200 in arousal, +170 in valence). With share 0.4 and gamma 0.3 a person's own songs tell more of
  their others from five songs on: by 0.001 [-0.001, 0.003] RMSE in arousal and 0.008 [0.002, 0.016] in valence with five, 0.003 [0.001, 0.005] and 0.006
  [0.001, 0.012] with ten. One song gains nothing. It is no error that the regression makes for everybody: beside the song's other raters the gains are
  larger (ten songs: 0.003 and 0.011). Personal models have it since, with variances by maximum likelihood.
  By their level alone, suggested songs (gamma 0.3) are worth 0.001 to 0.004 more than random ones, in one of six cells beyond 0, for 25 people and without
  a correction for so many cells. Predicting by taste too, two suggested songs are worth 0.005 [-0.002, 0.012] and 0.006 [0.002, 0.011] more. So songs are
  suggested by likeness, and little is promised.
Time: eight minutes on two cores that did other work beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.base import DIMENSIONS, replacing
from data_prep.curves import labelled_mean
from data_prep.shards import Corpus, read_corpus
from dsaml_jax.corpus import (
    Fold,
    held_out,
    song_embeddings,
)
from dsaml_jax.evaluation import fit_listeners
from dsaml_jax.experiment import paired_difference
from dsaml_jax.listener import likeness, most_telling
from dsaml_jax.reporting import environment
from dsaml_jax.runs import Spread
from experiments.adding_corpora import FOLDS, RESULTS, head_of

GAMMAS = (0.03, 0.1, 0.3, 1.0, 3.0)
SHARES = (0.0, 0.1, 0.2, 0.4, 0.6)
"""Of `within` that similar songs share."""
SHOTS = (1, 2, 5, 10)
PROLIFIC = 40
SUGGESTED = (1, 2, 5)
DRAWS = 8
PLANNED = (0.1, 0.3, 1.0)
"""Gammas that suggestions are made by."""
PREDICTED = (0.4, 0.3)
"""Share and gamma of taste that suggested songs predict by, besides level alone."""
MOST_PAIRED = 200
"""Songs of a person that the likelihood looks at: what one person says of taste grows little beyond."""


@dataclasses.dataclass(frozen=True)
class Levels:
    """How people's levels differ from a model that has not heard the song.

    Attributes:
      rest: `[ratings]` in one dimension; NaN where nothing was drawn.
      moving: `[ratings]` variance of the curve.
      person, song: `[ratings]` whose, and of which song.
    """

    rest: np.ndarray
    moving: np.ndarray
    person: np.ndarray
    song: np.ndarray

    def of(self, person: int) -> np.ndarray:
        """Indices of somebody's ratings."""
        return np.flatnonzero((self.person == person) & np.isfinite(self.rest))


def unheard_levels(corpus: Corpus) -> np.ndarray:
    """`[songs, 2]` level of each song by regression on the other folds' songs."""
    found = np.full((len(corpus.song_ids), 2), np.nan)
    for number in range(FOLDS):
        fold = Fold(FOLDS, 0, number)
        test = held_out(corpus, fold)["test"].songs
        found[test] = head_of((corpus, "proportional"), fold)(corpus, test)
    return found


def rests(corpus: Corpus, levels: np.ndarray) -> list[Levels]:
    """Of arousal and valence."""
    found = np.full((len(corpus.rating_song), 2, 2), np.nan)
    for rating, (song, first) in enumerate(zip(corpus.rating_song, corpus.rating_first, strict=True)):  # fmt: skip
        drawn = corpus.ratings[first : first + corpus.song_steps[song]].astype(np.float64)
        found[rating, 0] = labelled_mean(drawn) - levels[song]
        found[rating, 1] = labelled_mean(np.square(drawn - labelled_mean(drawn)))
    return [Levels(found[:, 0, k], found[:, 1, k], corpus.rating_annotator, corpus.rating_song) for k in range(2)]  # fmt: skip


def beside_others(levels: Levels) -> Levels:
    """The same, less what the song's other raters differ from the regression; NaN of a song with fewer than two others."""
    known = np.isfinite(levels.rest)
    size = levels.song.max() + 1
    count = np.bincount(levels.song[known], minlength=size)[levels.song]
    total = np.bincount(levels.song[known], levels.rest[known], minlength=size)[levels.song]
    others = np.where(count > 2, (total - levels.rest) / np.maximum(count - 1, 1), np.nan)
    return dataclasses.replace(levels, rest=levels.rest - others)


def spread_of(levels: Levels, people: np.ndarray) -> Spread:
    """Variances between and within these people, as a model keeps them."""
    kept = np.isin(levels.person, people)
    rests = [np.full((1, 2), value) for value in levels.rest[kept]]
    fitted = fit_listeners(levels.person[kept], rests)
    assert fitted is not None and fitted.arousal is not None
    return fitted.arousal


def taste_by_moments(levels: Levels, people: np.ndarray, kernel: np.ndarray) -> float:
    """How much less two songs of a person differ when they are alike: half a squared difference is `within - taste k`.

    The slope over pairs of songs of one person, less each person's mean; a person counts by their songs, not by their pairs.
    """
    products = squares = 0.0
    for person in people:
        rows = levels.of(person)
        if len(rows) < 3:
            continue
        upper = np.triu_indices(len(rows), 1)
        alike = kernel[np.ix_(levels.song[rows], levels.song[rows])][upper]
        apart = np.square(levels.rest[rows][:, None] - levels.rest[rows])[upper] / 2
        weight = len(rows) / len(alike)
        alike = alike - alike.mean()
        products += weight * float(alike @ (apart - apart.mean()))
        squares += weight * float(alike @ alike)
    return -products / squares


def log_likelihood(levels: Levels, people: np.ndarray, kernel: np.ndarray, spread: Spread, share: float) -> float:  # fmt: skip
    """Of all levels, when similar songs share this part of `within`."""
    total, everywhere = 0.0, process(kernel, spread, share)
    for person in people:
        rows = levels.of(person)[:MOST_PAIRED]
        here = everywhere.of(levels.song[rows])
        root = np.linalg.cholesky(here.prior + here.noise * np.eye(len(rows)))
        whitened = np.linalg.solve(root, levels.rest[rows])
        total -= 0.5 * float(whitened @ whitened) + float(np.log(np.diag(root)).sum())
    return total


@dataclasses.dataclass(frozen=True)
class Process:
    """A Gaussian process over songs.

    Attributes:
      prior: `[songs, songs]` covariance of what they say of each other.
      noise: variance of what a song says of itself alone.
    """

    prior: np.ndarray
    noise: float

    def of(self, songs: np.ndarray) -> Process:
        """On some songs."""
        return Process(self.prior[np.ix_(songs, songs)], self.noise)


@dataclasses.dataclass(frozen=True)
class Dealt:
    """People in folds.

    Attributes:
      people: who they are.
      fold: `[people]` of each.
      spreads: of each fold: variances among the people of the others.
    """

    people: np.ndarray
    fold: np.ndarray
    spreads: list[Spread]

    def processes(self, kernel: np.ndarray, share: float) -> Callable[[int], Process]:
        """The process for a person, of whom its variances know nothing."""
        fitted = [process(kernel, spread, share) for spread in self.spreads]
        return lambda person: fitted[self.fold[np.searchsorted(self.people, person)]]


def deal_people(levels: Levels) -> Dealt:
    """Into folds, at random."""
    people = np.unique(levels.person)
    fold = np.random.RandomState(0).permutation(len(people)) % FOLDS
    return Dealt(people, fold, [spread_of(levels, people[fold != x]) for x in range(FOLDS)])


def process(kernel: np.ndarray, spread: Spread, share: float) -> Process:
    """`between` and `within` stay what they are of two songs that are as alike as two songs are in the mean."""
    taste = share * spread.within
    usual = (kernel.sum() - len(kernel)) / (len(kernel) * (len(kernel) - 1))
    prior = max(spread.between - usual * taste, 0.0) + taste * kernel
    return Process(prior, spread.within - (1.0 - usual) * taste)


def error(levels: Levels, here: Process, rows: np.ndarray, known: np.ndarray, asked: np.ndarray) -> float:  # fmt: skip
    """RMSE of the curves `asked` after `known`; both are places in `rows`, whose songs `here` is on."""
    covariance = here.of(known).prior + here.noise * np.eye(len(known))
    weights = np.linalg.solve(covariance, levels.rest[rows[known]])
    missed = levels.rest[rows[asked]] - here.prior[np.ix_(asked, known)] @ weights
    return float(np.sqrt(np.square(missed) + levels.moving[rows[asked]]).mean())


def predicting(levels: Levels, dealt: Dealt, kernels: dict[float, np.ndarray]) -> dict[tuple[int, float, float], np.ndarray]:  # fmt: skip
    """`(songs, gamma, share) -> [people]` RMSE on a person's other songs; who has too few is NaN. The rest is fitted on others."""
    people = dealt.people
    found = {(k, gamma, share): np.full(len(people), np.nan) for k in SHOTS for gamma in GAMMAS for share in SHARES}  # fmt: skip
    for gamma, kernel in kernels.items():
        for share in SHARES:
            process_for = dealt.processes(kernel, share)
            for place, person in enumerate(people):
                rows = levels.of(person)
                here = process_for(person).of(levels.song[rows])
                draws = [np.random.RandomState(x).permutation(len(rows)) for x in range(DRAWS)]
                for k in SHOTS:
                    if len(rows) > k:
                        errors = [error(levels, here, rows, x[:k], x[k:]) for x in draws]
                        found[k, gamma, share][place] = np.mean(errors)
    return found


def suggesting(levels: Levels, dealt: Dealt, likenesses: np.ndarray, kernel: np.ndarray, share: float) -> dict[int, np.ndarray]:  # fmt: skip
    """`songs -> [people, 2]` RMSE on half of a person's songs after suggested and after random ones of the other half.

    Args:
      levels: of everybody.
      dealt: variances are fitted on the others.
      likenesses: of all songs, that suggestions are made by.
      kernel: likewise, that predictions are made by.
      share: of it.
    """
    process_for = dealt.processes(kernel, share)
    people = [person for person in dealt.people if len(levels.of(person)) >= PROLIFIC]
    found = {count: np.zeros((len(people), 2)) for count in SUGGESTED}
    for place, person in enumerate(people):
        rows = levels.of(person)
        here = process_for(person).of(levels.song[rows])
        alike = likenesses[np.ix_(levels.song[rows], levels.song[rows])]
        for draw in range(DRAWS):
            order = np.random.RandomState(draw).permutation(len(rows))
            candidates, asked = order[: len(rows) // 2], order[len(rows) // 2 :]
            best = most_telling(alike[np.ix_(candidates, candidates)], (), max(SUGGESTED))
            for count in SUGGESTED:
                ours = error(levels, here, rows, candidates[best[:count]], asked)
                tries = [np.random.RandomState(1000 * draw + x).permutation(candidates)[:count] for x in range(DRAWS)]  # fmt: skip
                theirs = np.mean([error(levels, here, rows, x, asked) for x in tries])
                found[count][place] += np.array([ours, theirs]) / DRAWS
    return found


def gained(ours: np.ndarray, theirs: np.ndarray) -> str:
    """`ours - theirs` over people, with its 95 % interval and how many gain and lose."""
    known = np.isfinite(ours)
    found = paired_difference(ours[known], theirs[known], lower_is_better=True)
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}], {found.better}/{found.worse}"


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    corpus = read_corpus(parser.parse_args().data)
    kernels = kernels_of(corpus)
    both = rests(corpus, unheard_levels(corpus))
    page = "\n".join(markdown(corpus, both, kernels))
    with replacing(RESULTS / "suggesting.md") as temporary:
        temporary.write_text(page, encoding="utf-8")


def kernels_of(corpus: Corpus) -> dict[float, np.ndarray]:
    """Likeness of all songs by each gamma."""
    embeddings = song_embeddings(corpus, np.arange(len(corpus.song_ids)))
    return {gamma: likeness(embeddings, gamma) for gamma in GAMMAS}


def markdown(corpus: Corpus, both: list[Levels], kernels: dict[float, np.ndarray]) -> Iterator[str]:
    """The page, in lines."""
    people = np.unique(both[0].person)
    yield "# Which song next: do similar songs share a person's taste?"
    yield ""
    yield (
        f"{corpus.name}, {len(corpus.song_ids)} songs, {len(people)} people; what their levels differ from a regression that "
        f"has not heard the song. Means over people, 95 % intervals over people; better/worse off."
    )
    for name, levels in zip(DIMENSIONS, both, strict=True):
        spread = spread_of(levels, people)
        yield from ("", f"## {name.capitalize()}: how large it is", "")
        yield f"Variances: {spread.between:.4f} between people, {spread.within:.4f} between songs of a person."
        yield from ("", "| gamma | taste / within, by moments | " + " | ".join(f"log-likelihood, {x:g}" for x in SHARES[1:]) + " |")  # fmt: skip
        yield "|---" * (len(SHARES) + 1) + "|"
        for gamma, kernel in kernels.items():
            none = log_likelihood(levels, people, kernel, spread, 0.0)
            gains = [log_likelihood(levels, people, kernel, spread, x) - none for x in SHARES[1:]]
            cells = [f"{taste_by_moments(levels, people, kernel) / spread.within:+.3f}", *(f"{x:+.1f}" for x in gains)]  # fmt: skip
            yield f"| {gamma:g} | {' | '.join(cells)} |"
        dealt = deal_people(levels)
        yield from _predicting_lines(name, predicting(levels, dealt, kernels))
        yield from _suggesting_lines(name, levels, dealt, kernels)
        yield from _personal_lines(name, beside_others(levels), kernels[PREDICTED[1]])
    yield ""
    yield from (f"- {name}: {value}" for name, value in environment().items())
    yield ""


def _predicting_lines(name: str, found: dict[tuple[int, float, float], np.ndarray]) -> Iterator[str]:  # fmt: skip
    yield from ("", f"## {name.capitalize()}: RMSE on a person's other songs, minus that by level alone", "")  # fmt: skip
    yield "| taste / within, gamma | " + " | ".join(f"{k} song{'s' * (k > 1)}" for k in SHOTS) + " |"  # fmt: skip
    yield "|---" * (len(SHOTS) + 1) + "|"
    alone = [found[k, GAMMAS[0], 0.0] for k in SHOTS]
    yield "| *level alone* | " + " | ".join(f"{np.nanmean(x):.4f} ({np.isfinite(x).sum()} people)" for x in alone) + " |"  # fmt: skip
    for gamma in GAMMAS:
        for share in SHARES[1:]:
            cells = [gained(found[k, gamma, share], x) for k, x in zip(SHOTS, alone, strict=True)]
            yield f"| {share:g}, {gamma:g} | {' | '.join(cells)} |"


def _suggesting_lines(
    name: str, levels: Levels, dealt: Dealt, kernels: dict[float, np.ndarray]
) -> Iterator[str]:
    yield from ("", f"## {name.capitalize()}: RMSE after suggested songs, minus that after random ones", "")  # fmt: skip
    yield "| suggested by gamma; predicted by | " + " | ".join(f"{k}" for k in SUGGESTED) + " | people |"  # fmt: skip
    yield "|---" * (len(SUGGESTED) + 2) + "|"
    share, gamma = PREDICTED
    for planned in PLANNED:
        for used, by in ((0.0, "level alone"), (share, f"taste, {share:g}, {gamma:g}")):
            found = suggesting(levels, dealt, kernels[planned], kernels[gamma], used)
            cells = [gained(*x.T) for x in found.values()]
            yield f"| {planned:g}; {by} | {' | '.join(cells)} | {len(found[1])} |"


def _personal_lines(name: str, levels: Levels, kernel: np.ndarray) -> Iterator[str]:
    gamma = PREDICTED[1]
    yield from ("", f"## {name.capitalize()}: the same beside the song's other raters", "")
    yield (
        "What the regression gets wrong for everybody alike would look like taste. Here it is taken away: differences are those "
        f"from the mean of the song's other raters, of songs with three or more. Gamma {gamma:g}."
    )
    yield from ("", "| taste / within | log-likelihood | " + " | ".join(f"{k} song{'s' * (k > 1)}" for k in SHOTS) + " |")  # fmt: skip
    yield "|---" * (len(SHOTS) + 2) + "|"
    dealt = deal_people(levels)
    spread = spread_of(levels, dealt.people)
    none = log_likelihood(levels, dealt.people, kernel, spread, 0.0)
    found = predicting(levels, dealt, {gamma: kernel})
    for share in SHARES[1:]:
        gain = log_likelihood(levels, dealt.people, kernel, spread, share) - none
        cells = [gained(found[k, gamma, share], found[k, gamma, 0.0]) for k in SHOTS]
        yield f"| {share:g} | {gain:+.1f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
