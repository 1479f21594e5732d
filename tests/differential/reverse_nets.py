"""Nets whose connections errors go back against: skips, projections, pooling, concatenations, attention, recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectedSkip(nn.Module):
    """An MLP with an identity skip, and a projected one that shares its pre-activation with a layer."""

    def __init__(self, activation: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.skip, self.head = nn.Linear(6, 4, bias=False), nn.Linear(4, 3)
        self.phi = activation()

    def forward(self, x: Tensor) -> Tensor:
        first = self.phi(self.a(x))
        second = self.phi(self.b(first) + first)
        third = self.phi(self.c(second) + self.skip(second) + self.skip(first))
        logits: Tensor = self.head(third)
        return logits


class PlainConvs(nn.Module):
    """Strided, grouped, dilated and transposed convolutions without norms; concatenation, pooling of both kinds, a
    projected skip, dropout, and a linear layer on a flattened map."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.wide = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.skip = nn.Conv2d(4, 6, 1, stride=2)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.mixed = nn.Conv2d(8, 4, (2, 3), bias=False)
        self.head = nn.Linear(4 * 3 * 3, 3)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.stem(x))
        low = F.relu(self.down(first))
        low = F.relu(self.wide(low) + self.skip(first))
        both = torch.cat([F.relu(self.up(low)), first], 1)
        z = F.relu(self.mixed(F.avg_pool2d(both, 2)))
        z = F.max_pool2d(F.pad(z, (2, 2, 1, 2)), 2)
        logits: Tensor = self.head(self.drop(z.flatten(1)))
        return logits


class Volumes(nn.Module):
    """Convolutions of one and of three dimensions, transposed ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), nn.ConvTranspose3d(2, 2, (1, 2, 2), groups=2)
        self.c, self.d = nn.Conv1d(2, 4, 3, stride=3, padding=1), nn.ConvTranspose1d(4, 2, 2, stride=2)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.b(F.relu(self.a(x)))).flatten(2)
        logits: Tensor = self.head(F.relu(self.d(F.relu(self.c(z)))).mean(2))
        return logits


class Block(nn.Module):
    """A transformer block with normalisations in front; queries, keys and values by one layer or by three."""

    def __init__(self, width: int, heads: int, *, apart: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.apart = heads, causal, apart
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = [nn.Linear(width, width) for _ in range(3)] if apart else [nn.Linear(width, 3 * width)]
        self.qkv = nn.ModuleList(layers)
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        parts = [layer(z) for layer in self.qkv] if self.apart else self.qkv[0](z).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norm2(x))))


class SmallViT(nn.Module):
    """Patches, a class token, learned positions, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, 2)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.block = Block(8, 2, apart=True, causal=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patch(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(z.shape[0], -1, -1), z], 1) + self.places
        logits: Tensor = self.head(self.norm(self.block(z))[:, 0])
        return logits


class SmallGPT(nn.Module):
    """Embeddings, one causal block, a last layer that is tied to the table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 8), nn.Embedding(5, 8)
        self.block = Block(8, 2, apart=False, causal=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        z = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        logits: Tensor = self.head(self.norm(self.block(z)))
        return logits


class LastState(nn.Module):
    """A recurrent layer with cells, unrolled, and what its last state says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x)[0][:, -1])
        return logits


class Gated(nn.Module):
    """Channels weighted by a gate (squeeze and excitation), and a scale per feature on a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2), nn.Linear(2, 4)
        self.scale, self.last, self.head = nn.Parameter(torch.rand(4, 1, 1)), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(z.mean((2, 3))))))
        z = z * gate[:, :, None, None]
        z = F.relu(self.last(z) * self.scale + z)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(z, 1).flatten(1))
        return logits
