"""What a layer's module does before its own parameters come in: it belongs to the layer, and ends other regions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.passes.preludes import preludes
from tests.models import captured, regions_of

Noise = rg.PerturbativeConv2d


def word(regions: RegionGraph, name: str) -> str:
    return regions.graph.by_name[name].target.split(".")[1]


def core(regions: RegionGraph, region: Region) -> list[str]:
    return [word(regions, name) for name in region.operators if name not in region.activation]


def layer(size: int, inputs: int = 4, outputs: int = 4, **more: int) -> nn.Module:
    return Noise(inputs, outputs, size=size, seed=size, **more)


def test_noise_and_relu_are_the_layers_own() -> None:
    """Without an activation between, the noise's ReLU is not taken for one: z is what stands before the noise."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer(6), nn.Tanh(), layer(6), nn.Flatten(), nn.Linear(144, 3))
    regions = regions_of(model, torch.zeros(2, 1, 6, 6))
    _, first, second, third, last = regions.regions
    assert (first.activation, first.pre, first.post) == ((), "conv2d", "conv2d")
    assert core(regions, second) == ["add", "relu", "conv2d"]
    assert [word(regions, name) for name in second.activation] == ["tanh"]
    assert core(regions, third)[:3] == ["add", "relu", "conv2d"]
    assert last.kind == "layer"
    for region in (second, third):
        rules = {item.parameter.rpartition(".")[2]: item.rule for item in region.updates}
        assert rules == {"weight": "rules.updates.conv_weight", "bias": "rules.updates.channel_bias"}


@pytest.mark.parametrize("maps", ["buffers", "regenerated"])
@pytest.mark.parametrize("more", [{"masks": 3}, {"stride": 2}, {"crop": 1}], ids=str)
def test_whatever_makes_the_noise_belongs_to_it(maps: str, more: dict[str, int]) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), Noise(4, 5, size=6, maps=maps, **more), nn.Tanh(), nn.Flatten(),
        nn.LazyLinear(3),
    )  # fmt: skip
    model(torch.zeros(2, 1, 6, 6))
    regions = regions_of(model, torch.zeros(2, 1, 6, 6))
    assert core(regions, regions.regions[1]) == ["conv2d"]
    graph = regions.graph
    own = [item.name for item in graph.operators if item.module == "2" and not item.target.startswith("aten.sym_")]
    assert own == [name for name in regions.regions[2].operators if name in own]
    assert len(own) > 2


class Several(nn.Module):
    """Two pseudo-convolutions and a convolution that read one pre-activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.one, self.other = layer(6), Noise(4, 4, size=6, seed=1, masks=2)
        self.plain = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scores: Tensor = self.head(torch.tanh(self.one(h) + self.other(h) + self.plain(h)).flatten(1))
        return scores


def test_several_layers_read_one_representation_with_noise_of_their_own() -> None:
    regions = regions_of(Several(), torch.zeros(2, 1, 6, 6))
    first, middle, last = regions.regions[1:]
    assert (first.activation, first.shape, core(regions, first)) == ((), (4, 6, 6), ["conv2d"])
    # All three are summed into one pre-activation: the W_{k→i} of Eq. 5 for several k.
    assert {item.parameter.partition(".")[0] for item in middle.updates} == {"one", "other", "plain"}
    assert core(regions, middle).count("relu") == 2
    assert regions.flow == ((1, 2), (2, 3))
    assert last.kind == "layer"


def test_a_layer_may_come_first_and_last() -> None:
    regions = regions_of(nn.Sequential(layer(6, 1), layer(6)), torch.zeros(2, 1, 6, 6))
    assert [core(regions, region) for region in regions.regions] == [[], *[["add", "relu", "conv2d"]] * 2]
    assert regions.output == 2
    alone = regions_of(layer(6, 1), torch.zeros(2, 1, 6, 6))
    assert core(alone, alone.regions[1]) == ["add", "relu", "conv2d"]


class Gated(nn.Module):
    """Parameters of its own behind a non-linearity; two of them, or one."""

    def __init__(self, two: bool) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(6, 6))
        self.gate = nn.Parameter(torch.randn(6, 6)) if two else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        gate = 1.0 if self.gate is None else torch.sigmoid(x @ self.gate)
        return (x @ self.up) * gate


def test_the_users_own_layers_have_preludes_too() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Gated(two=False), nn.Linear(6, 3))
    regions = regions_of(model, torch.zeros(2, 4))
    assert core(regions, regions.regions[1]) == ["linear"]
    assert core(regions, regions.regions[2]) == ["tanh", "matmul", "mul"]


def test_a_prelude_of_two_layers_belongs_to_neither() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Gated(two=True), nn.Linear(6, 3))
    regions = regions_of(model, torch.zeros(2, 4))
    assert regions.regions[1].activation == ()
    assert core(regions, regions.regions[1]) == ["linear", "tanh"]
    assert set(preludes(regions.graph).values()) == {""}


class ChannelsLastNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Functional(nn.Module):
    """Parameters and layers in one module: its ReLU is an activation as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.weight = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.layer(x)), self.weight)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), ChannelsLastNorm(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (1, 6, 6)),
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,)),
        (nn.Sequential(nn.Linear(4, 6), nn.LSTM(6, 3, batch_first=True)), (5, 4)),
        (Functional(), (4,)),
    ],
    ids=["norm", "layers", "lstm", "functional"],
)
def test_nothing_else_has_a_prelude(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert preludes(captured(model, torch.zeros(2, *shape))) == {}
