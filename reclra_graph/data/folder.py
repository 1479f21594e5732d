"""Image files in ImageNet's layout: train/CLASS/*.jpg and val/CLASS/*.jpg, and test/CLASS/*.jpg where there is one.

Classes are numbered in the order of their names. Files are listed here and decoded while they are needed, by Pillow
(extra ``images``).
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.errors import ModelError, Problem, ReclraError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, by which image files are normalised everywhere."""
_HOW = "Give a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, as ImageNet is laid out."
_AREA, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of a random crop: its share of the image, its width by its height, and how often one is drawn."""
_BORDER = 256 / 224
"""The shorter side of an image by that of its central crop."""


@dataclass(frozen=True)
class Listed:
    """Image files of one split, and the class of each: int64 [N]."""

    paths: tuple[str, ...]
    labels: Tensor


@dataclass(frozen=True)
class ImageFolder:
    """The files of a folder. ``validation`` is empty where there is no split for it: it is then held out of
    ``train``."""

    root: str
    names: tuple[str, ...]
    train: Listed
    validation: Listed
    test: Listed

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    def name(self) -> str:
        """The folder's own."""
        return Path(self.root).name

    @property
    def place(self) -> str:
        """Where it was read."""
        return self.root

    @property
    def count(self) -> int:
        """How many training images there are."""
        return len(self.train.paths)

    @property
    def digest(self) -> str:
        """Sixteen hex digits of names, classes and sizes of all files: their contents are not read."""
        found = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for path, label in zip(split.paths, split.labels.tolist(), strict=True):
                found.update(f"{os.path.relpath(path, self.root)} {label} {os.path.getsize(path)}\n".encode())
        return found.hexdigest()[:16]


def image_folder(folder: str | Path) -> ImageFolder:
    """List the files of a folder. With a split ``test`` ``val`` is for validation; without, ``val`` is what is tested
    with, as is usual with ImageNet.

    Raises ReclraError: RG703 where a split, or every image of a class, is missing; RG704 where a split has a class that
    ``train`` does not have.
    """
    root = Path(folder)
    names = tuple(sorted(path.name for path in (root / "train").glob("*") if path.is_dir()))
    if not names:
        raise ReclraError(Problem("RG703", "there are no classes in its folder train", str(root), _HOW))
    splits = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if len(splits) == 1:
        raise ReclraError(Problem("RG703", "there is neither a folder val nor a folder test", str(root), _HOW))
    problems: list[Problem] = []
    read = {split: _listed(root / split, names, problems) for split in splits}
    if problems:
        raise ReclraError(problems)
    nothing = Listed((), torch.empty(0, dtype=torch.int64))
    test = read.get("test", read.get("val", nothing))
    return ImageFolder(str(root), names, read["train"], read.get("val", nothing) if "test" in read else nothing, test)


def _listed(folder: Path, names: Sequence[str], problems: list[Problem]) -> Listed:
    paths: list[str] = []
    labels: list[int] = []
    strange = sorted({path.name for path in folder.glob("*") if path.is_dir()} - set(names))
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        cause = f"classes that train does not have: {', '.join(strange[:3])}{more}"
        problems.append(Problem("RG704", cause, str(folder), _HOW))
    for label, name in enumerate(names):
        place = folder / name
        found = sorted(item.path for item in os.scandir(place) if item.name.lower().endswith(SUFFIXES)) \
            if place.is_dir() else []  # fmt: skip
        if not found and folder.name == "train":
            problems.append(Problem("RG703", f"there are no images of class {name}", str(place), _HOW))
        paths += found
        labels += [label] * len(found)
    if not paths and folder.name != "train":
        problems.append(Problem("RG703", "there are no images", str(folder), _HOW))
    return Listed(tuple(paths), torch.tensor(labels, dtype=torch.int64))


def pillow() -> Any:
    """Pillow's module for images. Raises ModelError RG712 where it is not installed."""
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        cause = "image files are decoded by Pillow, which is not installed"
        advice = "Install it: pip install 'reclra-graph[images]'."
        raise ModelError(Problem("RG712", cause, "--data", advice)) from None


def decoded(path: str, shape: tuple[int, int, int], draw: torch.Generator | None) -> Tensor:
    """An image file as bytes [channels, height, width] of ``shape``, with 3 channels or 1.

    With ``draw``, for training: a random crop of 8 to 100 % of the image, scaled, and mirrored every other time
    (Szegedy et al. 2015, as torchvision has it). Without: the centre, of an image 256/224 times as large as the crop.
    Raises ReclraError: RG704 where the file is damaged.
    """
    channels, height, width = shape
    image_module = pillow()
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # of odd but harmless meta-data
            image = image_module.open(file).convert("RGB" if channels == 3 else "L")
    except Exception as error:  # a damaged file fails in any way inside its decoder
        said = (str(error).splitlines() or [""])[0]
        raise ReclraError(Problem("RG704", f"cannot be decoded: {type(error).__name__}: {said}", path)) from None
    box = _centre(image.size, (width, height)) if draw is None else _crop(image.size, draw)
    scaled = image.resize((width, height), image_module.Resampling.BILINEAR, box=box)
    found = torch.frombuffer(bytearray(scaled.tobytes()), dtype=torch.uint8).reshape(height, width, channels)
    found = found.permute(2, 0, 1)
    return found.flip(2) if draw is not None and float(torch.rand((), generator=draw)) < 0.5 else found


def _centre(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box that is left of an image once it is scaled to cover 256/224 of the crop wanted, and cropped."""
    scale = min(size[0] / wanted[0], size[1] / wanted[1]) / _BORDER
    across, down = wanted[0] * scale, wanted[1] * scale
    left, top = (size[0] - across) / 2, (size[1] - down) / 2
    return left, top, left + across, top + down


def _crop(size: tuple[int, int], draw: torch.Generator) -> tuple[float, float, float, float]:
    width, height = size
    for _ in range(_TRIES):
        area, ratio, left, top = torch.rand(4, generator=draw).tolist()
        area = (_AREA[0] + area * (_AREA[1] - _AREA[0])) * width * height
        ratio = math.exp(math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0]))
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            left, top = left * (width - across), top * (height - down)
            return left, top, left + across, top + down
    return 0.0, 0.0, float(width), float(height)
