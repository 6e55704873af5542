"""The demo over several seeds: does one annotated song help, on unseen songs and unseen listeners?

Claim: adapted MAML beats the unadapted model, the constant and the support mean in mean CCC and RMSE.
Command: `python experiments/demo_seeds.py --out /tmp/demo_seeds` (a finished seed is not run again).
Each seed has its own corpus, listeners, held-out people and initialisation.
Result: `results/demo_seeds.md`; about four minutes a seed on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from dsaml_jax.base import DIMENSIONS
from dsaml_jax.demo import run_demo
from dsaml_jax.evaluation import COLUMNS
from dsaml_jax.progress import Console
from dsaml_jax.report import environment

RESULTS = Path(__file__).parent / "results"


def summaries(out: Path, seeds: int) -> list[dict]:
    """`results.json` of each seed's demo, run where it is missing."""
    loaded = []
    for seed in range(seeds):
        workdir = out / f"seed{seed}"
        if not (workdir / "report.html").is_file():
            run_demo(workdir, quick=False, seed=seed, console=Console())
        loaded.append(json.loads((workdir / "results.json").read_text()))
    return loaded


def over_seeds(results: list[dict], method: str, column: str) -> np.ndarray:
    """Mean of a column in each seed."""
    return np.array([result["summary"][method][column]["mean"] for result in results])


def markdown(results: list[dict]) -> str:
    """The table over seeds, what adapting gains in each seed, and where it ran."""
    methods = list(results[0]["summary"])
    titles = [column.replace("_", " ") for column in COLUMNS]
    lines = [
        "# Demo, one annotated song, unseen songs and listeners",
        "",
        f"Command: `python experiments/demo_seeds.py`. Mean over songs; mean ± sd over {len(results)} seeds.",
        "",
        "| method | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for method in methods:
        values = [over_seeds(results, method, column) for column in COLUMNS]
        cells = [f"{value.mean():.3f} ± {value.std():.3f}" for value in values]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", "MAML adapted minus each, mean of arousal and valence, per seed:", ""]
    lines += ["| against | CCC | RMSE |", "|---|---|---|"]
    for method in methods[:-1]:
        cells = []
        for metric in ("ccc", "rmse"):
            gains = np.mean(
                [
                    over_seeds(results, "MAML adapted", f"{d}_{metric}")
                    - over_seeds(results, method, f"{d}_{metric}")
                    for d in DIMENSIONS
                ],
                axis=0,
            )
            cells.append(", ".join(f"{gain:+.4f}" for gain in gains))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {name}: {value}" for name, value in environment().items()), ""]
    return "\n".join(lines)


def main() -> None:
    """Runs the seeds and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_seeds"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    text = markdown(summaries(options.out, options.seeds))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo_seeds.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
