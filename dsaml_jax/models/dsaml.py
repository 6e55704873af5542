"""The whole model (DSAML, arXiv 2412.19200, section 3)."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dsaml_jax.base import ModelConfig, ModelOutput
from dsaml_jax.models.adapter import ImageBindAdapter
from dsaml_jax.models.attention import DualScaleEncoder
from dsaml_jax.models.layers import precisely, widened
from dsaml_jax.models.levels import LevelHead, Standardizer, centred
from dsaml_jax.models.predictor import SequencePredictor
from dsaml_jax.models.spectrogram import SpectrogramBranch


class DSAML(nn.Module):
    """Dual-scale attention model of how the emotion of music moves.

    Variables are `params` and `batch_stats`. Train mode (`train=True`) needs a PRNG key named
    `dropout` where the rate is above 0, and `mutable=["batch_stats"]` to keep running statistics.

    `__call__` is :meth:`encode` followed by :meth:`predict`. Long songs call them apart: the front
    end once per half-second step, the rest once per window.

    With `config.standardize` the inputs are standardised first. With `config.level_centres` a head of its own says the level
    of both curves, and all that is described here only how they move: as many parameters as this has learn the level of
    every song of training by heart. The published model has neither.

    Inputs are rounded to the dtype of `config.activations`, which every layer hands on; curves and
    attention are float32.

    Attributes:
      config: shape and options.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Makes the parts; Flax calls this."""
        config = self.config
        self.spectrogram = SpectrogramBranch()
        self.adapter = ImageBindAdapter(
            config.width, config.embedding_width or config.width, config.use_adapter
        )
        self.encoder = DualScaleEncoder(config)
        self.predictor = SequencePredictor(config.width, config.dropout)
        if config.standardize:
            self.log_mel_input, self.embedding_input = Standardizer(), Standardizer()
        if config.level_centres:
            self.level = LevelHead(config.level_centres, config.listener_centres)

    def __call__(
        self,
        log_mel: jax.Array,
        global_embedding: jax.Array,
        train: bool = False,
        *,
        present: jax.Array | None = None,
        batch_norm: bool | None = None,
    ) -> ModelOutput:
        """Predicts the curves of `B` windows.

        Args:
          log_mel: `[B, T, F, M]` log-mel patches, one per half-second step.
          global_embedding: `[B, 1, E]` for the whole window or `[B, T, E]` per step.
          train: dropout on, and BatchNorm by the statistics of the batch.
          present: `[B, T]` bool, the steps that exist; None where all do. Absent steps enter
            neither statistics nor attention, and the LSTM's state stands still over them.
          batch_norm: whether BatchNorm uses the statistics of the batch; None follows `train`.
        """
        chex.assert_rank([log_mel, global_embedding], [4, 3])
        features = self.encode(log_mel, train, present=present, batch_norm=batch_norm)
        return self.predict(features, global_embedding, train, present=present)

    def encode(
        self,
        log_mel: jax.Array,
        train: bool = False,
        *,
        present: jax.Array | None = None,
        batch_norm: bool | None = None,
    ) -> jax.Array:
        """Front end: `[B, T, F, M]` to `[B, T, features]` (476 at 51 x 128)."""
        with precisely(self.config.precision):
            return self._encode(log_mel, train, present, batch_norm)

    def predict(
        self,
        features: jax.Array,
        global_embedding: jax.Array,
        train: bool = False,
        *,
        present: jax.Array | None = None,
    ) -> ModelOutput:
        """Everything behind the front end: `[B, T, features]` to curves and attention."""
        with precisely(self.config.precision):
            return self._predict(features, global_embedding, train, present)

    def _encode(
        self, log_mel: jax.Array, train: bool, present: jax.Array | None, batch_norm: bool | None
    ) -> jax.Array:
        batch, steps, frames, bands = log_mel.shape
        if self.config.standardize:
            log_mel = self.log_mel_input(log_mel)
        features = self.spectrogram(
            self._rounded(log_mel).reshape(batch * steps, frames, bands),
            use_batch_statistics=train if batch_norm is None else batch_norm,
            mask=None if present is None else present.reshape(-1),
        )
        return features.reshape(batch, steps, -1)

    def _predict(
        self,
        features: jax.Array,
        global_embedding: jax.Array,
        train: bool,
        present: jax.Array | None,
    ) -> ModelOutput:
        if self.config.standardize:
            global_embedding = self.embedding_input(global_embedding)
        fused = self.adapter(self._rounded(features), self._rounded(global_embedding))
        if self.config.contexts:
            scales, attention = self.encoder(fused, deterministic=not train, present=present)
            summed = widened(scales).sum(axis=0)
        else:  # the ablation of all attention
            batch, steps, _ = fused.shape
            summed = widened(fused)
            maps = (batch, 0, self.config.num_layers, self.config.num_heads, steps, steps)
            attention = jnp.zeros(maps, summed.dtype)
        mixed = self._rounded(nn.sigmoid(summed))
        curves = self.predictor(mixed, deterministic=not train, present=present)
        if self.config.level_centres:
            curves = centred(curves, present) + self.level(global_embedding)
        return ModelOutput(arousal=curves[..., 0], valence=curves[..., 1], attention=attention)

    def _rounded(self, x: jax.Array) -> jax.Array:
        """To bfloat16 where the configuration says so; else as it is, which may be float64."""
        return x.astype(jnp.bfloat16) if self.config.activations == "bfloat16" else x
