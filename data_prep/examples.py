"""One song, one example: what is computed of it, and how it is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from data_prep.analysis import Embed, SongAnalysis, analyse, finish
from data_prep.audio import load_audio
from data_prep.base import DataError, Song
from data_prep.curves import stack_curves
from data_prep.features import FeatureConfig

RECORD_OPTIONS = "group_size:1,uncompressed"
"""Of ArrayRecord: zstd:3 saves a third of the benchmark's float16 patches, and they are then read at random
three times slower (`experiments/results/preparing.md`)."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One song to be put into a shard.

    Attributes:
      song: with its sound and its split.
      sound: what its features are made of, see :func:`sound_key`.
      made: shard and row of an example that holds these features already.
    """

    song: Song
    sound: str
    made: tuple[str, int] | None = None


def sound_key(song: Song, digest: str) -> str:
    """Equal for equal features: the digest of the sound file and the stretch that is read."""
    return f"{digest}@{song.start:g}+{len(song.arousal)}"


@lru_cache(maxsize=4)
def features_dict(config: FeatureConfig) -> Any:
    """Names, shapes and types of an example, as TFDS features."""
    import tensorflow_datasets as tfds

    features = tfds.features

    def tensor(shape: tuple[int | None, ...], dtype: Any) -> Any:
        # The default encoding writes 6 examples a second; bytes write hundreds.
        return features.Tensor(shape=shape, dtype=dtype, encoding=features.Encoding.BYTES)

    return features.FeaturesDict(
        {
            "song_id": features.Text(),
            "sound": features.Text(),
            "log_mel": tensor((None, config.frames, config.mel_bands), np.dtype(config.dtype).type),
            "embedding": tensor((None, config.embedding_width), np.float32),
            "window_start": tensor((None,), np.int32),
            "mean": tensor((None, 2), np.float32),
            "annotator_ids": features.Sequence(features.Text()),
            "ratings": tensor((None, 2), np.float32),
        }
    )


def analyse_job(work: tuple[Job, FeatureConfig]) -> SongAnalysis | str:
    """Decodes a song and analyses it, or says in one line why it cannot be used."""
    job, config = work
    if job.made:
        return _made_before(*job.made, config)
    song = job.song
    if song.audio is None:
        return f"song {song.song_id}: no sound file"
    try:
        waveform, rate = load_audio(song.audio)
    except DataError as error:
        return str(error)
    try:
        analysis = analyse(waveform, rate, config, start=song.start, steps=len(song.arousal))
    except DataError as error:
        return f"{song.audio}: {error}"  # analyse() knows the waveform only
    return dataclasses.replace(analysis, log_mel=analysis.log_mel.astype(config.dtype))


def _made_before(shard: str, row: int, config: FeatureConfig) -> SongAnalysis:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(shard, "readahead_buffer_size:0")
    try:
        (example,) = read_examples(reader.read([row]), config)
    finally:
        reader.close()
    return SongAnalysis(example["log_mel"], example["window_start"], example["embedding"], None)


def to_record(example: dict[str, Any], config: FeatureConfig) -> bytes:
    """Bytes of an example, the same in every process: protobuf by itself shuffles the names."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = features_dict(config).serialize_example(example)
    proto: bytes = tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)
    return proto


def read_examples(records: Iterable[bytes], config: FeatureConfig) -> list[dict[str, Any]]:
    """Examples from their bytes."""
    features = features_dict(config)
    return [features.deserialize_example_np(record) for record in records]


def make_example(job: Job, analysis: SongAnalysis, embed: Embed | None) -> dict[str, Any]:
    """The example of a song: its features, and its curves cut to the length of its sound."""
    made = finish(analysis, embed)
    steps = len(made.log_mel)
    song = job.song
    ratings = [stack_curves(rating.arousal, rating.valence, steps) for rating in song.ratings]
    return {
        "song_id": song.song_id,
        "sound": job.sound,
        "log_mel": made.log_mel,
        "embedding": made.embedding,
        "window_start": made.window_start,
        "mean": stack_curves(song.arousal, song.valence, steps),
        "annotator_ids": [rating.annotator_id for rating in song.ratings],
        "ratings": np.concatenate([np.zeros((0, 2), np.float32), *ratings]),
    }
