"""The small set of handwritten digits, 8x8 pixels (Alpaydin and Kaynak 1998): for trials that take seconds.

Either its two official text files, `optdigits.tra` (3,823 images) and `optdigits.tes` (1,797 images): on each line 64
counts of 0 to 16 and the digit. Or, where a folder does not have them, the copy of the second that scikit-learn
carries: its last 360 images, which other people wrote, are then the test images.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor

from reclra_graph.data.images import Files, ImageSet
from reclra_graph.errors import Problem, ReclraError

DIGITS_FILES = ("optdigits.tra", "optdigits.tes")
_TEST = 360
_SIDE, _BRIGHTEST, _CLASSES = 8, 16, 10
FILES_OF_DIGITS = Files(
    "The set of 8x8 digits",
    DIGITS_FILES,
    ("digits", "optdigits", ""),
    ("",),
    "text files of the data set `Optical Recognition of Handwritten Digits`",
    "Install scikit-learn, which carries a copy: pip install 'reclra-graph[digits]'. Or give the folder of the two "
    "official files as --data-dir DIR.",
)


def digits(folder: str | Path | None = None) -> ImageSet:
    """Images [N, 1, 8, 8] in 0…1, from the official files in ``folder``, else from scikit-learn.

    Raises ReclraError RG703 where neither is there, RG704 where a file is damaged.
    """
    if folder is not None and FILES_OF_DIGITS.find(Path(folder)):
        paths = FILES_OF_DIGITS.located(Path(folder))
        parts = [_read(paths[name]) for name in DIGITS_FILES]
        return _made(*parts[0], *parts[1], str(folder))
    try:
        found = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError:
        FILES_OF_DIGITS.located(Path(folder or "."))  # which raises
        raise
    counts = torch.tensor(found.images.tolist()).flatten(1)
    labels = torch.tensor(found.target.tolist())
    return _made(counts[:-_TEST], labels[:-_TEST], counts[-_TEST:], labels[-_TEST:], "scikit-learn")


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Counts [N, 64] and digits [N] of a text file. Raises ReclraError RG703 or RG704."""
    try:
        rows = [[int(item) for item in line.split(",")] for line in FILES_OF_DIGITS.bytes_of(path).decode().split()]
        table = torch.tensor(rows, dtype=torch.int64)
        counts, labels = table[:, :-1], table[:, -1]
    except (ValueError, IndexError, RuntimeError) as error:
        raise ReclraError(Problem("RG704", f"is no table of whole numbers: {error}", str(path))) from None
    if table.shape[1] != _SIDE**2 + 1 or int(counts.min()) < 0 or int(counts.max()) > _BRIGHTEST:
        cause = f"holds rows of {table.shape[1]} numbers up to {int(counts.max())}, not 64 of 0 to 16 and a digit"
        raise ReclraError(Problem("RG704", cause, str(path)))
    if int(labels.min()) < 0 or int(labels.max()) >= _CLASSES:
        cause = f"a label is {int(labels.max())}; there are {_CLASSES} classes"
        raise ReclraError(Problem("RG704", cause, str(path)))
    return counts, labels


def _made(counts: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, place: str) -> ImageSet:
    images, test_images = (
        item.to(torch.float32).div_(_BRIGHTEST).reshape(-1, 1, _SIDE, _SIDE) for item in (counts, test)
    )
    return ImageSet(images, labels.long(), test_images, test_labels.long(), _CLASSES, "digits", place)
