"""Layers of one size are updated together, from copies of their errors and inputs side by side."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import Tied, batch_for, mlp


def compiled(model: nn.Module, **options: Any) -> CompiledStep:
    given: dict[str, Any] = {"device": "h200", "wiring": "flat", **options}
    return rg.compile(copy.deepcopy(model), torch.zeros(4, 6), **given)


def products(step: CompiledStep) -> int:
    """Weights that are updated one by one."""
    return sum(
        call.function == "rules.updates.linear_weight" for task in step.schedule.tasks.tasks for call in task.calls
    )


def test_layers_of_one_size_are_one_product() -> None:
    step = compiled(mlp(6, 8, 8, 8, 8, 3))
    assert "errors2 = torch.stack((e4, e3, e2))" in step.source
    assert "dW2_all = errors2.mT @ torch.stack((z3, z2, z1)) / B" in step.source
    assert "dW4, dW3, dW2 = dW2_all.unbind(0)" in step.source
    assert "# r2: update of a group, from e4, e3, e2" in step.source
    assert products(step) == 2
    assert products(compiled(mlp(6, 8, 8, 8, 8, 3), without="group")) == 5


def test_errors_that_come_late_end_the_group() -> None:
    step = compiled(mlp(6, 8, 8, 8, 8, 3), wiring="chain")
    body = step.source.partition("def step(")[2]
    assert body.index("e2 = ") < body.index("errors2 = ") < body.index("dW4, dW3, dW2 = ")
    inputs, target = batch_for(step)
    assert torch.isfinite(step(inputs, target))


def test_layers_that_are_updated_alone() -> None:
    for options in ({"gpus": 2}, {"device": "cpu"}, {"device": "unit"}, {"update": "local_vjp"}):
        assert "torch.stack" not in compiled(mlp(6, 8, 8, 8, 3), **options).source
    assert "torch.stack" not in compiled(mlp(6, 600, 600, 600, 3)).source  # large enough for a GPU, each of them
    assert "torch.stack" not in compiled(Tied()).source  # weights that several layers share, or runs of a layer
    biased = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    assert "torch.stack" not in compiled(biased).source


def test_layers_without_a_bias() -> None:
    model = nn.Sequential(
        nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)
    )
    source = compiled(model).source
    assert "dW1_all = errors1.mT @ torch.stack((z1, input)) / B" in source
    assert "db1_all" not in source
