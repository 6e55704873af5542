"""Writes TFDS shards: ArrayRecord files, without TensorFlow, one shard at a time.

TFDS's own writer spills a split above 1000 MiB through TensorFlow. Here a shard is the unit of work: it is
written whole, marked as done, and the dataset's metadata comes last. So memory is flat in the number of
songs, an interrupted preparation goes on with the shards that are missing, and any engine that can map over
shards (processes here, or Apache Beam) writes the same files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.base import SPLITS, STEPS_PER_SECOND, AnnotatedCorpus, DataError, Song, deal_splits
from data_prep.card import write_card
from data_prep.examples import (
    RECORD_OPTIONS,
    Job,
    analyse_job,
    features_dict,
    make_example,
    sound_key,
)
from data_prep.features import Embed, FeatureConfig, SongAnalysis, embedder
from data_prep.parallel import Progress, parallel_map
from data_prep.shards import FACTS_FILE, VERSION, read_facts, write_labels
from data_prep.statistics import describe_songs
from data_prep.validation import Checked

SONGS_PER_SHARD = 16
"""A kill loses no more work than this; 12 MB of patches in float16."""


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
        """Exists once the shard is whole; holds what became of it as JSON."""
        return Path(self.path + ".done")


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
    """Writes one shard and marks it as done.

    Args:
      shard: what goes where.
      config: how features are made.
      embed: the network behind the embedding.
      analysed: what :func:`~data_prep.examples.analyse_job` made of each of its songs.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    written: dict[str, dict[str, str | int]] = {}
    problems: list[str] = []
    size = 0
    try:
        writer = ArrayRecordWriter(shard.path, RECORD_OPTIONS)
        for job, analysis in zip(shard.jobs, analysed, strict=True):
            if isinstance(analysis, str):
                problems.append(analysis)
                continue
            example = make_example(job, analysis, embed)
            record = features_dict(config).serialize_example(example)
            writer.write(record)
            size += len(record)
            written[job.song.song_id] = {"sound": job.sound, "steps": len(example["mean"])}
        writer.close()
    except RuntimeError as error:  # how ArrayRecord says that a disk is full
        raise OSError(f"{shard.path}: writing failed; is the disk full? ({error})") from None
    with open(shard.path, "rb") as file:
        os.fsync(file.fileno())
    mark = shard.mark.with_suffix(".part")
    with mark.open("w") as file:
        json.dump({"written": written, "problems": problems, "bytes": size}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(mark, shard.mark)


def fingerprint(songs: Iterable[Song], digests: dict[str, str]) -> str:
    """Twelve hexadecimal digits over song ids, splits, curves, raters and sound files."""
    digest = hashlib.sha256()
    for song in songs:
        digest.update(
            f"{song.song_id}|{song.split}|{sound_key(song, digests[song.song_id])}|".encode()
        )
        for curve in (song.arousal, song.valence):
            digest.update(curve.astype("<f4").tobytes())
        for rating in song.ratings:
            digest.update(rating.annotator_id.encode())
            digest.update(rating.arousal.astype("<f4").tobytes())
            digest.update(rating.valence.astype("<f4").tobytes())
    return digest.hexdigest()[:12]


def write_dataset(
    corpus: AnnotatedCorpus,
    checked: Checked,
    out: Path,
    config: FeatureConfig,
    *,
    weights: Path | None = None,
    engine: Engine,
) -> Path:
    """Computes features and writes the dataset, or finds the finished one.

    The same call goes on after an interruption. Where the corpus has grown, or its labels have changed,
    songs that were prepared before are not decoded again.

    Args:
      corpus: as read.
      checked: its songs that can be used.
      out: folder of prepared data.
      config: how features are made.
      weights: of ImageBind, for the embeddings that need them.
      engine: what runs the work.

    Returns:
      the dataset's folder; it appears complete or not at all.

    Raises:
      DataError: no song can be used; somebody else prepares it now; or the folder holds songs that
        would be lost.
    """
    import filelock

    if not checked.songs:
        raise DataError((checked.lines() or [f"{corpus.name} has no songs"])[0])
    songs = deal_splits(checked.songs)
    identity = fingerprint(songs, checked.digests)
    folder = out / corpus.name / config.name / VERSION
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.parent / ".lock", blocking=False)
    try:
        with lock:
            made = _finished_examples(folder, identity, songs, checked.digests)
            if made is None:
                return folder
            _prepare(corpus, checked, songs, identity, folder, made, config, weights, engine)
    except filelock.Timeout:
        raise DataError(f"{folder.parent}: another command is preparing this right now") from None
    return folder


def _finished_examples(
    folder: Path, identity: str, songs: tuple[Song, ...], digests: dict[str, str]
) -> dict[str, tuple[str, int]] | None:
    """Sound key -> shard and row of what an earlier preparation holds; None: nothing is to be done."""
    if not (folder / FACTS_FILE).is_file():
        return {}
    facts = read_facts(folder)
    if facts["fingerprint"] == identity:
        return None
    names = {song.song_id for song in songs}
    lost = [song for shard in facts["shards"] for song in shard["written"] if song not in names]
    if lost:
        raise DataError(
            f"{folder} holds {len(lost)} songs that are not asked for now ({lost[0]}, ...); "
            "delete it, or choose another --out"
        )
    return {
        song["sound"]: (str(folder / shard["file"]), row)
        for shard in facts["shards"]
        for row, song in enumerate(shard["written"].values())
    }


def _prepare(
    corpus: AnnotatedCorpus,
    checked: Checked,
    songs: tuple[Song, ...],
    identity: str,
    folder: Path,
    made: dict[str, tuple[str, int]],
    config: FeatureConfig,
    weights: Path | None,
    engine: Engine,
) -> None:
    working = folder.parent / f".preparing.{identity}"
    for stale in folder.parent.glob(".preparing.*"):
        if stale != working:
            shutil.rmtree(stale)
    working.mkdir(exist_ok=True)
    jobs = []
    for song in songs:
        sound = sound_key(song, checked.digests[song.song_id])
        jobs.append(Job(song, sound, made.get(sound)))
    plan = _plan(working, corpus.name, jobs)
    todo = [shard for shards in plan.values() for shard in shards if not shard.mark.is_file()]
    if todo:
        engine(todo, config, weights)
    _write_facts(corpus, checked, songs, identity, working, plan, config)
    for mark in working.glob("*.done"):
        mark.unlink()
    old = folder.with_name(f".replaced.{identity}")
    if folder.is_dir():
        os.replace(folder, old)
    os.replace(working, folder)
    shutil.rmtree(old, ignore_errors=True)


def _template(folder: Path, name: str, split: str) -> Any:
    import tensorflow_datasets as tfds
    from etils import epath

    return tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=name,
        split=split,
        filetype_suffix="array_record",
    )


def _plan(folder: Path, name: str, jobs: list[Job]) -> dict[str, list[Shard]]:
    """Which songs go into which file of which split."""
    plan: dict[str, list[Shard]] = {}
    for split in SPLITS:
        mine = [job for job in jobs if job.song.split == split]
        count = max(1, -(-len(mine) // SONGS_PER_SHARD))
        template = _template(folder, name, split)
        plan[split] = [
            Shard(
                str(template.sharded_filepath(shard_index=i, num_shards=count)),
                tuple(mine[i * SONGS_PER_SHARD : (i + 1) * SONGS_PER_SHARD]),
            )
            for i in range(count)
        ]
    return plan


def _write_facts(
    corpus: AnnotatedCorpus,
    checked: Checked,
    songs: tuple[Song, ...],
    identity: str,
    folder: Path,
    plan: dict[str, list[Shard]],
    config: FeatureConfig,
) -> None:
    """TFDS's metadata, the facts that training reads, and the data card."""
    import tensorflow_datasets as tfds

    results = {
        split: [json.loads(shard.mark.read_text()) for shard in shards]
        for split, shards in plan.items()
    }
    flat = [result for shards in results.values() for result in shards]
    problems = [problem for result in flat for problem in result["problems"]]
    if not any(result["written"] for result in flat):
        raise DataError(problems[0])
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(result["written"]) for result in shards],
            num_bytes=sum(result["bytes"] for result in shards),
            filename_template=_template(folder, corpus.name, split),
        )
        for split, shards in results.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features_dict(config),
        split_infos=splits,
        check_data=False,
        description=f"{corpus.name}: {config.name}",
    )
    written = {song: made for result in flat for song, made in result["written"].items()}
    by_id = {song.song_id: song for song in songs}
    prepared = [by_id[song] for song in written]
    write_labels(folder, prepared, {song: made["steps"] for song, made in written.items()})
    facts = {
        "name": corpus.name,
        "fingerprint": identity,
        "provenance": dataclasses.asdict(corpus.provenance),
        "features": dataclasses.asdict(config),
        "songs": {split.name: sum(split.shard_lengths) for split in splits},
        "hours_prepared": {
            split: sum(written[song.song_id]["steps"] for song in prepared if song.split == split)
            / (STEPS_PER_SECOND * 3600)
            for split in SPLITS
        },
        "notes": list(corpus.notes),
        "dropped": dict(corpus.dropped),
        "left_out": checked.lines() + problems,
        "statistics": describe_songs(corpus.songs),
        "shards": [
            {"file": Path(shard.path).name, "written": result["written"]}
            for shard, result in zip(
                (shard for shards in plan.values() for shard in shards), flat, strict=True
            )
        ],
    }
    write_card(folder, facts, corpus.songs, prepared)
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1))
