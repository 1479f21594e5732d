"""A data set of the user's own: tensors that torch.save wrote.

Either one file with {"train": {"images": x, "labels": y}, "test": {...}}, or a folder with train.pt and test.pt, each
{"images": x, "labels": y}. "inputs" and "targets" will do as names, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.data.images import ImageSet
from reclra_graph.errors import Problem, ReclraError

SUFFIXES = (".pt", ".pth")
_NAMES = (("images", "inputs"), ("labels", "targets"))
_HOW = (
    'Write it with `torch.save({"train": {"images": x, "labels": y}, "test": {"images": x, "labels": y}}, FILE)`, or '
    'a folder with train.pt and test.pt, each from `torch.save({"images": x, "labels": y}, FILE)`.'
)


def tensors(place: str | Path) -> ImageSet:
    """Read such a file or folder. Images of bytes are divided by 255; all else is left as it is. Labels are whole
    numbers from 0, or targets of another kind.

    Raises ReclraError: RG703 where a file or a split is missing, RG704 where one is damaged or does not fit.
    """
    path = Path(place)
    splits = _splits(path)
    problems: list[Problem] = []
    read: list[tuple[Tensor, Tensor]] = []
    for name, (where, held) in splits.items():
        found = _pair(held)
        if found is None:
            problems.append(
                Problem("RG704", f"its part {name!r} holds no tensors named images and labels", where, _HOW)
            )
        else:
            problems += [Problem("RG704", f"{cause} (part {name!r})", where, _HOW) for cause in _wrong(*found)]
            read.append(found)
    if not problems:
        problems += [Problem("RG704", cause, str(path), _HOW) for cause in _misfits(read)]
    if problems:
        raise ReclraError(problems)
    (images, labels), (test, test_labels) = read
    classes = 0
    if not labels.is_floating_point():
        labels, test_labels = labels.long(), test_labels.long()
        classes = 1 + max(int(labels.max()), int(test_labels.max()))
    return ImageSet(_scaled(images), labels, _scaled(test), test_labels, classes, path.stem, str(path))


def _splits(path: Path) -> dict[str, tuple[str, Any]]:
    """(place, what stands there) of "train" and "test". Raises ReclraError RG703 or RG704."""
    if path.is_dir():
        files = {name: path / f"{name}.pt" for name in ("train", "test")}
        missing = [Problem("RG703", f"there is no {item.name}", str(path), _HOW) for item in files.values()
                   if not item.is_file()]  # fmt: skip
        if missing:
            raise ReclraError(missing)
        return {name: (str(item), _loaded(item)) for name, item in files.items()}
    held = _loaded(path)
    if not isinstance(held, Mapping):
        raise ReclraError(Problem("RG704", "it holds no dict", str(path), _HOW))
    missing = [
        Problem("RG703", f"it has no part {name!r}", str(path), _HOW) for name in ("train", "test") if name not in held
    ]
    if missing:
        raise ReclraError(missing)
    return {name: (str(path), held[name]) for name in ("train", "test")}


def _loaded(path: Path) -> Any:
    if not path.is_file():
        raise ReclraError(Problem("RG703", "there is no such file or folder", str(path), _HOW))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way inside its reader
        raise ReclraError(Problem("RG704", f"cannot be read: {type(error).__name__}", str(path), _HOW)) from None


def _pair(held: Any) -> tuple[Tensor, Tensor] | None:
    """Images and labels of a part, None where it has none."""
    if not isinstance(held, Mapping):
        return None
    found = [next((held[name] for name in names if name in held), None) for names in _NAMES]
    images, labels = found
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor) or images.dim() < 2 or not labels.dim():
        return None
    return images.detach(), labels.detach()


def _wrong(images: Tensor, labels: Tensor) -> list[str]:
    """What is wrong with one part."""
    found = []
    if len(images) != len(labels) or not len(images):
        found.append(f"{len(images):,} images but {len(labels):,} labels")
    for name, item in (("images", images), ("labels", labels)):
        if item.is_floating_point() and not bool(item.isfinite().all()):
            found.append(f"its {name} hold values that are not finite")
    if not labels.is_floating_point() and labels.numel() and int(labels.min()) < 0:
        found.append(f"a label is {int(labels.min())}; classes count from 0")
    return found


def _misfits(read: list[tuple[Tensor, Tensor]]) -> list[str]:
    """Where the parts do not fit each other."""
    found = []
    for at, name in enumerate(("images", "labels")):
        train, test = read[0][at], read[1][at]
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            kinds = " and ".join(f"{tuple(item.shape[1:])} {str(item.dtype)[6:]}" for item in (train, test))
            found.append(f"{name} to train with and to test with differ: {kinds}")
    return found


def _scaled(images: Tensor) -> Tensor:
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images
