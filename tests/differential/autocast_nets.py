"""Small nets in float32 with a batch each, for steps under autocast."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 8


class Block(nn.Module):
    """A transformer's: attention and a perceptron, each behind a norm and beside a skip."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, time, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, time, width)
        x = x + self.out(mixed)
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.block = nn.Embedding(11, 8), Block()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.block(self.table(tokens))))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        logits: Tensor = self.head(states[:, -1])
        return logits


class Unusual(nn.Module):
    """A product that only einsum writes down, with a weight that is computed, a softmax of its own, and softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8) / 3)
        self.first, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.first(self.norm(x)), -1) * 8
        x = self.norm(torch.einsum("bij,jk->bik", x, torch.sinh(self.weight)))
        logits: Tensor = self.head(F.softplus(x).mean(1))
        return logits


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.AvgPool2d(2), nn.GELU(), nn.ConvTranspose2d(16, 4, 2, stride=2),
        nn.Tanh(), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


_MAKE: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], int]] = {
    # net, shape of a sample, shape of its targets, how many tokens there are where the samples are of tokens
    "perceptron": (perceptron, (12,), (), 0),
    "convolutional": (convolutional, (3, 16, 16), (), 0),
    "transformer": (Transformer, (5,), (5,), 11),
    "recurrent": (Recurrent, (4, 6), (), 0),
    "unusual": (Unusual, (5, 8), (), 0),
}
NETS = tuple(_MAKE)


def net_and_batch(name: str, size: int = BATCH) -> tuple[nn.Module, Tensor, Tensor]:
    """A net with inputs and targets, the same at every call."""
    make, sample, places, tokens = _MAKE[name]
    torch.manual_seed(0)
    net = make()
    x = torch.randint(tokens, (size, *sample)) if tokens else torch.randn(size, *sample)
    return net, x, torch.randint(4, (size, *places))


def gap(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
