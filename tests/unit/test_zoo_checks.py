"""The checks that a model of the zoo passes, on models where they could go wrong."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor, nn

from reclra_graph.bench import checks
from reclra_graph.bench.checks import stepped
from reclra_graph.bench.loader import finished
from reclra_graph.bench.model import ZooModel


class Cached(nn.Module):
    """Makes a table of positions when it first sees how long the input is; the table is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("table", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[0] != x.shape[1]:
            self.table = torch.arange(x.shape[1]) / 10
        scores: Tensor = self.last(torch.tanh(self.norm(self.first(x + self.table))))
        return scores


class Noise(nn.Module):
    """Adds numbers that numpy draws, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.from_numpy(numpy.random.rand(*x.shape)).to(x.dtype)


def zoo_model() -> ZooModel:
    torch.manual_seed(0)
    return finished("cached", Cached(), [(torch.randn(8, 4),)], True)


def test_a_table_that_forward_makes_again_is_no_state() -> None:
    found = stepped(zoo_model(), 0)
    assert found["buffers"]["ok"], found["buffers"]
    assert found["buffers"]["caches"] == ["table"]
    assert found["reference"]["ok"]
    assert found["forward"]["ok"]


def test_numpy_draws_the_same_for_the_step_its_oracle_and_the_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Noise(), nn.Tanh(), nn.Linear(6, 3))
    found = stepped(finished("noisy", model, [(torch.randn(8, 4),)], True).to(torch.float64), 0)
    assert found["reference"]["ok"], found
    assert found["forward"]["ok"], found


def test_a_buffer_that_is_left_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.furthest
    monkeypatch.setattr(
        checks, "furthest", lambda found, wanted: real({key: item + 1 for key, item in found.items()}, wanted)
    )
    found = stepped(zoo_model(), 0)["buffers"]
    assert not found["ok"]
    assert found["where"].startswith("norm.")
