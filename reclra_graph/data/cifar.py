"""CIFAR-10 from its official files.

CIFAR-10 (Krizhevsky 2009) is five batches of training images and one of test images. In its binary version an image is
a byte for its class and 3 x 32 x 32 bytes of pixels; in its Python version a batch is a pickled dict with a NumPy
array. A pickle can run whatever it names, so that only what CIFAR-10's own files name is taken from one.
"""

from __future__ import annotations

import io
import pickle
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.data.images import Files, ImageSet
from reclra_graph.errors import Problem, ReclraError

CIFAR_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_SHAPE = (3, 32, 32)
_CLASSES = 10
FILES_OF_CIFAR = Files(
    "CIFAR-10",
    CIFAR_FILES,
    ("cifar-10-batches-bin", "cifar-10-batches-py", ""),
    (".bin", ""),
    "each with .bin, or in the Python version",
    "Fetch them with `torchvision.datasets.CIFAR10(DIR, download=True)`, or unpack the binary version from the data "
    "set's own page, https://www.cs.toronto.edu/~kriz/cifar.html, and give their folder as --data DIR.",
)


def cifar10(folder: str | Path) -> ImageSet:
    """Read CIFAR-10 from ``folder``, ``folder/cifar-10-batches-bin`` or ``folder/cifar-10-batches-py``.

    Raises ReclraError with one problem per file: RG703 where it is missing or cannot be opened, RG704 where it is
    damaged or is no batch of CIFAR-10.
    """
    paths = FILES_OF_CIFAR.located(Path(folder))
    problems: list[Problem] = []
    read: list[tuple[Tensor, Tensor]] = []
    for name in CIFAR_FILES:
        try:
            read.append(_read_batch(paths[name]))
        except ReclraError as error:
            problems.extend(error.problems)
    if problems:
        raise ReclraError(problems)
    (*train, (test, test_labels)) = read
    images = torch.cat([images for images, _ in train]).to(torch.float32).div_(255)
    labels = torch.cat([labels for _, labels in train])
    test = test.to(torch.float32).div_(255)
    return ImageSet(images, labels, test, test_labels, _CLASSES, "cifar10", str(folder))


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images: uint8 [N, 3, 32, 32], and labels: int64 [N], of one file. Raises ReclraError RG703 or RG704."""
    content = FILES_OF_CIFAR.bytes_of(path)
    size = prod(_SHAPE)
    if path.suffix == ".bin":
        if not content or len(content) % (1 + size):
            cause = f"{len(content):,} bytes, which is no whole number of images of {1 + size:,} bytes"
            raise ReclraError(Problem("RG704", cause, str(path)))
        rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, 1 + size)
        labels, pixels = rows[:, 0].long(), rows[:, 1:]
    else:
        labels, pixels = _unpickled(content, path)
    if int(labels.max()) >= _CLASSES or int(labels.min()) < 0:
        wrong = int(labels.max()) if int(labels.max()) >= _CLASSES else int(labels.min())
        raise ReclraError(Problem("RG704", f"a label is {wrong}; there are {_CLASSES} classes", str(path)))
    return pixels.reshape(-1, *_SHAPE), labels


def _unpickled(content: bytes, path: Path) -> tuple[Tensor, Tensor]:
    """Labels: int64 [N], and pixels: uint8 [N, 3072], of a batch of the Python version. Raises ReclraError RG704."""
    try:
        found = _Batch(io.BytesIO(content), encoding="bytes").load()
        array, given = (found[name if name in found else name.decode()] for name in (b"data", b"labels"))
        pixels = torch.frombuffer(bytearray(array.content), dtype=torch.uint8).reshape(array.shape)
        labels = torch.tensor(list(given), dtype=torch.int64)
        if pixels.shape != (len(labels), prod(_SHAPE)) or not len(labels):
            raise ValueError(f"{list(pixels.shape)} pixels and {len(labels)} labels")
    except Exception as error:  # a damaged pickle can fail in any way
        said = (str(error).splitlines() or [""])[0]
        cause = f"is no batch of CIFAR-10's Python version: {type(error).__name__}: {said}"
        raise ReclraError(Problem("RG704", cause, str(path))) from None
    return labels, pixels


class _Kind:
    """Stands for a NumPy dtype: only bytes will do."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", b"u1"):
            raise ValueError(f"numbers of kind {name!r}, not bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which bytes have none of."""


class _Array:
    """Stands for a NumPy array of bytes: its shape and its content."""

    shape: tuple[int, ...] = ()
    content = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, _, by_columns, self.content = state
        if by_columns or len(self.content) != prod(self.shape):
            raise ValueError(f"{len(self.content):,} bytes for an array of {list(self.shape)}")


class _Batch(pickle.Unpickler):
    """Reads what NumPy pickled, without NumPy, and runs nothing that the file names."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for the few names that CIFAR-10's files use."""
        known: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Kind,
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes, in pickles for Python 2
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]
