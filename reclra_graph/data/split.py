"""Which training images are held out for validation, and in which order the others come: fixed choices, from seeds."""

from __future__ import annotations

import torch
from torch import Tensor

SPLIT_SEED = 0
"""Of the choice of validation images, the same for every seed of weights and batches."""
_LEAST = 5
"""A fifth of the training images is held out at most, unless a number is asked for."""
_SHARE, _MOST = 10, 5000
"""Of a set that has no number of its own: a tenth, and no more than that many."""


def split(count: int, held: int) -> tuple[Tensor, Tensor]:
    """Indices of the images to train on, and of the ``held`` ones to judge by, of ``count``."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[held:], order[:held]


def usual(count: int, own: int | None) -> int:
    """How many of ``count`` images are held out where no number is asked for; ``own``: the set's own number."""
    return min(min(count // _SHARE, _MOST) if own is None else own, count // _LEAST)


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` images in an epoch: int64 [count]. Every epoch of every seed has another."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
