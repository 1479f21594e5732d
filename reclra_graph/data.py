"""Fashion-MNIST and CIFAR-10 from their official files.

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, Zalando SE, MIT licence) is four files in IDX form, as they come or
compressed with gzip. An IDX file is a header of big-endian numbers (two zero bytes, one byte for the element type, one
for the number of dimensions, then each dimension in four bytes) followed by the elements in row-major order.

CIFAR-10 (Krizhevsky 2009) is five batches of training images and one of test images. In its binary version an image is
a byte for its class and 3 x 32 x 32 bytes of pixels; in its Python version a batch is a pickled dict with a NumPy
array. A pickle can run whatever it names, so that only what CIFAR-10's own files name is taken from one.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.errors import Problem, ReclraError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = 10
SIDE = 28
_UNSIGNED_BYTE = 0x08
_FOLDERS = ("", "raw", "FashionMNIST/raw")
CIFAR_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_HOW_TO_GET_CIFAR = (
    "Fetch them with `torchvision.datasets.CIFAR10(DIR, download=True)`, or unpack the binary version from the data "
    "set's own page, https://www.cs.toronto.edu/~kriz/cifar.html, and give their folder as --data DIR."
)
_HOW_TO_GET = (
    "Fetch them with `torchvision.datasets.FashionMNIST(DIR, download=True)`, or take the four .gz files of the data "
    "set's own repository, zalandoresearch/fashion-mnist (folder data/fashion), and give their folder as --data DIR."
)


@dataclass(frozen=True)
class ImageSet:
    """Training and test images: float32 [N, 1, 28, 28] or [N, 3, 32, 32] in 0…1, and labels: int64 [N] in 0…9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def fashion_mnist(folder: str | Path) -> ImageSet:
    """Read Fashion-MNIST from ``folder``, ``folder/raw`` or ``folder/FashionMNIST/raw``; raw files or .gz.

    Raises ReclraError with one problem per file: RG703 where it is missing or cannot be opened, RG704 where it is
    damaged, is no IDX file, or does not fit the others.
    """
    paths = _locate(Path(folder))
    problems: list[Problem] = []
    read: dict[str, Tensor] = {}
    for name in FILES:
        try:
            read[name] = _read_checked(paths[name], images="images" in name)
        except ReclraError as error:
            problems.extend(error.problems)
    for split in ("train", "t10k"):
        images, labels = read.get(f"{split}-images-idx3-ubyte"), read.get(f"{split}-labels-idx1-ubyte")
        if images is not None and labels is not None and len(images) != len(labels):
            cause = f"{len(images):,} images but {len(labels):,} labels"
            problems.append(Problem("RG704", cause, str(paths[f"{split}-labels-idx1-ubyte"])))
    if problems:
        raise ReclraError(problems)
    train, train_labels, test, test_labels = (read[name] for name in FILES)
    return ImageSet(_pixels(train), train_labels.long(), _pixels(test), test_labels.long())


def read_idx(path: str | Path) -> Tensor:
    """The uint8 tensor that an IDX file of unsigned bytes holds, decompressed where the name ends in .gz.

    Raises ReclraError: RG703 where the file cannot be opened, RG704 where it is damaged or is something else.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReclraError(Problem("RG703", f"cannot be read: {error.strerror}", str(path), _HOW_TO_GET)) from None
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ReclraError(Problem("RG704", f"does not decompress: {error}", str(path))) from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE or content[3] == 0:
        cause = f"starts with {content[:4].hex(' ') or 'nothing'}, which is not an IDX file of unsigned bytes"
        raise ReclraError(Problem("RG704", cause, str(path)))
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + prod(shape):
        wanted = " x ".join(f"{size:,}" for size in shape)
        cause = f"{len(content):,} bytes, where a header for {wanted} elements asks for {header + prod(shape):,}"
        raise ReclraError(Problem("RG704", cause, str(path)))
    if prod(shape) == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def _locate(folder: Path) -> dict[str, Path]:
    """The four files; the first of the sub-folders that has any of them counts. Raises ReclraError RG703."""
    found: dict[str, Path] = {}
    for place in (folder / name for name in _FOLDERS):
        found = {
            name: path for name in FILES for path in (place / f"{name}.gz", place / name) if path.is_file()
        }  # the uncompressed file wins where both are there
        if found:
            break
    missing = [name for name in FILES if name not in found]
    if missing:
        what = "all four files are missing" if len(missing) == len(FILES) else f"missing: {', '.join(missing)}"
        cause = f"Fashion-MNIST is not there; {what} (each as it is, or with .gz)"
        raise ReclraError(Problem("RG703", cause, str(folder), _HOW_TO_GET))
    return found


def _read_checked(path: Path, *, images: bool) -> Tensor:
    """One file, with the shape and range that Fashion-MNIST gives it. Raises ReclraError RG703 or RG704."""
    data = read_idx(path)
    wanted = (SIDE, SIDE) if images else ()
    if not data.ndim or data.shape[0] == 0 or tuple(data.shape[1:]) != wanted:
        kind = f"images of {SIDE} x {SIDE}" if images else "labels"
        cause = f"holds elements of shape {list(data.shape)}, not {kind}"
        raise ReclraError(Problem("RG704", cause, str(path)))
    if not images and int(data.max()) >= CLASSES:
        cause = f"a label is {int(data.max())}; there are {CLASSES} classes"
        raise ReclraError(Problem("RG704", cause, str(path)))
    return data


def _pixels(images: Tensor) -> Tensor:
    """Bytes [N, 28, 28] as float32 [N, 1, 28, 28] in 0…1."""
    return images.unsqueeze(1).to(torch.float32).div_(255)


def cifar10(folder: str | Path) -> ImageSet:
    """Read CIFAR-10 from ``folder``, ``folder/cifar-10-batches-bin`` or ``folder/cifar-10-batches-py``.

    Raises ReclraError with one problem per file: RG703 where it is missing or cannot be opened, RG704 where it is
    damaged or is no batch of CIFAR-10.
    """
    paths: dict[str, Path] = {}
    for place in (Path(folder) / name for name in _CIFAR_FOLDERS):
        paths = {name: path for name in CIFAR_FILES for path in (place / name, place / f"{name}.bin") if path.is_file()}
        if paths:
            break
    missing = [name for name in CIFAR_FILES if name not in paths]
    if missing:
        what = "all six files are missing" if len(missing) == len(CIFAR_FILES) else f"missing: {', '.join(missing)}"
        cause = f"CIFAR-10 is not there; {what} (each with .bin, or in the Python version)"
        raise ReclraError(Problem("RG703", cause, str(folder), _HOW_TO_GET_CIFAR))
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
    return ImageSet(images, torch.cat([labels for _, labels in train]), test.to(torch.float32).div_(255), test_labels)


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images: uint8 [N, 3, 32, 32], and labels: int64 [N], of one file. Raises ReclraError RG703 or RG704."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReclraError(Problem("RG703", f"cannot be read: {error.strerror}", str(path), _HOW_TO_GET_CIFAR)) from None
    size = prod(_CIFAR_SHAPE)
    if path.suffix == ".bin":
        if not content or len(content) % (1 + size):
            cause = f"{len(content):,} bytes, which is no whole number of images of {1 + size:,} bytes"
            raise ReclraError(Problem("RG704", cause, str(path)))
        rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, 1 + size)
        labels, pixels = rows[:, 0].long(), rows[:, 1:]
    else:
        labels, pixels = _unpickled(content, path)
    if int(labels.max()) >= CLASSES or int(labels.min()) < 0:
        wrong = int(labels.max()) if int(labels.max()) >= CLASSES else int(labels.min())
        raise ReclraError(Problem("RG704", f"a label is {wrong}; there are {CLASSES} classes", str(path)))
    return pixels.reshape(-1, *_CIFAR_SHAPE), labels


def _unpickled(content: bytes, path: Path) -> tuple[Tensor, Tensor]:
    """Labels: int64 [N], and pixels: uint8 [N, 3072], of a batch of the Python version. Raises ReclraError RG704."""
    try:
        found = _Batch(io.BytesIO(content), encoding="bytes").load()
        array, given = (found[name if name in found else name.decode()] for name in (b"data", b"labels"))
        pixels = torch.frombuffer(bytearray(array.content), dtype=torch.uint8).reshape(array.shape)
        labels = torch.tensor(list(given), dtype=torch.int64)
        if pixels.shape != (len(labels), prod(_CIFAR_SHAPE)) or not len(labels):
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
