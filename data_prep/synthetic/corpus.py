"""Writes the embedded corpus to disk in DEAM's folder layout."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.base import AnnotatedCorpus, DataError, Provenance, csv_text
from data_prep.curves import Flat
from data_prep.deam import ANNOTATION_START, AUDIO, AVERAGED, PER_RATER, read_deam
from data_prep.parallel import parallel_map
from data_prep.synthetic import listeners as people
from data_prep.synthetic import music

FORMAT = 2
MARKER = "synthetic.json"
PROVENANCE = Provenance(
    citation="composed music and simulated listeners, made by dsaml_jax",
    licence="no rights reserved (CC0)",
    url="",
    scale="curves drawn in [-1, 1]",
)
RATERS_PER_SONG = 10
_TIMES = np.arange(ANNOTATION_START, music.SECONDS, 0.5)

Progress = Callable[[int, int], None]


def write_corpus(
    root: Path,
    *,
    songs: int = 200,
    annotators: int = 100,
    raters: int = RATERS_PER_SONG,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Composes, renders and rates a corpus, or finds that it is already there.

    Every annotator rates about as many songs as any other.

    Args:
      root: folder to make. It appears complete or not at all.
      songs: ids 1, 2, ...
      annotators: ids `listener000`, ...
      raters: of each song; no more than there are annotators.
      seed: of everything.
      workers: processes; None takes all cores.
      progress: called with songs done and songs in all.

    Returns:
      `root`.

    Raises:
      DataError: `root` exists and is something else.
    """
    raters = min(raters, annotators)
    settings = {
        "format": FORMAT, "songs": songs, "annotators": annotators, "seed": seed,
        "raters_per_song": raters,
    }  # fmt: skip
    if not 0 <= seed < 2**32:
        raise DataError(f"seed {seed} is not in [0, 2^32)")
    if songs < 5 or raters < 3:
        raise DataError(f"{songs} songs with {raters} annotators each; 5 and 3 are the least")
    if (root / MARKER).is_file():
        if json.loads((root / MARKER).read_text()) == settings:
            return root
        raise DataError(
            f"{root} holds a synthetic corpus with other settings; choose another folder"
        )
    if root.exists() and any(root.iterdir()):
        raise DataError(f"{root} is not empty; choose another folder")

    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        _write(temporary, songs, annotators, raters, seed, workers, progress)
        (temporary / MARKER).write_text(json.dumps(settings))
        if root.exists():
            root.rmdir()
        temporary.chmod(0o755)
        os.replace(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def read_synthetic(root: Path, *, flat: Flat = "keep") -> AnnotatedCorpus:
    """What :func:`write_corpus` wrote."""
    return read_deam(root, name="synthetic", provenance=PROVENANCE, flat=flat)


def _write(
    root: Path,
    songs: int,
    annotators: int,
    raters: int,
    seed: int,
    workers: int | None,
    progress: Progress | None,
) -> None:
    audio, averaged, per_rater = (root / part for part in (AUDIO, AVERAGED, PER_RATER))
    for folder in (audio, averaged, per_rater / "arousal", per_rater / "valence"):
        folder.mkdir(parents=True)

    random = np.random.RandomState(_seed(seed, 0))
    crowd = [people.draw_listener(random) for _ in range(annotators)]
    who = _assign(songs, annotators, raters, random)
    jobs = [
        (seed, song + 1, str(audio), [(int(a), crowd[a]) for a in who[song]])
        for song in range(songs)
    ]
    header = [f"sample_{round(1000 * time)}ms" for time in _TIMES]
    means: list[np.ndarray] = []
    for song, curves in enumerate(parallel_map(_make_song, jobs, workers), start=1):
        for column, dimension in enumerate(people.DIMENSIONS):
            rows = [
                [f"listener{annotator:03d}", *_numbers(curve[:, column])]
                for annotator, curve in zip(who[song - 1], curves, strict=True)
            ]
            (per_rater / dimension / f"{song}.csv").write_text(
                csv_text(["WorkerId", *header], rows)
            )
        means.append(curves.mean(axis=0))
        if progress:
            progress(song, songs)
    for column, dimension in enumerate(people.DIMENSIONS):
        rows = [[str(song), *_numbers(m[:, column])] for song, m in enumerate(means, start=1)]
        (averaged / f"{dimension}.csv").write_text(csv_text(["song_id", *header], rows))


def _seed(*parts: int) -> np.ndarray:
    """Seeds of independent streams: RandomState mixes an array of integers."""
    return np.array([20_240_831, *parts], np.uint32)


def _assign(songs: int, annotators: int, raters: int, random: np.random.RandomState) -> np.ndarray:
    """`[songs, raters]`: for each song those who have rated least so far, ties by lot."""
    load = np.zeros(annotators)
    chosen = np.empty((songs, raters), int)
    for song in range(songs):
        order = np.argsort(load + random.random_sample(annotators), kind="stable")
        chosen[song] = np.sort(order[:raters])
        load[chosen[song]] += 1
    return chosen


def _make_song(job: tuple[int, int, str, list[tuple[int, people.Listener]]]) -> np.ndarray:
    """Writes one song's audio; returns its ratings `[raters, n, 2]`."""
    import soundfile

    seed, song, folder, raters = job
    random = np.random.RandomState(_seed(seed, 1, song))
    sections = music.compose(random)
    sound = music.render(sections, random)
    path = Path(folder) / f"{song}.flac"
    try:
        soundfile.write(path, sound, music.SAMPLE_RATE, subtype="PCM_16")
    except RuntimeError as error:  # how libsndfile says that a disk is full
        raise OSError(f"{path}: writing failed; is the disk full? ({error})") from None
    cues = music.cue_curves(sections, people.cue_grid(music.SECONDS))
    return np.stack(
        [
            people.rate_song(
                listener, cues, _TIMES, np.random.RandomState(_seed(seed, 2, song, annotator))
            )
            for annotator, listener in raters
        ]
    )


def _numbers(curve: np.ndarray) -> list[str]:
    return [f"{value:.6f}" for value in curve]
