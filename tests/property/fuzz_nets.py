"""Random valid networks: every operator is chosen among those that fit the shapes there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gene = tuple[int, int, int]
"""(operator, first operand, second operand or size): any three numbers make a valid step."""

BATCH = 3
CLASSES = 4


class FuzzNet(nn.Module):
    """A network of a few operators, drawn by genes. Values are images [B, C, 6, 6], sequences [B, 5, D] or vectors
    [B, D]; ``kind`` says which comes in."""

    def __init__(self, kind: int, genes: tuple[Gene, ...]) -> None:
        super().__init__()
        self.start: tuple[int, ...] = ((7,), (5, 6), (2, 6, 6))[kind % 3]
        self.layers = nn.ModuleList()
        self.program: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = []
        shapes: list[tuple[int, ...]] = [self.start]
        for gene in genes:
            self._grow(gene, shapes)
        self.ends = [index for index in range(len(shapes)) if not any(index in reads for _, reads in self.program)]
        width = sum(shapes[index][0] if len(shapes[index]) != 2 else shapes[index][-1] for index in self.ends)
        self.head = nn.Linear(width, CLASSES)

    def _grow(self, gene: Gene, shapes: list[tuple[int, ...]]) -> None:
        choice, first, second = gene
        at = len(shapes) - 1 - first % min(len(shapes), 4)
        shape = shapes[at]
        made = _unary(shape, second)
        same = [index for index, other in enumerate(shapes) if other == shape and index != at]
        joins = _binary(shape) if same else []
        operators: list[tuple[Any, tuple[int, ...]]] = [(item, (at,)) for item in made]
        operators += [(item, (at, same[second % len(same)])) for item in joins]
        operator, reads = operators[choice % len(operators)]
        if isinstance(operator, nn.Module):
            self.layers.append(operator)
        self.program.append((operator, reads))
        with torch.no_grad():
            given = [torch.zeros(2, *shapes[index]) for index in reads]
            shapes.append(tuple(operator(*given).shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for operator, reads in self.program:
            values.append(operator(*(values[index] for index in reads)))
        ends = [values[index] for index in self.ends]
        flat = [item.mean((2, 3)) if item.dim() == 4 else item.mean(1) if item.dim() == 3 else item for item in ends]
        logits: Tensor = self.head(torch.cat(flat, 1))
        return logits


class _Attend(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


class _Last(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x)[0]
        return states


class _TimeFirst(nn.Module):
    """A layer that sees the batch second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = torch.tanh(self.layer(x.transpose(0, 1)))
        return moved.transpose(0, 1)


class _Windows(nn.Module):
    """A layer over windows of an image, folded into the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(channels * 9, channels * 9)

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        w = x.reshape(-1, c, 2, 3, 2, 3).permute(0, 2, 4, 1, 3, 5).reshape(-1, c * 9)
        w = torch.relu(self.layer(w)).reshape(-1, 2, 2, c, 3, 3)
        return w.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, 6, 6)


class _Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.layer(x).chunk(2, -1)
        return value * torch.sigmoid(gate)


def _unary(shape: tuple[int, ...], size: int) -> list[Any]:
    """Operators of one value of this shape."""
    plain: list[Any] = [
        torch.tanh, torch.relu, F.gelu, torch.sign, lambda x: x * torch.sigmoid(x), lambda x: x.clone().mul_(0.5),
    ]  # fmt: skip
    width = 2 + size % 5
    if len(shape) == 1:
        layers = [
            nn.Linear(shape[0], width), nn.BatchNorm1d(shape[0]), nn.LayerNorm(shape[0]), nn.Dropout(0.4),
            _Gate(shape[0]), nn.utils.parametrizations.weight_norm(nn.Linear(shape[0], width)),
            nn.Sequential(nn.Linear(shape[0], width), nn.PReLU(), nn.Linear(width, shape[0])),
        ]  # fmt: skip
        return [*layers, *plain]
    if len(shape) == 2:
        layers = [
            nn.Linear(shape[1], width), nn.LayerNorm(shape[1]), _Attend(shape[1]), _TimeFirst(shape[1]),
            _Last(nn.GRU(shape[1], width, batch_first=True)), _Gate(shape[1]), nn.Dropout(0.3),
        ]  # fmt: skip
        return [*layers, *plain, lambda x: x.mean(1), lambda x: torch.softmax(x, 1), lambda x: x[:, -1]]
    channels = shape[0]
    layers = [
        nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.BatchNorm2d(channels), nn.GroupNorm(1, channels), nn.ConvTranspose2d(channels, width, 3, padding=1),
        nn.Dropout2d(0.3),
    ]  # fmt: skip
    more = [_Windows(channels)] if shape[1:] == (6, 6) else []
    return [*layers, *more, *plain, lambda x: x.flatten(2).transpose(1, 2), lambda x: x.mean((2, 3))]


def _binary(shape: tuple[int, ...]) -> list[Any]:
    """Operators of two values of this shape."""
    axis = 1 if len(shape) != 2 else 2
    return [torch.add, torch.mul, torch.sub, lambda a, b: torch.cat([a, b], axis), torch.maximum]
