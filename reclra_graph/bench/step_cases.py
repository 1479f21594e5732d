"""What ``reclra bench step`` measures: nets with their data, their wiring, and what is asked of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.bench.record import example
from reclra_graph.bench.step_nets import GPT, ViT, mlp, resnet50, vgg11
from reclra_graph.passes.replace_conv import replace_conv

BATCHES = 2
"""Batches that every arm trains on, in turn."""
QUICK = 4
"""Samples in a batch of a tiny net."""


@dataclass(frozen=True)
class Net:
    """A model; the shape of one sample; how many classes it tells apart; and how many tokens there are, where its
    inputs are tokens: it then has a score for each class at every position. ``patches``: its only convolution cuts
    images into patches."""

    model: nn.Module
    shape: tuple[int, ...]
    classes: int
    tokens: int = 0
    patches: bool = False

    @property
    def images(self) -> bool:
        """Whether it works on maps, which may lie in memory in two formats."""
        return len(self.shape) == 3 and not self.patches


@dataclass(frozen=True)
class Case:
    """A net under one wiring.

    ``build``: makes the net, or where it is given True a tiny one of the same kind. ``options``: more of
    ``rg.compile``'s. ``dtype``: of the arithmetic, "bfloat16" by autocast. ``lr``: of all arms. ``turn``: steps of an
    arm that are timed at once. ``bar``: how many times as fast as the best backprop it shall be. ``devices``: where it
    is measured unless it is asked for by name; nowhere, of those that are beside the headlines.
    """

    name: str
    title: str
    build: Callable[[bool], Net]
    batch: int = 64
    wiring: str = "flat"
    options: tuple[tuple[str, Any], ...] = ()
    dtype: str = "float32"
    lr: float = 0.01
    turn: int = 1
    bar: float | None = None
    devices: tuple[str, ...] = ("cpu",)

    @property
    def about(self) -> dict[str, Any]:
        """What a reader wants to know of it."""
        return {
            "title": self.title, "batch": self.batch, "wiring": self.wiring, "options": dict(self.options),
            "dtype": self.dtype, "optimizer": "SGD", "lr": self.lr, "steps_at_once": self.turn, "bar": self.bar,
        }  # fmt: skip

    def batches(self, net: Net, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Random inputs [B, *shape] and targets [B], or [B, length] of tokens; the same for every arm."""
        draw = torch.Generator().manual_seed(seed)
        made = []
        for _ in range(count):
            shape = (self.batch, *net.shape)
            if net.tokens:
                inputs = torch.randint(net.tokens, shape, generator=draw)
            else:
                inputs = torch.randn(shape, generator=draw)
            made.append((inputs, torch.randint(net.classes, shape if net.tokens else shape[:1], generator=draw)))
        return made


def _resnet18(tiny: bool) -> Net:
    module = example("resnet18")
    return Net(module.ResNet18(10, 8), (3, 16, 16), 10) if tiny else Net(module.ResNet18(10, 64), (3, 32, 32), 10)


def _resnet18_pconv(tiny: bool) -> Net:
    net = _resnet18(tiny)
    return replace(net, model=replace_conv(net.model, torch.zeros(2, *net.shape)).model)


def _resnet50(size: int, classes: int) -> Callable[[bool], Net]:
    return lambda tiny: (
        Net(resnet50(10, narrow=True), (3, 32, 32), 10) if tiny else Net(resnet50(classes), (3, size, size), classes)
    )


def _vgg11(tiny: bool) -> Net:
    return Net(vgg11(10, 16), (3, 32, 32), 10) if tiny else Net(vgg11(10), (3, 64, 64), 10)


def _vit_tiny(tiny: bool) -> Net:
    if tiny:
        return Net(ViT(16, 8, 16, 2, 2, 10), (3, 16, 16), 10, patches=True)
    return Net(ViT(64, 8, 192, 12, 3, 10), (3, 64, 64), 10, patches=True)


def _vit_b16(tiny: bool) -> Net:
    return _vit_tiny(True) if tiny else Net(ViT(224, 16, 768, 12, 12, 1000), (3, 224, 224), 1000, patches=True)


def _gpt(tiny: bool) -> Net:
    if tiny:
        return Net(GPT(11, 8, 16, 2, 2, tied=False), (8,), 11, 11)
    return Net(GPT(65, 128, 256, 6, 8, tied=False), (128,), 65, 65)


def _gpt2(tiny: bool) -> Net:
    if tiny:
        return Net(GPT(11, 8, 16, 2, 2, tied=True), (8,), 11, 11)
    return Net(GPT(50257, 1024, 768, 12, 12, tied=True), (1024,), 50257, 50257)


def _mlp(tiny: bool) -> Net:
    return Net(mlp(12, 16, 3, 10), (12,), 10) if tiny else Net(mlp(784, 256, 5, 10), (784,), 10)


_CUDA, _BOTH = ("cuda",), ("cpu", "cuda")
_SMALL = Case("resnet18", "ResNet-18, 32×32", _resnet18, bar=1.5, devices=_BOTH)
_MLP = Case("mlp", "MLP 5×256", _mlp, batch=50, turn=5, bar=1.5, devices=_BOTH)
_BIG = Case("resnet50-224", "ResNet-50, 224×224", _resnet50(224, 1000), batch=256, bar=1.4, devices=_CUDA)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _SMALL,
        replace(
            _SMALL,
            name="resnet18-blocks",
            title="ResNet-18, 32×32, block wiring",
            wiring="blocks",
            bar=None,
            devices=("cpu",),
        ),
        replace(
            _SMALL,
            name="resnet18-pconv",
            title="ResNet-18, 32×32, pseudo-convolutions",
            build=_resnet18_pconv,
            bar=None,
            devices=(),
        ),
        Case("resnet50", "ResNet-50, 64×64", _resnet50(64, 10), lr=0.001, bar=1.4),
        Case("vit-tiny", "ViT-Tiny, 64×64 in patches of 8", _vit_tiny, bar=1.25),
        Case(
            "vit-tiny-token",
            "ViT-Tiny, 64×64 in patches of 8, token synapses",
            _vit_tiny,
            options=(("synapse", "token"),),
            bar=2.0,
        ),
        Case("gpt", "GPT 6×256, 128 tokens", _gpt, bar=1.25),
        Case(
            "vgg11", "VGG-11, 64×64, its convolutions and one linear layer", _vgg11, options=(("beta", 0.001),), bar=1.4
        ),
        _MLP,
        replace(_BIG, dtype="bfloat16", title="ResNet-50, 224×224, bfloat16", turn=5),
        replace(_BIG, name="resnet50-224-float32", title="ResNet-50, 224×224, float32", turn=5),
        Case("vit-b16", "ViT-B/16, 224×224", _vit_b16, turn=5, bar=1.4, devices=_CUDA),
        Case("gpt2", "GPT-2 small, 1024 tokens", _gpt2, batch=8, turn=5, bar=1.4, devices=_CUDA),
        *(
            replace(
                case,
                name=f"{case.name}-{lanes}-lanes",
                title=f"{case.title}, {lanes} lanes",
                options=(("gpus", lanes),),
                turn=5,
                bar=None,
                devices=_CUDA,
            )
            for case in (_MLP, _SMALL)
            for lanes in (2, 5, 8)
        ),
    )
}
"""By name, in the order in which they are measured."""


def usual(device: str) -> tuple[str, ...]:
    """Names of the cases that belong to a kind of device, "cpu" or "cuda"."""
    return tuple(name for name, case in CASES.items() if device in case.devices)
