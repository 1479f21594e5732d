"""Dense synapses whose rows follow a map position by position: the same step, with the rows in another order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.reference import reference_step
from reclra_graph.runtime.compiled import CompiledStep
from tests.unit.refusals import refused


def net() -> nn.Module:
    """Maps that are small, large (more than 2,048 units) and without an activation."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 6, 3, stride=2), nn.Tanh(), nn.Conv2d(6, 4, 1),
        nn.Flatten(), nn.Linear(196, 3),
    ).double()  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(5, 2, 16, 16, generator=draw, dtype=torch.float64), torch.randint(3, (5,), generator=draw)


OPTIONS: dict[str, dict[str, Any]] = {
    "flat": {"wiring": "flat"},
    "chain": {"wiring": "chain"},
    "as it is": {"wiring": "flat", "without": ["straight", "factors"]},
    "lowrank": {"wiring": "flat", "synapse": "lowrank(2)"},
    "implicit": {"wiring": "flat", "synapse": "implicit"},
}


def compiled(name: str, memory_format: str) -> CompiledStep:
    usual = {"synapse": "dense", "lr": 0.1, "gamma": 0.5}
    return rg.compile(net(), batch()[0], memory_format=memory_format, **{**usual, **OPTIONS[name]})


def by_position(step: CompiledStep, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Synapses with rows as [C, H, W] counts them, in the order of positions."""
    found = {}
    for name, value in state.items():
        edge = next((item for item in step.plan.edges if item.name == name and item.form == "dense"), None)
        region = step.plan.regions.regions[edge.target] if edge else None
        if region is not None and len(region.shape) == 3:
            channels, height, width = region.shape
            value = value.reshape(channels, height, width, -1).permute(1, 2, 0, 3).reshape(value.shape)
        found[name] = value.clone()
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_the_order_of_rows_is_all_that_differs(name: str) -> None:
    plain, last = compiled(name, "contiguous"), compiled(name, "channels_last")
    for key, value in by_position(plain, plain.synapses).items():
        last.synapses[key].copy_(value)
    inputs, target = batch()
    for _ in range(2):
        wanted = plain(inputs, target)
        given = inputs.to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(given, target), wanted, rtol=1e-10, atol=0)
    held = dict(plain.model.named_parameters())
    for key, value in last.model.named_parameters():
        torch.testing.assert_close(value, held[key], rtol=1e-9, atol=1e-12)
    for key, value in by_position(plain, plain.synapses).items():
        torch.testing.assert_close(last.synapses[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_reference_reads_rows_alike(name: str) -> None:
    step = compiled(name, "channels_last")
    inputs, target = batch()
    held = {key: value.clone() for key, value in step.storage().items()}
    synapses = {key: value.clone() for key, value in step.synapses.items()}
    loss = step(inputs, target)
    torch.testing.assert_close(loss, reference_step(step.plan, held, synapses, [inputs], target), rtol=1e-12, atol=0)
    for key, value in step.storage().items():
        torch.testing.assert_close(value, held[key], rtol=1e-9, atol=1e-12)
    for key, value in step.synapses.items():
        torch.testing.assert_close(value, synapses[key], rtol=1e-9, atol=1e-12)


def test_the_example_decides() -> None:
    images, target = batch()
    for given, found in ((images, "contiguous"), (images.to(memory_format=torch.channels_last), "channels_last")):
        step = rg.compile(net(), given, wiring="flat")
        assert step.plan.memory_format == found
        assert ("movedim" in step.source) == (found == "channels_last")
        step(images, target)  # which takes either
    sequence = rg.compile(nn.Linear(4, 3), torch.zeros(2, 4))
    assert sequence.plan.memory_format == "contiguous"


def test_an_unknown_format_is_refused() -> None:
    refused(rg.UsageError, lambda: rg.compile(net(), batch()[0], memory_format="nhwc"), "RG405")
