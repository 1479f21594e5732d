"""The models whose emitted files are kept here. Golden files quote lines of this file: editing it changes them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def figure_1(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them; the paper's Figure 1 has nine, narrow at 2, 5 and 8."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class TinyResNet(nn.Module):
    """One residual block with batch norm, pooled and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.stem(x))
        z = torch.relu(self.norm(self.conv(z)) + z)
        pooled = nn.functional.adaptive_avg_pool2d(z, 1).flatten(1)
        logits: Tensor = self.head(pooled)
        return logits
