"""Sub-modules that cannot be captured, inside a training step: what they leave behind."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import changed, fresh, same, snapshot


class Squash(torch.autograd.Function):
    """tanh by numpy, which no tracer follows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return error * (1 - torch.tanh(x) ** 2)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 5, bias=False), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Squash.apply(self.norm(self.layer(x)))
        return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 5), Inner(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.inner(torch.tanh(self.first(x))))
        return logits


@cache
def compiled() -> CompiledStep:
    torch.manual_seed(0)
    return rg.compile(Net(), torch.randn(6, 4), lr=0.1)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4), torch.arange(6) % 3


def test_every_parameter_moves_and_statistics_too() -> None:
    step = fresh(compiled())
    assert any("inner cannot be captured" in note for note in step.plan.regions.graph.notes)
    assert step.plan.regions.frozen == ()
    before = snapshot(step)
    step(*batch())
    keys = {f"P.{key}" for key, _ in step.model.named_parameters()}
    assert keys <= changed(step, before)
    assert {"B.inner.norm.running_mean", "B.inner.norm.num_batches_tracked"} <= changed(step, before)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_stays(training: bool) -> None:
    step = fresh(compiled())
    step.model.train(training)
    step(*batch())
    assert {module.training for module in step.model.modules()} == {training}


def test_a_refused_step_leaves_its_statistics_alone() -> None:
    step = fresh(compiled())
    x, target = batch()
    step(x, target)
    before = snapshot(step)
    x[0, 0] = float("nan")
    with pytest.raises(rg.StepError) as refused:
        step(x, target)
    assert refused.value.codes == ("RG604",)
    assert changed(step, before) == set()


def test_saved_and_loaded(tmp_path: Path) -> None:
    step = fresh(compiled())
    again = rg.load(step.save(tmp_path / "net"), fresh(compiled()).model)
    x, target = batch()
    assert float(again(x, target)) == float(step(x, target))
    for key, value in step.model.state_dict().items():
        assert same(value, again.model.state_dict()[key]), key
