"""Cosines, angles and norms of tensors that come in parts, in float64; what cannot be said comes with a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Figure: TypeAlias = tuple[float | None, str]
"""A number and "", or None and the reason why there is none."""


@dataclass
class Sums:
    """⟨a, b⟩, ⟨a, a⟩ and ⟨b, b⟩ of two vectors that are given part by part."""

    dot: float = 0.0
    first: float = 0.0
    second: float = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Two parts with the same number of entries, in the same order. float64, since errors shrink with every hop of
        a long path, and their squares leave the range of float32."""
        a, b = a.detach().double().flatten(), b.detach().double().flatten()
        dot, first, second = torch.stack([a @ b, a @ a, b @ b]).tolist()
        self.join(Sums(dot, first, second))

    def join(self, other: Sums) -> None:
        """Add the parts of another."""
        self.dot, self.first, self.second = (
            self.dot + other.dot,
            self.first + other.first,
            self.second + other.second,
        )

    def cosine(self, a: str, b: str) -> Figure:
        """The cosine of the two, −1 … 1. ``a``, ``b``: what they are, for the reason why there is none."""
        for name, square in ((a, self.first), (b, self.second)):
            if not math.isfinite(square):
                return None, f"{name} is not finite"
            if square == 0:
                return None, f"{name} is zero"
        return max(-1.0, min(1.0, self.dot / math.sqrt(self.first) / math.sqrt(self.second))), ""

    def angle(self, a: str, b: str) -> Figure:
        """The angle between the two in degrees, 0 … 180."""
        cosine, why = self.cosine(a, b)
        return (None, why) if cosine is None else (math.degrees(math.acos(cosine)), "")


def norm(*parts: Tensor) -> Figure:
    """Euclidean norm of a vector that is given in parts."""
    return finite(math.sqrt(sum(float(part.detach().double().square().sum()) for part in parts)))


def mean_norm(samples: Tensor) -> Figure:
    """Euclidean norm of each sample of [B, …], their mean."""
    return finite(float(samples.detach().double().flatten(1).norm(dim=1).mean()))


def finite(value: float) -> Figure:
    """A number, unless it is infinite or none."""
    return (value, "") if math.isfinite(value) else (None, "it is not finite")


class Signs:
    """The signs of tensors as they were at the last look."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def flips(self, kind: str, parts: dict[str, Tensor]) -> dict[str, tuple[int, int] | None]:
        """(entries whose sign is another than at the last look, entries) of each tensor; None where there was no last
        look. Zero has a sign of its own. ``kind`` tells tensors of one name apart."""
        found: dict[str, tuple[int, int] | None] = {}
        for name, value in parts.items():
            sign, key = torch.sign(value.detach()).to(torch.int8), f"{kind} {name}"
            before = self.seen.get(key)
            found[name] = None
            if before is not None and before.shape == sign.shape and before.device == sign.device:
                found[name] = int(torch.ne(sign, before).sum()), sign.numel()
            self.seen[key] = sign
        return found


def rate(counts: list[tuple[int, int] | None]) -> Figure:
    """Share of entries that flipped, over several tensors."""
    known = [item for item in counts if item is not None]
    if len(known) < len(counts) or not sum(size for _, size in known):
        return None, "nothing was seen before" if counts else "there is nothing to see"
    return sum(changed for changed, _ in known) / sum(size for _, size in known), ""
