"""How people differ from a model's curves: variances, and what follows from them for songs of one person."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import chex
import numpy as np

BAND_SHARE = 0.8
"""Share of people's curves that a band is meant to hold."""

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

    @property
    def parts(self) -> tuple[float, float, float]:
        """Variances of a person's level, which all songs share whether they are alike or not, of taste, and of a song alone."""
        return self.between - self.taste * self.alike, self.taste, self.alone

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

    def band(self, songs: int, share: float | None = None) -> tuple[float, float]:
        """Bounds of the band around the curve of a person of whom so many songs are known; see :meth:`unknown`."""
        rest = self.within + self.moving
        all_of_it = self.between + rest
        left = self.unknown(songs, share) + rest
        narrower = math.sqrt(left / all_of_it) if all_of_it > 0.0 else 1.0
        return narrower * self.low, narrower * self.high


NOBODY = Spread(0.0, 0.0, 0.0, 0.0, 0.0)
"""In a dimension that nobody drew."""


@dataclasses.dataclass(frozen=True)
class Correlations:
    """Of what somebody draws in arousal with what they draw in valence, less the model's curves.

    Attributes:
      level: of a person's level.
      taste: of what two songs that are alike share besides.
      alone: of one song.
    """

    level: float = 0.0
    taste: float = 0.0
    alone: float = 0.0

    def __post_init__(self) -> None:
        if not all(-1.0 <= x <= 1.0 for x in dataclasses.astuple(self)):
            raise ValueError("a correlation is beyond 1")


@dataclasses.dataclass(frozen=True)
class Together:
    """How both dimensions of a person's songs vary, and one with the other: covariances `[2, 2]`.

    Attributes:
      level: of what all songs of a person share.
      taste: of what two songs that are alike share besides.
      alone: of one song.
    """

    level: np.ndarray
    taste: np.ndarray
    alone: np.ndarray

    @classmethod
    def of(cls, spreads: Sequence[Spread], correlations: Correlations) -> Together:
        """Of arousal and valence, in this order."""
        deviations = np.sqrt(np.maximum(np.array([x.parts for x in spreads]).T, 0.0))  # [3, 2]
        signs = np.array([[[1.0, r], [r, 1.0]] for r in dataclasses.astuple(correlations)])
        return cls(*(deviations[:, :, None] * deviations[:, None] * signs))

    def covariance(self, likeness: np.ndarray) -> np.ndarray:
        """`[..., 2, K, 2, K]` of songs with the likeness `[..., K, K]` to each other."""
        count = likeness.shape[-1]
        chex.assert_shape(likeness, (..., count, count))
        alone = self.alone + _TINY * np.eye(2)
        parts = (
            (self.level, np.ones((count, count))),
            (self.taste, likeness),
            (alone, np.eye(count)),
        )
        return np.asarray(
            sum(both[:, None, :, None] * songs[..., None, :, None, :] for both, songs in parts)
        )
