"""TFDS shards of features and annotations: ArrayRecord files, written and read without TensorFlow.

One example is one song. The folder is `OUT/<corpus>/<feature settings>/<version>/`, so features made with
other settings are never read by mistake, and `tfds.builder_from_directory` opens it like any dataset.

TFDS's own writer spills a split above 1000 MiB through TensorFlow. Here every shard is written by itself
with `ArrayRecordWriter` and the dataset's metadata last, which has no such limit and keeps memory flat.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.audio import load_audio
from data_prep.base import (
    SPLITS,
    STEPS_PER_SECOND,
    AnnotatedCorpus,
    DataError,
    Song,
    Split,
)
from data_prep.features import FeatureConfig, log_mel, song_features
from data_prep.parallel import parallel_map

VERSION = "1.0.0"
SONGS_PER_SHARD = 64
_CARD = "corpus.json"

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A prepared corpus in memory, flat: songs and ratings of any length end to end.

    Letters: `n` steps of all songs together, `w` windows, `e` embeddings, `m` steps of all ratings; `N` songs,
    `R` ratings, `A` annotators.

    Attributes:
      name: of the corpus.
      features: how its features were made.
      fingerprint: of its songs, splits, curves and sound files; see :func:`fingerprint`.
      licence, notes: from the reader of the corpus, and what could not be used.
      song_ids: N names.
      split: `[N]` of `train`, `validation`, `test`.
      song_start: `[N]` first step of each song, int32.
      song_steps: `[N]` its length.
      log_mel: `[n, F, M]` as stored.
      mean: `[n, 2]` the corpus's own mean curve, NaN where missing.
      window_first, window_count: `[N]` where each song's windows begin in `window_start`, and how many.
      window_start: `[w]` first step of each window, counted from the song's start.
      embedding_first: `[N]` the song's first row of `embedding`.
      embedding: `[e, E]` one row per window, or per step.
      annotator_ids: A names.
      rating_song, rating_annotator: `[R]` indices.
      rating_first: `[R]` first row in `ratings`; the length is the song's.
      ratings: `[m, 2]` arousal and valence, NaN where missing.
    """

    name: str
    features: FeatureConfig
    fingerprint: str
    licence: str
    notes: tuple[str, ...]
    song_ids: tuple[str, ...]
    split: np.ndarray
    song_start: np.ndarray
    song_steps: np.ndarray
    log_mel: np.ndarray
    mean: np.ndarray
    window_first: np.ndarray
    window_count: np.ndarray
    window_start: np.ndarray
    embedding_first: np.ndarray
    embedding: np.ndarray
    annotator_ids: tuple[str, ...]
    rating_song: np.ndarray
    rating_annotator: np.ndarray
    rating_first: np.ndarray
    ratings: np.ndarray


def write_shards(
    corpus: AnnotatedCorpus,
    out: Path,
    config: FeatureConfig,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Computes features and writes the dataset, or finds the finished one.

    Songs whose audio cannot be used are left out with a note, unless none is left.

    Args:
      corpus: what to prepare.
      out: folder of prepared data.
      config: how features are made.
      workers: processes; None takes all cores.
      progress: called with songs done and songs in all.

    Returns:
      the dataset's folder; it appears complete or not at all.
    """
    folder = out / corpus.name / config.name / VERSION
    description = _description(corpus)
    if (folder / _CARD).is_file():
        if read_card(folder)["fingerprint"] == description["fingerprint"]:
            return folder
        raise DataError(
            f"{folder} was made from other files of {corpus.name}; delete it or choose another --out"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".preparing."))
    try:
        _write_dataset(corpus, temporary, config, description, workers, progress)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _description(corpus: AnnotatedCorpus) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "licence": corpus.licence,
        "notes": list(corpus.notes),
        "fingerprint": fingerprint(corpus),
    }


def fingerprint(corpus: AnnotatedCorpus) -> str:
    """Twelve hexadecimal digits over song ids, splits, curves, raters and sizes of the sound files."""
    digest = hashlib.sha256()
    for song in corpus.songs:
        size = song.audio.stat().st_size if song.audio.is_file() else -1
        digest.update(f"{song.song_id}|{song.split}|{song.start}|{size}|".encode())
        for curve in (song.arousal, song.valence):
            digest.update(curve.astype("<f4").tobytes())
        for rating in song.ratings:
            digest.update(rating.annotator_id.encode())
            digest.update(rating.arousal.astype("<f4").tobytes())
            digest.update(rating.valence.astype("<f4").tobytes())
    return digest.hexdigest()[:12]


def read_card(folder: Path) -> dict[str, Any]:
    """What is known of a prepared dataset beside its examples: name, licence, notes, songs."""
    return json.loads((folder / _CARD).read_text())


def _features_dict(config: FeatureConfig) -> Any:
    import tensorflow_datasets as tfds

    features = tfds.features

    def tensor(shape: tuple[int | None, ...], dtype: Any) -> Any:
        # The default encoding writes 6 examples a second; bytes write 129.
        return features.Tensor(shape=shape, dtype=dtype, encoding=features.Encoding.BYTES)

    return features.FeaturesDict(
        {
            "song_id": features.Text(),
            "log_mel": tensor((None, config.frames, config.mel_bands), np.dtype(config.dtype).type),
            "embedding": tensor((None, config.embedding_width), np.float32),
            "window_start": tensor((None,), np.int32),
            "mean": tensor((None, 2), np.float32),
            "annotator_ids": features.Sequence(features.Text()),
            "ratings": tensor((None, 2), np.float32),
        }
    )


def _make_example(job: tuple[Song, FeatureConfig]) -> dict[str, Any] | str:
    """A song's example, or why it cannot be used."""
    song, config = job
    try:
        waveform, rate = load_audio(song.audio)
        waveform = waveform[round(song.start * rate) :]
        if len(waveform) < rate / STEPS_PER_SECOND:
            raise DataError(f"{song.audio}: ends before the annotations begin at {song.start:g} s")
        steps = len(song.arousal)
        wanted = int(np.ceil(steps / STEPS_PER_SECOND * rate))
        patches = log_mel(waveform[:wanted], rate, config)
    except DataError as error:
        return str(error)
    steps = min(steps, len(patches))
    made = song_features(patches[:steps], config)

    def curves(arousal: np.ndarray, valence: np.ndarray) -> np.ndarray:
        return np.stack([arousal[:steps], valence[:steps]], axis=-1).astype(np.float32)

    ratings = [curves(rating.arousal, rating.valence) for rating in song.ratings]
    return {
        "song_id": song.song_id,
        "log_mel": made.log_mel.astype(config.dtype),
        "embedding": made.embedding,
        "window_start": made.window_start,
        "mean": curves(song.arousal, song.valence),
        "annotator_ids": [rating.annotator_id for rating in song.ratings],
        "ratings": np.concatenate([np.zeros((0, 2), np.float32), *ratings]),
    }


def _write_dataset(
    corpus: AnnotatedCorpus,
    folder: Path,
    config: FeatureConfig,
    description: dict[str, Any],
    workers: int | None,
    progress: Progress | None,
) -> None:
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from etils import epath

    features = _features_dict(config)
    problems: list[str] = []
    splits = []
    done = 0
    for split in SPLITS:
        songs = [song for song in corpus.songs if song.split == split]
        shards = max(1, -(-len(songs) // SONGS_PER_SHARD))
        template = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(folder),
            dataset_name=corpus.name,
            split=split,
            filetype_suffix="array_record",
        )
        examples = parallel_map(_make_example, [(song, config) for song in songs], workers)
        lengths, size = [], 0
        for shard in range(shards):
            path = template.sharded_filepath(shard_index=shard, num_shards=shards)
            writer = ArrayRecordWriter(str(path), "group_size:1")
            written = 0
            try:
                for example in _take(examples, SONGS_PER_SHARD):
                    done += 1
                    if progress:
                        progress(done, len(corpus.songs))
                    if isinstance(example, str):
                        problems.append(example)
                        continue
                    record = features.serialize_example(example)
                    writer.write(record)
                    written += 1
                    size += len(record)
                writer.close()
            except RuntimeError as error:  # how ArrayRecord says that a disk is full
                raise OSError(f"{path}: writing failed; is the disk full? ({error})") from None
            lengths.append(written)
        splits.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    if not sum(sum(split.shard_lengths) for split in splits):
        raise DataError(problems[0] if problems else "the corpus has no songs")
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=splits,
        check_data=False,
        description=f"{corpus.name}: {config.name}",
    )
    card = description | {"features": dataclasses.asdict(config)}
    card["notes"] = description["notes"] + [f"left out: {problem}" for problem in problems]
    card["songs"] = {split.name: sum(split.shard_lengths) for split in splits}
    (folder / _CARD).write_text(json.dumps(card, indent=1))


def _take(items: Iterator[Any], count: int) -> Iterator[Any]:
    for _, item in zip(range(count), items, strict=False):
        yield item


def find_dataset(data: Path) -> Path:
    """The dataset's folder in `data`, which may be that folder or any above it.

    Raises:
      DataError: there is none, or more than one.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; 'dsaml prepare' makes one")
    if (data / _CARD).is_file():
        return data
    found = sorted(
        path.parent
        for path in data.glob(f"**/{VERSION}/{_CARD}")
        if not any(part.startswith(".") for part in path.relative_to(data).parts)
    )
    if not found:
        raise DataError(f"{data}: holds no prepared dataset; 'dsaml prepare' makes one")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(data)) for path in found)
        raise DataError(f"{data}: holds several datasets; name one of: {names}")
    return found[0]


def read_corpus(data: Path) -> Corpus:
    """Reads a prepared dataset into memory.

    Args:
      data: folder of the dataset, or one above it.

    Raises:
      DataError: no dataset, or one that is damaged.
    """
    folder = find_dataset(data)
    try:
        card = read_card(folder)
        config = FeatureConfig(**card["features"])
        examples, splits = _read_examples(folder)
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        raise DataError(f"{folder}: damaged dataset ({error}); prepare it again") from error
    return _flatten(card, config, examples, splits)


def _read_examples(folder: Path) -> tuple[list[dict[str, Any]], list[Split]]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    examples: list[dict[str, Any]] = []
    splits: list[Split] = []
    for split in SPLITS:
        if builder.info.splits[split].num_examples:
            source = builder.as_data_source(split)
            examples += list(source)
            splits += [split] * len(source)
    return examples, splits


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)


def _flatten(
    card: dict[str, Any],
    config: FeatureConfig,
    examples: list[dict[str, Any]],
    splits: list[Split],
) -> Corpus:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([example[name] for example in examples])

    def lengths(name: str) -> np.ndarray:
        return np.array([len(example[name]) for example in examples], np.int32)

    steps = lengths("log_mel")
    raters = [[name.decode() for name in example["annotator_ids"]] for example in examples]
    annotators = tuple(sorted({name for names in raters for name in names}))
    index = {name: i for i, name in enumerate(annotators)}
    rating_song = np.repeat(np.arange(len(examples)), [len(names) for names in raters])
    return Corpus(
        name=card["name"],
        features=config,
        fingerprint=card["fingerprint"],
        licence=card["licence"],
        notes=tuple(card["notes"]),
        song_ids=tuple(example["song_id"].decode() for example in examples),
        split=np.array(splits),
        song_start=_starts(steps),
        song_steps=steps,
        log_mel=joined("log_mel"),
        mean=joined("mean"),
        window_first=_starts(lengths("window_start")),
        window_count=lengths("window_start"),
        window_start=joined("window_start"),
        embedding_first=_starts(lengths("embedding")),
        embedding=joined("embedding"),
        annotator_ids=annotators,
        rating_song=rating_song.astype(np.int32),
        rating_annotator=np.array([index[n] for names in raters for n in names], np.int32),
        rating_first=_starts(steps[rating_song]) if len(rating_song) else np.zeros(0, np.int32),
        ratings=joined("ratings"),
    )
