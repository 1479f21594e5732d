"""Small compiled programs that the tests of the text artifacts share, each compiled once per process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import tagger
from tests.unit.record_models import Depth


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@cache
def figure1() -> CompiledStep:
    """The paper's Figure 1: nine layers, narrow at 2, 5 and 8, on five GPUs."""
    return rg.compile(mlp(20, 16, 4, 16, 16, 4, 16, 16, 4, 10), (torch.zeros(6, 20),), gpus=5)


class Branches(nn.Module):
    """Two inputs, a convolution with batch norm, a frozen layer and one that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.side = nn.Linear(5, 64)
        self.out = nn.Linear(64, 3)
        self.unused = nn.Linear(2, 2)
        self.side.bias.requires_grad_(False)

    def forward(self, image: Tensor, context: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv(image))).flatten(1)
        result: Tensor = self.out(torch.tanh(hidden + self.side(context)))
        return result


@cache
def branches() -> CompiledStep:
    inputs = (torch.zeros(2, 1, 4, 4), torch.zeros(2, 5))
    return rg.compile(Branches(), inputs, gpus=2, wiring="chain", gamma=0, norm=1, loss="mse")


@cache
def single() -> CompiledStep:
    """One region: nothing to wire."""
    return rg.compile(nn.Linear(4, 2), (torch.zeros(3, 4),))


@cache
def depth() -> CompiledStep:
    """One recorded path."""
    torch.manual_seed(0)
    return rg.compile(Depth(), torch.randn(5, 6))


MAKERS: tuple[Callable[[], CompiledStep], ...] = (figure1, branches, single, tagger, depth)
