"""What a model knows of listeners in general, of one of them, and what their songs tell of their others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import chex
import numpy as np

from dsaml_jax.runs.spread import BAND_SHARE, NOBODY, Correlations, Spread, Together

SONGS_SHOWN = (1, 2, 5, 10)


@dataclasses.dataclass(frozen=True)
class Listeners:
    """What is known of listeners.

    Attributes:
      arousal, valence: None of what nobody drew.
      people, curves: how many they are from.
      together: what one dimension tells of the other.
      step: of the checkpoint whose curves were looked at.
      strength: share of the way to go instead of :meth:`Spread.share`, where somebody has said so.
    """

    arousal: Spread | None
    valence: Spread | None
    people: int
    curves: int
    together: Correlations = Correlations()
    step: int = 0
    strength: float | None = None

    def told(self, differences: np.ndarray, likeness: np.ndarray | None = None) -> Told:
        """What a person's songs tell of their others: the posterior mean under normal distributions.

        Both dimensions tell of each other, as far as `together` says: who draws arousal higher than others do may draw valence
        higher too.

        Args:
          differences: `[K, 2]` mean over each song of what the person drew minus the model's curve; NaN where they drew
            nothing.
          likeness: `[K, K]` of the songs to each other; None where that is not known.
        """
        chex.assert_shape(differences, (None, 2))
        if self.strength is not None:
            return self._told_by_hand(differences, self.strength)
        count, known = len(differences), np.isfinite(differences.T)
        spreads = [x or NOBODY for x in (self.arousal, self.valence)]
        if likeness is None:  # then all are as alike as usual
            spreads = [dataclasses.replace(x, taste=0.0, alike=0.0) for x in spreads]
            likeness = np.eye(count)
        both = Together.of(spreads, self.together)
        drawn = both.covariance(likeness)[known][:, known]
        weights = np.zeros((2, count))
        weights[known] = np.linalg.solve(drawn, differences.T[known])
        alike = np.sqrt([x.alike for x in spreads])
        usual = both.level + both.taste * np.outer(alike, alike)

        def unknown(shared: np.ndarray, dimension: int) -> float:
            """Variance of what songs have in common that share so much with each of the known ones."""
            here = shared[dimension][np.nonzero(known)[0]]
            return float(shared[dimension, dimension] - here @ np.linalg.solve(drawn, here))

        # Songs that lie farther apart than usual cannot all be as alike to another one as usual.
        least = [max(unknown(usual, x), unknown(both.level, x), 0.0) for x in range(2)]
        total = weights.sum(axis=1)
        return Told(both.level @ total, (both.taste @ weights).T, usual @ total, self._deviation(least))  # fmt: skip

    def _told_by_hand(self, differences: np.ndarray, strength: float) -> Told:
        known = np.isfinite(differences)
        counts = known.sum(axis=0)
        mean = np.where(known, differences, 0.0).sum(axis=0) / np.maximum(counts, 1)
        pairs = zip((self.arousal, self.valence), counts.tolist(), strict=True)
        unknown = [x.unknown(songs, strength) if x else 0.0 for x, songs in pairs]
        level = strength * mean
        return Told(level, np.zeros(differences.shape), level, self._deviation(unknown))

    def _deviation(self, variances: Sequence[float]) -> np.ndarray:
        """`[2]`; NaN of what nobody drew."""
        there = [x is not None for x in (self.arousal, self.valence)]
        return np.where(there, np.sqrt(variances), np.nan)

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
        spreads = self._with(songs)
        offsets = [
            x.band(count, self.strength) if x else (math.nan, math.nan) for x, count in spreads
        ]
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
