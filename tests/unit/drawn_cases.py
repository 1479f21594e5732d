"""The plans that the tests of the pictures draw: by hand, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.export.boxes import Picture, picture
from reclra_graph.export.routing import Page, lay_out
from reclra_graph.ir.schedule import Schedule
from tests.unit.drawn_plans import FIGURE_1, chain, flat, mlp, residual
from tests.unit.programs import branches, figure1, single


class Branching(nn.Module):
    """Four branches of unequal length, a long skip over panels, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Conv2d(2, 4, 1)
        self.long = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.pooled = nn.Conv2d(2, 4, 1)
        self.mix = nn.Conv2d(12, 4, 1)
        self.after = nn.Conv2d(6, 4, 1)
        self.drop = nn.Dropout(0.4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [torch.relu(self.short(x)), torch.relu(self.long(x)), torch.relu(self.pooled(self.pool(x)))]
        mixed = torch.relu(self.mix(torch.cat(parts, 1)))
        last = torch.relu(self.after(torch.cat([mixed, x], 1)))
        result: Tensor = self.fc(self.drop(last.mean((2, 3))))
        return result


@cache
def branching(wiring: str) -> Schedule:
    return rg.compile(Branching(), (torch.zeros(2, 2, 6, 6),), gpus=3, wiring=wiring).schedule


CASES: dict[str, Callable[[], Schedule]] = {
    "figure 1 by hand": lambda: mlp(9, FIGURE_1, 5),
    "figure 1": lambda: figure1().schedule,
    "flat": lambda: mlp(5, flat(5)),
    "chain": lambda: mlp(30, chain(30)),
    "several errors": lambda: mlp(6, ((6, 5), (6, 3), (5, 3), (5, 2), (3, 2), (3, 1), (6, 1))),
    "residual": lambda: residual(6),
    "two inputs": lambda: branches().schedule,
    "one region": lambda: single().schedule,
    "branching, flat": lambda: branching("flat"),
    "branching, chain": lambda: branching("chain"),
    "deep and flat": lambda: mlp(200, flat(200), 5),
}

every_case = pytest.mark.parametrize("case", CASES)


def drawn(schedule: Schedule) -> tuple[Picture, Page]:
    plan = schedule.tasks.plan
    scene = picture(plan)
    return scene, lay_out(plan, scene)
