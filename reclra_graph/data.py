"""Fashion-MNIST from its official files: four files in IDX form, as they come or compressed with gzip.

An IDX file is a header of big-endian numbers (two zero bytes, one byte for the element type, one for the number of
dimensions, then each dimension in four bytes) followed by the elements in row-major order. The data set is by
Xiao, Rasul and Vollgraf (2017), Zalando SE, MIT licence.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from reclra_graph.errors import Problem, ReclraError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = 10
SIDE = 28
_UNSIGNED_BYTE = 0x08
_FOLDERS = ("", "raw", "FashionMNIST/raw")
_HOW_TO_GET = (
    "Fetch them with `torchvision.datasets.FashionMNIST(DIR, download=True)`, or take the four .gz files of the data "
    "set's own repository, zalandoresearch/fashion-mnist (folder data/fashion), and give their folder as --data DIR."
)


@dataclass(frozen=True)
class ImageSet:
    """Training and test images: float32 [N, 1, 28, 28] in 0…1, and labels: int64 [N] in 0…9."""

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
