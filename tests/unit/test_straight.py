"""Regions without an activation: no target, no error where none is needed, and the same step but for rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.options import OPTIMISATIONS
from reclra_graph.runtime.compiled import CompiledStep
from tests.unit.refusals import refused


class Block(nn.Module):
    """A transformer's block: of its six regions five have no activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.mT, -1) @ v)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Classifier(nn.Module):
    """One error for the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.place = nn.Linear(5, 6), nn.Parameter(torch.randn(1, 4, 6))
        self.block, self.head = Block(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.stem(x) + self.place).mean(1))
        return out


class Tokens(nn.Module):
    """An error for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(5, 6), Block(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.stem(x)))
        return out


def convolutions() -> nn.Module:
    """Strided and grouped ones without an activation, before others with one."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


SEQUENCE, IMAGES = (torch.zeros(8, 4, 5),), (torch.zeros(8, 2, 8, 8),)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], dict[str, Any]]] = {
    "a sequence, dense": (Classifier, SEQUENCE, {"wiring": "flat", "synapse": "dense"}),
    "a sequence, token": (Classifier, SEQUENCE, {"wiring": "flat", "synapse": "token"}),
    "tokens": (Tokens, SEQUENCE, {"wiring": "flat"}),
    "tokens, dense": (Tokens, SEQUENCE, {"wiring": "flat", "synapse": "dense"}),
    "tokens, lowrank": (Tokens, SEQUENCE, {"wiring": "flat", "synapse": "lowrank(2)"}),
    "tokens in a chain": (Tokens, SEQUENCE, {"wiring": "chain", "gpus": 3}),
    "local derivatives": (Classifier, SEQUENCE, {"wiring": "flat", "update": "local_vjp"}),
    "micro-batches": (Classifier, SEQUENCE, {"wiring": "flat", "micro_batches": 2, "gpus": 2}),
    "kappa": (Classifier, SEQUENCE, {"wiring": "flat", "kappa": {3: 0.5}}),
    "gain": (Classifier, SEQUENCE, {"wiring": "flat", "gain": True}),
    "signs": (Classifier, SEQUENCE, {"wiring": "flat", "norm": 1}),
    "convolutions": (convolutions, IMAGES, {"wiring": "flat", "synapse": "dense"}),
    "convolutions, channel": (convolutions, IMAGES, {"wiring": "flat", "synapse": "channel"}),
    "convolutions in a chain": (convolutions, IMAGES, {"wiring": "chain"}),
}


def compiled(name: str, *without: str) -> CompiledStep:
    make, inputs, options = CASES[name]
    torch.manual_seed(2)
    model = make().double()
    return rg.compile(model, tuple(item.double() for item in inputs), without=without, lr=0.1, **options)


def batch(step: CompiledStep, name: str) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    inputs = torch.randn(CASES[name][1][0].shape, generator=draw, dtype=torch.float64)
    ((sizes, *_),) = step.module.TARGETS.values()
    return inputs, torch.randint(3, [8 if item == "B" else item for item in sizes], generator=draw)


@pytest.mark.parametrize("name", CASES)
def test_the_step_is_the_same(name: str) -> None:
    # Signs of numbers near zero are as good as drawn, so that one step must do there.
    steps = 1 if name == "signs" else 3
    plain = compiled(name, *OPTIMISATIONS)
    inputs, target = batch(plain, name)
    wanted = [plain(inputs, target) for _ in range(steps)]
    for without in ((), ("factors",), ("straight",)):
        step = compiled(name, *without)
        for loss in wanted:
            torch.testing.assert_close(step(inputs, target), loss, rtol=1e-9, atol=0)
        held = dict(plain.model.named_parameters())
        for key, value in step.model.named_parameters():
            torch.testing.assert_close(value, held[key], rtol=1e-9, atol=1e-12)
        for key, value in step.synapses.items():
            torch.testing.assert_close(value, plain.synapses[key], rtol=1e-9, atol=1e-12)


def made(step: CompiledStep, prefix: str) -> set[int]:
    """Regions whose e (or y) is written down."""
    numbers = range(1, len(step.plan.regions.regions))
    return {number for number in numbers if f"\n    {prefix}{number} = " in step.source}


@pytest.mark.parametrize("name", ["a sequence, dense", "a sequence, token", "tokens"])
def test_only_errors_that_something_takes_are_made(name: str) -> None:
    step, plain = compiled(name), compiled(name, *OPTIMISATIONS)
    regions = step.plan.regions
    active = {region.id for region in regions.regions if region.activation}
    assert made(plain, "y") == {region.id for region in regions.regions if region.learns} - set(regions.outputs)
    assert made(step, "y") == active
    # The stem adds a parameter that positions do not share, so that over positions it takes its error.
    assert made(step, "e") - active - set(regions.outputs) <= {1}
    assert made(compiled(name, "factors"), "y") == active


def test_relays_make_the_error_that_they_send() -> None:
    step = compiled("tokens in a chain")
    senders = set(step.plan.relays)
    assert made(step, "e") >= senders
    assert made(step, "e") < {region.id for region in step.plan.regions.regions if region.learns}
    assert "e_sum" in step.source  # and still learn without it


def test_of_a_source_with_many_units_d_is_written_down_for_what_e_learns() -> None:
    model = nn.Sequential(nn.Linear(4, 50), nn.Linear(50, 40))
    step = rg.compile(copy.deepcopy(model), torch.zeros(3, 4), synapse="dense")
    assert "e1 = beta * d1" in step.source
    assert "y1" not in step.source


def test_unknown_optimisations_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    refused(rg.UsageError, lambda: rg.compile(model, torch.zeros(3, 4), without=["magic"]), "RG405")
    refused(rg.UsageError, lambda: rg.compile(model, torch.zeros(3, 4), without="magic"), "RG405")
