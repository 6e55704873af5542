"""PyTorch peers of our first-order meta-step and of whole-song inference, written from the paper.

:class:`Plain` is MAML as people write it, :class:`Strong` the fastest form found on two CPU cores. Both
are float32, and `torch_check.py` holds both to our loss and gradients before anything is timed. They
compute on the device they are given; `torch_vmapped.py` has forms of the strong one that only pay on a GPU.

What was tried, in seconds per task: 16 inner steps on 1 song, 15 query songs; PyTorch 2.13 on two cores of
a virtual AMD EPYC; sides in turn, the best of 3 or 4 rounds. First and last lines without, all others with
:func:`keep_memory`:

| | width 64 | width 1024 |
|---|---|---|
| plain, the allocator as it is | 2.72 | 8.6 (one round) |
| plain | 1.65 | 6.56 |
| strong, nothing compiled | 1.39 | 5.46 |
| strong, front end compiled | 1.11 | 5.20 |
| **strong, all but the LSTM compiled (the default)** | 1.05 | 5.06 |
| strong, nothing compiled, the allocator as it is | 2.09 | 7.1 (one round) |

* Kept: memory that goes back to the allocator and not to the kernel (front end of 900 patches, forward and
  backward: 1.42 s to 0.49 s, channels last); compiled (0.49 to 0.47); the maximum before the ReLU and the
  first BatchNorm from the moments of its input (0.47 to 0.40; of 60 patches 34 ms to 28 ms). Both scales
  in one pass, skewed distance scores, one working copy of the parameters changed in place (`_foreach`).
* Kept: oneDNN's LSTM. A scan of our own with a backward pass by hand took 6.8 against 1.3 ms (width 64, 1
  song) and 12.7 against 11.4 ms (width 1024), compiled.
* Rejected: max-pool by slices and `maximum` (compiled, before `keep_memory`: 1.95 against 1.05 s), the
  first convolution as pointwise sums (2.0 s), BatchNorm reduced in stages (1.1 against 0.5 s).
* Rejected: `torch.func.vmap` over 8 tasks (encoder and front end, width 64, not compiled): 57.7 ms per
  task, 53.3 ms in a loop, 56.1 ms in a loop of `torch.func.grad`; the LSTM has no rule for vmap.
* At width 1024 two thirds of what is left are matrix products at about 170 GFLOP/s.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from data_prep.base import WINDOW_STEPS
from dsaml_jax import ModelConfig
from dsaml_jax.base import SongBatch
from dsaml_jax.convert import ENCODER

Gradients = dict[str, np.ndarray]


class Batch(NamedTuple):
    """Windows of songs with one annotator's curves; numpy or torch, with or without a task axis.

    Attributes:
      log_mel: `[B, T, 51, 128]`.
      embedding: `[B, 1, D]`.
      arousal: `[B, T]`.
      valence: `[B, T]`.
    """

    log_mel: Any
    embedding: Any
    arousal: Any
    valence: Any


def context_masks(config: ModelConfig, steps: int, device: torch.device | None = None) -> Tensor:
    """`[2, T, T]`: 0 where |i - j| is within the local, the global context, -1e30 elsewhere."""
    index = torch.arange(steps, device=device)
    distance = (index[:, None] - index[None]).abs()
    reach = torch.tensor([config.local_context, config.global_context], device=device)
    return torch.where(distance <= reach[:, None, None], 0.0, -1e30)


def curve_score(prediction: Tensor, target: Tensor) -> Tensor:
    """CCC + PCC + 1 - RMSE of `[B, T]` curves, averaged over the batch."""
    mean_p, mean_t = prediction.mean(-1, keepdim=True), target.mean(-1, keepdim=True)
    a, b = prediction - mean_p, target - mean_t
    product, square_a, square_b = (a * b).sum(-1), a.square().sum(-1), b.square().sum(-1)
    steps = prediction.shape[-1]
    ccc = 2 * product / (square_a + square_b + steps * (mean_p - mean_t)[:, 0].square())
    pcc = product / (square_a.sqrt() * square_b.sqrt() + 1e-8)
    rmse = (prediction - target).square().mean(-1).sqrt()
    return (ccc + pcc + 1 - rmse).mean()


def score_loss(curves: Tensor, arousal: Tensor, valence: Tensor) -> Tensor:
    """`[B, T, 2]` against the labels: 1 - the mean of the six scores."""
    return 1 - (curve_score(curves[..., 0], arousal) + curve_score(curves[..., 1], valence)) / 6


def diagonal_loss(maps: Tensor, target: float) -> Tensor:
    """Mean squared distance of the averaged `[B, H, T, T]` map's diagonal to its target."""
    diagonal = maps.diagonal(dim1=-2, dim2=-1).mean((0, 1))
    return (diagonal - target).square().mean()


# --- The model as one writes it: a tree of modules whose names are the reference's. ---


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, ReLU, 2 x 2 max-pool."""

    def __init__(self, channels: int, features: int, kernel: tuple[int, int], pad: tuple[int, int]):
        super().__init__()
        self.conv = nn.Conv2d(channels, features, kernel, padding=pad)
        self.bn = nn.BatchNorm2d(features)
        self.pool = nn.MaxPool2d(2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w]` to `[N, features, h', w']`."""
        return self.pool(F.relu(self.bn(self.conv(x))))


class SpectrogramBranch(nn.Module):
    """Two blocks and a 1 x 1 convolution: `[B, T, 51, 128]` to `[B, T, 476]`."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = nn.Sequential(
            ConvBlock(1, 8, (3, 1), (2, 1)), ConvBlock(8, 16, (3, 3), (1, 1))
        )
        self.conv1x1 = nn.Conv2d(16, 1, 1)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Every step is an image of its own."""
        x = self.feature_extractor(log_mel.flatten(0, 1)[:, None])
        return self.conv1x1(x).flatten(1).unflatten(0, log_mel.shape[:2])


class Fusion(nn.Module):
    """ImageBind adapter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spectrogram_feature_project = nn.Linear(476, width)
        self.fusion_project = nn.Linear(width, width)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """`[B, T, 476]` and `[B, 1 or T, D]` to `[B, T, D]`."""
        fused = torch.sigmoid(self.spectrogram_feature_project(features) + embedding)
        return self.fusion_project(fused)


class SelfAttention(nn.Module):
    """Attention with relative-key positions, the distance vectors gathered for every pair."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.reach = config.num_heads, config.max_position
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.distance_embedding = nn.Embedding(2 * self.reach - 1, config.width // config.num_heads)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, D]` to the heads' outputs side by side, and the maps `[B, H, T, T]`."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        index = torch.arange(x.shape[1], device=x.device)
        distance = self.distance_embedding(index[:, None] - index[None] + self.reach - 1)
        scores = query @ key.transpose(-1, -2) + torch.einsum("bhld,lrd->bhlr", query, distance)
        maps = torch.softmax(scores / query.shape[-1] ** 0.5 + mask, dim=-1)
        return (maps @ value).transpose(1, 2).flatten(2), maps


class Attention(nn.Module):
    """Self-attention, its output projection and the first residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.output = nn.ModuleDict(
            {
                "dense": nn.Linear(config.width, config.width),
                "LayerNorm": nn.LayerNorm(config.width, eps=1e-12),
            }
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, D]` to the same shape, and the maps."""
        mixed, maps = self.attention(x, mask)
        return self.output["LayerNorm"](x + self.output["dense"](mixed)), maps


class EncoderLayer(nn.Module):
    """BERT layer with exact GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.width, config.ffn_width)})
        self.output = nn.ModuleDict(
            {
                "dense": nn.Linear(config.ffn_width, config.width),
                "LayerNorm": nn.LayerNorm(config.width, eps=1e-12),
            }
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, D]` to the same shape, and the maps."""
        hidden, maps = self.attention(x, mask)
        expanded = F.gelu(self.intermediate["dense"](hidden))
        return self.output["LayerNorm"](hidden + self.output["dense"](expanded)), maps


class Encoder(nn.Module):
    """The stack of layers under one mask."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, D]` to the same shape, and the last layer's maps."""
        for layer in self.layer:
            x, maps = layer(x, mask)
        return x, maps


class Predictor(nn.Module):
    """BiLSTM and two dense layers (the dropout between them is 0)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bilstm = nn.LSTM(width, width // 4, batch_first=True, bidirectional=True)
        self.layers = nn.Sequential(
            nn.Linear(width // 2, width // 4), nn.Dropout(0.0), nn.Linear(width // 4, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, T, 2]`."""
        return self.layers(self.bilstm(x)[0])


class Network(nn.Module):
    """The whole model; `load_state_dict` takes what `dsaml_jax.convert.to_torch` gives."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.spectrogram_feature_extractor = SpectrogramBranch()
        self.fusion_model = Fusion(config.width)
        self.multi_scale_attention = nn.ModuleDict(
            {"encoder": nn.ModuleDict({"encoder": Encoder(config)})}
        )
        self.sequence_predict_model = Predictor(config.width)

    def forward(self, log_mel: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Curves `[B, T, 2]`, the last local and the last global maps `[B, H, T, T]`."""
        x = self.fusion_model(self.spectrogram_feature_extractor(log_mel), embedding)
        encoder = self.multi_scale_attention["encoder"]["encoder"]
        local_mask, global_mask = context_masks(self.config, x.shape[1], x.device)
        near, near_maps = encoder(x, local_mask)
        far, far_maps = encoder(x, global_mask)
        return self.sequence_predict_model(torch.sigmoid(near + far)), near_maps, far_maps


def network(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> Network:
    """The model with these weights, in train mode."""
    if config.position != "relative_key" or config.embedding_width not in (None, config.width):
        raise ValueError(
            "the peers know relative-key positions and embeddings of the model's width"
        )
    model = Network(config)
    tensors = {name: torch.tensor(np.asarray(array)) for name, array in weights.items()}
    absent, unknown = model.load_state_dict(tensors, strict=False)
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]
    if absent or unknown:
        raise ValueError(f"weights that do not fit: {(absent + unknown)[0]}")
    return model


class Plain:
    """MAML as people write it: modules, a loop over tasks, new tensors in every inner step."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, np.ndarray], *, device: str = "cpu"
    ) -> None:
        """Loads the weights."""
        self.config = config
        self.device = torch.device(device)
        self.model = network(config, weights).to(self.device)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss of some windows."""
        curves, near, far = functional_call(
            self.model, dict(parameters), (batch.log_mel, batch.embedding)
        )
        diagonal = diagonal_loss(near, self.config.local_diagonal)
        diagonal = diagonal + diagonal_loss(far, self.config.global_diagonal)
        score = score_loss(curves, batch.arousal, batch.valence)
        return score + self.config.diagonal_weight * diagonal

    def meta_gradient(
        self, support: Batch, query: Batch, *, steps: int, learning_rate: float
    ) -> tuple[float, dict[str, Tensor]]:
        """See :func:`meta_gradient`; tensors on the device, in and out."""
        self.model.zero_grad()
        tasks = len(support.log_mel)
        total = 0.0
        for task in range(tasks):
            task_support, task_query = (_task(batch, task) for batch in (support, query))
            adapted = {name: p.clone() for name, p in self.model.named_parameters()}
            for _ in range(steps):
                loss = self.loss(adapted, task_support)
                gradients = torch.autograd.grad(loss, list(adapted.values()))
                adapted = {
                    name: p - learning_rate * gradient
                    for (name, p), gradient in zip(adapted.items(), gradients, strict=True)
                }
            loss = self.loss(adapted, task_query) / tasks
            loss.backward()
            total += loss.item()
        return total, {name: p.grad for name, p in self.model.named_parameters()}


# --- The strong form. ---


class Strong:
    """The same mathematics, arranged for two CPU cores; what and why is in the module's docstring."""

    channels_last = True
    """How images lie in memory."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, np.ndarray],
        *,
        compiled: bool = True,
        device: str = "cpu",
    ) -> None:
        """Loads the weights.

        Args:
          config: of the model.
          weights: by the reference's names.
          compiled: `torch.compile` everything but the LSTM, a minute in the first call.
          device: where the weights are, and the batches must be.
        """
        self.config = config
        self.device = torch.device(device)
        model = network(config, weights).to(self.device)
        # Made once: a copy from the host in every step would wait for the device.
        self.mask = context_masks(config, WINDOW_STEPS, self.device)
        self.shared = {name: p.detach() for name, p in model.named_parameters()}
        self.work = {name: p.clone().requires_grad_() for name, p in self.shared.items()}
        self._encode: Callable[..., tuple[Tensor, Tensor]] = self.encode
        self._predict: Callable[..., Tensor] = self.predict
        if compiled:
            self._encode = torch.compile(self.encode, dynamic=False)
            self._predict = torch.compile(self.predict, dynamic=False)

    def encode(
        self, p: Mapping[str, Tensor], log_mel: Tensor, embedding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`[B, T, 51, 128]` to the mixed scales `[B, T, D]` and the weighted diagonal loss."""
        config, head_width = self.config, self.config.width // self.config.num_heads
        features = front_end(p, log_mel.flatten(0, 1), channels_last=self.channels_last)
        features = features.unflatten(0, log_mel.shape[:2])
        fused = torch.sigmoid(
            linear(p, "fusion_model.spectrogram_feature_project", features) + embedding
        )
        x = linear(p, "fusion_model.fusion_project", fused)[None]  # [S or 1, B, T, D]
        steps = x.shape[2]
        mask = self.mask[:, None, None]
        for index in range(config.num_layers):
            layer = f"{ENCODER}.layer.{index}"
            attention = f"{layer}.attention.attention"
            query, key, value = (
                linear(p, f"{attention}.{name}", x)
                .unflatten(-1, (config.num_heads, head_width))
                .transpose(2, 3)
                for name in ("query", "key", "value")
            )
            query = query * head_width**-0.5
            first = config.max_position - steps
            table = p[f"{attention}.distance_embedding.weight"][first : first + 2 * steps - 1]
            scores = query @ key.transpose(-1, -2) + skew(query @ table.flip(0).T)
            maps = torch.softmax(scores + mask, dim=-1)  # [S, B, H, T, T]
            mixed = (maps @ value).transpose(2, 3).flatten(3)
            mixed = linear(p, f"{layer}.attention.output.dense", mixed)
            hidden = layer_norm(p, f"{layer}.attention.output.LayerNorm", x + mixed)
            expanded = F.gelu(linear(p, f"{layer}.intermediate.dense", hidden))
            contracted = linear(p, f"{layer}.output.dense", expanded)
            x = layer_norm(p, f"{layer}.output.LayerNorm", hidden + contracted)
        diagonal = diagonal_loss(maps[0], config.local_diagonal)
        diagonal = diagonal + diagonal_loss(maps[1], config.global_diagonal)
        return torch.sigmoid(x[0] + x[1]), config.diagonal_weight * diagonal

    def predict(
        self, p: Mapping[str, Tensor], x: Tensor, arousal: Tensor, valence: Tensor
    ) -> Tensor:
        """The LSTM's output `[B, T, D / 2]` to the score part of the loss."""
        hidden = linear(p, "sequence_predict_model.layers.0", x)
        return score_loss(linear(p, "sequence_predict_model.layers.2", hidden), arousal, valence)

    def gradient(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss of some windows at the working parameters, and its gradient."""
        mixed, diagonal = self._encode(self.work, batch.log_mel, batch.embedding)
        recurrent = bilstm(self.work, mixed)
        loss = self._predict(self.work, recurrent, batch.arousal, batch.valence) + diagonal
        return loss.detach(), torch.autograd.grad(loss, list(self.work.values()))

    def meta_gradient(
        self, support: Batch, query: Batch, *, steps: int, learning_rate: float
    ) -> tuple[float, dict[str, Tensor]]:
        """See :func:`meta_gradient`; tensors on the device, in and out."""
        tasks = len(support.log_mel)
        work = list(self.work.values())
        total = torch.zeros((), device=self.device)  # on the device: reading it would wait
        means = [torch.zeros_like(p) for p in self.shared.values()]
        for task in range(tasks):
            with torch.no_grad():
                torch._foreach_copy_(work, list(self.shared.values()))
            task_support = _task(support, task)
            for _ in range(steps):
                _, gradients = self.gradient(task_support)
                with torch.no_grad():
                    torch._foreach_add_(work, gradients, alpha=-learning_rate)
            loss, gradients = self.gradient(_task(query, task))
            total += loss / tasks
            torch._foreach_add_(means, gradients, alpha=1 / tasks)
        return total.item(), dict(zip(self.work, means, strict=True))


def linear(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A dense layer by name."""
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def layer_norm(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A LayerNorm by name."""
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-12)


def skew(rows: Tensor) -> Tensor:
    """`[..., T, 2 T - 1]`, indexed by (i, T - 1 - i + j), to `[..., T, T]`, without a gather."""
    steps, wide = rows.shape[-2:]
    flat = rows.flatten(-2)[..., steps - 1 : steps - 1 + steps * (wide - 1)]
    return flat.unflatten(-1, (steps, wide - 1))[..., :steps]


def front_end(p: Mapping[str, Tensor], patches: Tensor, *, channels_last: bool = True) -> Tensor:
    """`[N, 51, 128]` to `[N, 476]`.

    The first BatchNorm costs no pass over its input: with one channel and three taps its statistics
    follow from the taps' moments, and the normalised convolution is a convolution. The maximum comes
    before the ReLU, which then has a quarter of the values to work on.
    """
    name = "spectrogram_feature_extractor"
    conv, norm = (f"{name}.feature_extractor.0.{part}" for part in ("conv", "bn"))
    kernel, bias = p[f"{conv}.weight"], p[f"{conv}.bias"]
    padded = F.pad(patches, (0, 0, 2, 2))
    frames, bands = padded.shape[1] - 2, padded.shape[2]
    taps = torch.stack([padded[:, k : k + frames] for k in range(3)], 1).flatten(2)  # [N, 3, K]
    within = taps.shape[0] * taps.shape[2]
    count = within * (bands + 2) / bands  # the zeros beside the bands count too
    moment = taps.sum(2).sum(0) / count
    taps = taps - moment[:, None]
    # Summed patch by patch: one long sum in float32 would cost digits.
    covariance = (taps @ taps.mT).sum(0) + (count - within) * moment[:, None] * moment
    covariance = covariance / count
    taps_kernel = kernel[:, 0, :, 0]
    mean = taps_kernel @ moment + bias
    variance = (taps_kernel @ covariance * taps_kernel).sum(1)
    factor = p[f"{norm}.weight"] * torch.rsqrt(variance + 1e-5)
    shift = p[f"{norm}.bias"] + (bias - mean) * factor
    x = patches[:, None]
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x = F.conv2d(x, kernel * factor[:, None, None, None], shift, padding=(2, 1))
    x = F.relu(F.max_pool2d(x, 2, padding=1))

    conv, norm = (f"{name}.feature_extractor.1.{part}" for part in ("conv", "bn"))
    x = F.conv2d(x, p[f"{conv}.weight"], p[f"{conv}.bias"], padding=1)
    x = F.batch_norm(x, None, None, p[f"{norm}.weight"], p[f"{norm}.bias"], training=True)
    x = F.relu(F.max_pool2d(x, 2, padding=1))
    return F.conv2d(x, p[f"{name}.conv1x1.weight"], p[f"{name}.conv1x1.bias"]).flatten(1)


def bilstm(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`[B, T, D]` to `[B, T, D / 2]` by oneDNN's or cuDNN's fused layer."""
    name = "sequence_predict_model.bilstm"
    weights = [
        p[f"{name}.{part}_l0{direction}"]
        for direction in ("", "_reverse")
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    zero = x.new_zeros(2, x.shape[0], weights[1].shape[1])
    return torch.lstm(x, (zero, zero), weights, True, 1, 0.0, True, True, True)[0]


def keep_memory() -> None:
    """Tells glibc to keep and reuse freed memory, for the whole process (JAX's part of it too).

    By default every large tensor is a fresh mapping whose pages the kernel zeroes one by one. Elsewhere
    than on Linux with glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and the heap does not shrink


# --- What the benchmarks call. ---


def without_masks(batch: SongBatch) -> Batch:
    """What the peers read of whole windows with all labels."""
    return Batch(batch.log_mel, batch.embedding, batch.arousal, batch.valence)


def tensors(batch: Batch, device: torch.device) -> Batch:
    """Numpy arrays as float32 tensors on the device."""
    return Batch(*(torch.from_numpy(np.asarray(x, np.float32)).to(device) for x in batch))


def meta_gradient(
    peer: Plain | Strong, support: Batch, query: Batch, *, steps: int, learning_rate: float
) -> tuple[float, Gradients]:
    """First-order MAML: mean query loss over the tasks after the inner steps, and its gradient.

    Args:
      peer: holds the weights; they do not change.
      support: numpy arrays with a leading task axis.
      query: likewise.
      steps: inner SGD steps on all parameters.
      learning_rate: of them.

    Returns:
      the loss, and the gradient by the reference's names.
    """
    value, gradients = peer.meta_gradient(
        tensors(support, peer.device), tensors(query, peer.device),
        steps=steps, learning_rate=learning_rate,
    )  # fmt: skip
    return value, {name: gradient.cpu().numpy() for name, gradient in gradients.items()}


def use_tf32(on: bool) -> None:
    """Whether float32 products and convolutions on a GPU may round their factors to TF32, as XLA's do by default."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


@torch.inference_mode()
def published_curves(model: Network, log_mel: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """Curves of a whole song at the cost of the published way.

    A window of 60 steps moves by one step; every window runs the whole network in eval mode, its front
    end included, in batches of 32 windows, the last one smaller. A song shorter than a window is one
    window. Each output step is read from the window in whose middle it lies most.

    Args:
      model: see :func:`network`; it is left in eval mode.
      log_mel: `[n, 51, 128]`.
      embedding: `[n, D]` per step, or `[1, D]` for all.

    Returns:
      `[n, 2]`: arousal, valence.
    """
    model.eval()
    steps = len(log_mel)
    length = min(WINDOW_STEPS, steps)
    mel, embeddings = (torch.from_numpy(np.asarray(x, np.float32)) for x in (log_mel, embedding))
    starts = torch.arange(steps - length + 1)
    curves = []
    for batch in starts.split(32):
        inside = batch[:, None] + torch.arange(length)
        at = inside if len(embeddings) == steps else torch.zeros(len(batch), 1, dtype=torch.long)
        curves.append(model(mel[inside], embeddings[at])[0])
    step = torch.arange(steps)
    window = (step - length // 2).clamp(0, steps - length)
    return torch.cat(curves)[window, step - window].numpy()


def _task(batch: Batch, task: int) -> Batch:
    return Batch(*(x[task] for x in batch))
