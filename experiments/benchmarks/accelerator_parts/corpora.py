"""A made-up corpus in memory, of the shape of DEAM: what training reads when nothing has been prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from accelerator_parts.sizes import Size
from data_prep.base import WINDOW_STEPS, Provenance
from data_prep.features import WINDOW_HOP, FeatureConfig
from data_prep.shards import Corpus
from dsaml_jax.config import RunConfig, preset
from dsaml_jax.corpus import Drawn, TaskArrays, batches, drawing, held_out, pool_of, to_device

FEATURES = FeatureConfig(embedding="spectral")
"""1,024 numbers, as many as ImageBind's."""


class MemoryCorpus:
    """Features and curves of songs that everybody rated, in numpy and on the device.

    Attributes:
      corpus: as read from shards.
      device: the same on the device.
      item_bytes: of a number in the stored patches.
    """

    def __init__(self, size: Size) -> None:
        """Draws it."""
        self.corpus = made_up(size.songs, size.annotators, size.song_steps)
        part = held_out(self.corpus)["train"]
        self._part, self._target = part, self.corpus.mean
        self._pool = pool_of(self.corpus, part.ratings, min_songs=size.queries + 1)
        self._size = size
        self.device = to_device(self.corpus, self._target)
        assert self.corpus.log_mel is not None
        self.item_bytes = self.corpus.log_mel.itemsize
        self.draw_for(run_config(size))

    def draw_for(self, config: RunConfig) -> None:
        """Draws tasks as this configuration says."""
        self._draw = drawing(config, self._pool, self.corpus, self._part, self._target)

    def draw(self, step: int) -> TaskArrays:
        """Tasks of a step."""
        drawn = self._draw(step)
        assert isinstance(drawn, TaskArrays)
        return drawn

    def batches(self, stop: int, together: int) -> Iterator[tuple[Any, Drawn]]:
        """As the trainer gets them: steps 1 to `stop - 1`, so many in one item."""
        return iter(batches(self.corpus, self._target, self.device, self._draw, 1, stop, together))


def made_up(songs: int, annotators: int, steps: int) -> Corpus:
    """A corpus of `songs` songs of `steps` half seconds, each rated by all the annotators."""
    random = np.random.default_rng(0)
    features = FEATURES
    starts = np.arange(0, steps - WINDOW_STEPS + 1, WINDOW_HOP, dtype=np.int32)
    windows, count = len(starts), songs * annotators
    patches = random.standard_normal(
        (songs * steps, features.frames, features.mel_bands), np.float32
    )
    walks = np.cumsum(random.standard_normal((count, steps, 2), np.float32), axis=1) / 20
    curves = np.clip(walks, -1, 1)
    number = np.arange(songs, dtype=np.int32)
    return Corpus(
        name="made-up",
        features=features,
        fingerprint="",
        provenance=Provenance("", "", "", ""),
        song_ids=tuple(f"song{i}" for i in range(songs)),
        # A tenth each for validation and test.
        split=np.where(number % 10 == 0, "test", np.where(number % 10 == 1, "validation", "train")),
        sounds=("",) * songs,
        raters=np.full(songs, annotators, np.int32),
        song_start=number * steps,
        song_steps=np.full(songs, steps, np.int32),
        mean=curves.reshape(annotators, songs, steps, 2).mean(0).reshape(-1, 2),
        window_first=number * windows,
        window_count=np.full(songs, windows, np.int32),
        window_start=np.tile(starts, songs),
        embedding_first=number * windows,
        annotator_ids=tuple(f"listener{i}" for i in range(annotators)),
        rating_song=np.tile(number, annotators),
        rating_annotator=np.repeat(np.arange(annotators, dtype=np.int32), songs),
        rating_first=np.arange(count, dtype=np.int32) * steps,
        ratings=curves.reshape(-1, 2),
        log_mel=(patches * 2.5 - 4).astype(features.dtype),
        embedding=random.standard_normal((songs * windows, features.embedding_width), np.float32),
        store=_NoStore(),  # type: ignore[arg-type]
    )


class _NoStore:
    """Nothing is on disk."""


def run_config(size: Size) -> RunConfig:
    """The reference's settings at this size, without dropout."""
    reference = preset("reference")
    return RunConfig(
        model=dataclasses.replace(size.model, embedding_width=FEATURES.embedding_width),
        meta=dataclasses.replace(
            reference.meta, tasks=size.tasks, steps=size.steps, query_songs=size.queries,
            min_songs=size.queries + 1,
        ),
        training=reference.training,
    )  # fmt: skip
