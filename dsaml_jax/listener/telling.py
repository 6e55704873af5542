"""What a personal model knows of its person, in words."""

from __future__ import annotations

from data_prep.base import DIMENSIONS
from dsaml_jax.runs import Listeners, Person

WORDS = (("calmer", "more excited"), ("darker", "brighter"))
"""How somebody hears music whose arousal, whose valence, lies below and above that of most."""


def how_you_hear(person: Person) -> str:
    """How a person hears music, in one sentence.

    Such as "You hear this music calmer than most, by 0.12 ± 0.05; its valence about as most do."

    It says the mean of what is known of their level, and its standard deviation. Nothing is claimed where the first is less than the
    second. Empty where nothing is known.
    """
    claimed, alike = [], []
    for place in _known(person):
        shift, deviation = person.level[place], person.deviation[place]
        assert deviation is not None
        if shift == 0.0 or abs(shift) < deviation:
            alike.append(DIMENSIONS[place])
        else:
            word = WORDS[place][int(shift > 0.0)]
            claimed.append(f"{word} than most, by {abs(shift):.2f} ± {deviation:.2f}")
    if not claimed:
        return "You hear this music about as most do." if alike else ""
    rest = f"; its {alike[0]} about as most do" if alike else ""
    return f"You hear this music {', and '.join(claimed)}{rest}."


def how_sure(listeners: Listeners, person: Person) -> str:
    """What a person's songs are worth: the RMSE to be expected on another one, by how listeners in general differ.

    Such as "On a new song your curve should be off by 0.301 in arousal (0.322 before your 3 songs), ...". Empty where nothing is known.
    """
    counts = person.counts()
    before, after = listeners.error((0, 0)), listeners.error(counts)
    parts = []
    for place in _known(person):
        songs = f"{counts[place]} song{'s' * (counts[place] > 1)}"
        parts.append(f"{after[place]:.3f} in {DIMENSIONS[place]} ({before[place]:.3f} before your {songs})")  # fmt: skip
    return f"On a new song your curve should be off by {' and '.join(parts)}, where the scale goes from -1 to 1." if parts else ""  # fmt: skip


def _known(person: Person) -> list[int]:
    """Columns of the dimensions of which something is known."""
    pairs = zip(person.counts(), person.deviation, strict=True)
    return [place for place, (songs, x) in enumerate(pairs) if songs and x is not None]
