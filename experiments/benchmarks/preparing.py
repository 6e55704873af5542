"""Preparing and reading: songs a minute, what shards cost, how soon training has its first batch.

Claims: at least 150 songs a minute from mp3 on two cores with the spectral embedding; a prepared split of 1,700
clips is read at 400 clips a second or more; training has its first batch within 10 s of the command.
Command: `python experiments/benchmarks/preparing.py` (8 GB of disk in --scratch, about six minutes).
Result: `experiments/results/preparing.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
from timing import interleaved, measured_on, write_result

from data_prep.analysis import SongAnalysis, analyse
from data_prep.audio import load_audio
from data_prep.base import AnnotatedCorpus, Rating, Song
from data_prep.dataset import write_dataset
from data_prep.examples import RECORD_OPTIONS, features_dict
from data_prep.features import FeatureConfig, log_mel, spectral_embedding
from data_prep.prepare import prepare
from data_prep.shards import read_corpus
from data_prep.synthetic import PROVENANCE, read_synthetic, write_corpus
from data_prep.validation import Checked
from data_prep.writing import Shard, write_shard

CONFIG = FeatureConfig(embedding="spectral")
SONGS = 60
MEMORY_COPIES = 10
CLIPS = 1700
STEPS = 60


# ---- From mp3 to shards.


def mp3_corpus(scratch: Path) -> Path:
    """The embedded corpus as 45 s mp3 files."""
    root = write_corpus(scratch / "mp3", songs=SONGS, annotators=20)
    for path in root.rglob("*.flac"):
        sound, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".mp3"), sound, rate)
        path.unlink()
    return root


def of_one_song(path: Path) -> str:
    """Where the time of one song goes, in one process."""
    waveform, rate = load_audio(path)
    stretch = waveform[15 * rate : 45 * rate]
    patches = log_mel(stretch, rate)
    seconds = interleaved(
        {
            "decoding": lambda: load_audio(path),
            "log-mel patches": lambda: log_mel(stretch, rate),
            "spectral embedding": lambda: spectral_embedding(patches),
            "all": lambda: analyse(load_audio(path)[0], rate, CONFIG, start=15.0, steps=STEPS),
        },
        15,
    )
    whole = np.median(seconds["all"])
    lines = ["| | median [ms] | share |", "|---|---|---|"]
    for name, values in seconds.items():
        middle = np.median(values)
        lines.append(f"| {name} | {middle * 1e3:.1f} | {middle / whole:.0%} |")
    return "\n".join(lines)


def songs_a_minute(root: Path, scratch: Path) -> str:
    """The whole of `prepare`, start of the processes included."""
    rates = []
    for number in range(3):
        start = time.perf_counter()
        corpus = read_synthetic(root)
        prepare(corpus, scratch / f"out{number}", CONFIG)
        rates.append(SONGS / (time.perf_counter() - start) * 60)
    return f"{np.median(rates):.0f} songs a minute (of three times: {min(rates):.0f} to {max(rates):.0f})"


def memory(root: Path, scratch: Path) -> str:
    """Resident memory of the process that writes, along a preparation of many songs."""
    corpus = read_synthetic(root)
    many = tuple(
        dataclasses.replace(song, song_id=f"{song.song_id}-{copy}")
        for copy in range(MEMORY_COPIES)
        for song in corpus.songs
    )
    held: dict[int, float] = {}

    @contextmanager
    def watch(stage: str) -> Iterator[Callable[[int, int], None]]:
        def update(done: int, total: int) -> None:
            if stage == "features" and done in (SONGS, total // 2, total):
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                held[done] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6

        yield update

    prepare(dataclasses.replace(corpus, songs=many), scratch / "many", CONFIG, display=watch)
    return ", ".join(f"{megabytes:.0f} MB after {done} songs" for done, megabytes in held.items())


# ---- Shards.


def formats(root: Path, scratch: Path) -> str:
    """Size and speed of storing the same songs in several ways."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    songs = []
    for path in sorted(root.rglob("*.mp3"))[:30]:
        waveform, rate = load_audio(path)
        songs.append(log_mel(waveform[15 * rate : 45 * rate], rate))
    lines = [
        "| patches | encoding | records | MB a clip | written/s | read in order/s | read at random/s |",
        "|---|---|---|---|---|---|---|",
    ]
    features = tfds.features
    for dtype, encoding, options in product(
        ("float16", "float32"), ("BYTES", "ZLIB"), ("uncompressed", "zstd:3", "snappy")
    ):
        if encoding == "ZLIB" and options != "uncompressed":
            continue
        names = features.FeaturesDict(
            {
                "log_mel": features.Tensor(
                    shape=(None, CONFIG.frames, CONFIG.mel_bands),
                    dtype=np.dtype(dtype).type,
                    encoding=features.Encoding[encoding],
                )
            }
        )
        path = scratch / "format.array_record"
        repeats = 10 if encoding == "BYTES" else 1
        count = repeats * len(songs)
        start = time.perf_counter()
        writer = ArrayRecordWriter(str(path), f"group_size:1,{options}")
        for i in range(count):
            writer.write(names.serialize_example({"log_mel": songs[i % 30].astype(dtype)}))
        writer.close()
        written = count / (time.perf_counter() - start)

        def in_order(path: Path = path, names: object = names) -> None:
            reader = ArrayRecordReader(str(path))
            for record in reader.read_all():
                names.deserialize_example_np(record)  # type: ignore[attr-defined]
            reader.close()

        order = np.random.RandomState(0).permutation(count)

        def at_random(path: Path = path, names: object = names, order: np.ndarray = order) -> None:
            reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
            for i in order:
                names.deserialize_example_np(reader.read([int(i)])[0])  # type: ignore[attr-defined]
            reader.close()

        seconds = interleaved({"in order": in_order, "at random": at_random}, 5)
        speeds = [count / np.median(values) for values in seconds.values()]
        size = path.stat().st_size / count / 1e6
        lines.append(
            f"| {dtype} | {encoding} | {options} | {size:.3f} | {written:.0f} "
            f"| {speeds[0]:.0f} | {speeds[1]:.0f} |"
        )
    return "\n".join(lines)


def clips(scratch: Path) -> Path:
    """A prepared corpus of 1,700 clips in one split, its patches drawn at random."""
    random = np.random.RandomState(0)
    curve = np.sin(np.arange(STEPS) / 9).astype(np.float32) / 2
    people = [Rating(f"rater{i}", curve + 0.02 * i, curve) for i in range(10)]
    songs = tuple(
        Song(str(i), None, 15.0, curve, curve, tuple(people), None)
        for i in range(round(CLIPS / 0.9))
    )
    corpus = AnnotatedCorpus("clips", (*songs, _test_song(curve)), PROVENANCE)
    checked = Checked(corpus.songs, {song.song_id: "0" for song in corpus.songs}, (), ())
    patches = random.randn(STEPS, CONFIG.frames, CONFIG.mel_bands).astype(np.float16)

    def made(shard: Shard) -> Iterator[SongAnalysis]:
        for _ in shard.jobs:
            yield SongAnalysis(
                patches,
                np.zeros(1, np.int32),
                np.zeros((1, CONFIG.embedding_width), np.float32),
                None,
            )

    def engine(shards: list[Shard], config: FeatureConfig, weights: Path | None) -> None:
        for shard in shards:
            write_shard(shard, config, None, made(shard))

    return write_dataset(corpus, checked, scratch / "clips", CONFIG, engine=engine)


def _test_song(curve: np.ndarray) -> Song:
    return Song("test", None, 15.0, curve, curve, (), "test")


def reading(folder: Path) -> str:
    """Into memory, files in the page cache."""
    count = len(read_corpus(folder).song_ids)
    seconds = interleaved({"read": lambda: read_corpus(folder)}, 5)["read"]
    speeds = np.sort(count / seconds)
    return f"{np.median(speeds):.0f} clips a second ({speeds[0]:.0f} to {speeds[-1]:.0f}; {count} clips)"


_FIRST_BATCH = """
import sys, jax, dsaml_jax.training as training
from dsaml_jax.cli import main
class Arrived(Exception): pass
def make_step(*_):
    def step(state, corpus, *_):
        jax.block_until_ready(corpus)
        raise Arrived
    return step
training.make_pdmer_step = make_step
try:
    main(sys.argv[1:])
except Arrived:
    sys.exit(0)
sys.exit(1)
"""


def first_batch(folder: Path, scratch: Path, *more: str) -> str:
    """Seconds from the start of the process to the first batch at the step."""
    seconds = []
    for number in range(3):
        command = [sys.executable, "-c", _FIRST_BATCH, "train", "--data", str(folder), "--quiet", "--workdir",
                   str(scratch / f"run{len(more)}{number}"), "--preset", "default", *more]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds.append(time.perf_counter() - start)
    return (
        f"{np.median(seconds):.1f} s (of three times: {min(seconds):.1f} to {max(seconds):.1f} s)"
    )


def main() -> None:
    """Runs everything and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=None, help="a folder with 8 GB to spare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        root = mp3_corpus(scratch)
        one = of_one_song(next(root.rglob("*.mp3")))
        minute = songs_a_minute(root, scratch)
        held = memory(root, scratch)
        table = formats(root, scratch)
        dataset = clips(scratch)
        size = sum(path.stat().st_size for path in dataset.glob("*.array_record*")) / 1e9
        text = f"""# Preparing and reading

{measured_on("numpy", "scipy", "soundfile", "tensorflow-datasets", "array_record", "grain", "jax")}

## One mp3 of 45 s, 30 s of it annotated, in one process

{one}

## `prepare`, from mp3 to shards

{SONGS} mp3 files of 45 s, spectral embedding per clip, processes started anew: {minute}.
Resident memory of the process that writes: {held}.

## How patches are stored

{table}

Chosen: float16, BYTES, `{RECORD_OPTIONS}`. Fields beside the patches: {", ".join(features_dict(CONFIG))}.

## Reading a prepared corpus ({size:.2f} GB)

Into memory: {reading(dataset)}.
From `dsaml train` to the first batch at the step, features in memory: {first_batch(dataset, scratch)}.
The same, streamed: {first_batch(dataset, scratch, "--stream-above", "0")}."""
    write_result("preparing", text)


if __name__ == "__main__":
    main()
