"""The images of ``reclra bench epochs``: training images, validation images held out of them, and test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reclra_graph.bench.epochs_cases import QUICK_BATCH, QUICK_BATCHES, Case
from reclra_graph.data import ImageSet, cifar10, fashion_mnist
from reclra_graph.data.split import split, usual

READERS: dict[str, Callable[[Path], ImageSet]] = {"fashion-mnist": fashion_mnist, "cifar10": cifar10}


def read(name: str, folder: Path) -> ImageSet:
    """A data set from its official files. Raises ReclraError RG703 or RG704."""
    return READERS[name](folder)


def held_out(case: Case, count: int) -> int:
    """How many of ``count`` training images are held out for validation: the case's number, a fifth at most."""
    return usual(count, case.validation)


@dataclass(frozen=True)
class Part:
    """Images, [N, pixels] or as they lie in memory ([N, H, W, C] for channels_last), and labels [N]."""

    images: Tensor
    labels: Tensor
    format: str

    def batch(self, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images as the net takes them, and labels."""
        images = self.images[chosen]
        return (images.permute(0, 3, 1, 2) if self.format == "channels_last" else images), self.labels[chosen]


@dataclass(frozen=True)
class Samples:
    """What a net learns from, what it is judged by while it learns, and what it is judged by in the end."""

    train: Part
    validation: Part
    test: Part


def samples(case: Case, images: ImageSet, device: str, tiny: bool = False) -> Samples:
    """The parts of a data set on a device. Images of Fashion-MNIST are pixels in 0…1; those of CIFAR-10 have the mean
    and deviation of each channel of the training images taken out. ``tiny``: a few images only."""
    train, validation = split(images.count, held_out(case, images.count))
    test = torch.arange(len(images.test_labels))
    if tiny:
        few = QUICK_BATCH * QUICK_BATCHES
        validation, train, test = validation[:few], train[:few], test[:few]
    mean = deviation = None
    if case.data == "cifar10":
        mean = images.train_images[train].mean((0, 2, 3), keepdim=True)
        deviation = images.train_images[train].std((0, 2, 3), keepdim=True)

    def part(source: Tensor, labels: Tensor, chosen: Tensor) -> Part:
        found = source[chosen]
        if mean is not None and deviation is not None:
            found.sub_(mean).div_(deviation)
        if case.format == "flat":
            found = found.flatten(1)
        if case.format == "channels_last":
            found = found.permute(0, 2, 3, 1).contiguous()
        return Part(found.to(device), labels[chosen].to(device), case.format)

    return Samples(
        part(images.train_images, images.train_labels, train),
        part(images.train_images, images.train_labels, validation),
        part(images.test_images, images.test_labels, test),
    )
