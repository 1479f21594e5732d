"""Between a value as the model holds it and the same value with the batch in front, as error synapses see it.

Dimension ``dim`` of the value has size before · B · after, the batch between the two: the windows of images, [B · nW,
N, D], are (dim 0, before 1, after nW); a sequence in the order [T, B, D] is (1, 1, 1). With (0, 1, 1) the batch is in
front already, and both functions return what they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_samples(v: Tensor, dim: int, before: int, after: int) -> Tensor:
    """[…, before · B · after, …] → [B, …, before, after, …], without those of the two that are 1: a view."""
    if before > 1 or after > 1:
        v = torch.unflatten(v, dim, _parts(before, after))
    batch = dim + (before > 1)
    return v.movedim(batch, 0) if batch else v


def from_samples(s: Tensor, dim: int, before: int, after: int) -> Tensor:
    """The inverse: [B, …, before, after, …] → […, before · B · after, …]."""
    batch = dim + (before > 1)
    if batch:
        s = s.movedim(0, batch)
    parts = _parts(before, after)
    return s.flatten(dim, dim + len(parts) - 1) if len(parts) > 1 else s


def _parts(before: int, after: int) -> tuple[int, ...]:
    return (*((before,) if before > 1 else ()), -1, *((after,) if after > 1 else ()))


def cast(v: Tensor, dtype: str) -> Tensor:
    """A value in the dtype that the other side of a synapse has, where a model mixes two."""
    return v.to(getattr(torch, dtype))
