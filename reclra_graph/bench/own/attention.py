"""Attention: PyTorch's own encoder both ways round, rotary positions as complex numbers, tied language models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own.draw import Builder, normal, words


class TextEncoder(nn.Module):
    """Texts classified by PyTorch's transformer encoder; ``batch_first`` as it is often left, or set."""

    def __init__(self, batch_first: bool, vocabulary: int = 40, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(1, 16, width))
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=32, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.classify = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        if self.batch_first:
            return self.classify(self.encoder(x).mean(dim=1))
        return self.classify(self.encoder(x.transpose(0, 1)).mean(dim=0))


class CrossAttention(nn.Module):
    """A few learned queries read a set of vectors (as in a Perceiver)."""

    def __init__(self, features: int = 8, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, width))
        self.embed = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads=2, batch_first=True)
        self.classify = nn.Linear(width, classes)

    def forward(self, points: Tensor) -> Tensor:
        x = self.norm(self.embed(points))
        queries = self.queries.expand(points.shape[0], -1, -1)
        read, _ = self.attention(queries, x, x)
        return self.classify(read.flatten(1).view(points.shape[0], 4, -1).amax(dim=1))


def rotary(length: int, width: int) -> Tensor:
    """Unit complex numbers [length, width / 2]; position times frequency is the angle (Su et al. 2021)."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    return torch.view_as_real(torch.polar(torch.ones(length, width // 2), torch.outer(torch.arange(length), frequency)))


class RotaryBlock(nn.Module):
    """A causal block whose queries and keys are turned as complex numbers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.between = nn.RMSNorm(width)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def turned(self, x: Tensor, angles: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.view_as_complex(angles)).flatten(3)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.turned(q, angles), self.turned(k, angles), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class RotaryLM(nn.Module):
    """A small language model with rotary positions."""

    angles: Tensor

    def __init__(self, vocabulary: int = 40, width: int = 16, heads: int = 2, length: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.register_buffer("angles", rotary(length, width // heads), persistent=False)
        self.blocks = nn.ModuleList(RotaryBlock(width, heads) for _ in range(2))
        self.norm = nn.RMSNorm(width)
        self.logits = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.angles[: tokens.shape[1]])
        return self.logits(self.norm(x))


class TiedLM(nn.Module):
    """A GPT in small: learned positions, a mask, and one matrix for words in and words out."""

    future: Tensor

    def __init__(self, vocabulary: int = 40, width: int = 16, length: int = 12) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads=2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("future", torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.words(tokens) + self.positions(torch.arange(length, device=tokens.device))
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=self.future[:length, :length], need_weights=False)[0]
        return self.head(x + self.mlp(x))


class EinsumMixture(nn.Module):
    """All experts at once, mixed by a soft gate, everything in einsum."""

    def __init__(self, features: int = 8, width: int = 12, experts: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(features, experts)
        self.inner = nn.Parameter(torch.randn(experts, features, width) / features**0.5)
        self.outer = nn.Parameter(torch.randn(experts, width, classes) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(experts, classes))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x).softmax(dim=-1)
        hidden = torch.tanh(torch.einsum("bf,efw->bew", x, self.inner))
        return torch.einsum("bew,ewc,be->bc", hidden, self.outer, gates) + torch.einsum("be,ec->bc", gates, self.bias)


MODELS: dict[str, Builder] = {
    "encoder_batch_first": lambda: ZooModel(
        "encoder_batch_first", TextEncoder(True), (words(40, 4, 6),), "cross-entropy", words(4, 4)
    ),
    "encoder_time_first": lambda: ZooModel(
        "encoder_time_first", TextEncoder(False), (words(40, 4, 6),), "cross-entropy", words(4, 4)
    ),
    "cross_attention": lambda: ZooModel(
        "cross_attention", CrossAttention(), (normal(4, 9, 8),), "cross-entropy", words(3, 4)
    ),
    "rotary_complex_lm": lambda: ZooModel(
        "rotary_complex_lm", RotaryLM(), (words(40, 4, 8),), "cross-entropy", words(40, 4, 8)
    ),
    "tied_embedding_lm": lambda: _language_model("tied_embedding_lm", TiedLM()),
    "einsum_mixture": lambda: ZooModel(
        "einsum_mixture", EinsumMixture(), (normal(6, 8),), "cross-entropy", words(4, 6)
    ),
}


def _language_model(name: str, model: nn.Module) -> ZooModel:
    """Each word is foretold from those before it: the target is the text itself."""
    text = words(40, 4, 8)
    return ZooModel(name, model, (text,), "causal-lm", text)
