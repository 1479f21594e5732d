"""From a data set to the samples of a run: what is held out, and what is done to the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reclra_graph.data.folder import ImageFolder, Listed
from reclra_graph.data.images import ImageSet
from reclra_graph.data.sets import Data, traits
from reclra_graph.data.split import split, usual
from reclra_graph.data.whitening import whitening
from reclra_graph.errors import Problem, UsageError
from reclra_graph.train.files import Filed
from reclra_graph.train.parts import Fit, Held, Part, check_fit
from reclra_graph.train.settings import Settings


@dataclass(frozen=True)
class Samples:
    """The samples of a run. ``validation`` is None where nothing is held out. ``classes``: 0 where targets are none.
    ``about``: what is told of them."""

    train: Part
    validation: Part | None
    test: Part
    classes: int
    about: dict[str, Any]


def prepare(data: Data, settings: Settings, fit: Fit, device: torch.device) -> Samples:
    """The samples of a run for a model that takes what ``fit`` makes, on ``device``.

    Raises UsageError RG405 for settings that the data cannot have, ReclraError RG713 where they do not fit the model.
    """
    own = data.validation.labels if isinstance(data, ImageFolder) else torch.empty(0)
    held = settings.validation
    if held is None:
        held = 0 if len(own) else usual(data.count, traits(data).validation)
    learned = data.count - held
    if learned < settings.batch:
        cause = (
            f"{data.count:,} training images, {held:,} of them held out, are less than a batch of {settings.batch:,}"
        )
        raise UsageError(Problem("RG405", cause, "batch", "Give a smaller batch, or hold out less (validation)."))
    train, validation = split(data.count, held)
    about: dict[str, Any] = {
        "name": data.name, "digest": data.digest, "classes": data.classes, "train": learned,
        "validation": held or len(own),
    }  # fmt: skip
    made = _folder if isinstance(data, ImageFolder) else _memory
    return made(data, settings, fit, device, train, validation, about)  # type: ignore[arg-type]


def _memory(
    data: ImageSet,
    settings: Settings,
    fit: Fit,
    device: torch.device,
    train: Tensor,
    validation: Tensor,
    about: dict[str, Any],
) -> Samples:
    check_fit(fit, data.shape, data.place)
    known, images = traits(data), data.train_images[train]
    picture = len(data.shape) == 3 and images.is_floating_point()
    if not picture and (settings.whiten or settings.augment or settings.normalise):
        cause = f"samples of shape {data.shape} are no images [channels, height, width]"
        raise UsageError(Problem("RG405", cause, "augment, normalise, whiten", "Leave these out."))
    normalise = known.normalise and not settings.whiten if settings.normalise is None else settings.normalise
    augment = known.crop > 0 if settings.augment is None else settings.augment
    prepared = [images, data.train_images[validation], data.test_images]
    if settings.whiten:
        whiten = whitening(images, settings.whiten_epsilon)
        prepared = [whiten(item) for item in prepared]
    if normalise:
        mean, deviation = (item.clamp(min=1e-6) if at else item for at, item in enumerate(_channels(prepared[0])))
        prepared = [(item - mean) / deviation for item in prepared]
    labels = (data.train_labels[train], data.train_labels[validation], data.test_labels)
    border, flip = (known.crop or _border(data.shape), known.flip) if augment else (0, False)
    parts = [
        Held(item.to(device), label.to(device), fit, border if at == 0 else 0, flip and at == 0)
        for at, (item, label) in enumerate(zip(prepared, labels, strict=True))
    ]
    done = {"augment": augment, "normalise": normalise, "whiten": settings.whiten}
    about = {**about, "test": len(data.test_labels), **done}
    if settings.whiten:
        about["whiten_epsilon"] = settings.whiten_epsilon
    return Samples(parts[0], parts[1] if len(validation) else None, parts[2], data.classes, about)


def _channels(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel: [1, C, 1, 1]."""
    return images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)


def _border(shape: Sequence[int]) -> int:
    """Pixels of border for random crops of a set that has no number of its own: an eighth of the image, as 4 of 32."""
    return max(1, min(shape[1:]) // 8)


def _folder(
    data: ImageFolder,
    settings: Settings,
    fit: Fit,
    device: torch.device,
    train: Tensor,
    validation: Tensor,
    about: dict[str, Any],
) -> Samples:
    if len(fit.shape) != 3 or fit.shape[0] not in (1, 3):
        cause = f"its samples are images of 3 channels or 1; the model takes {fit.shape}"
        raise UsageError(Problem("RG713", cause, data.place))
    if settings.whiten:
        cause = "whitening needs all images in memory, and these are read from files"
        raise UsageError(Problem("RG405", cause, "whiten", "Leave it out, or bring the images as tensors."))
    normalise, crop = settings.normalise is not False, settings.augment is not False

    def part(listed: Listed, cropped: bool = False) -> Filed:
        return Filed(listed, fit, device, cropped, normalise, settings.workers)

    def chosen(index: Tensor) -> Listed:
        return Listed(tuple(data.train.paths[number] for number in index.tolist()), data.train.labels[index])

    held = chosen(validation) if len(validation) else data.validation
    about = {**about, "test": len(data.test.paths), "augment": crop, "normalise": normalise, "whiten": False}
    judged = part(held) if len(held.paths) else None
    return Samples(part(chosen(train), crop), judged, part(data.test), data.classes, about)
