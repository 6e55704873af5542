"""The PyTorch side of `meta_libraries.py`: a loop over tasks and inner steps, as each library's own examples have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from meta_libraries import Problem, Side

Batch = tuple[torch.Tensor, torch.Tensor]


class Sinusoid(nn.Module):
    """40 and 40 units."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in ((1, 40), (40, 40), (40, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[points, 1]` to `[points, 1]`."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))

    def named(self) -> dict[str, torch.Tensor]:
        """Parameters by the names of the other side."""
        return {
            f"{short}{i}": getattr(layer, long)
            for i, layer in enumerate(self.layers)
            for short, long in (("w", "weight"), ("b", "bias"))
        }


class Convnet(nn.Module):
    """Four strided convolutions, normalised by the batch."""

    def __init__(self, channels: int, ways: int) -> None:
        super().__init__()
        inputs = (1, channels, channels, channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n, channels, 3, stride=2, padding=1, bias=False) for n in inputs
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels, track_running_stats=False) for _ in inputs
        )
        self.out = nn.Linear(channels, ways, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[images, 1, 28, 28]` to `[images, ways]`."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return self.out(x.mean((2, 3)))

    def named(self) -> dict[str, torch.Tensor]:
        """Parameters by the names of the other side."""
        names = {f"w{i}": layer.weight for i, layer in enumerate(self.convolutions)}
        for i, norm in enumerate(self.norms):
            names |= {f"scale{i}": norm.weight, f"b{i}": norm.bias}
        return names | {"out": self.out.weight}


def to_torch(x: np.ndarray) -> np.ndarray:
    """Of a parameter or gradient: outputs, inputs, height, width. Its own inverse for matrices and vectors."""
    return np.ascontiguousarray(np.transpose(x, (3, 2, 0, 1)) if x.ndim == 4 else x.T)


def to_jax(x: np.ndarray) -> np.ndarray:
    """Inverse of :func:`to_torch`."""
    return np.transpose(x, (2, 3, 1, 0)) if x.ndim == 4 else x.T


def peer(who: str, name: str, problem: Problem, steps: int) -> Side:
    """A side that runs on one of the libraries."""
    model: Any = Sinusoid() if name == "sinusoid" else Convnet(*problem.params["out"].shape)
    model = model.to(torch.from_numpy(problem.params["w0"]).dtype)
    with torch.no_grad():
        for key, parameter in model.named().items():
            parameter.copy_(torch.from_numpy(to_torch(problem.params[key])))
    loss = F.mse_loss if name == "sinusoid" else F.cross_entropy

    def batches(pair: tuple[np.ndarray, np.ndarray]) -> list[Batch]:
        x, y = pair
        x = x if name == "sinusoid" else np.moveaxis(x, -1, 2)
        y = y if name == "sinusoid" else y.astype(np.int64)
        return [(torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(b)) for a, b in zip(x, y, strict=True)]  # fmt: skip

    tasks = list(zip(batches(problem.support), batches(problem.query), strict=True))
    backward = LOOPS[who](model, loss, tasks, steps, problem.rate)

    def run() -> tuple[float, dict[str, np.ndarray]]:
        model.zero_grad()
        value = backward()
        gradient = {k: to_jax(v.grad.numpy()) / len(tasks) for k, v in model.named().items()}
        return value / len(tasks), gradient

    return run


def _learn2learn(model: Any, loss: Any, tasks: Any, steps: int, rate: float) -> Callable[[], float]:
    import learn2learn

    maml = learn2learn.algorithms.MAML(model, lr=rate, first_order=False)

    def backward() -> float:
        total = 0.0
        for (x, y), (query_x, query_y) in tasks:
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(loss(learner(x), y))
            error = loss(learner(query_x), query_y)
            error.backward()
            total += error.item()
        return total

    return backward


def _higher(model: Any, loss: Any, tasks: Any, steps: int, rate: float) -> Callable[[], float]:
    import higher

    optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def backward() -> float:
        total = 0.0
        for (x, y), (query_x, query_y) in tasks:
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (net, step):
                for _ in range(steps):
                    step.step(loss(net(x), y))
                error = loss(net(query_x), query_y)
                error.backward()
                total += error.item()
        return total

    return backward


def _torchopt(model: Any, loss: Any, tasks: Any, steps: int, rate: float) -> Callable[[], float]:
    import torchopt

    optimizer = torchopt.MetaSGD(model, lr=rate)

    def backward() -> float:
        errors = []
        network = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
        moments = torchopt.extract_state_dict(optimizer, by="reference")
        for (x, y), (query_x, query_y) in tasks:
            for _ in range(steps):
                optimizer.step(loss(model(x), y))
            errors.append(loss(model(query_x), query_y))
            torchopt.recover_state_dict(model, network)
            torchopt.recover_state_dict(optimizer, moments)
        total = torch.stack(errors).sum()
        total.backward()
        return total.item()

    return backward


LOOPS = {"learn2learn": _learn2learn, "higher": _higher, "torchopt": _torchopt}
