"""Small runs for the tests of training: nets that draw and keep statistics, data of three classes, and what a folder
holds in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.train.fit import fit
from reclra_graph.train.trainer import BEST, LAST, Result
from tests.unit.image_files import write_own


class Net(nn.Module):
    """It draws (dropout) and keeps statistics, so that going on exactly is not for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2)
        self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.tanh(self.norm(self.first(x))))
        found: Tensor = self.last(torch.tanh(self.second(x)))
        return found


def run(folder: Path, name: str = "run", **given: Any) -> Result:
    """A run of six epochs of ten batches; its data stand beside its folder."""
    data = folder / "own.pt"
    if not data.exists():
        write_own(data, train=100, test=40)
    usual: dict[str, Any] = {
        "epochs": 6, "batch": 8, "lr": 0.1, "validation": 20, "run": "eager", "device": "cpu", "seed": 3,
        "example_inputs": torch.zeros(8, 4), "options": {"gain": True}, "eval_batch": 16,
    }  # fmt: skip
    return fit(given.pop("model", Net), given.pop("data", data), out=folder / name, **{**usual, **given})


def held(folder: Path, name: str = LAST) -> dict[str, Any]:
    """A checkpoint of a run."""
    found: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two nests hold the same, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def check_same_end(one: Path, other: Path) -> None:
    """Both runs ended with the same weights, optimiser, random numbers and errors."""
    for part in ("state", "random"):
        assert same(held(one)[part], held(other)[part]), part
    assert same(held(one, BEST)["state"], held(other, BEST)["state"])
    assert held(one, BEST)["step"] == held(other, BEST)["step"]
    courses = [held(folder)["course"] for folder in (one, other)]
    for name in ("step", "loss", "error", "lr"):
        curves = [[record[name] for record in course["records"]] for course in courses]
        assert curves[0] == curves[1], name
