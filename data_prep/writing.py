"""Writes shards: ArrayRecord files, without TensorFlow, each by itself.

TFDS's own writer spills a split above 1000 MiB through TensorFlow. Here a shard is the unit of work: it is
written under another name, renamed when it is whole, and marked as done. So memory is flat in the number of
songs, an interrupted preparation goes on with the shards that are missing, and any engine that can map over
shards (processes here, or Apache Beam) writes the same files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.analysis import Embed, SongAnalysis, embedder
from data_prep.base import replacing
from data_prep.examples import (
    RECORD_OPTIONS,
    Job,
    analyse_job,
    make_example,
    to_record,
)
from data_prep.features import FeatureConfig
from data_prep.parallel import Progress, parallel_map

MARK_SUFFIX = ".done"
PART_SUFFIX = ".part"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to be written.

    Attributes:
      path: where.
      jobs: the songs in it.
    """

    path: str
    jobs: tuple[Job, ...]

    @property
    def mark(self) -> Path:
        """Exists once the shard is whole; holds its :class:`ShardResult` as JSON."""
        return Path(self.path + MARK_SUFFIX)


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What became of a shard.

    Attributes:
      file: its name.
      size: of the file, in bytes.
      bytes: of the records in it, as TFDS counts them.
      written: song id -> `sound`, see :func:`~data_prep.examples.sound_key`, and `steps`; in order.
      problems: one line for each song that is not in it.
    """

    file: str
    size: int
    bytes: int
    written: dict[str, dict[str, Any]]
    problems: list[str]

    def is_intact(self, folder: Path) -> bool:
        """Whether the file in `folder` is as long as it was when it was finished."""
        path = folder / self.file
        return path.is_file() and path.stat().st_size == self.size


Engine = Callable[[list[Shard], FeatureConfig, Path | None], None]
"""Writes shards, each by :func:`write_shard`. The path is that of ImageBind's weights."""


def local_engine(workers: int | None = None, progress: Progress | None = None) -> Engine:
    """All cores of this machine: processes decode and analyse, this one embeds and writes.

    Args:
      workers: processes; None takes all cores.
      progress: called with songs done and songs in all, those of finished shards not counted.
    """

    def run(shards: list[Shard], config: FeatureConfig, weights: Path | None) -> None:
        jobs = [(job, config) for shard in shards for job in shard.jobs]
        analysed = _counted(parallel_map(analyse_job, jobs, workers), len(jobs), progress)
        for shard in shards:
            write_shard(shard, config, embedder(config, weights), islice(analysed, len(shard.jobs)))

    return run


def _counted(items: Iterator[Any], total: int, progress: Progress | None) -> Iterator[Any]:
    for done, item in enumerate(items, start=1):
        if progress:
            progress(done, total)
        yield item


def write_shard(
    shard: Shard, config: FeatureConfig, embed: Embed | None, analysed: Iterable[SongAnalysis | str]
) -> None:
    """Writes one shard and marks it as done. May run twice at once: each attempt has its own file.

    Args:
      shard: what goes where.
      config: how features are made.
      embed: the network behind the embedding.
      analysed: what :func:`~data_prep.examples.analyse_job` made of each of its songs.

    Raises:
      OSError: it cannot be written.
    """
    part = Path(f"{shard.path}.{uuid.uuid4().hex}{PART_SUFFIX}")
    written: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    total = 0
    try:
        with _record_writer(part) as write:
            for job, analysis in zip(shard.jobs, analysed, strict=True):
                if isinstance(analysis, str):
                    problems.append(analysis)
                    continue
                example = make_example(job, analysis, embed)
                record = to_record(example, config)
                write(record)
                total += len(record)
                written[job.song.song_id] = {"sound": job.sound, "steps": len(example["mean"])}
        with part.open("rb") as file:
            os.fsync(file.fileno())
        size = part.stat().st_size
        os.replace(part, shard.path)
    finally:
        part.unlink(missing_ok=True)
    result = ShardResult(Path(shard.path).name, size, total, written, problems)
    with replacing(shard.mark) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(result)))


@contextmanager
def _record_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that appends a record; the file is complete after the block."""
    from array_record.python.array_record_module import ArrayRecordWriter

    @contextmanager
    def named() -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # how ArrayRecord says that a disk is full
            raise OSError(f"{path}: writing failed; is the disk full? ({error})") from None

    def write(record: bytes) -> None:
        with named():
            writer.write(record)

    with named():
        writer = ArrayRecordWriter(str(path), RECORD_OPTIONS)
    yield write
    with named():
        writer.close()


def read_marks(folder: Path) -> list[ShardResult]:
    """Results of the finished shards in a folder that is being prepared, as far as they are intact."""
    results = [
        ShardResult(**json.loads(mark.read_text()))
        for mark in sorted(folder.glob(f"[!.]*{MARK_SUFFIX}"))  # a hidden one is not finished
    ]
    return [result for result in results if result.is_intact(folder)]
