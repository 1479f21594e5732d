"""A small vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021) on Fashion-MNIST.

    python examples/vit.py --compare

It trains on the 5,000 images that travel with the examples; 1,000 others are held out. The last layer reads every
patch.

Measured (docs/results/examples-vit.json): the held-out loss falls as far as that of the last layer trained alone, no
further: what the two blocks learn is of no use here. Backprop gets lower.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from _train import DATA, Samples, Task, main
from torch import Tensor, nn

from reclra_graph.data import fashion_mnist


class Attention(nn.Module):
    """Self-attention: [B, T, width] to [B, T, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to [B, T, width]."""
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return result


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm and beside a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to [B, T, width]."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class ViT(nn.Module):
    """Images [B, 1, 28, 28] to scores [B, classes], by way of 16 patches of 7×7 pixels."""

    def __init__(self, classes: int = 10, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=7, stride=7)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(16 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 1, 28, 28] to [B, classes]."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x).flatten(1))
        return scores


def build_model() -> ViT:
    """Two blocks of width 32 for ten classes; the last layer starts at zero."""
    model = ViT()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


example_inputs = (torch.zeros(50, 1, 28, 28),)


def samples() -> Samples:
    """Images [N, 1, 28, 28], their pixels of mean 0 and variance 1, and their classes [N]."""
    data = fashion_mnist(DATA / "fashion-mnist")
    train, test = ((images - 0.286) / 0.353 for images in (data.train_images, data.test_images))
    return Samples(train, data.train_labels, test, data.test_labels)


def error(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of images classified wrongly."""
    return (scores.argmax(1) != labels).float().mean()


task = Task(
    name="vit",
    title="A vision transformer learns Fashion-MNIST",
    model=build_model,
    samples=samples,
    loss=F.cross_entropy,
    error=error,
    options={"wiring": "flat", "beta": 0.1},
    rates={"rec-LRA": (("head", 0.02), ("", 0.01)), "last layer only": (("head", 0.02),), "backprop": (("", 0.03),)},
    batch=50,
    epochs=4,
)

if __name__ == "__main__":
    sys.exit(main(task))
