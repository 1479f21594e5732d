"""The models of the cost benchmark: small ones of every kind, with a batch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.bench.record import example

Case = tuple[nn.Module, Tensor, Tensor, dict[str, Any]]
"""(model, inputs, targets, options of the compilation)."""


class VisionTransformer(nn.Module):
    """Images [B, 3, 32, 32] to scores [B, 10]: patches of 4×4, ``depth`` layers of width ``width``, the mean of all."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(torch.randn(64, width) * 0.02)
        self.blocks = nn.ModuleList(_layer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] → [B, 10]."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x).mean(1))
        return scores


class Gpt(nn.Module):
    """Words [B, T] to scores of the next [B, T, words]: ``depth`` causal layers of width ``width``."""

    def __init__(self, words: int, length: int, width: int, depth: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(_layer(width) for _ in range(depth))
        self.head = nn.Linear(width, words)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] → [B, T, words]."""
        x = self.words(x) + self.places
        for block in self.blocks:
            x = block(x, src_mask=self.mask)
        scores: Tensor = self.head(x)
        return scores


class Lstm(nn.Module):
    """Words [B, T] to scores [B, 10] from the last state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(500, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] → [B, 10]."""
        states, _ = self.lstm(self.words(x))
        scores: Tensor = self.head(states[:, -1])
        return scores


def _layer(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)


def _images(model: nn.Module, *shape: int) -> Case:
    return model, torch.randn(shape), torch.randint(10, shape[:1]), {}


def _mlp(*widths: int, batch: int) -> Case:
    return _images(example("mlp").build_model(widths), batch, widths[0])


def _gpt(width: int, depth: int, batch: int, length: int) -> Case:
    words = torch.randint(300, (batch, length))
    return Gpt(300, length, width, depth), words, torch.randint(300, (batch, length)), {"loss": "causal-lm"}


def _lstm(width: int, batch: int, length: int) -> Case:
    return Lstm(width), torch.randint(500, (batch, length)), torch.randint(10, (batch,)), {}


CASES: dict[str, Callable[[], Case]] = {
    "mlp-small": lambda: _mlp(784, 64, 64, 10, batch=32),
    "mlp-deep": lambda: _mlp(784, *[128] * 10, 10, batch=32),
    "mlp-wide": lambda: _mlp(784, 1024, 1024, 512, 10, batch=64),
    "lenet": lambda: _images(example("lenet").build_model(), 64, 1, 28, 28),
    "resnet18-narrow": lambda: _images(example("resnet18").ResNet18(10, 4), 8, 3, 32, 32),
    "resnet18": lambda: _images(example("resnet18").ResNet18(10, 16), 16, 3, 32, 32),
    "vit": lambda: _images(VisionTransformer(64, 4), 8, 3, 32, 32),
    "vit-wide": lambda: _images(VisionTransformer(128, 3), 16, 3, 32, 32),
    "gpt": lambda: _gpt(64, 4, 4, 32),
    "gpt-wide": lambda: _gpt(128, 4, 8, 64),
    "lstm": lambda: _lstm(64, 16, 16),
    "lstm-wide": lambda: _lstm(192, 32, 24),
}
