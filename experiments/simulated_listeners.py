"""Simulated listeners beside real ones, by the very numbers of the data card.

Command: `python experiments/simulated_listeners.py --real DATA --simulated DATA` (both prepared: DEAM with
  `--audio-start` where its sound is excerpts, and a synthetic corpus).
Result: `experiments/results/simulated_listeners.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.base import DIMENSIONS, replacing
from data_prep.listeners import SHOTS
from data_prep.shards import find_dataset, read_facts
from dsaml_jax.reporting import environment

RESULT = Path(__file__).parent / "results" / "simulated_listeners.md"
Facts = dict[str, Any]


def main() -> None:
    """Reads both cards' facts and writes them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("real", "simulated"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    facts = [read_facts(find_dataset(data)) for data in (options.real, options.simulated)]
    lines = ["# Simulated listeners beside real ones", ""]
    lines += [
        "Each cell: arousal, valence. Intervals and what the rows mean are in the data cards.",
        "",
        "Fitted are the spreads, agreement, flat traces, variances and how the two dimensions go together, as far as one person's numbers "
        "vary with who was drawn. Not fitted: songs per person (everybody rates as many, so that small corpora can be split) and, "
        "what follows from all the rest, the most that songs tell.",
        "",
    ]
    lines += [f"| | {' | '.join(described(one) for one in facts)} |", "|---|---|---|"]
    for (name, real), (_, simulated) in zip(*map(rows, facts), strict=True):
        lines.append(f"| {name} | {real} | {simulated} |")
    lines += ["", *(f"- {name}: {value}" for name, value in environment().items()), ""]
    with replacing(RESULT) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def described(facts: Facts) -> str:
    """The corpus, its size and its state."""
    statistics = facts["statistics"]
    return f"{facts['name']}: {statistics['songs']:,} songs, {statistics['ratings']:,} ratings ({facts['fingerprint']})"


def rows(facts: Facts) -> Iterator[tuple[str, str]]:
    """What is compared."""
    statistics, listeners = facts["statistics"], facts["listeners"]

    def both(where: Facts, *keys: str | int) -> str:
        return ", ".join(f"{_at(where[name], keys):.3f}" for name in DIMENSIONS)

    spread = statistics["songs_per_annotator"]
    yield "people", f"{statistics['annotators']:,}"
    yield "songs per person", f"{spread['mean']:.1f} ({spread['min']:,} to {spread['max']:,})"
    yield "sd between songs (mean curves)", both(statistics, "sd_between_songs")
    yield "sd within a song (mean curves)", both(statistics, "sd_within_songs")
    yield "sd between raters at a moment", both(statistics, "sd_between_raters")
    yield "Cronbach's alpha, median", both(statistics, "cronbach_alpha", "quartiles", 1)
    yield "pairwise correlation, median", both(statistics, "pairwise_correlation", "quartiles", 1)
    shares = [facts["flat"][name]["flat"] / facts["flat"][name]["traces"] for name in DIMENSIONS]
    yield "share of flat traces", ", ".join(f"{share:.3f}" for share in shares)
    yield "sd over time of a trace that moves, median", both(listeners, "typical_sd")
    for trait in ("level", "movement"):
        for part in ("song", "person", "rest"):
            yield f"{trait}: variance of {part}", both(listeners, trait, "components", part, "value")  # fmt: skip
        yield f"{trait}: intraclass correlation of residuals", both(listeners, trait, "icc", "value")  # fmt: skip
    yield "correlation of people's mean residuals in the two", f"{listeners['correlation']:.2f}"
    for number, k in enumerate(SHOTS):
        yield f"most that songs tell, K = {k} (RMSE)", both(listeners, "ceiling", "shots", number, "gain")  # fmt: skip


def _at(where: Any, keys: Sequence[str | int]) -> float:
    for key in keys:
        where = where[key]
    return float(where)


if __name__ == "__main__":
    main()
