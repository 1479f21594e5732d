"""Model files and results that the tests of the command line share; the ``reclra`` fixture stands in conftest.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD = "import torch\nfrom torch import nn\n"
MLP = HEAD + "model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))\n"
EXAMPLE = "example_inputs = (torch.zeros(5, 4),)\n"
GOOD = MLP + EXAMPLE


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value

    def codes(self) -> list[str]:
        return [error["code"] for error in self.json()["errors"]]


Call = Callable[..., Result]


def write(text: str, name: str = "net.py") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name
