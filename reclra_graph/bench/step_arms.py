"""The arms of ``reclra bench step``: the ways to train a net that are timed against each other.

An arm is a function ``(case, settings) -> run``; ``run(inputs, target)`` makes one training step and returns its loss.
The net of every arm begins with the same weights. One that this package, or this machine, does not have is not
offered: ``lacks`` says why.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import reclra_graph as rg
from reclra_graph.bench.step_cases import Case, Net
from reclra_graph.options import OPTIMISATIONS

Run: TypeAlias = Callable[[Tensor, Tensor], Tensor]

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARM = 3
"""Steps before a graph of CUDA's is captured."""


@dataclass(frozen=True)
class Settings:
    """How an arm is built. ``format``: of ``FORMATS``, where the inputs are images. ``device``: "cpu" or "cuda"."""

    device: str = "cpu"
    format: str = "contiguous"
    seed: int = 0
    tiny: bool = False

    def net(self, case: Case) -> Net:
        """The case's net on the device, its weights drawn from the seed."""
        torch.manual_seed(self.seed)
        net = case.build(self.tiny)
        net.model.to(self.device)
        if net.images:
            net.model.to(memory_format=FORMATS[self.format])  # type: ignore[call-overload]  # not annotated by torch
        return net

    def batches(self, case: Case, net: Net, count: int) -> list[tuple[Tensor, Tensor]]:
        """The case's batches on the device, images in the memory format."""
        made = []
        for inputs, target in case.batches(net, count, self.seed):
            if net.images:
                inputs = inputs.to(memory_format=FORMATS[self.format])
            made.append((inputs.to(self.device), target.to(self.device)))
        return made

    def precision(self, case: Case) -> AbstractContextManager[Any]:
        """Autocast, where the case asks for it."""
        if case.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device, getattr(torch, case.dtype))


@dataclass(frozen=True)
class Arm:
    """``peer``: whether it is backpropagation. ``method``: of ``CompiledStep``, that it calls. ``cuda``: whether it
    runs only there. ``without``: the optimisation that it leaves out, which makes it one of ``--ablate``."""

    name: str
    make: Callable[[Case, Settings], Run]
    peer: bool = False
    method: str = "__call__"
    cuda: bool = False
    without: str = ""


def cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """The mean over samples and positions: scores [B, C] and target [B], or [B, T, C] and [B, T]."""
    return F.cross_entropy(scores.flatten(0, -2), target.flatten())


def backprop_eager(case: Case, settings: Settings) -> Run:
    """forward, loss, backward, SGD; PyTorch as it comes, with its fused optimiser."""
    return _backprop(case, settings, lambda forward: forward)


def backprop_compiled(case: Case, settings: Settings) -> Run:
    """The same with forward pass and loss under ``torch.compile(mode="max-autotune")``, and so their derivatives; on a
    GPU that mode launches CUDA graphs."""
    return _backprop(case, settings, lambda forward: torch.compile(forward, mode="max-autotune"))


def backprop_graphed(case: Case, settings: Settings) -> Run:
    """The same with everything, the optimiser too, in a single CUDA graph."""
    return _Graphed(
        _backprop(case, settings, lambda forward: torch.compile(forward, mode="max-autotune-no-cudagraphs"))
    )


def reclra_eager(case: Case, settings: Settings) -> Run:
    """The compiled step itself."""
    return _compiled(case, settings)


def reclra_fused(case: Case, settings: Settings) -> Run:
    """The compiled step as Inductor compiles it: whole, or on CUDA with several lanes piece by piece."""
    return _method(reclra_eager(case, settings), "fused")


def reclra_graphed(case: Case, settings: Settings) -> Run:
    """The compiled step as CUDA graphs."""
    return _method(reclra_eager(case, settings), "graphed")


def reclra_fused_graphed(case: Case, settings: Settings) -> Run:
    """The compiled step as CUDA graphs of what Inductor compiles of it, piece by piece."""
    step = reclra_eager(case, settings)
    assert isinstance(step, rg.CompiledStep)
    return step.graphed(fused=True)


def reclra_holding(case: Case, settings: Settings) -> Run:
    """``reclra_fused`` that holds activations until they are read, instead of computing them again."""
    return _compiled(case, settings).fused(recompute=False)


def reclra_without(optimisation: str) -> Callable[[Case, Settings], Run]:
    """``reclra_fused`` with one optimisation left out."""
    return lambda case, settings: _method(_compiled(case, settings, optimisation), "fused")


def _compiled(case: Case, settings: Settings, *without: str) -> rg.CompiledStep:
    net = settings.net(case)
    precision = {} if case.dtype == "float32" else {"autocast": case.dtype}
    ((inputs, _),) = settings.batches(case, net, 1)
    options: dict[str, Any] = {**dict(case.options), **precision}
    return rg.compile(
        net.model, (inputs,), wiring=case.wiring, lr=case.lr, seed=settings.seed, without=without, **options
    )


_NUMBERS = itertools.count()

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("backprop-eager", backprop_eager, peer=True),
        Arm("backprop-compiled", backprop_compiled, peer=True),
        Arm("backprop-graphed", backprop_graphed, peer=True, cuda=True),
        Arm("reclra-eager", reclra_eager),
        Arm("reclra-fused", reclra_fused, method="fused"),
        Arm("reclra-graphed", reclra_graphed, method="graphed", cuda=True),
        Arm("reclra-fused-graphed", reclra_fused_graphed, method="graphed", cuda=True),
        Arm("without-recompute", reclra_holding, method="fused", without="recompute"),
        *(Arm(f"without-{name}", reclra_without(name), method="fused", without=name) for name in OPTIMISATIONS),
    )
}
"""By name, in the order of the tables."""
WHOLE = "reclra-fused"
"""The arm with all optimisations."""
USUAL = tuple(name for name, arm in ARMS.items() if not arm.without)
ABLATION = (WHOLE, *(name for name, arm in ARMS.items() if arm.without))
"""The arms that say what every optimisation gains."""


def lacks(arm: Arm, case: Case, settings: Settings) -> str:
    """Why an arm cannot be measured here, or ""."""
    if arm.cuda and settings.device != "cuda":
        return "needs a CUDA device"
    if not arm.peer and not hasattr(rg.CompiledStep, arm.method):
        return f"this version has no CompiledStep.{arm.method}()"
    if arm.without in OPTIMISATIONS and _source(case, settings, arm.without) == _source(case, settings):
        return "changes nothing in this step"
    return ""


@functools.cache
def _source(case: Case, settings: Settings, *without: str) -> str:
    return _compiled(case, settings, *without).source


def step_of(run: Run) -> rg.CompiledStep | None:
    """The compiled step behind a run, which a fused or graphed one holds as ``step``; None for backpropagation."""
    found = run if isinstance(run, rg.CompiledStep) else getattr(run, "step", None)
    return found if isinstance(found, rg.CompiledStep) else None


def _method(step: Run, name: str) -> Run:
    found: Run = getattr(step, name)()
    return found


def _backprop(case: Case, settings: Settings, compiled: Callable[[Run], Run]) -> Run:
    model = settings.net(case).model
    optimizer = torch.optim.SGD(model.parameters(), lr=case.lr, fused=True)

    def forward(inputs: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(model(inputs), target)

    # What Dynamo compiled hangs on the code: with one of its own, no arm looks through what belongs to another.
    forward.__code__ = forward.__code__.replace(co_name=f"forward_{next(_NUMBERS)}")
    objective = compiled(forward)

    def run(inputs: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with settings.precision(case):
            loss = objective(inputs, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return run


class _Graphed:
    """A run as a CUDA graph: the first steps are ordinary ones, then one is captured, and replayed from then on."""

    def __init__(self, run: Run) -> None:
        self.run, self.seen = run, 0
        self.graph: Any = None
        self.given: tuple[Tensor, Tensor] | None = None
        self.loss: Tensor | None = None
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, inputs: Tensor, target: Tensor) -> Tensor:
        """One training step."""
        self.seen += 1
        if self.seen <= WARM:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                loss = self.run(inputs, target)
            torch.cuda.current_stream().wait_stream(self.stream)
            return loss
        if self.given is None:
            self.given = inputs.clone(), target.clone()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.loss = self.run(*self.given)
        assert self.loss is not None
        for held, value in zip(self.given, (inputs, target), strict=True):
            held.copy_(value)
        self.graph.replay()
        return self.loss
