"""A small GPT-style language model that reads Milton's "Paradise Lost" character by character.

    python examples/gpt.py --compare

It trains on Books I to X of the text in examples/data/paradise-lost; Books XI and XII are held out. Attention prefers
what is near, by a slope for each head instead of a table of positions (Press et al., "Train Short, Test Long", 2022).
Each character's error goes to every layer at that character's own place in the text ("token" synapses); an error that
attention should carry back to earlier characters does not get there, which is a limit of the wiring.

Measured (docs/results/examples-gpt.json): the held-out loss falls, a little below that of the last layer trained
alone, and stays well above that of backprop.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from _train import DATA, Samples, Task, main
from torch import Tensor, nn

import reclra_graph as rg

TEXT = DATA / "paradise-lost" / "paradise-lost.txt.gz"
LETTERS = "\n !\"'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH = 64


class Attention(nn.Module):
    """Causal self-attention with linear biases: [B, T, width] to [B, T, width], T at most ``length``."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        place = torch.arange(length)
        back = (place[:, None] - place[None, :]).float()
        slopes = 2.0 ** -torch.arange(-1, heads - 1).float()
        self.bias: Tensor
        self.register_buffer("bias", torch.where(back >= 0, -back * slopes[:, None, None], -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to [B, T, width]."""
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias[:, :length, :length])
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return result


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm and beside a skip connection."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, length)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to [B, T, width]."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class GPT(nn.Module):
    """Characters [B, T] to scores of the next one [B, T, characters]."""

    def __init__(self, letters: int = len(LETTERS), width: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, width)
        self.blocks = nn.ModuleList(Block(width, heads, LENGTH) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, letters)

    def forward(self, text: Tensor) -> Tensor:
        """Map int64 [B, T] to [B, T, characters]."""
        x = self.letters(text)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


def build_model() -> GPT:
    """Four blocks of width 64; the last layer starts at zero."""
    model = GPT()
    nn.init.normal_(model.letters.weight, std=0.5)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


example_inputs = (torch.zeros(16, LENGTH, dtype=torch.long),)


def read_text(path: Path = TEXT) -> str:
    """The poem. Raises ReclraError: RG703 where the file cannot be opened, RG704 where it is damaged."""
    try:
        text = gzip.decompress(path.read_bytes()).decode("ascii")
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise rg.ReclraError(rg.Problem("RG704", f"is not this text, compressed by gzip: {error}", str(path))) from None
    except OSError as error:
        raise rg.ReclraError(rg.Problem("RG703", f"cannot be read: {error.strerror}", str(path))) from None
    if "\nBook XI\n" not in text or not set(text) <= set(LETTERS):
        raise rg.ReclraError(rg.Problem("RG704", "has no Book XI, or letters that the poem lacks", str(path)))
    return text


def samples() -> Samples:
    """Pieces of the text [N, 64], as inputs and as targets; each position predicts the next character of its piece."""
    text = read_text()
    cut = text.index("\nBook XI\n")
    number = {letter: index for index, letter in enumerate(LETTERS)}
    train, held = (torch.tensor([number[letter] for letter in part]) for part in (text[:cut], text[cut:]))
    train, held = (part[: len(part) // LENGTH * LENGTH].view(-1, LENGTH) for part in (train, held))
    return Samples(train, train, held, held)


def loss(scores: Tensor, text: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, in nats."""
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), text[:, 1:].flatten())


def error(scores: Tensor, text: Tensor) -> Tensor:
    """The share of characters whose most likely guess is wrong."""
    return (scores[:, :-1].argmax(2) != text[:, 1:]).float().mean()


task = Task(
    name="gpt",
    title="A GPT reads Paradise Lost",
    model=build_model,
    samples=samples,
    loss=loss,
    error=error,
    options={"loss": "causal-lm", "wiring": "flat", "beta": 0.1},
    rates={"rec-LRA": (("", 0.3),), "last layer only": (("head", 0.3),), "backprop": (("", 0.1),)},
    batch=16,
    epochs=3,
)

if __name__ == "__main__":
    sys.exit(main(task))
