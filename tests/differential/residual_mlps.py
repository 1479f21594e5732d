"""The fully connected residual nets that the differential tests train, and their way into the numpy oracle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tests.differential.numpy_reclra import Array, Edge, Network


class Signum(nn.Module):
    """z = sign(h)."""

    def forward(self, h: Tensor) -> Tensor:
        """Element-wise sign, any shape."""
        return torch.sign(h)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "signum": Signum,
    "identity": nn.Identity,
}


class Block(nn.Module):
    """g layers with a skip from the block's input to the last pre-activation, projected where the widths differ."""

    def __init__(self, widths: tuple[int, ...], activations: tuple[str, ...]) -> None:
        super().__init__()
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairs)
        self.activations = nn.ModuleList(ACTIVATIONS[name]() for name in activations)
        project = widths[0] != widths[-1]
        self.projection = nn.Linear(widths[0], widths[-1], bias=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, widths[0]] to [B, widths[-1]]."""
        z = x
        for layer, activation in list(zip(self.layers, self.activations, strict=True))[:-1]:
            z = activation(layer(z))
        h = self.layers[-1](z) + (x if self.projection is None else self.projection(x))
        return cast(Tensor, self.activations[-1](h))


class ResidualMLP(nn.Module):
    """Blocks of g layers (g = 0: blocks of one layer without a skip), and a linear output layer."""

    def __init__(self, widths: tuple[int, ...], activations: tuple[str, ...], g: int) -> None:
        super().__init__()
        self.g = g
        self.names = activations
        hidden = len(widths) - 2
        if g:
            starts = range(0, hidden, g)
            self.body: nn.Module = nn.Sequential(
                *(Block(widths[start : start + g + 1], activations[start : start + g]) for start in starts)
            )
        else:
            self.body = nn.Sequential(
                *(
                    nn.Sequential(nn.Linear(widths[layer], widths[layer + 1]), ACTIVATIONS[activations[layer]]())
                    for layer in range(hidden)
                )
            )
        self.head = nn.Linear(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, widths[0]] to [B, widths[-1]]."""
        return cast(Tensor, self.head(self.body(x)))

    @property
    def linears(self) -> list[nn.Linear]:
        """W_1 ... W_L in order, without the projections."""
        projections = [id(item) for item in self.projections.values()]
        return [item for item in self.modules() if isinstance(item, nn.Linear) and id(item) not in projections]

    @property
    def projections(self) -> dict[int, nn.Linear]:
        """P_l by layer number."""
        if not self.g:
            return {}
        blocks = [block for block in self.body.children() if isinstance(block, Block)]
        return {(k + 1) * self.g: block.projection for k, block in enumerate(blocks) if block.projection is not None}


WIDTHS: dict[bool, tuple[int, ...]] = {
    False: (5, 5, 5, 5, 5, 5, 5, 4),
    True: (6, 5, 4, 5, 4, 3, 5, 4),
}
"""Input, six hidden layers and the output; True where some blocks need a projection (for g = 2 and for g = 3)."""


def build(g: int, projected: bool, activation: str, seed: int = 0) -> ResidualMLP:
    """A float64 net of six hidden layers; ``activation`` "mixed" takes a different one in every layer."""
    torch.manual_seed(seed)
    mixed = ("tanh", "relu", "signum", "gelu", "elu", "sigmoid")
    names = mixed if activation == "mixed" else (activation,) * 6
    return ResidualMLP(WIDTHS[projected], names, g).double()


def batch(net: ResidualMLP, loss: str, size: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random inputs [size, units of the input] and targets as the loss expects them."""
    torch.manual_seed(seed)
    x = torch.randn(size, net.linears[0].in_features, dtype=torch.float64)
    classes = net.head.out_features
    if loss == "cross-entropy":
        return x, torch.randint(classes, (size,))
    return x, torch.rand(size, classes, dtype=torch.float64)


def array(tensor: Tensor) -> Array:
    """A float64 numpy copy that shares nothing with the tensor."""
    return np.array(tensor.detach().numpy(), dtype=np.float64)


def to_numpy(net: ResidualMLP) -> Network:
    """The oracle's copy of the net."""
    layers = dict(enumerate(net.linears, start=1))
    last = max(layers)
    return Network(
        W={number: array(layer.weight) for number, layer in layers.items()},
        b={number: array(layer.bias) for number, layer in layers.items()},
        phi={**dict(enumerate(net.names, start=1)), last: "identity"},
        skip={layer: layer - net.g for layer in range(net.g, last, net.g)} if net.g else {},
        P={number: array(layer.weight) for number, layer in net.projections.items()},
    )


def edge_of(name: str) -> Edge:
    """``"9->5"`` as (9, 5)."""
    source, target = name.split("->")
    return int(source), int(target)


def names_of(edges: Iterable[Edge]) -> tuple[str, ...]:
    """(9, 5) as ``"9->5"``."""
    return tuple(f"{source}->{target}" for source, target in edges)


def algorithm_1_edges(last: int, g: int) -> tuple[Edge, ...]:
    """Algorithm 1's own wiring: layers at block ends hang on the output, the others on the layer above."""
    return tuple((last if layer % g == 0 else layer + 1, layer) for layer in range(last - 1, 0, -1))


def random_edges(last: int, seed: int) -> tuple[Edge, ...]:
    """A random DAG: regions join in random order, each with one to three sources among those that joined before."""
    generator = np.random.default_rng(seed)
    joined = [last]
    edges: list[Edge] = []
    for region in generator.permutation(np.arange(1, last)).tolist():
        count = int(generator.integers(1, min(3, len(joined)) + 1))
        edges += [(int(source), int(region)) for source in generator.choice(joined, size=count, replace=False)]
        joined.append(region)
    return tuple(edges)


def draw_synapses(synapses: Mapping[str, Tensor], seed: int = 2, scale: float = 1.0) -> dict[Edge, Array]:
    """Write normal values (std scale/sqrt(units of the source)) into the synapses; returns the oracle's copies."""
    generator = np.random.default_rng(seed)
    drawn: dict[Edge, Array] = {}
    for name, synapse in synapses.items():
        value = generator.normal(size=tuple(synapse.shape)) * scale / np.sqrt(synapse.shape[1])
        with torch.no_grad():
            synapse.copy_(torch.from_numpy(value))
        drawn[edge_of(name)] = value
    return drawn


def differences(
    net: ResidualMLP, synapses: Mapping[str, Tensor], mine: Network, E: Mapping[Edge, Array]
) -> dict[str, float]:
    """Largest absolute difference between torch's values and the oracle's, for every parameter and synapse."""
    found: dict[str, float] = {}

    def compare(name: str, theirs: Any, ours: Array) -> None:
        value = array(theirs)
        assert value.shape == ours.shape, (name, value.shape, ours.shape)
        found[name] = float(np.max(np.abs(value - ours)))

    for number, layer in enumerate(net.linears, start=1):
        compare(f"W{number}", layer.weight, mine.W[number])
        compare(f"b{number}", layer.bias, mine.b[number])
    for number, layer in net.projections.items():
        compare(f"P{number}", layer.weight, mine.P[number])
    assert {edge_of(name) for name in synapses} == set(E)
    for name, synapse in synapses.items():
        compare(f"E{name}", synapse, E[edge_of(name)])
    return found
