"""The samples of a run: to train on, batch by batch, and to judge by; held in memory, or read from files as needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from reclra_graph.data.augment import augmented, drawn
from reclra_graph.data.split import order
from reclra_graph.errors import Problem, ReclraError
from reclra_graph.train.loop import Batches

Judged = Iterator[tuple[Tensor, Tensor, int]]
"""(inputs, targets, how many of them count), in batches of one size: the last is filled up from the beginning, for
models that take no other size."""


@dataclass(frozen=True)
class Fit:
    """How images become inputs of a model that takes [B, *shape] in ``dtype``.

    Reshaped where the values are as many; else zeros are put around an image, and its one channel repeated."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, …] as inputs [B, *shape]."""
        if tuple(images.shape[1:]) != self.shape:
            if math.prod(images.shape[1:]) == math.prod(self.shape):
                images = images.reshape(-1, *self.shape)
            else:
                channels, height, width = self.shape
                rows, columns = height - images.shape[2], width - images.shape[3]
                images = F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
                images = images.expand(-1, channels, -1, -1)
        if images.is_floating_point():
            images = images.to(self.dtype)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images.contiguous()

    def problem(self, image: tuple[int, ...], place: str) -> Problem | None:
        """Why an image of that shape cannot become such an input (RG713)."""
        if math.prod(image) == math.prod(self.shape):
            return None
        smaller = len(image) == len(self.shape) == 3 and image[0] in (1, self.shape[0])
        if smaller and image[1] <= self.shape[1] and image[2] <= self.shape[2]:
            return None
        return Problem("RG713", f"its samples are {image}; the model takes {self.shape}", place)


class Part(Protocol):
    """Samples of one kind."""

    @property
    def in_memory(self) -> bool:
        """Whether they are at hand, so that looking at all of them takes no more time than the model does."""

    def __len__(self) -> int:
        """How many there are."""

    def judged(self, size: int) -> Judged:
        """All of them in their order, ``size`` at a time."""

    def feed(self, batch: int, seed: int, epoch: int, steps: int) -> Batches:
        """Them as batches to train with: ``epoch`` batches in each epoch, in another order each time, drawn from the
        seed; ``steps`` in all."""


@dataclass(frozen=True)
class Held:
    """Samples in memory, on the device of the model: images [N, …] and targets [N, …]. ``border`` and ``flip``: of
    random crops, while they are trained on."""

    images: Tensor
    labels: Tensor
    fit: Fit
    border: int = 0
    flip: bool = False
    in_memory = True

    def __len__(self) -> int:
        return len(self.labels)

    def judged(self, size: int) -> Judged:
        """All of them in their order, ``size`` at a time."""
        for at in range(0, len(self), size):
            index = torch.arange(at, at + size, device=self.labels.device) % len(self)
            yield self.fit(self.images[index]), self.labels[index], min(size, len(self) - at)

    def feed(self, batch: int, seed: int, epoch: int, steps: int) -> Batches:
        """Them as batches to train with."""
        return _HeldFeed(self, batch, seed, epoch)


class Orders:
    """Which samples each step learns from: every epoch has an order of its own. What is left of an epoch behind its
    last whole batch is left out of it."""

    def __init__(self, count: int, batch: int, seed: int, epoch: int) -> None:
        self.count, self.batch, self.seed, self.epoch = count, batch, seed, epoch
        self._order: tuple[int, Tensor] | None = None

    def of(self, step: int) -> Tensor:
        """Numbers of the samples of a step: int64 [batch]."""
        epoch, at = divmod(step, self.epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, order(self.count, self.seed, epoch)
        return self._order[1][at * self.batch : (at + 1) * self.batch]


class _HeldFeed:
    """Batches of samples in memory."""

    def __init__(self, part: Held, batch: int, seed: int, epoch: int) -> None:
        self.part, self.seed = part, seed
        self.orders = Orders(len(part), batch, seed, epoch)

    def batches(self, first: int, last: int) -> Iterator[tuple[Any, Tensor]]:
        """The batches of some steps."""
        device = self.part.labels.device
        chosen = [(step, self.orders.of(step).to(device)) for step in range(first, last)]
        return (self._batch(step, index) for step, index in chosen)

    def _batch(self, step: int, index: Tensor) -> tuple[Tensor, Tensor]:
        images = self.part.images[index]
        if self.part.border or self.part.flip:
            images = augmented(images, self.part.border, self.part.flip, drawn("crop", self.seed, step))
        return self.part.fit(images), self.part.labels[index]


def check_fit(fit: Fit, image: Sequence[int], place: str) -> None:
    """Raise ReclraError RG713 where images of that shape cannot become such inputs."""
    problem = fit.problem(tuple(image), place)
    if problem is not None:
        raise ReclraError(problem)
