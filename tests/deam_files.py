"""Small corpora on disk in DEAM's layout with its quirks, and tables that are nearly right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from hypothesis import strategies as st

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


def write_static(root: Path, songs: dict[str, tuple[float, float]]) -> None:
    """Writes song-level (arousal, valence) in [1, 9] as published: CRLF, spaces, swapped to 1000."""
    folder = root / Path(AVERAGED).parent / "song_level"
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "1_2000": "song_id, valence_mean, valence_std, arousal_mean, arousal_std",
        "2000_2058": "song_id, valence_mean, valence_std, valence_ max_mean, arousal_mean",
    }
    lines = {part: [names[part]] for part in names}
    for song, (arousal, valence) in songs.items():
        if int(song) > 2000:
            lines["2000_2058"].append(f"{song},{valence},0.5,9.0,{arousal}")
        else:
            first, second = (arousal, valence) if int(song) <= 1000 else (valence, arousal)
            lines["1_2000"].append(f"{song},{first},0.5,{second},0.5")
    for part, rows in lines.items():
        path = folder / f"static_annotations_averaged_songs_{part}.csv"
        path.write_bytes("".join(f"{row}\r\n" for row in rows).encode())


def almost_csv(header: list[str], good: list[str]) -> st.SearchStrategy[bytes]:
    """Bytes: anything, or a table of `good` cells with a row or a header that may be wrong."""
    bad = st.sampled_from([*header, "", "nan", "inf", "1e999", "-2", "0_1", '"', "x\n", "é", ".."])
    good_rows = st.lists(
        st.lists(st.sampled_from(good), min_size=len(header), max_size=len(header)), max_size=4
    )
    bad_rows = st.lists(st.lists(st.sampled_from(good) | bad, max_size=len(header) + 1), max_size=1)
    headers = st.permutations(header) | st.just(header) | st.lists(bad, max_size=len(header))
    table = st.tuples(headers, good_rows, bad_rows).map(
        lambda parts: "\n".join(",".join(row) for row in [parts[0], *parts[1], *parts[2]]).encode()
    )
    return table | st.binary(max_size=200)
