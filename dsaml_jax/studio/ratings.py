"""The blind comparison: which curves are shown on which side, and what people's answers add up to."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import binom, binomtest

from data_prep.curves import labelled_mean
from dsaml_jax.errors import UsageError
from dsaml_jax.experiment import paired_difference
from dsaml_jax.studio.store import Participant, PlannedTrial, Row, Store

SIDES = ("left", "right")
FITS = range(1, 8)
MOST_COMMENT = 2000


VISIBLE = 0.08
"""Two curves that are less far apart, see :func:`apart`, look alike: a twenty-fifth of the scale."""

CONTROL_EVERY = 5
"""One trial in so many, at most, shows curves that look alike, where there are such: what is chosen there is chance."""

PREFERENCE, POWER, SIGNIFICANCE = 0.6, 0.8, 0.05
"""A preference that a study should tell from chance, how surely, and at what level of a two-sided test."""

_MOST_TRIALS = 2000


def apart(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two curves `[n, 2]`, in the dimension in which it is larger; NaN is left out."""
    means = labelled_mean(np.abs(first - second))
    return float(np.nan_to_num(means).max())


def plan(differences: Mapping[int, float], count: int, source: random.Random) -> list[PlannedTrial]:
    """Songs whose curves can be told apart, and a few others as a control, in random order; as often left as right.

    Args:
      differences: how far apart the two curves of each song are.
      count: of trials, at most.
      source: of randomness.

    Returns:
      nothing where no two curves can be told apart.
    """
    visible = [song for song, difference in differences.items() if difference >= VISIBLE]
    alike = [song for song in differences if song not in visible]
    if not visible:
        return []
    controls = source.sample(alike, min(count // CONTROL_EVERY, len(alike)))
    chosen = controls + source.sample(visible, min(count - len(controls), len(visible)))
    source.shuffle(chosen)
    sides = [SIDES[place % 2] for place in range(len(chosen))]
    source.shuffle(sides)
    return [
        PlannedTrial(song, side, differences[song], song in controls)
        for song, side in zip(chosen, sides, strict=True)
    ]


@lru_cache
def trials_needed(preference: float = PREFERENCE) -> int:
    """Trials from which on an exact binomial test tells this preference from chance, with :data:`POWER`.

    The power of an exact test is a saw: it does not fall below from here on. Trials are taken for independent.
    """
    count = np.arange(1, _MOST_TRIALS + 1)
    most = binom.isf(
        SIGNIFICANCE / 2, count, 0.5
    )  # more is significant, and so is less than the rest
    power = binom.sf(most, count, preference) + binom.cdf(count - most - 1, count, preference)
    return int(count[power < POWER][-1]) + 1


def needed_in_words(each: int) -> str:
    """How many trials a study needs, for people; each participant rates so many songs."""
    needed = trials_needed()
    return (
        f"to tell a preference of {100 * PREFERENCE:.0f} % from chance takes {needed} rated trials (power {100 * POWER:.0f} %, "
        f"two-sided test at {100 * SIGNIFICANCE:.0f} %), such as {math.ceil(needed / each)} participants with {each} each"
    )


def is_text(text: str) -> bool:
    """Whether a string of JSON can be written: halves of surrogate pairs cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_rating(answer: Any) -> dict[str, Any]:
    """An answer as a browser sends it.

    Raises:
      UsageError: a part is missing or none of what can be chosen.
    """
    if not isinstance(answer, dict) or answer.get("chosen") not in SIDES:
        raise UsageError("choose one of the two curves")
    rated = answer.get("fit_left"), answer.get("fit_right")
    if not all(type(fit) is int and fit in FITS for fit in rated):
        raise UsageError("rate both curves from 1 to 7")
    comment, listened = answer.get("comment", ""), answer.get("listened", 0.0)
    if not isinstance(comment, str) or len(comment) > MOST_COMMENT or not is_text(comment):
        raise UsageError(f"a comment may have {MOST_COMMENT} characters")
    if isinstance(listened, bool) or not isinstance(listened, int | float) or not 0 <= listened < 1e6:  # fmt: skip
        raise UsageError("listened is a number of seconds")
    return {"chosen_side": answer["chosen"], "fits": rated, "comment": comment, "listened": float(listened)}  # fmt: skip


def listener_id(who: Participant) -> str:
    """How a participant is called outside of the study: never by name."""
    return f"listener{who.id:03d}"


def fits(trial: Row) -> tuple[int, int]:
    """Of the adapted and of the unadapted curve."""
    adapted = trial["adapted_side"]
    return trial[f"fit_{adapted}"], trial[f"fit_{SIDES[1 - SIDES.index(adapted)]}"]


def summarise(trials: Sequence[Row]) -> dict[str, Any]:
    """Preference and difference of fit over rated trials, with 95 % intervals; controls are counted by themselves.

    The share of trials in which the adapted curve was chosen has Wilson's interval, which takes trials for
    independent, as `p`, of the exact two-sided test, does. The difference of fit has a bootstrap interval over participants, or over trials where all are of one.
    """
    controls = [trial for trial in trials if trial["control"] and trial["rated"] is not None]
    trials = [trial for trial in trials if not trial["control"]]
    rated = [trial for trial in trials if trial["rated"] is not None]
    summary: dict[str, Any] = {"trials": len(trials), "rated": len(rated)}
    if controls:
        summary |= {"controls": len(controls), "controls_chose_adapted": _chose_adapted(controls)}
    if not rated:
        return summary
    chosen = _chose_adapted(rated)
    test = binomtest(chosen, len(rated))
    interval = test.proportion_ci(method="wilson")
    summary |= {
        "chose_adapted": chosen,
        "share": chosen / len(rated),
        "share_low": float(interval.low),
        "share_high": float(interval.high),
        "p": float(test.pvalue),
    }
    by_person: dict[int, list[tuple[int, int]]] = {}
    for trial in rated:
        by_person.setdefault(trial["participant"], []).append(fits(trial))
    units = [np.mean(pairs, axis=0) for pairs in by_person.values()]
    if len(units) == 1:
        units = [np.array(fits(trial), float) for trial in rated]
    adapted, unadapted = np.array(units).T
    summary["fit_difference"] = float(np.mean(adapted - unadapted))
    if len(units) > 1:
        found = paired_difference(adapted, unadapted, lower_is_better=False)
        summary |= {"fit_low": found.low, "fit_high": found.high}
    return summary


def _chose_adapted(trials: Sequence[Row]) -> int:
    return sum(trial["chosen_side"] == trial["adapted_side"] for trial in trials)


def summary_of_study(store: Store) -> dict[str, Any]:
    """Per participant and overall; `needed` trials tell a preference of 60 % from chance, and `note` says what is taken for independent."""
    people: list[tuple[Participant, list[Row]]] = [(who, store.trials(who)) for who in store.participants()]  # fmt: skip
    return {
        "note": "share: Wilson's interval and the exact two-sided test (p), trials taken for independent; fit: bootstrap over "
        "participants (one: over trials); controls, whose curves look alike, are in neither",
        "needed": trials_needed(),
        "overall": summarise([trial for _, trials in people for trial in trials]),
        "participants": {listener_id(who): summarise(trials) for who, trials in people if trials},
    }
