"""Seconds and memory of one training step on a device: backpropagation, eager and compiled, and the emitted step.

Arms that fit side by side are timed in turns, so that what else the machine does weighs on all of them. A figure is a
block of steps between two synchronisations, divided by their number.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from tests.bench.record import progress, spread
from tests.gpu import nets

LANES = (1, 2, 5, 8)
BATCHES = 2

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """A model and a batch to time. ``steps`` in a block, ``rounds`` of blocks."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int = 10
    steps: int = 20
    rounds: int = 7


SIZES: dict[str, dict[str, Size]] = {
    "mlp": {
        "9 layers as in Figure 1, batch 50": Size(nets.figure1, (50, 784), steps=50),
        "9 layers of 1024, batch 256": Size(partial(nets.mlp, 1024, 9), (256, 784), steps=50),
        "9 layers of 4096, batch 1024": Size(partial(nets.mlp, 4096, 9), (1024, 784)),
    },
    "resnet18": {
        "32×32, batch 64": Size(nets.resnet18, (64, 3, 32, 32)),
        "32×32, batch 512": Size(nets.resnet18, (512, 3, 32, 32), steps=10),
    },
    "resnet50": {
        "224×224, batch 64": Size(nets.ResNet50, (64, 3, 224, 224), 1000, steps=5, rounds=5),
    },
}
SMALL: dict[str, dict[str, Size]] = {
    "mlp": {"3 layers of 16, batch 8": Size(partial(nets.mlp, 16, 3, 20), (8, 20), steps=2, rounds=2)},
    "resnet18": {"16×16, 4 filters, batch 4": Size(partial(nets.resnet18, 4), (4, 3, 16, 16), steps=1, rounds=2)},
    "resnet50": {"32×32, 2 filters, batch 4": Size(partial(nets.ResNet50, 10, 2), (4, 3, 32, 32), steps=1, rounds=2)},
}
"""The same models, small enough to see on a CPU that everything runs."""

LR = 1e-3


def measured(family: str, device: torch.device, small: bool, seed: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """(size, figures of all arms) for every size of a family of models."""
    for label, size in (SMALL if small else SIZES)[family].items():
        yield label, _size(f"{family}, {label}", size, device, LANES[:2] if small else LANES, seed)


def _size(label: str, size: Size, device: torch.device, lanes: tuple[int, ...], seed: int) -> dict[str, Any]:
    arms: dict[str, Callable[[], Step]] = {
        "backprop": partial(_backprop, size, device, seed, False),
        "backprop, torch.compile": partial(_backprop, size, device, seed, True),
    }
    for count in lanes:
        arms[f"rec-LRA, {count} lane{'s' if count > 1 else ''}"] = partial(_rec_lra, size, device, seed, count)
    generator = torch.Generator().manual_seed(seed)
    data = [
        (
            torch.randn(size.shape, generator=generator).to(device),
            torch.randint(size.classes, size.shape[:1], generator=generator).to(device),
        )
        for _ in range(BATCHES)
    ]
    ready: dict[str, Step] = {}
    table: dict[str, dict[str, Any]] = {}
    for name, build in arms.items():
        progress(f"{label}: {name}")
        started = time.perf_counter()
        try:
            ready[name] = _warm(build(), data, device)
        except Exception as error:  # torch.compile needs a C++ compiler or Triton; memory may not suffice
            table[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            progress(f"{label}: {name}: {table[name]['error'].splitlines()[0]}")
            continue
        table[name] = {"first_steps_seconds": round(time.perf_counter() - started, 3)}
        table[name].update(_memory(ready[name], data, device))
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(size.rounds):
        order = list(ready)
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            seconds[name].append(_block(ready[name], data, device, size.steps))
        progress(f"{label}: round {number + 1}/{size.rounds}: " + _line(seconds))
    base = seconds.get("backprop", [])
    for name, values in seconds.items():
        table[name]["milliseconds"] = spread([1000 * value for value in values])
        if name != "backprop" and base:
            table[name]["of_backprop"] = spread([ours / theirs for ours, theirs in zip(values, base, strict=True)])
    ready.clear()
    _release(device)
    return {
        "shape": list(size.shape),
        "steps_per_block": size.steps,
        "rounds": size.rounds,
        "lr": LR,
        "seed": seed,
        "wiring": "flat",
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "arms": table,
    }


def _line(seconds: dict[str, list[float]]) -> str:
    return "  ".join(f"{name} {1000 * values[-1]:.2f} ms" for name, values in seconds.items())


def _model(size: Size, device: torch.device, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return size.build().to(device)


def _backprop(size: Size, device: torch.device, seed: int, compiled: bool) -> Step:
    net = _model(size, device, seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def loss_of(x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(net(x), target)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step(x: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(x, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def _rec_lra(size: Size, device: torch.device, seed: int, lanes: int) -> Step:
    net = _model(size, device, seed)
    example = torch.zeros(size.shape, device=device)
    compiled = rg.compile(net, (example,), gpus=lanes, wiring="flat", lr=LR, seed=seed)
    return compiled


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _warm(step: Step, data: list[tuple[Tensor, Tensor]], device: torch.device) -> Step:
    for number in range(3):
        step(*data[number % len(data)])
    _wait(device)
    return step


def _block(step: Step, data: list[tuple[Tensor, Tensor]], device: torch.device, count: int) -> float:
    _wait(device)
    started = time.perf_counter()
    for number in range(count):
        step(*data[number % len(data)])
    _wait(device)
    return (time.perf_counter() - started) / count


def _memory(step: Step, data: list[tuple[Tensor, Tensor]], device: torch.device) -> dict[str, float]:
    """What a step takes beside what is there before it, on CUDA."""
    if device.type != "cuda":
        return {}
    _release(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(*data[0])
    _wait(device)
    return {"peak_mebibytes": round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)}


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
