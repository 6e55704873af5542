"""ImageBind adapter: fuses the step's spectrogram feature with the global embedding (section 3.2)."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax

from dsaml_jax.models.layers import Linear, widened


class ImageBindAdapter(nn.Module):
    """`Linear(sigmoid(Linear(spectrogram) + embedding))`.

    Attributes:
      width: `D`.
      embedding_width: `E`; where it is not `D` a learned projection stands in front of the sum.
      use_embedding: false leaves the embedding out (ablation).
    """

    width: int
    embedding_width: int
    use_embedding: bool = True

    @nn.compact
    def __call__(self, spectrogram: jax.Array, embedding: jax.Array) -> jax.Array:
        """`[B, T, features]` and `[B, 1 or T, E]` to `[B, T, D]`."""
        batch, steps, _ = spectrogram.shape
        fused = Linear(self.width, name="spectrogram")(spectrogram)
        if self.use_embedding:
            chex.assert_shape(embedding, (batch, {1, steps}, self.embedding_width))
            if self.embedding_width != self.width:
                embedding = Linear(self.width, name="embedding")(embedding)
            # In float32, because the gradient of one embedding is a sum over all steps.
            fused = widened(fused) + widened(embedding)
        fused = nn.sigmoid(fused).astype(spectrogram.dtype)
        return Linear(self.width, name="fusion")(fused)
