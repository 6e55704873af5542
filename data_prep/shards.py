"""Reads prepared corpora: labels whole, features whole or song by song.

A dataset is the folder `OUT/<corpus>/<feature settings>/<version>/`: ArrayRecord shards with one example per
song, TFDS's metadata (so that `tfds.builder_from_directory` opens it like any dataset), `dataset.json` with
what is known of it, `labels.npz` with every curve in one place, and a data card. Features made with other
settings are in another folder and never read by mistake.
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from data_prep.base import DataError, Provenance, Song, replacing
from data_prep.curves import stack_curves
from data_prep.examples import read_examples
from data_prep.features import FeatureConfig, window_starts
from data_prep.parallel import Progress
from data_prep.plain import from_plain, parse_json

VERSION = "1.1.0"
FACTS_FILE = "dataset.json"
LABELS_FILE = "labels.npz"
_DAMAGE = (
    ValueError, KeyError, TypeError, IndexError, RuntimeError, OSError, EOFError, zipfile.BadZipFile
)  # fmt: skip

STREAM_ABOVE_GB = 8.0
"""Features of more than this many GB stay on disk and are streamed."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A prepared corpus, flat: songs and ratings of any length end to end.

    Letters: `n` steps of all songs together, `w` windows, `e` embeddings, `m` steps of all ratings; `N` songs,
    `R` ratings, `A` annotators.

    Attributes:
      name: of the corpus.
      features: how its features were made.
      fingerprint: of its songs, splits, curves and sound files.
      provenance: whose data it is.
      song_ids: N names.
      split: `[N]` of `train`, `validation`, `test`.
      sounds: N digests of the sound files; empty in data of versions that did not keep them.
      raters: `[N]` how many people drew each song, those included whose rating was left out; 0 where nobody knows.
      song_start: `[N]` first step of each song, int32.
      song_steps: `[N]` its length.
      mean: `[n, 2]` the corpus's own mean curve, NaN where missing.
      window_first, window_count: `[N]` where each song's windows begin in `window_start`, and how many.
      window_start: `[w]` first step of each window, counted from the song's start.
      embedding_first: `[N]` the song's first row of `embedding`.
      annotator_ids: A names.
      rating_song, rating_annotator: `[R]` indices.
      rating_first: `[R]` first row in `ratings`; the length is the song's.
      ratings: `[m, 2]` arousal and valence, NaN where missing.
      log_mel: `[n, F, M]` as stored; None where features are streamed.
      embedding: `[e, E]` one row per window, or per step; None likewise.
      store: reads the features of single songs.
      members: of several corpora as one (:func:`data_prep.several.join`), each by itself, without features; else none.
    """

    name: str
    features: FeatureConfig
    fingerprint: str
    provenance: Provenance
    song_ids: tuple[str, ...]
    split: np.ndarray
    sounds: tuple[str, ...]
    raters: np.ndarray
    song_start: np.ndarray
    song_steps: np.ndarray
    mean: np.ndarray
    window_first: np.ndarray
    window_count: np.ndarray
    window_start: np.ndarray
    embedding_first: np.ndarray
    annotator_ids: tuple[str, ...]
    rating_song: np.ndarray
    rating_annotator: np.ndarray
    rating_first: np.ndarray
    ratings: np.ndarray
    log_mel: np.ndarray | None
    embedding: np.ndarray | None
    store: FeatureStore
    members: tuple[Corpus, ...] = ()

    @property
    def embedding_counts(self) -> np.ndarray:
        """`[N]` rows that each song has in `embedding`."""
        return self.song_steps if self.features.embedding_per == "step" else self.window_count

    @property
    def each(self) -> tuple[Corpus, ...]:
        """Its members, or itself."""
        return self.members or (self,)


class FeatureStore:
    """Random access to the features of songs in shards.

    Attributes:
      paths: of the shards, in the order of the songs.
    """

    def __init__(self, paths: Sequence[Path], config: FeatureConfig):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.paths = tuple(paths)
        self._source = ArrayRecordDataSource([str(path) for path in paths])
        self._config = config

    def __len__(self) -> int:
        return len(self._source)

    def read(self, songs: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """`log_mel` `[n, F, M]` as stored and `embedding` `[e, E]` of each song, by index.

        Raises:
          DataError: shards are missing or damaged.
        """
        try:
            records = self._source.__getitems__(list(songs))
            examples = read_examples(records, self._config)
        except Exception as error:  # ArrayRecord and protobuf raise whatever they come across
            reason = " ".join(str(error).split())[:200]
            folders = ", ".join(dict.fromkeys(str(path.parent) for path in self.paths))
            raise DataError(
                f"{folders}: a shard is missing or damaged ({reason}); 'dsaml prepare' mends it"
            ) from None
        return [(example["log_mel"], example["embedding"]) for example in examples]


# ---- Labels: written once beside the shards, so that they are read without the features.


def write_labels(
    folder: Path, songs: Sequence[Song], steps: Mapping[str, int], digests: Mapping[str, str]
) -> None:
    """Writes every curve of the prepared songs.

    Args:
      folder: of the dataset.
      songs: in the order of the shards.
      steps: song id -> how many steps of sound there are for it.
      digests: song id -> digest of its sound file.
    """
    lengths = [steps[song.song_id] for song in songs]
    means, ratings, who, rated = [], [np.zeros((0, 2), np.float32)], [], []
    for index, (song, length) in enumerate(zip(songs, lengths, strict=True)):
        means.append(stack_curves(song.arousal, song.valence, length))
        for rating in song.ratings:
            ratings.append(stack_curves(rating.arousal, rating.valence, length))
            who.append(rating.annotator_id)
            rated.append(index)
    annotators, rating_annotator = np.unique(np.array(who, dtype=np.str_), return_inverse=True)
    arrays: dict[str, Any] = {
        "song_ids": np.array([song.song_id for song in songs]),
        "split": np.array([song.split for song in songs]),
        "sound": np.array([digests[song.song_id] for song in songs]),
        "raters": np.array([len(song.raters) for song in songs], np.int32),
        "song_steps": np.array(lengths, np.int32),
        "mean": np.concatenate(means),
        "annotator_ids": annotators,
        "rating_song": np.array(rated, np.int32),
        "rating_annotator": rating_annotator.astype(np.int32),
        "ratings": np.concatenate(ratings),
    }
    with replacing(folder / LABELS_FILE) as temporary:
        np.savez(temporary, **arrays)


def read_facts(folder: Path) -> dict[str, Any]:
    """What is known of a prepared dataset beside its curves and features."""
    facts: dict[str, Any] = parse_json((folder / FACTS_FILE).read_text())
    return facts


def find_dataset(data: Path) -> Path:
    """The dataset's folder in `data`, which may be that folder or any above it.

    Raises:
      DataError: there is none, or more than one.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; 'dsaml prepare' makes one")
    if (data / FACTS_FILE).is_file():
        return data
    found = sorted(
        path.parent
        for path in data.glob(f"**/{VERSION}/{FACTS_FILE}")
        if not any(part.startswith(".") for part in path.relative_to(data).parts)
    )
    if not found:
        raise DataError(f"{data}: holds no prepared dataset; 'dsaml prepare' makes one")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(data)) for path in found)
        raise DataError(f"{data}: holds several datasets; name one of: {names}")
    return found[0]


def read_corpus(
    data: Path | str,
    *,
    stream_above_gb: float = STREAM_ABOVE_GB,
    progress: Progress | None = None,
) -> Corpus:
    """Reads a prepared dataset.

    Args:
      data: folder of the dataset, or one above it.
      stream_above_gb: features of more GB than this are left on disk; `Corpus.log_mel` is None then.
      progress: called with songs read and songs in all.

    Raises:
      DataError: no dataset, or one that is damaged.
    """
    return with_features(read_labels(data), stream_above_gb, progress)


def read_labels(data: Path | str) -> Corpus:
    """Reads a prepared dataset as far as it is no features; arguments and errors as of :func:`read_corpus`."""
    folder = find_dataset(Path(data))
    try:
        facts = read_facts(folder)
        config = from_plain(FeatureConfig, facts["features"])
        shards = [folder / shard["file"] for shard in facts["shards"] if shard["written"]]
        with np.load(folder / LABELS_FILE, allow_pickle=False) as labels:
            return _labels_only(facts, config, dict(labels), FeatureStore(shards, config))
    except _DAMAGE as error:
        raise _damaged(folder, error) from error


def with_features(
    corpus: Corpus, stream_above_gb: float = STREAM_ABOVE_GB, progress: Progress | None = None
) -> Corpus:
    """A corpus with its features in memory, unless they are larger than so many GB.

    Raises:
      DataError: they are damaged.
    """
    if feature_bytes(corpus) > stream_above_gb * 1e9:
        return corpus
    try:
        everything = read_features(corpus, np.arange(len(corpus.song_ids)), progress)
    except _DAMAGE as error:
        raise _damaged(corpus.store.paths[0].parent, error) from error
    return dataclasses.replace(corpus, log_mel=everything.log_mel, embedding=everything.embedding)


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder}: damaged dataset ({error}); prepare it again")


def feature_bytes(corpus: Corpus) -> int:
    """Size of all log-mel patches and embeddings in memory."""
    patch = corpus.features.frames * corpus.features.mel_bands
    patches = int(corpus.song_steps.sum()) * patch * np.dtype(corpus.features.dtype).itemsize
    return patches + corpus.embedding_counts.sum() * corpus.features.embedding_width * 4


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of some songs of a corpus, end to end.

    Attributes:
      log_mel: `[n, F, M]` as stored.
      embedding: `[e, E]`.
      feature_start: `[N]` first row of each song in `log_mel`; 0 for songs that are not here.
      embedding_first: `[N]` first row in `embedding`, likewise.
    """

    log_mel: np.ndarray
    embedding: np.ndarray
    feature_start: np.ndarray
    embedding_first: np.ndarray


def read_features(corpus: Corpus, songs: np.ndarray, progress: Progress | None = None) -> Features:
    """Reads the features of songs, each copied once to where it belongs.

    Args:
      corpus: whose shards.
      songs: indices, in increasing order.
      progress: called with songs read and songs in all.
    """
    config = corpus.features
    steps, rows = corpus.song_steps[songs], corpus.embedding_counts[songs]
    shape = (int(steps.sum()), config.frames, config.mel_bands)
    log_mel = _aligned_empty(shape, config.dtype)
    embedding = _aligned_empty((int(rows.sum()), config.embedding_width), np.float32)
    feature_start, embedding_first = (np.zeros(len(corpus.song_ids), np.int32) for _ in range(2))
    feature_start[songs], embedding_first[songs] = starts_of(steps), starts_of(rows)
    for first in range(0, len(songs), _SONGS_AT_ONCE):
        some = songs[first : first + _SONGS_AT_ONCE]
        for song, (patches, vectors) in zip(some, corpus.store.read(some.tolist()), strict=True):
            start, place = feature_start[song], embedding_first[song]
            log_mel[start : start + corpus.song_steps[song]] = patches
            embedding[place : place + len(vectors)] = vectors
        if progress:
            progress(first + len(some), len(songs))
    return Features(log_mel, embedding, feature_start, embedding_first)


def features_of(corpus: Corpus, songs: np.ndarray) -> Features:
    """The features of songs, and perhaps of others: those in memory, else read."""
    if corpus.log_mel is None or corpus.embedding is None:
        return read_features(corpus, np.unique(songs))
    return Features(corpus.log_mel, corpus.embedding, corpus.song_start, corpus.embedding_first)


_SONGS_AT_ONCE = 16


def _aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """As `np.empty`, beginning at a multiple of 64 bytes: JAX on a CPU takes such an array as it is.

    Any other it copies, which takes longer than reading the shards.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(dtype).reshape(shape)


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where pieces of these lengths begin that lie end to end, `[k]` int32."""
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)


def _labels_only(
    facts: dict[str, Any], config: FeatureConfig, labels: dict[str, np.ndarray], store: FeatureStore
) -> Corpus:
    steps = labels["song_steps"]
    windows = [window_starts(int(n)) for n in steps]
    window_count = np.array([len(starts) for starts in windows], np.int32)
    rated = labels["rating_song"]
    if len(store) != len(steps):
        raise ValueError(f"{len(steps)} songs have labels, {len(store)} have features")
    return Corpus(
        name=facts["name"],
        features=config,
        fingerprint=facts["fingerprint"],
        provenance=from_plain(Provenance, facts["provenance"]),
        song_ids=tuple(labels["song_ids"].tolist()),
        split=labels["split"],
        sounds=tuple(labels.get("sound", np.full(len(steps), "")).tolist()),
        raters=labels.get("raters", np.bincount(rated, minlength=len(steps))),
        song_start=starts_of(steps),
        song_steps=steps,
        mean=labels["mean"],
        window_first=starts_of(window_count),
        window_count=window_count,
        window_start=np.concatenate(windows),
        embedding_first=starts_of(steps if config.embedding_per == "step" else window_count),
        annotator_ids=tuple(labels["annotator_ids"].tolist()),
        rating_song=rated,
        rating_annotator=labels["rating_annotator"],
        rating_first=starts_of(steps[rated]) if len(rated) else np.zeros(0, np.int32),
        ratings=labels["ratings"],
        log_mel=None,
        embedding=None,
        store=store,
    )
