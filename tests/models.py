"""Tiny models that the tests of the compiler share, each compiled once per process, and copies of them to train."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.passes.capture import capture
from reclra_graph.passes.emit import emit
from reclra_graph.passes.lower import lower
from reclra_graph.passes.partition import partition
from reclra_graph.passes.pipeline import placed
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.wire import wire
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.verify import verify

FIGURE_1 = (20, 16, 4, 16, 16, 4, 16, 16, 4, 10)
"""Widths of a 9-layer MLP whose layers 2, 5 and 8 are narrow."""


def mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class Signum(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.sign(h)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm; the skip is projected where the channels differ."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.skip = nn.Conv2d(fan_in, fan_out, 1) if fan_in != fan_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(h + self.skip(x))


class ResidualCNN(nn.Module):
    """A stem with max pooling, two residual blocks (the second projects), global average pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(ResidualBlock(4, 4), ResidualBlock(4, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.max_pool2d(torch.relu(self.norm(self.stem(x))), 2)
        z = nn.functional.adaptive_avg_pool2d(self.blocks(z), 1)
        logits: Tensor = self.head(z.flatten(1))
        return logits


class SkipMLP(nn.Module):
    """Equal widths; ``skips`` holds (layer, layer): the input of one is added to the pre-activation of the other."""

    def __init__(
        self, width: int, depth: int, skips: Sequence[tuple[int, int]], activations: Sequence[type[nn.Module]]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.activations = nn.ModuleList(activations[index % len(activations)]() for index in range(depth))
        self.head = nn.Linear(width, 3)
        self.skips = tuple(skips)

    def forward(self, x: Tensor) -> Tensor:
        z, inputs = x, []
        for index, (layer, activation) in enumerate(zip(self.layers, self.activations, strict=True)):
            inputs.append(z)
            h = layer(z)
            for source, target in self.skips:
                if target == index:
                    h = h + inputs[source]
            z = activation(h)
        logits: Tensor = self.head(z)
        return logits


class SmallCNN(nn.Module):
    """A strided and a grouped convolution, batch norm, average pooling; ``wide`` channels."""

    def __init__(self, wide: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, wide, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=2, dilation=2, groups=2)
        self.activation = activation()
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(wide * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.activation(self.norm(self.conv1(x)))
        z = self.pool(self.activation(self.conv2(z)))
        logits: Tensor = self.head(z.flatten(1))
        return logits


class TwoInputs(nn.Module):
    """A convolution and a linear branch, added before one non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.side = nn.Linear(5, 64)
        self.out = nn.Linear(64, 3)

    def forward(self, image: Tensor, context: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(torch.relu(self.conv(image)).flatten(1) + self.side(context)))
        return logits


class Tied(nn.Module):
    """Two layers that hold one weight, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.again = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.second(torch.tanh(self.first(x))))
        z = torch.tanh(self.again(torch.tanh(self.again(z))))
        logits: Tensor = self.head(z)
        return logits


class Dropouts(nn.Module):
    """Dropout before one non-linearity, behind another, and on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.drop(self.a(self.drop(x))))
        logits: Tensor = self.head(self.drop(torch.tanh(self.b(z))))
        return logits


class LocalNet(nn.Module):
    """Parameters without a closed form: a learned slope, and a weight that is transposed and used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.slope, self.head = nn.Linear(6, 5), nn.PReLU(), nn.Linear(5, 3)
        self.weight = nn.Parameter(torch.randn(5, 5) / 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.t()
        z = self.slope(self.first(x))
        z = torch.tanh(torch.tanh(z @ weight) @ weight)
        logits: Tensor = self.head(z)
        return logits


class Tagger(nn.Module):
    """A recurrent layer, time first, over sequences: a tag for every position [T, B, C], and a value for the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tag, self.value = nn.GRU(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        states = self.layer(x.transpose(0, 1))[0]
        return {"logits": self.tag(states), "value": self.value(torch.tanh(states[-1]))}


def snapshot(step: CompiledStep) -> dict[str, Tensor]:
    """Copies of everything a step may change: parameters, buffers (also those outside state_dict) and synapses."""
    held = {f"P.{key}": value.detach().clone() for key, value in step.model.named_parameters()}
    held.update({f"B.{key}": value.clone() for key, value in step.model.named_buffers()})
    held.update({f"C.{key}": value.clone() for key, value in step.constants.items()})
    held.update({f"E.{key}": value.clone() for key, value in step.synapses.items()})
    return held


def changed(step: CompiledStep, before: dict[str, Tensor]) -> set[str]:
    """Keys of what is not bitwise as it was; NaN equals NaN here."""
    after = snapshot(step)
    assert after.keys() == before.keys()
    return {key for key, value in before.items() if not same(value, after[key])}


def same(first: Tensor, second: Tensor) -> bool:
    """Bitwise equality, in effect: equal shapes, dtypes and values, NaN where NaN."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(
            torch.nan_to_num(first, nan=12345.0) if first.is_floating_point() else first,
            torch.nan_to_num(second, nan=12345.0) if second.is_floating_point() else second,
        )
    )


def fresh(step: CompiledStep) -> CompiledStep:
    """The same program over a copy of the model and of the synapses: training it leaves ``step`` as it is."""
    twin = CompiledStep(copy.deepcopy(step.model), step.program, step.constants)
    for name, value in step.synapses.items():
        twin.synapses[name].copy_(value)
    return twin


def captured(model: nn.Module, *inputs: Any, **options: Any) -> OperatorGraph:
    """The verified operator graph of a model."""
    return verify(capture(model, inputs, {}, rg.Options(**options))[0])


def regions_of(model: nn.Module, *inputs: Any, **options: Any) -> RegionGraph:
    """The verified region graph of a model."""
    return verify(partition(captured(model, *inputs, **options)))


def build(model: nn.Module, regions: RegionGraph, **options: Any) -> CompiledStep:
    """A step from a region graph at hand: what ``rg.compile`` does after capture and partition, in milliseconds."""
    chosen = rg.Options(**options)
    tasks = verify(placed(verify(lower(verify(wire(regions, chosen)), chosen.without)), chosen))
    program = verify(emit(verify(schedule(tasks, chosen.overlap_steps))))
    return CompiledStep(copy.deepcopy(model), program, {})


@cache
def figure1_regions() -> tuple[nn.Module, RegionGraph]:
    """Figure 1's model and its regions."""
    torch.manual_seed(1)
    model = mlp(*FIGURE_1)
    return model, regions_of(model, torch.zeros(4, 20))


@cache
def figure1() -> CompiledStep:
    """The paper's Figure 1 on five GPUs."""
    model, regions = figure1_regions()
    return build(model, regions, gpus=5)


@cache
def residual_cnn() -> CompiledStep:
    """Convolutions, batch norm, residual blocks, on two GPUs."""
    torch.manual_seed(2)
    return rg.compile(ResidualCNN(), torch.zeros(3, 1, 6, 6), gpus=2)


@cache
def two_inputs() -> CompiledStep:
    """Two inputs, chain wiring, mean squared error."""
    torch.manual_seed(3)
    return rg.compile(TwoInputs(), (torch.zeros(2, 1, 4, 4), torch.zeros(2, 5)), gpus=2, wiring="chain", loss="mse")


@cache
def tied() -> CompiledStep:
    """Tied weights on three GPUs."""
    torch.manual_seed(4)
    return rg.compile(Tied(), torch.zeros(4, 6), gpus=3)


@cache
def dropouts() -> CompiledStep:
    """Dropouts on one GPU."""
    torch.manual_seed(5)
    return rg.compile(Dropouts(), torch.zeros(4, 6))


@cache
def local_net() -> CompiledStep:
    """Local derivatives, on three GPUs."""
    torch.manual_seed(6)
    return rg.compile(LocalNet(), torch.zeros(4, 6), gpus=3)


@cache
def tagger() -> CompiledStep:
    """An unrolled layer, shared synapses, two outputs, and the batch in the second place, on three GPUs."""
    torch.manual_seed(7)
    losses = {"logits": "cross-entropy", "value": "mse"}
    return rg.compile(Tagger(), torch.zeros(4, 3, 4), gpus=3, loss=losses, label_smoothing=0.1, ignore_index=1)


STEPS: tuple[Callable[[], CompiledStep], ...] = (
    figure1, residual_cnn, two_inputs, tied, dropouts, local_net, tagger,
)  # fmt: skip
"""Compiled models of every kind; parametrise with ``ids=lambda make: make.__name__``."""


def batch_for(step: CompiledStep, size: int = 4, seed: int = 0) -> tuple[tuple[Tensor, ...], Any]:
    """Random inputs and a target that a step accepts; by label where there are several."""
    generator = torch.Generator().manual_seed(seed)
    graph = step.plan.regions.graph
    inputs = tuple(
        torch.randn(
            size, *(int(n) for n in item.type.shape[1:]), generator=generator, dtype=getattr(torch, item.type.dtype)
        )
        for item in graph.inputs
    )
    found: dict[str, Tensor] = {}
    for label, (sizes, dtype, classes, _) in step.module.TARGETS.items():
        shape = [size if item == "B" else item for item in sizes]
        if classes > 0:
            found[label] = torch.randint(classes, shape, generator=generator)
        else:
            found[label] = torch.rand(shape, generator=generator, dtype=getattr(torch, dtype))
    return inputs, found.get("", found)
