"""How long people wait in the studio: for the start, for their first adapted curve, for the curves of a folder of songs.

Claim: from pressing Adapt to the first adapted curve of a 45 s song at most 5 s on two cores with the demo's checkpoint; the
curves of 100 songs are computed once.
Command: `python experiments/benchmarks/studio.py --demo dsaml_demo` after `dsaml demo`.
Result: `experiments/results/studio.md`; three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dsaml_jax.reporting import environment
from dsaml_jax.studio import serving

SONGS = 100
ADAPTATIONS = 20
RESULT = Path(__file__).parents[1] / "results" / "studio.md"


def measure(config: serving.Settings) -> dict[str, float]:
    """Seconds until warm, until all general curves are there, and from each request to the first adapted curve."""
    begun = time.monotonic()
    with serving.open_study(config) as study:
        study.modelling.wait_until_warm()
        found = {"links are printed": time.monotonic() - begun}
        songs = list(study.library)
        while any(study.modelling.curve("before", song) is None for song in songs):
            time.sleep(0.01)
        found[f"curves of {len(songs)} songs"] = time.monotonic() - begun
        who = study.store.add_participant("somebody")
        song = songs[0]
        take = study.store.begin_take(who, song.number, "both", practice=False)
        entries = [(t / 20, 0.5 * np.sin(t / 40), 0.3, None) for t in range(880)]
        study.store.log(take.number, take.session, 0, entries)
        study.store.finish_take(take.number, take.session, len(entries))
        waits = []
        for _ in range(ADAPTATIONS):
            asked = time.monotonic()
            number = study.modelling.adapt(who, song)
            while study.modelling.curve(str(number), song) is None:
                time.sleep(0.002)
            waits.append(time.monotonic() - asked)
        found["first adapted curve, median"] = float(np.median(waits))
        found["first adapted curve, longest"] = max(waits)
        other = songs[1]
        while study.modelling.curve(str(number), other) is None:
            time.sleep(0.002)
    return found


def main() -> None:
    """Three starts: nothing compiled, everything compiled, and a study that goes on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("dsaml_demo"))
    parser.add_argument(
        "--one", type=Path, help=argparse.SUPPRESS
    )  # a process that measures one start
    options = parser.parse_args()
    if options.one:
        from dsaml_jax.cli import _enable_compile_cache

        _enable_compile_cache()
        config = serving.Settings(
            options.demo / "run", options.one / "songs", options.one / "study"
        )
        print(json.dumps(measure(config)))
        return
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "songs").mkdir()
        for path in sorted((options.demo / "corpus" / "DEAM_audio" / "MEMD_audio").iterdir())[
            :SONGS
        ]:
            (Path(folder) / "songs" / path.name).symlink_to(path.resolve())
        for name in ("nothing compiled before", "the same study again"):
            done = subprocess.run(
                [sys.executable, __file__, "--demo", str(options.demo), "--one", folder],
                env=os.environ | {"DSAML_CACHE": f"{folder}/compiled"}, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            rows[name] = json.loads(done.stdout.splitlines()[-1])
    lines = ["# Waiting in the studio", "", f"Command: `python experiments/benchmarks/studio.py --demo {options.demo.name}`", "",
             f"Seconds, with the demo's checkpoint; songs of 45 s; {ADAPTATIONS} adaptations, one asked for when the last was done.", "",
             "| start | " + " | ".join(next(iter(rows.values()))) + " |", "|---" * (1 + len(next(iter(rows.values())))) + "|"]  # fmt: skip
    lines += [f"| {name} | " + " | ".join(f"{x:.2f}" for x in row.values()) + " |" for name, row in rows.items()]  # fmt: skip
    lines += ["", *(f"- {name}: {value}" for name, value in environment().items()), ""]
    RESULT.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
