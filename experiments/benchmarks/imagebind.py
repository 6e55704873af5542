"""ImageBind's audio tower: the Flax encoder against the same tower in PyTorch, on the CPU.

Claim: at the same batch the Flax encoder is not slower than PyTorch. The peer is eager PyTorch in
inference mode with fused qkv, `scaled_dot_product_attention` and weights in PyTorch's own layout. Both
have the same random weights and clips; outputs are compared before anything is timed, and runs
alternate, so that other load on the machine meets both.

Command: `python experiments/benchmarks/imagebind.py` (needs the extra [torch] and 2 GB of memory; about two
minutes on two cores).
Result: `experiments/results/imagebind.md`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from timing import interleaved, measured_on, table, write_result

from data_prep.imagebind.encoder import AudioEncoder
from data_prep.imagebind.weights import from_torch

ROUNDS = 15
BATCHES = (3, 12)
"""Clips: one window of 30 s, and four."""

TOLERANCE = 1e-4
"""Of the relative error between the two towers in float32."""

TRUNK, HEAD = "modality_trunks.audio.blocks", "modality_heads.audio"
BEFORE, AFTER = "modality_preprocessors.audio", "modality_postprocessors.audio"


def random_weights(encoder: AudioEncoder, seed: int) -> dict[str, np.ndarray]:
    """A published-style state dict with fan-in scaled matrices and norms around one."""
    width, ffn = encoder.width, encoder.ffn_width
    shapes: dict[str, tuple[int, ...]] = {
        f"{BEFORE}.cls_token": (1, 1, width),
        f"{BEFORE}.rgbt_stem.proj.weight": (width, 1, encoder.patch, encoder.patch),
        f"{BEFORE}.rgbt_stem.norm_layer.weight": (width,),
        f"{BEFORE}.rgbt_stem.norm_layer.bias": (width,),
        f"{BEFORE}.pos_embedding_helper.pos_embed": (1, encoder.tokens, width),
        f"{HEAD}.0.weight": (width,),
        f"{HEAD}.0.bias": (width,),
        f"{HEAD}.2.weight": (encoder.embedding_width, width),
    }
    for block in range(encoder.num_layers):
        for name, outputs, inputs in (
            ("attn.in_proj_", 3 * width, width),
            ("attn.out_proj.", width, width),
            ("mlp.fc1.", ffn, width),
            ("mlp.fc2.", width, ffn),
        ):
            shapes[f"{TRUNK}.{block}.{name}weight"] = (outputs, inputs)
            shapes[f"{TRUNK}.{block}.{name}bias"] = (outputs,)
        for norm in ("norm_1", "norm_2"):
            shapes[f"{TRUNK}.{block}.{norm}.weight"] = (width,)
            shapes[f"{TRUNK}.{block}.{norm}.bias"] = (width,)
        for extra in ("bias_k", "bias_v"):
            shapes[f"{TRUNK}.{block}.attn.{extra}"] = (1, 1, width)

    random = np.random.default_rng(seed)
    weights = {f"{AFTER}.1.log_logit_scale": np.asarray(np.log(20.0), np.float32)}
    for name, shape in shapes.items():
        draw = random.standard_normal(shape, np.float32)
        if len(shape) == 1:
            weights[name] = 0.1 * draw + np.float32(name.endswith(".weight"))
        elif shape[0] == 1:
            weights[name] = 0.5 * draw
        else:
            weights[name] = draw / np.float32(np.sqrt(np.prod(shape[1:])))
    return weights


class TorchTower:
    """The same tower, written for speed in eager PyTorch."""

    def __init__(self, weights: dict[str, np.ndarray], encoder: AudioEncoder):
        self._weights = {name: torch.from_numpy(array) for name, array in weights.items()}
        self._encoder = encoder

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self._weights[f"{name}weight"], self._weights[f"{name}bias"])

    def _norm(self, x: torch.Tensor, name: str, epsilon: float = 1e-6) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)

    def _attention(self, x: torch.Tensor, name: str) -> torch.Tensor:
        query, key, value = self._linear(x, f"{name}.in_proj_").chunk(3, dim=-1)
        extra = (len(x), 1, x.shape[-1])
        key = torch.cat([key, self._weights[f"{name}.bias_k"].expand(extra)], dim=1)
        value = torch.cat([value, self._weights[f"{name}.bias_v"].expand(extra)], dim=1)
        split = (
            y.unflatten(-1, (self._encoder.num_heads, -1)).transpose(1, 2)
            for y in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(*split)
        return self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.out_proj.")

    @torch.inference_mode()
    def __call__(self, mel: torch.Tensor) -> torch.Tensor:
        """`[N, 1, 128, 204]` to `[N, E]`."""
        weights = self._weights
        kernel = weights[f"{BEFORE}.rgbt_stem.proj.weight"]
        x = F.conv2d(mel, kernel, stride=self._encoder.stride).flatten(2).transpose(1, 2)
        x = self._norm(x, f"{BEFORE}.rgbt_stem.norm_layer", 1e-5)
        first = weights[f"{BEFORE}.cls_token"].expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + weights[f"{BEFORE}.pos_embedding_helper.pos_embed"]
        for block in range(self._encoder.num_layers):
            name = f"{TRUNK}.{block}"
            x = x + self._attention(self._norm(x, f"{name}.norm_1"), f"{name}.attn")
            hidden = self._linear(self._norm(x, f"{name}.norm_2"), f"{name}.mlp.fc1.")
            x = x + self._linear(F.gelu(hidden), f"{name}.mlp.fc2.")
        x = F.linear(self._norm(x[:, 0], f"{HEAD}.0"), weights[f"{HEAD}.2.weight"])
        return F.normalize(x, dim=-1) * weights[f"{AFTER}.1.log_logit_scale"].exp()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """L2 norm of the difference over that of the expectation."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def main() -> None:
    """Compares, times and writes the table."""
    encoder = AudioEncoder()
    weights = random_weights(encoder, seed=0)
    peer = TorchTower(weights, encoder)
    variables = jax.device_put(from_torch(weights))
    encode = jax.jit(encoder.apply)
    clips = np.random.default_rng(1).standard_normal((max(BATCHES), 1, *encoder.mel_shape))
    clips = clips.astype(np.float32)

    ours = np.asarray(encode(variables, clips))
    error = relative_error(ours, peer(torch.from_numpy(clips)).numpy())
    if error > TOLERANCE:
        raise SystemExit(f"the towers differ by {error:.1e}; nothing was timed")
    half = jax.jit(AudioEncoder(dtype=jnp.bfloat16).apply)
    half_error = relative_error(np.asarray(half(variables, clips[:3])), ours[:3])

    parts = []
    for batch in BATCHES:
        mel = clips[:batch]
        seconds = interleaved(
            {
                "Flax": lambda mel=mel: jax.block_until_ready(encode(variables, mel)),
                "PyTorch": functools.partial(peer, torch.from_numpy(mel)),
            },
            ROUNDS,
        )
        parts.append(f"## {batch} clips\n\n{table(seconds, 'Flax')}")
    tables = "\n\n".join(parts)
    write_result(
        "imagebind",
        f"""# ImageBind's audio tower: Flax against PyTorch

{measured_on("jax", "flax", "torch")}; {torch.get_num_threads()} PyTorch threads, XLA on all cores.
86 million random parameters, float32, {ROUNDS} rounds, both sides in each.

{tables}

Relative error between the two, float32: {error:.1e}. Of Flax in bfloat16 against its float32: {half_error:.1e}.""",
    )


if __name__ == "__main__":
    main()
