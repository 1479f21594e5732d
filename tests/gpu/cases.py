"""The models that the GPU checks train, what they are held against, and how closely."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

# Read when cuBLAS starts: with it, its products are the same on every stream.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import Tensor, nn

import reclra_graph as rg
from tests.gpu import nets

LANES = (1, 2, 5, 8)
STEPS = 4
TOLERANCE = 1e-3
"""Largest distance between two devices' movements of one tensor in STEPS steps, as a share of the movement. On the
CPU float32 stays within a tenth of that of float64; the last digit of numbers that hardly move (3e-7) comes on top."""

State = dict[str, Tensor]


class Unmet(AssertionError):
    """A check's condition does not hold."""


class NotHere(Exception):
    """A check that this machine or this PyTorch cannot run; the message says why."""


@dataclass(frozen=True)
class Case:
    """A model with its options; the wiring is fixed, so that every number of lanes learns by the same plan."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: dict[str, Any]


CASES = {
    "figure1": Case(nets.figure1, (50, 784), {"relays": (2, 5, 8), "depth": 2, "gamma": 1.0, "lr": 0.1}),
    "resnet18": Case(partial(nets.resnet18, 16), (16, 3, 32, 32), {"wiring": "flat", "gamma": 1.0, "lr": 0.02}),
    "reverse": Case(nets.lenet, (50, 1, 28, 28), {"wiring": "reverse", "rule": "kp", "gain": True, "lr": 0.1}),
    "lenet": Case(nets.lenet, (50, 1, 28, 28), {"wiring": "chain", "gain": True, "gamma": 1.0, "lr": 0.1}),
}


def need(condition: bool, message: str) -> None:
    """Raise Unmet unless the condition holds; unlike ``assert``, with ``python -O`` too."""
    if not condition:
        raise Unmet(message)


@contextmanager
def exact() -> Iterator[None]:
    """Deterministic kernels, and convolutions in float32 proper, not TF32. Raises NotHere where an operator has no
    deterministic kernel."""
    before = torch.are_deterministic_algorithms_enabled()
    # torch.export asks for the old switches of TF32 and refuses a mixture with the new ones.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        torch.use_deterministic_algorithms(True)
        try:
            yield
        except RuntimeError as error:
            if "does not have a deterministic implementation" in str(error):
                raise NotHere(str(error).splitlines()[0]) from error
            raise
        finally:
            torch.use_deterministic_algorithms(before)


@cache
def model(name: str) -> nn.Module:
    """A case's model on the CPU, as drawn; copy it before training."""
    torch.manual_seed(1)
    return CASES[name].build()


@cache
def batch(name: str, number: int) -> tuple[Tensor, Tensor]:
    """Random inputs and classes on the CPU, the same at every call."""
    generator = torch.Generator().manual_seed(100 + number)
    shape = CASES[name].shape
    return torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator)


@cache
def compiled_source(name: str, lanes: int) -> rg.CompiledStep:
    """A case compiled on the CPU; only its program is used, by ``fresh``."""
    return compiled(name, lanes, copy.deepcopy(model(name)))


def compiled(name: str, lanes: int, net: nn.Module) -> rg.CompiledStep:
    """A case's step over a given copy of its model, wherever that is."""
    case = CASES[name]
    device = next(net.parameters()).device
    return rg.compile(net, (batch(name, 0)[0].to(device),), gpus=lanes, seed=3, **case.options)


def fresh(name: str, lanes: int, device: torch.device) -> rg.CompiledStep:
    """A case's step over a new copy of its model on a device, compiled once per process and number of lanes."""
    made = compiled_source(name, lanes)
    return rg.CompiledStep(copy.deepcopy(model(name)).to(device), made.program, made.constants)


def state(step: rg.CompiledStep) -> State:
    """Copies of all parameters, buffers and synapses, on the CPU."""
    held = {**step.model.state_dict(), **step.state_dict()}
    return {name: value.detach().cpu().clone() for name, value in held.items()}


def trained(step: rg.CompiledStep, name: str, steps: int = STEPS) -> tuple[list[float], State]:
    """(losses, state) after some steps on the case's batches."""
    device = step.device
    losses = []
    for number in range(steps):
        x, target = batch(name, number)
        losses.append(step(x.to(device), target.to(device)).item())
    return losses, state(step)


@cache
def on_the_cpu(name: str) -> tuple[list[float], State, State]:
    """(losses, state before, state after) with one lane on the CPU: what every other run is held against."""
    step = fresh(name, 1, torch.device("cpu"))
    before = state(step)
    return (*trained(step, name)[:1], before, state(step))


def need_close(name: str, losses: Sequence[float], after: State, tolerance: float = TOLERANCE) -> None:
    """Losses, and how far every tensor moved, as on the CPU."""
    expected, before, target = on_the_cpu(name)
    for number, (ours, theirs) in enumerate(zip(losses, expected, strict=True)):
        need(abs(ours - theirs) <= tolerance * abs(theirs), f"step {number}: loss {ours}, on the CPU {theirs}")
    moved = 0
    for key, value in target.items():
        if not value.is_floating_point():
            need(bool(torch.equal(after[key], value)), f"{key} is {after[key]}, on the CPU {value}")
            continue
        movement = (value.double() - before[key].double()).norm().item()
        distance = (value.double() - after[key].double()).norm().item()
        floor = 3e-7 * value.double().norm().item()
        need(distance <= tolerance * movement + floor, f"{key} is {distance:.3g} off after moving by {movement:.3g}")
        moved += movement > 0
    need(moved > 0, "nothing moved")


def need_same(ours: State, theirs: State, what: str) -> None:
    """Bitwise equality, tensor by tensor."""
    need(ours.keys() == theirs.keys(), f"{what}: other names")
    for key, value in theirs.items():
        if not torch.equal(ours[key], value):
            worst = (ours[key].double() - value.double()).abs().max().item()
            raise Unmet(f"{what}: {key} differs by up to {worst:.3g}")
