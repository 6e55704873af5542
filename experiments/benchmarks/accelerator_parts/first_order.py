"""Part a: the first-order meta-step against PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from problem import RATE, initial, meta_gradient_of, songs
from timing import interleaved

from accelerator_parts.counts import first_order_work
from accelerator_parts.programs import compiled, limits, norm_of_difference, run_to_its_end
from accelerator_parts.report import Report, amount, within
from accelerator_parts.sizes import Size
from dsaml_jax import meta
from dsaml_jax.base import SongBatch
from dsaml_jax.convert import to_torch

COMPILE_SECONDS = 60.0
"""What `torch.compile` may take."""

TABLE = "Meta-step"
Sides = dict[str, Callable[[], object]]


def first_order(report: Report, size: Size) -> None:
    """Times our meta-step in float32 and bfloat16, and the peers', in turn."""
    variables = initial(size.model)
    support = songs(size.model, size.tasks, 1, 2)
    query = songs(size.model, size.tasks, size.queries, 3)
    algorithm = meta.algorithm("fomaml", steps=size.steps, learning_rate=RATE)
    data = jax.device_put((variables["params"], support, query))
    programs = {
        f"dsaml_jax, {dtype}": (
            meta_gradient_of(
                dataclasses.replace(size.model, activations=dtype),
                variables["batch_stats"], algorithm, size.tasks,
            ),
            data,
        )
        for dtype in ("float32", "bfloat16")
    }  # fmt: skip
    # One after the other, and before anything else has work for the device: kernels are chosen by timing them.
    sides: Sides = {
        name: partial(run_to_its_end, program, data)
        for name, program in compiled(report, programs, together=1)
    }
    peers = report.case("PyTorch", _Peers, report, size, variables, support, query)
    speed = limits(size)
    bound = _bound(report, size, variables["params"], speed)
    _compare_own(report, sides)
    if peers is not None:
        sides |= peers.eager()
    _time(report, size, sides, bound)
    if peers is not None and report.left() > 0:
        ours = {name: run for name, run in sides.items() if name == "dsaml_jax, float32"}
        for more in (peers.with_compiler, peers.with_graphs):
            # Each with ours again, so that times stay comparable; what cannot be made costs no time.
            added = more()
            if added:
                _time(report, size, ours | added, bound)
    _say_how(report, size, peers)


def _time(report: Report, size: Size, sides: Sides, bound: float) -> None:
    """Adds a row for each side; one that fails when it runs is left out of the others' rounds."""
    working = {}
    for name, run in sides.items():
        if report.case(f"{name}: running", run) is not None:
            working[name] = run
    rounds = size.rounds if report.left() > 30 else 2
    seconds = interleaved(working, rounds)
    ours = seconds.get("dsaml_jax, float32")
    for name, values in seconds.items():
        low, middle, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
        report.row(
            TABLE,
            side=name, rounds=rounds, ms=middle * 1e3,
            quartiles=f"{low * 1e3:.1f} to {high * 1e3:.1f}",
            times_ours=None if ours is None else float(np.median(values / ours)),
            share_of_bound=bound / middle if name == "dsaml_jax, float32" else None,
        )  # fmt: skip


def _bound(report: Report, size: Size, params: Any, speed: dict[str, float]) -> float:
    """Seconds that a float32 meta-step must take, by the counts and this device's limits."""
    work = first_order_work(
        size.model, params, tasks=size.tasks, steps=size.steps, queries=size.queries
    )
    least = {
        name: part.seconds(speed["float32"], speed["bytes"]) * 1e3 for name, part in work.items()
    }
    total = sum(least.values())
    report.fact("limits", speed)
    report.fact("bound_ms", least | {"both": total})
    asked = {
        name: f"{amount(part.flop, 'FLOP')}, {amount(part.bytes, 'B')}"
        for name, part in work.items()
    }
    report.note(
        f"Bound: {total:.1f} ms, of the inner steps {least['inner']:.1f} ({asked['inner']}), of the outer loss "
        f"{least['outer']:.1f} ({asked['outer']}); this device copies {amount(speed['bytes'], 'B/s')} and multiplies "
        f"{amount(speed['float32'], 'FLOP/s')} in float32 at the default precision, "
        f"{amount(speed['bfloat16'], 'FLOP/s')} in bfloat16."
    )
    return total / 1e3


def _compare_own(report: Report, sides: Sides) -> None:
    """Says how far bfloat16 moves the meta-gradient."""
    if {"dsaml_jax, float32", "dsaml_jax, bfloat16"} <= set(sides):
        half, full = (_gradient(sides[f"dsaml_jax, {x}"]) for x in ("bfloat16", "float32"))
        difference = norm_of_difference(half, full)
        report.note(f"Meta-gradient in bfloat16: relative difference {difference:.1e} to float32.")


def _gradient(side: Callable[[], Any]) -> Any:
    _, gradient = side()
    return gradient


class _Peers:
    """PyTorch's sides, each held to our loss and gradient in full float32 before it is timed."""

    def __init__(
        self, report: Report, size: Size, variables: Any, support: SongBatch, query: SongBatch
    ) -> None:
        """Loads them where JAX computes, and checks them.

        Raises:
          ImportError: no PyTorch, and then no peers.
          RuntimeError: JAX has a GPU and PyTorch has none.
        """
        import torch
        import torch_check
        import torch_peers
        import torch_vmapped

        on_gpu = jax.default_backend() != "cpu"
        if on_gpu and not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU")
        self._report, self._size, self._torch = report, size, torch
        self.device = "cuda" if on_gpu else "cpu"
        weights = to_torch(variables, size.model)
        self._kinds = torch_peers, torch_vmapped
        self._make = lambda kind, **options: kind(
            size.model, weights, device=self.device, **options
        )
        plain = torch_peers.without_masks
        small = plain(songs(size.model, 2, 1, 0)), plain(songs(size.model, 2, 2, 1))
        reference = torch_check.reference_gradient(size.model, variables, *small)

        def check(peer: Any) -> float:
            torch_peers.use_tf32(False)
            try:
                return torch_check.check_equal(peer, variables, *small, reference)
            finally:
                torch_peers.use_tf32(True)

        self._check = check
        torch_peers.use_tf32(True)
        device = torch.device(self.device)
        self._batches = [torch_peers.tensors(plain(batch), device) for batch in (support, query)]
        self._strong: Any = None

    def eager(self) -> Sides:
        """Nothing compiled."""
        peers, vmapped = self._kinds
        self._strong = self._checked("PyTorch, strong", peers.Strong, compiled=False)
        found = {
            "PyTorch, plain": self._checked("PyTorch, plain", peers.Plain),
            "PyTorch, strong": self._strong,
            "PyTorch, strong, tasks by vmap": self._checked(
                "PyTorch, strong, tasks by vmap", vmapped.Vmapped
            ),
        }
        return {name: self._run(peer) for name, peer in found.items() if peer is not None}

    def with_compiler(self) -> Sides:
        """`torch.compile`, if it is done within a minute and computes the same."""
        name = "PyTorch, strong, torch.compile"
        peers, _ = self._kinds

        def make() -> Sides:
            peer = self._make(peers.Strong, compiled=True)
            with within(min(COMPILE_SECONDS, self._report.left())):
                peer.meta_gradient(*self._batches, steps=1, learning_rate=RATE)
            self._require_same(peer)
            return {name: self._run(peer)}

        return self._report.case(name, make) or {}

    def with_graphs(self) -> Sides:
        """Tasks by vmap, recorded as CUDA graphs; on a CPU there are none."""
        name = "PyTorch, strong, tasks by vmap, CUDA graphs"
        _, vmapped = self._kinds
        if self.device == "cpu":
            return {}

        def make() -> Sides:
            peer = self._make(vmapped.Graphed)
            self._require_same(peer)
            return {name: self._run(peer)}

        return self._report.case(name, make) or {}

    def _checked(self, name: str, kind: Any, **options: Any) -> Any:
        def make() -> Any:
            peer = self._make(kind, **options)
            worst = self._check(peer)
            self._report.note(f"{name}: worst relative error of a tensor's gradient {worst:.1e}.")
            return peer

        return self._report.case(name, make)

    def _require_same(self, peer: Any) -> None:
        """Holds a peer that is compiled for one shape to the strong one, after one inner step on all tasks."""
        assert self._strong is not None, "the strong form itself failed"
        results = [x.meta_gradient(*self._batches, steps=1, learning_rate=RATE) for x in (peer, self._strong)]  # fmt: skip
        (value, gradient), (wanted, wanted_gradient) = results
        torch = self._torch
        pairs = [(gradient[name], want) for name, want in wanted_gradient.items()]
        square = sum(torch.sum((a - b) ** 2).item() for a, b in pairs)
        error = (square / sum(torch.sum(b**2).item() for _, b in pairs)) ** 0.5
        # TF32 in other kernels; on a CPU it is float32 and a hundredth of that.
        assert abs(value - wanted) < 1e-2 and error < 3e-2, (value, wanted, error)

    def _run(self, peer: Any) -> Callable[[], object]:
        def run() -> object:
            result = peer.meta_gradient(*self._batches, steps=self._size.steps, learning_rate=RATE)
            if self.device == "cuda":
                self._torch.cuda.synchronize()
            return result

        return run


def _say_how(report: Report, size: Size, peers: _Peers | None) -> None:
    """Adds what the figures hold for."""
    report.note(
        f"{size.tasks} tasks side by side (PyTorch: one after the other unless it says vmap), {size.steps} inner steps "
        f"of SGD on all parameters, 1 support song, {size.queries} query songs of 30 s, batches on the device, sides in turn."
    )
    if jax.default_backend() == "cpu":
        report.note("Products in float32 on all sides: a CPU has no TF32.")
    else:
        report.note("TF32 on for all float32 sides: XLA's default, and PyTorch's products and convolutions alike.")  # fmt: skip
    if peers is None:
        report.note("No PyTorch here, so nothing to compare with.")
