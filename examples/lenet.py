"""A small convolutional network after LeNet-5: two convolutions with average pooling, three dense layers, tanh."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """Images [B, 1, 28, 28] to scores [B, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 1, 28, 28] to [B, classes]."""
        x = self.pool(torch.tanh(self.conv1(x)))
        x = self.pool(torch.tanh(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = torch.tanh(self.fc1(x))
        x = torch.tanh(self.fc2(x))
        scores: Tensor = self.fc3(x)
        return scores


def build_model() -> LeNet:
    """A LeNet for ten classes."""
    return LeNet()


example_inputs = (torch.zeros(50, 1, 28, 28),)


if __name__ == "__main__":
    import reclra_graph as rg

    print(rg.compile(build_model(), example_inputs, gpus=2).source)
