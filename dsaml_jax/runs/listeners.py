"""How single listeners differ from a model's curves, how one of them does, and what their songs tell of their others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import chex
import numpy as np

BAND_SHARE = 0.8
"""Share of people's curves that a band is meant to hold."""

SONGS_SHOWN = (1, 2, 5, 10)

_TINY = 1e-9
"""Of a variance: rounding."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """How people differ from a model's curves in one dimension.

    What somebody draws minus the model's curve is taken for a sum of three: a level of the person, one of the song as this
    person hears it, and how the curve moves. Part of the second, their taste, may be shared by songs that are alike: a Gaussian
    process over songs (Rasmussen and Williams 2006, chapter 2). Two songs of one person have the covariance
    `between + taste (likeness - alike)`, which is `between` for songs as alike as songs usually are.

    Attributes:
      between: mean square over people of the first.
      within: variance of the second.
      moving: variance of the third.
      low, high: so much below and above the model's curve lie the bounds of a band that holds :data:`BAND_SHARE` of what
        people drew of whom nothing is known.
      taste: what `likeness` 1 adds to `likeness` 0; 0 where nobody knows which songs are alike.
      alike: likeness of two songs of a person, in the mean.
    """

    between: float
    within: float
    moving: float
    low: float
    high: float
    taste: float = 0.0
    alike: float = 0.0

    def __post_init__(self) -> None:
        if (
            min(self.between, self.within, self.moving, self.taste) < 0.0
            or not self.low <= self.high
        ):
            raise ValueError("a variance is negative, or a band inside out")
        if self.taste * self.alike > self.between + _TINY or self.alone < 0.0:
            raise ValueError("there is more taste than there is to share")

    @property
    def alone(self) -> float:
        """Variance of what a song says of itself alone."""
        return self.within - self.taste * (1.0 - self.alike)

    def told(
        self, differences: np.ndarray, likeness: np.ndarray
    ) -> tuple[float, np.ndarray, float]:
        """What songs of a person tell: the posterior mean of another one is `level + weights @ its likeness to each`.

        Args:
          differences: `[K]` mean over each song of what the person drew minus the model's curve.
          likeness: `[K, K]` of the songs to each other.

        Returns:
          level; weights `[K]`; variance of what is not known of songs in the mean, see :meth:`unknown`.
        """
        chex.assert_shape(likeness, (len(differences),) * 2)
        alone = max(self.alone, _TINY) * np.eye(len(differences))
        together = self.between + self.taste * (likeness - self.alike) + alone
        solved = np.linalg.solve(
            together, np.stack([differences, np.ones(len(differences))], axis=1)
        )
        total, weight = solved.sum(axis=0)
        everywhere = (
            self.between - self.taste * self.alike
        )  # what songs share that are not alike at all
        # Songs that lie farther apart than usual cannot all be as alike to another one as usual.
        unknown = max(x - x**2 * weight for x in (self.between, everywhere))
        return everywhere * float(total), self.taste * solved[:, 0], float(unknown)

    def share(self, songs: int) -> float:
        """Share of the mean difference on so many songs of a person that is to be expected on their next.

        The posterior mean under normal distributions, `songs between / (songs between + within)`, for songs as alike as
        they usually are.
        """
        known = songs * self.between
        return known / (known + self.within) if known > 0.0 else 0.0

    def unknown(self, songs: int, share: float | None = None) -> float:
        """Variance of what is not known of a person's level after so many songs.

        Args:
          songs: that are known.
          share: of the mean difference on them that is taken for the level; None: :meth:`share`, which leaves the least,
            `(1 - share) between`.
        """
        if not songs:
            return self.between
        taken = self.share(songs) if share is None else share
        return (1.0 - taken) ** 2 * self.between + taken**2 * self.within / songs

    def error(self, songs: int, share: float | None = None) -> float:
        """Root mean squared error to be expected on a further song; see :meth:`unknown`."""
        return math.sqrt(self.unknown(songs, share) + self.within + self.moving)

    def band(self, songs: int) -> tuple[float, float]:
        """Bounds of the band around the curve of a person of whom so many songs are known."""
        rest = self.within + self.moving
        all_of_it = self.between + rest
        left = (1.0 - self.share(songs)) * self.between + rest
        narrower = math.sqrt(left / all_of_it) if all_of_it > 0.0 else 1.0
        return narrower * self.low, narrower * self.high


@dataclasses.dataclass(frozen=True)
class Listeners:
    """What is known of listeners.

    Attributes:
      arousal, valence: None of what nobody drew.
      people, curves: how many they are from.
      step: of the checkpoint whose curves were looked at.
      strength: share of the way to go instead of :meth:`Spread.share`, where somebody has said so.
    """

    arousal: Spread | None
    valence: Spread | None
    people: int
    curves: int
    step: int = 0
    strength: float | None = None

    def told(self, differences: np.ndarray, likeness: np.ndarray | None = None) -> Told:
        """What a person's songs tell of their others.

        Args:
          differences: `[K, 2]` mean over each song of what the person drew minus the model's curve; NaN where they drew
            nothing.
          likeness: `[K, K]` of the songs to each other; None where that is not known.
        """
        chex.assert_shape(differences, (None, 2))
        count = len(differences)
        level, weights, unknown = np.zeros(2), np.zeros((count, 2)), np.full(2, np.nan)
        for dimension, spread in enumerate((self.arousal, self.valence)):
            known = np.flatnonzero(np.isfinite(differences[:, dimension]))
            drawn = differences[known, dimension]
            if spread is None:
                continue
            if likeness is None:  # then all are as alike as usual
                spread = dataclasses.replace(spread, taste=0.0)
            if self.strength is not None:
                level[dimension] = self.strength * drawn.mean() if len(known) else 0.0
                unknown[dimension] = spread.unknown(len(known), self.strength)
            else:
                alike = np.ones((count, count)) if likeness is None else likeness
                level[dimension], weights[known, dimension], unknown[dimension] = spread.told(drawn, alike[np.ix_(known, known)])  # fmt: skip
        usual = np.array(
            [spread.alike if spread else 0.0 for spread in (self.arousal, self.valence)]
        )
        return Told(level, weights, level + usual * weights.sum(axis=0), np.sqrt(unknown))

    def error(self, songs: tuple[int, int]) -> np.ndarray:
        """`[2]` RMSE to be expected on a further song of a person; NaN of what nobody drew."""
        return np.array([x.error(count, self.strength) if x else math.nan for x, count in self._with(songs)])  # fmt: skip

    def _with(self, songs: tuple[int, int]) -> list[tuple[Spread | None, int]]:
        return list(zip((self.arousal, self.valence), songs, strict=True))

    def band(
        self, curve: np.ndarray, songs: tuple[int, int] = (0, 0)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound `[n, 2]` of a band around a predicted curve `[n, 2]`, within the scale.

        Args:
          curve: NaN where nothing is predicted.
          songs: of how many of the person's songs each dimension is known.
        """
        offsets = [x.band(count) if x else (math.nan, math.nan) for x, count in self._with(songs)]
        low, high = np.array(offsets, np.float32).T
        return np.clip(curve + low, -1.0, 1.0), np.clip(curve + high, -1.0, 1.0)

    def lines(self) -> list[str]:
        """For people: how far the curves of a person move after some songs, and the band before any."""
        found = [
            f"listeners: {self.people} people, {self.curves} curves of songs that it was not trained on"
        ]
        for name, spread in (("arousal", self.arousal), ("valence", self.valence)):
            if spread is not None:
                shares = ", ".join(f"{spread.share(count):.2f}" for count in SONGS_SHOWN)
                songs = ", ".join(map(str, SONGS_SHOWN))
                more = ", and more on songs like these" if spread.taste else ""
                found.append(
                    f"{name}: after {songs} songs a person's curves move by {shares} of the mean difference{more}; "
                    f"{BAND_SHARE:.0%} of people's curves lie between {spread.low:+.2f} and {spread.high:+.2f}"
                )
        return found


@dataclasses.dataclass(frozen=True)
class Told:
    """What `K` songs of a person tell.

    Attributes:
      level: `[2]` how far all their curves lie from everyone's.
      weights: `[K, 2]` of a song's likeness to each of the known ones: so much further.
      usual: `[2]` both together, for a song as alike to the known ones as songs usually are.
      deviation: `[2]` standard deviation of what is not known of that; NaN of what nobody drew.
    """

    level: np.ndarray
    weights: np.ndarray
    usual: np.ndarray
    deviation: np.ndarray

    def shift(self, likeness: np.ndarray) -> np.ndarray:
        """`[..., 2]` how far curves of songs with the likeness `[..., K]` to the known ones lie from everyone's."""
        return np.asarray(self.level + likeness @ self.weights)


@dataclasses.dataclass(frozen=True)
class Person:
    """What a personal model knows of its person.

    Attributes:
      base: what everyone's model adds to its curves of arousal and valence.
      songs: digest of each song -> mean of what they drew minus everyone's curve, arousal and valence; None of what they
        did not draw. In the order of digests, which is that of the model's `listener_centres`.
      level, deviation: how far their curves lie from everyone's on a usual song, and the standard deviation of what is not
        known of that, see :class:`Told`; None of what nobody drew.
    """

    base: tuple[float, float]
    songs: Mapping[str, tuple[float | None, float | None]] = dataclasses.field(default_factory=dict)
    level: tuple[float, float] = (0.0, 0.0)
    deviation: tuple[float | None, float | None] = (None, None)

    @property
    def differences(self) -> np.ndarray:
        """`[K, 2]`, NaN where nothing was drawn."""
        return np.array(list(self.songs.values()), np.float64).reshape(-1, 2)

    def counts(self) -> tuple[int, int]:
        """Songs that are known of each dimension."""
        arousal, valence = np.isfinite(self.differences).sum(axis=0)
        return int(arousal), int(valence)

    def with_song(self, digest: str, difference: np.ndarray) -> Person:
        """And this song; if it is known already, by this difference `[2]` now, in the dimensions that it has."""
        old = self.songs.get(digest, (None, None))
        new = [
            float(x) if np.isfinite(x) else before
            for x, before in zip(difference, old, strict=True)
        ]
        songs = {**self.songs, digest: (new[0], new[1])}
        return dataclasses.replace(self, songs=dict(sorted(songs.items())))

    def after(self, told: Told) -> Person:
        """And what all songs together tell."""
        arousal, valence = told.usual.tolist()
        first, second = (float(x) if np.isfinite(x) else None for x in told.deviation)
        return dataclasses.replace(self, level=(arousal, valence), deviation=(first, second))
