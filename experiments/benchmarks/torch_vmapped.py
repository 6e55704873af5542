"""The strong PyTorch peer with all tasks side by side: what pays on a GPU, where a loop over tasks waits for launches.

`torch.func.vmap` has no rule for the fused LSTM, so the recurrence is a loop over the steps of a window, both directions
in one product. :class:`Graphed` records an inner step and the outer gradient as CUDA graphs, which takes the launches of
that loop off the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_peers import Batch, Strong

from dsaml_jax import ModelConfig

Weights = dict[str, Tensor]


class Vmapped(Strong):
    """Every task at once, each with weights of its own, `[tasks, ...]`."""

    channels_last = False  # vmap cannot ask for a memory format

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, np.ndarray], *, device: str = "cpu"
    ) -> None:
        """Loads the weights."""
        super().__init__(config, weights, compiled=False, device=device)
        self.work = {}
        self._gradient = torch.func.vmap(torch.func.grad_and_value(self.loss))

    def loss(self, p: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss of one task's windows."""
        mixed, diagonal = self.encode(p, batch.log_mel, batch.embedding)
        return self.predict(p, scanned_bilstm(p, mixed), batch.arousal, batch.valence) + diagonal

    def spread(self, tasks: int) -> None:
        """Sets each task's own weights to the shared ones."""
        if not self.work or len(next(iter(self.work.values()))) != tasks:
            self.work = {n: p.new_empty(tasks, *p.shape) for n, p in self.shared.items()}
        shared = [p.expand(tasks, *p.shape) for p in self.shared.values()]
        torch._foreach_copy_(list(self.work.values()), shared)

    def inner_step(self, support: Batch, learning_rate: float) -> None:
        """One step of SGD of every task."""
        gradients, _ = self._gradient(self.work, support)
        moves = [gradients[name] for name in self.work]
        torch._foreach_add_(list(self.work.values()), moves, alpha=-learning_rate)

    def outer(self, query: Batch) -> tuple[Tensor, Weights]:
        """Mean loss and gradient at the tasks' own weights."""
        gradients, losses = self._gradient(self.work, query)
        return losses.mean(), {name: gradient.mean(0) for name, gradient in gradients.items()}

    def meta_gradient(
        self, support: Batch, query: Batch, *, steps: int, learning_rate: float
    ) -> tuple[float, Weights]:
        """See :func:`torch_peers.meta_gradient`; tensors on the device, in and out."""
        self.spread(len(support.log_mel))
        for _ in range(steps):
            self.inner_step(support, learning_rate)
        loss, gradients = self.outer(query)
        return loss.item(), gradients


class Graphed(Vmapped):
    """The same, recorded as CUDA graphs. One shape of batches and one learning rate for each object."""

    _graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None

    def meta_gradient(
        self, support: Batch, query: Batch, *, steps: int, learning_rate: float
    ) -> tuple[float, Weights]:
        """See :func:`torch_peers.meta_gradient`; the gradient is overwritten by the next call."""
        if self._graphs is None:
            self._record(support, query, learning_rate)
        assert self._graphs is not None
        for mine, given in ((self._support, support), (self._query, query)):
            torch._foreach_copy_(list(mine), list(given))
        self.spread(len(support.log_mel))
        inner, outer = self._graphs
        for _ in range(steps):
            inner.replay()
        outer.replay()
        loss, gradients = self._result
        return loss.item(), gradients

    def _record(self, support: Batch, query: Batch, learning_rate: float) -> None:
        self._support = Batch(*(x.clone() for x in support))
        self._query = Batch(*(x.clone() for x in query))
        self.spread(len(support.log_mel))

        def keep_outer() -> None:
            self._result = self.outer(self._query)

        inner = _recorded(lambda: self.inner_step(self._support, learning_rate))
        self._graphs = inner, _recorded(keep_outer)


def _recorded(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """The work as a graph, after a run on a side stream, in which libraries take what they need."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def scanned_bilstm(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`[B, T, D]` to `[B, T, D / 2]` in plain operations, both directions in one product a step."""

    def both(part: str) -> Tensor:
        name = f"sequence_predict_model.bilstm.{part}_l0"
        return torch.stack([p[name], p[f"{name}_reverse"]])

    bias = (both("bias_ih") + both("bias_hh"))[:, None, None]
    projected = torch.einsum("btd,kgd->kbtg", x, both("weight_ih")) + bias  # k: direction
    # The second direction reads time backwards; at the end it is turned round again.
    projected = torch.stack([projected[0], projected[1].flip(1)])
    recurrent = both("weight_hh").transpose(1, 2)
    state = torch.zeros_like(projected[:, :, 0, : recurrent.shape[1]])
    cell, states = state, []
    for now in projected.unbind(2):
        i, f, g, o = (now + state @ recurrent).chunk(4, -1)
        cell = F.sigmoid(f) * cell + F.sigmoid(i) * torch.tanh(g)
        state = F.sigmoid(o) * torch.tanh(cell)
        states.append(state)
    out = torch.stack(states, 2)
    return torch.cat([out[0], out[1].flip(1)], -1)
