"""A plain multi-layer perceptron: five hidden layers of 256 tanh units, 784 pixels in, 10 classes out.

The network of the paper's tables. Compile it with `reclra-compile examples/mlp.py --gpus 5`, or run this file to see
the plan and the emitted training step.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

HIDDEN = (256, 256, 256, 256, 256)


def build_model(widths: tuple[int, ...] = (784, *HIDDEN, 10), activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers of the given widths with ``activation`` between them; weights of std 1/√fan_in, biases 0."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.normal_(linear.weight, std=fan_in**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


example_inputs = (torch.zeros(50, 784),)


if __name__ == "__main__":
    import reclra_graph as rg

    print(rg.compile(build_model(), example_inputs, gpus=5).source)
