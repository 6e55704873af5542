"""Small corpora on disk in DEAM's layout, with its quirks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

AVERAGED = (
    "DEAM_Annotations/annotations/annotations averaged per song/dynamic (per second annotations)"
)
PER_RATER = (
    "DEAM_Annotations/annotations/annotations per each rater/dynamic (per second annotations)"
)
AUDIO = "DEAM_audio/MEMD_audio"


def header(first: str, steps: int) -> str:
    return ",".join([first, *(f"sample_{15000 + 500 * i}ms" for i in range(steps))])


def row(first: str, values) -> str:
    return ",".join([first, *(f"{value:.4f}" for value in values)])


def make_deam(
    root: Path,
    steps: dict[str, tuple[int, int]],
    *,
    raters: int = 4,
    worker_column: bool = True,
    seconds: float = 46.0,
    audio: bool = True,
) -> Path:
    """Writes songs with (arousal, valence) lengths, per-rater files, and noise as audio."""
    random = np.random.RandomState(0)
    for folder in (AVERAGED, f"{PER_RATER}/arousal", f"{PER_RATER}/valence", AUDIO):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index, dimension in enumerate(("arousal", "valence")):
        longest = max(pair[index] for pair in steps.values())
        lines = [header("song_id", longest)]
        for song, lengths in steps.items():
            curve = np.cumsum(random.uniform(-0.02, 0.02, lengths[index]))
            lines.append(row(song, curve))
            rater_lines = [header("WorkerId" if worker_column else "", lengths[index])]
            if not worker_column:
                rater_lines = [rater_lines[0].lstrip(",")]
            for rater in range(raters):
                wiggle = curve + 0.1 * rater + 0.05 * np.sin(np.arange(len(curve)) / 3 + rater)
                text = row(f"worker{rater}", np.clip(wiggle, -1, 1))
                rater_lines.append(text if worker_column else text.split(",", 1)[1])
            path = root / PER_RATER / dimension / f"{song}.csv"
            path.write_text("\n".join(rater_lines) + "\n")
        (root / AVERAGED / f"{dimension}.csv").write_text("\n".join(lines) + "\n")
    if audio:
        for song in steps:
            sound = 0.1 * random.randn(int(seconds * 8000))
            soundfile.write(root / AUDIO / f"{song}.wav", sound, 8000)
    return root
