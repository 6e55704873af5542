"""A dataset's folder: what goes into it, what is there already, and what is known of it.

The folder appears complete, by a rename; until then shards are in `.preparing.*` beside it. What is found
there, or in an earlier state of the dataset, is used again: a song whose features are in a shard is not
decoded again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.base import (
    SPLITS,
    STEPS_PER_SECOND,
    AnnotatedCorpus,
    DataError,
    Song,
    copies,
    deal_splits,
    replacing,
)
from data_prep.card import write_card
from data_prep.examples import Job, features_dict, sound_key
from data_prep.features import FeatureConfig
from data_prep.listeners import describe_listeners
from data_prep.shards import FACTS_FILE, VERSION, read_facts, write_labels
from data_prep.statistics import describe_songs
from data_prep.validation import LIKE_MESSAGES, Checked
from data_prep.writing import (
    MARK_SUFFIX,
    PART_SUFFIX,
    Engine,
    Shard,
    ShardResult,
    read_marks,
)

SONGS_PER_SHARD = 16
"""A kill loses no more work than this; 12 MB of patches in float16."""

MOST_SHARDS = 120
"""Larger corpora have larger shards: readers keep every file open."""

_WORKING = f".preparing.{VERSION}."
_REPLACED = ".replaced."
OLDER = "older"
"""Folder beside a dataset: earlier states with other labels, by their fingerprint; to be named as `--data`."""


def write_dataset(
    corpus: AnnotatedCorpus,
    checked: Checked,
    out: Path,
    config: FeatureConfig,
    *,
    weights: Path | None = None,
    engine: Engine,
) -> Path:
    """Computes features and writes the dataset, or what is missing of it.

    Args:
      corpus: as read.
      checked: its songs that can be used.
      out: folder of prepared data.
      config: how features are made.
      weights: of ImageBind, for the embeddings that need them.
      engine: what runs the work.

    Returns:
      the dataset's folder.

    Raises:
      DataError: no song can be used; somebody else prepares it now; or the folder holds songs that
        would be lost.
    """
    import filelock

    if not checked.songs:
        raise DataError((checked.lines() or [f"{corpus.name} has no songs"])[0])
    songs = deal_splits(checked.songs, copies(checked.digests))
    folder = out / corpus.name / config.name / VERSION
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder.parent / ".lock", blocking=False):
            _prepare(corpus, checked, songs, folder, config, weights, engine)
    except filelock.Timeout:
        raise DataError(f"{folder.parent}: another command is preparing this right now") from None
    return folder


def _prepare(
    corpus: AnnotatedCorpus,
    checked: Checked,
    songs: tuple[Song, ...],
    folder: Path,
    config: FeatureConfig,
    weights: Path | None,
    engine: Engine,
) -> None:
    _undo_half_replaced(folder)
    identity = fingerprint(songs, checked.digests)
    sounds = {song.song_id: sound_key(song, checked.digests[song.song_id]) for song in songs}
    known, intact = _state(folder)
    working = folder.parent / f"{_WORKING}{identity}"
    if known == identity:
        place, finished = folder, intact  # complete, or to be mended where it is
    else:
        _require_nothing_lost(folder, intact, sounds)
        place, finished = working, read_marks(working)
        place.mkdir(exist_ok=True)
    made = _examples_elsewhere(folder, intact, place)
    jobs = [Job(song, sounds[song.song_id], made.get(sounds[song.song_id])) for song in songs]
    plan = _plan(place, corpus.name, jobs)
    results = {result.file: result for result in finished}
    todo = [shard for shard in plan if Path(shard.path).name not in results]
    if todo:
        engine(todo, config, weights)
        results |= {result.file: result for result in read_marks(place)}
    ordered = [results[Path(shard.path).name] for shard in plan]
    facts = _facts(corpus, checked, songs, identity, config, ordered)
    everything = checked.all_lines() if checked.is_shortened else ()
    _describe(place, facts, corpus, songs, ordered, config, everything, checked.digests)
    if place != folder:
        if folder.is_dir():
            os.replace(folder, folder.with_name(f"{_REPLACED}{identity}"))
        os.replace(working, folder)
    for file in folder.iterdir():
        if file.name.startswith(".") or file.suffix in (MARK_SUFFIX, PART_SUFFIX):
            file.unlink()  # marks, and what a kill has left half written
    for replaced in folder.parent.glob(f"{_REPLACED}*"):
        _keep_labels(replaced, folder)
    for stale in folder.parent.glob(".preparing.*"):
        shutil.rmtree(stale)


def fingerprint(songs: Iterable[Song], digests: Mapping[str, str]) -> str:
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
        kept = {rating.annotator_id for rating in song.ratings}
        for left_out in sorted(set(song.raters) - kept):  # their song has a mean that they are in
            digest.update(f"|{left_out}".encode())
    return digest.hexdigest()[:12]


# ---- What is there already.


def _undo_half_replaced(folder: Path) -> None:
    """After a kill between two renames the earlier dataset is under another name."""
    for old in folder.parent.glob(f"{_REPLACED}*"):
        if not folder.exists():
            os.replace(old, folder)


def _keep_labels(old: Path, new: Path) -> None:
    """Of a dataset whose place another has taken: kept where it differs in labels or splits alone.

    A model may have been trained on it, and wants to be judged by it. Where songs have come, it is part of the new one.
    """
    identity, shards = _state(old)
    _, others = _state(new)
    sounds, theirs = (
        {song: made["sound"] for result in results for song, made in result.written.items()}
        for results in (shards, others)
    )
    place = new.parent / OLDER / str(identity)
    if sounds == theirs and not place.exists():
        place.parent.mkdir(exist_ok=True)
        os.replace(old, place)
    else:
        shutil.rmtree(old)


def _state(folder: Path) -> tuple[str | None, list[ShardResult]]:
    """Fingerprint of a finished dataset and its intact shards; None and nothing where there is none."""
    try:
        facts = read_facts(folder)
        results = [ShardResult(**shard) for shard in facts["shards"]]
        return facts["fingerprint"], [x for x in results if x.is_intact(folder)]
    except (OSError, ValueError, KeyError, TypeError):
        return None, []


def _require_nothing_lost(
    folder: Path, finished: Sequence[ShardResult], sounds: Mapping[str, str]
) -> None:
    """A dataset is only replaced by one that holds its songs, and by the same corpus."""
    held = {song: made["sound"] for result in finished for song, made in result.written.items()}
    lost = sorted(held.keys() - sounds.keys())
    if lost:
        raise DataError(
            f"{folder} holds {len(lost)} songs that are not asked for, or have no sound, now ({lost[0]}, ...); "
            "delete it, or choose another --out"
        )
    if held and not set(held.values()) & set(sounds.values()):
        raise DataError(
            f"{folder} was made from other sound under the same names; delete it, or choose another "
            "--out or --name"
        )


def _examples_elsewhere(
    folder: Path, intact: list[ShardResult], place: Path
) -> dict[str, tuple[str, int]]:
    """Sound key -> shard and row, of earlier states of the dataset and of interrupted preparations.

    Args:
      folder: of the dataset.
      intact: its shards, see :func:`_state`.
      place: the folder that is written now; what it holds is left out.
    """
    made: dict[str, tuple[str, int]] = {}
    others = [(other, read_marks(other)) for other in folder.parent.glob(f"{_WORKING}*")]
    for other, results in [*others, (folder, intact)]:
        if other != place:
            for result in results:
                for row, song in enumerate(result.written.values()):
                    made[song["sound"]] = (str(other / result.file), row)
    return made


# ---- What goes into it.


def _template(folder: Path, name: str, split: str) -> Any:
    import tensorflow_datasets as tfds
    from etils import epath

    return tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=name,
        split=split,
        filetype_suffix="array_record",
    )


def _plan(folder: Path, name: str, jobs: list[Job]) -> list[Shard]:
    """Which songs go into which file, split by split."""
    per_shard = max(SONGS_PER_SHARD, -(-len(jobs) // MOST_SHARDS))
    plan = []
    for split in SPLITS:
        mine = [job for job in jobs if job.song.split == split]
        count = -(-len(mine) // per_shard)
        template = _template(folder, name, split)
        for i in range(count):
            path = template.sharded_filepath(shard_index=i, num_shards=count)
            plan.append(Shard(str(path), tuple(mine[i * per_shard : (i + 1) * per_shard])))
    return plan


def _facts(
    corpus: AnnotatedCorpus,
    checked: Checked,
    songs: Sequence[Song],
    identity: str,
    config: FeatureConfig,
    results: Sequence[ShardResult],
) -> dict[str, Any]:
    """Everything that is known of the dataset but its curves and features."""
    steps = _steps(results)
    problems = [problem for result in results for problem in result.problems]
    if not steps:
        raise DataError(problems[0])
    prepared = [song for song in songs if song.song_id in steps]
    return {
        "name": corpus.name,
        "fingerprint": identity,
        "provenance": dataclasses.asdict(corpus.provenance),
        "features": dataclasses.asdict(config),
        "songs": {split: sum(song.split == split for song in prepared) for split in SPLITS},
        "hours_prepared": {
            split: sum(steps[song.song_id] for song in prepared if song.split == split)
            / (STEPS_PER_SECOND * 3600)
            for split in SPLITS
        },
        "notes": [*corpus.notes, *_copies_note(copies(checked.digests))],
        "dropped": dict(corpus.dropped),
        "flat": {name: dataclasses.asdict(flat) for name, flat in corpus.flat.items()},
        "drawn": dataclasses.asdict(corpus.drawn) if corpus.drawn else None,
        "left_out": checked.lines() + problems,
        "statistics": describe_songs(corpus.songs),
        "listeners": describe_listeners(corpus.songs),
        "shards": [dataclasses.asdict(result) for result in results],
    }


def _copies_note(copy_of: Mapping[str, str]) -> list[str]:
    if not copy_of:
        return []
    named = [f"{name} = {first}" for name, first in copy_of.items()]
    more = f" and {len(named) - LIKE_MESSAGES} more" if len(named) > LIKE_MESSAGES else ""
    shown = ", ".join(named[:LIKE_MESSAGES])
    return [f"the same sound file under two names, in one part: {shown}{more}"]


def _steps(results: Iterable[ShardResult]) -> dict[str, int]:
    """Song id -> steps of its features, in the order of the shards."""
    return {song: made["steps"] for result in results for song, made in result.written.items()}


def _describe(
    folder: Path,
    facts: dict[str, Any],
    corpus: AnnotatedCorpus,
    songs: Sequence[Song],
    results: Sequence[ShardResult],
    config: FeatureConfig,
    left_out: Sequence[str],
    digests: Mapping[str, str],
) -> None:
    """Writes what stands beside the shards: TFDS's metadata, labels, the card, and the facts last."""
    import tensorflow_datasets as tfds

    of_split = {
        split: [result for result in results if f"-{split}.array_record" in result.file]
        for split in SPLITS
    }
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features_dict(config),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(result.written) for result in mine],
                num_bytes=sum(result.bytes for result in mine),
                filename_template=_template(folder, corpus.name, split),
            )
            for split, mine in of_split.items()
            if mine
        ],
        version=VERSION,
        check_data=False,
        description=f"{corpus.name}: {config.name}",
    )
    by_id = {song.song_id: song for song in songs}
    steps = _steps(results)
    prepared = [by_id[song] for song in steps]
    write_labels(folder, prepared, steps, digests)
    write_card(folder, facts, corpus.songs, prepared, everything=left_out)
    with replacing(folder / FACTS_FILE) as temporary:
        temporary.write_text(json.dumps(facts, indent=1))
