"""Random inputs and targets, the same in every process where the generator was seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from reclra_graph.bench.model import ZooModel

Builder: TypeAlias = Callable[[], ZooModel]


def normal(*shape: int) -> Tensor:
    """Normal random numbers."""
    return torch.randn(*shape)


def words(vocabulary: int, *shape: int) -> Tensor:
    """Whole numbers from 0 to ``vocabulary`` - 1: words, or classes."""
    return torch.randint(0, vocabulary, shape)
