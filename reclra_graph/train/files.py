"""Samples that are read from image files while they are needed, by worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reclra_graph.data.augment import drawn
from reclra_graph.data.folder import DEVIATION, MEAN, Listed, decoded
from reclra_graph.errors import Problem, ReclraError
from reclra_graph.train.loop import Batches
from reclra_graph.train.parts import Fit, Judged, Orders

Item = tuple[int, int]
"""(number of a file, epoch of its random crop); epoch -1: the centre."""
Read = tuple[int, "Tensor | Problem"]
"""(number of a file, its image, or what is wrong with it)."""
_AHEAD = 2  # batches that every worker has ready


class _Images(Dataset[Read]):
    """What a worker reads. A damaged file comes back as what is wrong with it: an exception of ours would lose its
    problems on the way between processes."""

    def __init__(self, listed: Listed, shape: tuple[int, ...], seed: int) -> None:
        channels, height, width = shape
        self.paths, self.shape, self.seed = listed.paths, (channels, height, width), seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: Item) -> Read:
        number, epoch = item
        draw = None if epoch < 0 else drawn("file", self.seed, epoch, number)
        try:
            return number, decoded(self.paths[number], self.shape, draw)
        except ReclraError as error:
            return number, error.problems[0]


def _together(found: list[Read]) -> tuple[list[int], Tensor | list[Problem]]:
    """Numbers of the files of a batch, and their images: uint8 [B, C, H, W]; or all that is wrong with them."""
    problems = [item for _, item in found if isinstance(item, Problem)]
    images = [item for _, item in found if isinstance(item, Tensor)]
    return [number for number, _ in found], problems or torch.stack(images)


@dataclass(frozen=True)
class Filed:
    """Image files, for a model on ``device`` that takes [B, channels, height, width]. ``cropped``: at random, while
    they are trained on. ``normalised``: by the mean and deviation of ImageNet's channels."""

    listed: Listed
    fit: Fit
    device: torch.device
    cropped: bool = False
    normalised: bool = True
    workers: int = 0
    in_memory = False

    def __len__(self) -> int:
        return len(self.listed.paths)

    def judged(self, size: int) -> Judged:
        """All of them in their order, ``size`` at a time; the centre of each."""
        count = len(self)
        starts = range(0, count, size)
        items = [[((at + offset) % count, -1) for offset in range(size)] for at in starts]
        for (images, labels), at in zip(self.read(items, 0), starts, strict=True):
            yield images, labels, min(size, count - at)

    def feed(self, batch: int, seed: int, epoch: int, steps: int) -> Batches:
        """Them as batches to train with."""
        return _FiledFeed(self, Orders(len(self), batch, seed, epoch), steps)

    def read(self, items: Iterable[list[Item]], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of batches. Raises ReclraError RG704 for files that are damaged."""
        loader: DataLoader[Read] = DataLoader(
            _Images(self.listed, self.fit.shape, seed),
            batch_sampler=items,
            num_workers=self.workers,
            collate_fn=_together,
            prefetch_factor=_AHEAD if self.workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the run's own random numbers
        )
        for numbers, found in loader:
            if isinstance(found, list):
                raise ReclraError(found)
            labels = self.listed.labels[numbers].to(self.device, non_blocking=True)
            yield self._inputs(found.to(self.device, non_blocking=True)), labels

    def _inputs(self, images: Tensor) -> Tensor:
        images = images.to(torch.float32).div_(255)
        if self.normalised:
            mean, deviation = (images.new_tensor(item).reshape(1, -1, 1, 1) for item in (MEAN, DEVIATION))
            if images.shape[1] == 1:
                mean, deviation = mean.mean(), deviation.mean()
            images = (images - mean) / deviation
        return self.fit(images)


class _FiledFeed:
    """Batches of image files. One stream of them serves all stretches of a run that follow each other, so that workers
    are started once and read ahead."""

    def __init__(self, part: Filed, orders: Orders, steps: int) -> None:
        self.part, self.orders, self.steps = part, orders, steps
        self.stream: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.at = -1

    def batches(self, first: int, last: int) -> Iterator[tuple[Any, Tensor]]:
        """The batches of some steps."""
        if first != self.at:
            items = _Steps(self.orders, first, self.steps, self.part.cropped)
            self.stream = self.part.read(items, self.orders.seed)
            self.at = first
        return self._counted(last - first)

    def _counted(self, count: int) -> Iterator[tuple[Any, Tensor]]:
        for found in islice(self.stream, count):
            self.at += 1
            yield found


@dataclass(frozen=True)
class _Steps:
    """The files of all steps from ``first`` on."""

    orders: Orders
    first: int
    steps: int
    cropped: bool

    def __iter__(self) -> Iterator[list[Item]]:
        for step in range(self.first, self.steps):
            epoch = step // self.orders.epoch if self.cropped else -1
            yield [(number, epoch) for number in self.orders.of(step).tolist()]

    def __len__(self) -> int:
        return self.steps - self.first
