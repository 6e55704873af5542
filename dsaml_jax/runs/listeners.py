"""What is kept beside a model's numbers: how single listeners differ from its curves, and how one of them does.

`listeners.json` is from songs that the model was not trained on, `person.json` from a person's own.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_prep.base import DIMENSIONS, replacing
from data_prep.plain import from_plain, parse_json
from dsaml_jax.errors import UsageError

_Record = TypeVar("_Record")

LISTENERS_FILE = "listeners.json"
PERSON_FILE = "person.json"

BAND_SHARE = 0.8
"""Share of people's curves that a band is meant to hold."""

SONGS_SHOWN = (1, 2, 5, 10)


@dataclasses.dataclass(frozen=True)
class Spread:
    """How people differ from a model's curves in one dimension.

    What somebody draws minus the model's curve is taken for a sum of three: a level of the person, one of the song as this
    person hears it, and how the curve moves.

    Attributes:
      between: mean square over people of the first.
      within: variance of the second.
      moving: variance of the third.
      low, high: so much below and above the model's curve lie the bounds of a band that holds :data:`BAND_SHARE` of what
        people drew of whom nothing is known.
    """

    between: float
    within: float
    moving: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if min(self.between, self.within, self.moving) < 0.0 or not self.low <= self.high:
            raise ValueError("a variance is negative, or a band inside out")

    def share(self, songs: int) -> float:
        """Share of the mean difference on so many songs of a person that is to be expected on their next.

        The posterior mean under normal distributions, `songs between / (songs between + within)`.
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

    def shift(self, differences: np.ndarray) -> np.ndarray:
        """How far a person's curves lie from everyone's, to be expected after some songs.

        Args:
          differences: `[K, 2]` mean over each song of what the person drew minus the model's curve; NaN where they drew
            nothing. Their order makes no difference.

        Returns:
          `[2]`, 0 of a dimension of which nothing is known.
        """
        found = np.zeros(2)
        for dimension, spread in enumerate((self.arousal, self.valence)):
            known = np.sort(differences[np.isfinite(differences[:, dimension]), dimension])
            if spread is not None and len(known):
                share = spread.share(len(known)) if self.strength is None else self.strength
                found[dimension] = share * known.mean()
        return found

    def deviation(self, songs: tuple[int, int]) -> np.ndarray:
        """`[2]` standard deviation of what is not known of a person's level, see :meth:`Spread.unknown`; NaN of what nobody drew.

        Args:
          songs: of how many of the person's songs each dimension is known.
        """
        unknown = [x.unknown(count, self.strength) if x else math.nan for x, count in self._with(songs)]  # fmt: skip
        return np.sqrt(unknown)

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
                found.append(
                    f"{name}: after {songs} songs a person's curves move by {shares} of the mean difference; "
                    f"{BAND_SHARE:.0%} of people's curves lie between {spread.low:+.2f} and {spread.high:+.2f}"
                )
        return found


@dataclasses.dataclass(frozen=True)
class Person:
    """What a personal model knows of its person.

    Attributes:
      base: what everyone's model adds to its curves of arousal and valence.
      songs: digest of each song -> mean of what they drew minus everyone's curve, arousal and valence; None of what they
        did not draw.
    """

    base: tuple[float, float]
    songs: Mapping[str, tuple[float | None, float | None]] = dataclasses.field(default_factory=dict)

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
        return dataclasses.replace(self, songs={**self.songs, digest: (new[0], new[1])})


def write_listeners(directory: Path, listeners: Listeners) -> None:
    """Writes `listeners.json`, whole or not at all."""
    _write(directory / LISTENERS_FILE, listeners)


def read_listeners(directory: Path) -> Listeners | None:
    """Reads `listeners.json`; None where there is none.

    Raises:
      UsageError: it is damaged.
    """
    return _read(directory / LISTENERS_FILE, listeners_from)


def listeners_from(values: Any) -> Listeners:
    """From plain values of JSON.

    Raises:
      ValueError: they are no such thing.
    """
    if not isinstance(values, dict) or not all(name in values for name in DIMENSIONS):
        raise ValueError("no spread of arousal and valence")
    spreads = {
        name: None if values[name] is None else from_plain(Spread, values[name])
        for name in DIMENSIONS
    }
    counts = from_plain(_Counts, {name: x for name, x in values.items() if name not in spreads})
    return Listeners(spreads["arousal"], spreads["valence"], **dataclasses.asdict(counts))


@dataclasses.dataclass(frozen=True)
class _Counts:
    """The numbers of :class:`Listeners`."""

    people: int
    curves: int
    step: int = 0
    strength: float | None = None


def write_person(directory: Path, person: Person) -> None:
    """Writes `person.json`, whole or not at all."""
    _write(directory / PERSON_FILE, person)


def read_person(directory: Path) -> Person | None:
    """Reads `person.json`; None where there is none.

    Raises:
      UsageError: it is damaged.
    """
    return _read(directory / PERSON_FILE, _person_from)


def _person_from(values: Any) -> Person:
    pairs = {name: _pair(pair, missing=True) for name, pair in values["songs"].items()}
    return Person(_pair(values["base"], missing=False), pairs)  # type: ignore[arg-type]


def _write(path: Path, record: Listeners | Person) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def _read(path: Path, parse: Callable[[Any], _Record]) -> _Record | None:
    if not path.is_file():
        return None
    try:
        return parse(parse_json(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: damaged or of another version ({error})") from None


def _pair(values: Any, *, missing: bool) -> tuple[float | None, float | None]:
    first, second = values
    for value in (first, second):
        if not (missing and value is None) and not (
            isinstance(value, float) and math.isfinite(value)
        ):
            raise ValueError(f"{str(value)[:40]} is no number")
    return first, second
