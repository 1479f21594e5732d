"""A fully connected residual network: a skip connection over every ``gap`` layers, as in the paper's Algorithm 1.

Where a skip joins layers of unequal width it goes through a projection without bias, which learns as one more weight
matrix of the same pre-activation.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

WIDTHS = (784, 256, 256, 256, 256, 128, 128)


class Block(nn.Module):
    """``len(widths) - 1`` layers; the block's input is added to the last pre-activation."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_linear(*pair) for pair in itertools.pairwise(widths))
        self.skip = nn.Identity() if widths[0] == widths[-1] else _linear(widths[0], widths[-1], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, widths[0]] to [B, widths[-1]]."""
        z = x
        for layer in self.layers[:-1]:
            z = torch.tanh(layer(z))
        return torch.tanh(self.layers[-1](z) + self.skip(x))


def _linear(fan_in: int, fan_out: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(fan_in, fan_out, bias=bias)
    nn.init.normal_(linear.weight, std=fan_in**-0.5)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def build_model(widths: tuple[int, ...] = WIDTHS, gap: int = 2, classes: int = 10) -> nn.Sequential:
    """Blocks of ``gap`` layers over ``widths``, then a linear output layer.

    Raises ValueError where the number of layers is not a multiple of ``gap``.
    """
    if gap < 1 or (len(widths) - 1) % gap:
        raise ValueError(f"{len(widths) - 1} layers do not fall into blocks of {gap}")
    blocks = [Block(widths[at : at + gap + 1]) for at in range(0, len(widths) - 1, gap)]
    return nn.Sequential(*blocks, _linear(widths[-1], classes))


example_inputs = (torch.zeros(50, 784),)


if __name__ == "__main__":
    import reclra_graph as rg

    print(rg.compile(build_model(), example_inputs, gpus=3).source)
