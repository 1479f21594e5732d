"""What ``reclra bench epochs`` trains: nets with their data, how long, and the candidates that tune every arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from reclra_graph.bench.record import example
from reclra_graph.bench.step_nets import ViT, mlp

MOMENTUM = 0.9
"""Of the optimiser "momentum", in every arm."""
QUICK_BATCH, QUICK_BATCHES = 4, 8
"""Samples in a batch of a tiny net, and batches in its epoch."""


@dataclass(frozen=True)
class Candidate:
    """A setting that an arm is tried with. ``optimizer``: "sgd", "momentum" or "adamw"."""

    optimizer: str
    lr: float

    @property
    def name(self) -> str:
        """Such as "adamw at 0.001"."""
        return f"{self.optimizer} at {self.lr:g}"


@dataclass(frozen=True)
class Case:
    """A net on a data set.

    ``data``: "fashion-mnist" or "cifar10". ``build``: makes the net of a width, or where it is also given True a tiny
    one of the same kind. ``width``: the usual one; None where the net has no other. ``epochs``: of a run;
    ``trial_epochs``: of each trial before it. ``evaluations`` in an epoch, on ``validation`` images that are held out
    of the training images. ``seeds``: how many runs of every arm. ``targets``: errors whose times are told, as shares.
    ``format``: how images lie in memory, or "flat" where the net takes vectors.
    """

    name: str
    title: str
    data: str
    build: Callable[[int, bool], nn.Module]
    arms: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    targets: tuple[float, ...]
    batch: int
    epochs: float
    trial_epochs: float
    evaluations: int
    validation: int
    seeds: int = 1
    width: int | None = None
    format: str = "contiguous"

    def entitled(self, width: int | None, tiny: bool) -> str:
        """The title, which names a width that is not the usual one, and a net that is tiny."""
        if tiny:
            return f"{self.title}, a tiny net"
        return self.title if width in (None, self.width) else f"{self.title}, width {width} instead of {self.width}"


def _mlp(activation: type[nn.Module], width: int, tiny: bool) -> nn.Module:
    """Weights with a deviation of √(1/inputs) before tanh, of √(2/inputs) before ReLU (He et al. 2015), no biases."""
    net = mlp(784, 16 if tiny else 256, 2 if tiny else 5, 10, activation)
    scale = 2.0 if activation is nn.ReLU else 1.0
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=(scale / module.in_features) ** 0.5)
            nn.init.zeros_(module.bias)
    return net


def _resnet18(width: int, tiny: bool) -> nn.Module:
    net: nn.Module = example("resnet18").ResNet18(10, 4 if tiny else width)
    return net


def _vit_tiny(width: int, tiny: bool) -> nn.Module:
    return ViT(32, 8, 16, 2, 2, 10) if tiny else ViT(32, 4, 192, 12, 3, 10)


def _each(optimizer: str, *rates: float) -> tuple[Candidate, ...]:
    return tuple(Candidate(optimizer, rate) for rate in rates)


_MLP: dict[str, Any] = {
    "data": "fashion-mnist", "arms": ("backprop-compiled", "backprop-eager", "dense"),
    "targets": (0.15, 0.13, 0.12, 0.11), "batch": 50, "epochs": 20, "trial_epochs": 2, "evaluations": 11,
    "validation": 5000, "seeds": 3, "format": "flat",
}  # fmt: skip

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "mlp",
            "Fashion-MNIST, MLP 5×256 with tanh",
            build=partial(_mlp, nn.Tanh),
            candidates=(*_each("momentum", 0.01, 0.03, 0.1), *_each("adamw", 3e-4, 1e-3, 3e-3)),
            **_MLP,
        ),
        Case(
            "mlp-relu",
            "Fashion-MNIST, MLP 5×256 with ReLU",
            build=partial(_mlp, nn.ReLU),
            candidates=(*_each("momentum", 0.001, 0.003, 0.01, 0.03), *_each("adamw", 1e-4, 3e-4, 1e-3)),
            **_MLP,
        ),
        Case(
            "resnet18",
            "CIFAR-10, ResNet-18",
            data="cifar10",
            build=_resnet18,
            arms=("backprop-compiled", "dense", "channel"),
            candidates=(*_each("momentum", 0.003, 0.01, 0.03, 0.1), *_each("adamw", 1e-3, 3e-3)),
            targets=(0.7, 0.6, 0.5, 0.4, 0.3),
            batch=64,
            epochs=2,
            trial_epochs=0.1,
            evaluations=10,
            validation=2000,
            width=64,
            format="channels_last",
        ),
        Case(
            "vit-tiny",
            "CIFAR-10, ViT-Tiny in patches of 4",
            data="cifar10",
            build=_vit_tiny,
            arms=("backprop-compiled", "dense", "token"),
            candidates=(*_each("momentum", 0.003, 0.01, 0.03), *_each("adamw", 1e-4, 3e-4, 1e-3)),
            targets=(0.75, 0.7, 0.65, 0.6, 0.5),
            batch=64,
            epochs=2,
            trial_epochs=0.1,
            evaluations=10,
            validation=2000,
        ),
    )
}
"""By name, in the order in which they are measured. Every arm of a case is tried with the same candidates."""
