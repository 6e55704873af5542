"""Sequence predictor: bidirectional LSTM and two dense layers (DSAML's section 3.4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsaml_jax.models.layers import Linear, product, uniform_fan_in, widened


class BiLSTM(nn.Module):
    """Bidirectional LSTM with PyTorch's gates (i, f, g, o) and its *two* bias vectors.

    The two biases only ever appear as their sum, but they are separate parameters: a step of SGD
    moves the sum twice as far as it would move a single bias, and MAML's inner loop is SGD.

    The input's projection has no recurrence and is one product outside the scan; both directions
    go through one scan together, as a leading axis of 2. State, cell and gates are float32.

    Attributes:
      hidden: width per direction.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, present: jax.Array | None = None) -> jax.Array:
        """Runs both directions from a zero state.

        Args:
          x: `[B, T, D]`.
          present: `[B, T]` bool; at absent steps the state stands still.

        Returns:
          `[B, T, 2 * hidden]`, forward beside backward.
        """
        batch, steps, width = x.shape
        init = uniform_fan_in(self.hidden)
        gates = 4 * self.hidden
        input_kernel = self.param("input_kernel", init, (width, 2, gates))
        hidden_kernel = self.param("hidden_kernel", init, (2, self.hidden, gates))
        input_bias = self.param("input_bias", init, (2, gates))
        hidden_bias = self.param("hidden_bias", init, (2, gates))

        # Both directions side by side in one matrix: apart, each step of SGD would transpose it there and back.
        projected = product("btd,dg->tbg", x, input_kernel.reshape(width, -1))
        projected = projected.reshape(steps, batch, 2, gates).transpose(2, 0, 1, 3)
        projected = projected + (input_bias + hidden_bias)[:, None, None, :]
        # Direction 1 reads time backwards; after the scan it is turned round again.
        projected = jnp.stack([projected[0], projected[1, ::-1]], axis=1)
        if present is None:
            moving = jnp.ones((steps, 2, batch, 1), bool)
        else:
            in_time = present.T
            moving = jnp.stack([in_time, in_time[::-1]], axis=1)[..., None]

        def step(
            carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            state, cell = carry
            from_input, move = inputs
            from_state = product("kbh,khg->kbg", state.astype(x.dtype), hidden_kernel)
            i, f, g, o = jnp.split(from_input + from_state, 4, axis=-1)
            new_cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            new_state = nn.sigmoid(o) * jnp.tanh(new_cell)
            state, cell = jnp.where(move, new_state, state), jnp.where(move, new_cell, cell)
            return (state, cell), state

        zero = jnp.zeros((2, batch, self.hidden), projected.dtype)
        _, states = jax.lax.scan(step, (zero, zero), (projected, moving))
        both = jnp.concatenate([states[:, 0], states[::-1, 1]], axis=-1)
        return both.swapaxes(0, 1).astype(x.dtype)


class SequencePredictor(nn.Module):
    """BiLSTM, dense, dropout, dense, with no activation in between or at the end.

    Attributes:
      width: `D`; the LSTM has `D / 4` per direction.
      dropout: rate between the dense layers.
    """

    width: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: jax.Array, *, deterministic: bool, present: jax.Array | None = None
    ) -> jax.Array:
        """`[B, T, D]` to `[B, T, 2]`: arousal, valence, in float32."""
        recurrent = BiLSTM(self.width // 4, name="bilstm")(x, present)
        hidden = Linear(self.width // 4, name="hidden")(recurrent)
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
        # CCC and PCC read how a curve differs from its mean, which bfloat16 would round away, and so would the products that
        # accelerators mean by float32.
        return Linear(2, jax.lax.Precision.HIGHEST, name="out")(widened(hidden))
