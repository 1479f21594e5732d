"""The paper's Figure 1: nine layers, of which 2, 5 and 8 are narrow.

With `reclra-compile examples/figure1.py --gpus 5` the narrow layers become relays: the output's error goes to 8, 5 and
2 at once, and from there to the layers between them.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

WIDE, NARROW = 128, 32
WIDTHS = (784, WIDE, NARROW, WIDE, WIDE, NARROW, WIDE, WIDE, NARROW, 10)


def build_model() -> nn.Sequential:
    """Nine linear layers with tanh between them; layers 2, 5 and 8 have 32 units, the others 128, the last 10."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(WIDTHS):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.normal_(linear.weight, std=fan_in**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


example_inputs = (torch.zeros(50, 784),)


if __name__ == "__main__":
    import reclra_graph as rg

    print(rg.compile(build_model(), example_inputs, gpus=5).source)
