"""The blind comparison: which curves are shown on which side, and what people's answers add up to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from dsaml_jax.errors import UsageError
from dsaml_jax.experiment import paired_difference
from dsaml_jax.studio.store import Participant, Row, Store

SIDES = ("left", "right")
FITS = range(1, 8)
MOST_COMMENT = 2000


def plan(songs: Sequence[int], count: int, source: random.Random) -> list[tuple[int, str]]:
    """Songs in random order, each with the side of the adapted curve; as often left as right."""
    chosen = source.sample(list(songs), min(count, len(songs)))
    sides = [SIDES[place % 2] for place in range(len(chosen))]
    source.shuffle(sides)
    return list(zip(chosen, sides, strict=True))


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
    """Preference and difference of fit over rated trials, with 95 % intervals.

    The share of trials in which the adapted curve was chosen has Wilson's interval, which takes trials for
    independent. The difference of fit has a bootstrap interval over participants, or over trials where all are of one.
    """
    rated = [trial for trial in trials if trial["rated"] is not None]
    summary: dict[str, Any] = {"trials": len(trials), "rated": len(rated)}
    if not rated:
        return summary
    chosen = sum(trial["chosen_side"] == trial["adapted_side"] for trial in rated)
    interval = binomtest(chosen, len(rated)).proportion_ci(method="wilson")
    summary |= {
        "chose_adapted": chosen,
        "share": chosen / len(rated),
        "share_low": float(interval.low),
        "share_high": float(interval.high),
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


def summary_of_study(store: Store) -> dict[str, Any]:
    """Per participant and overall; `note` says what the intervals take for independent."""
    people: list[tuple[Participant, list[Row]]] = [(who, store.trials(who)) for who in store.participants()]  # fmt: skip
    return {
        "note": "share: Wilson's interval, trials taken for independent; fit: bootstrap over participants (one: over trials)",
        "overall": summarise([trial for _, trials in people for trial in trials]),
        "participants": {listener_id(who): summarise(trials) for who, trials in people if trials},
    }
