"""MNIST and Fashion-MNIST from their official files.

Both are four files in IDX form, as they come or compressed with gzip: MNIST (LeCun, Cortes and Burges 1998) and
Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, Zalando SE, MIT licence). An IDX file is a header of big-endian numbers
(two zero bytes, one byte for the element type, one for the number of dimensions, then each dimension in four bytes)
followed by the elements in row-major order. The files of the two sets have the same names; their first labels tell
them apart.
"""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from reclra_graph.data.images import Files, ImageSet, content_of
from reclra_graph.errors import Problem, ReclraError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = 10
SIDE = 28
_UNSIGNED_BYTE = 0x08
_NOTE = "each as it is, or with .gz"

FILES_OF_MNIST = Files(
    "MNIST",
    FILES,
    ("MNIST/raw", "MNIST", "mnist", "", "raw"),
    ("", ".gz"),
    _NOTE,
    "Fetch them with `torchvision.datasets.MNIST(DIR, download=True)`, and give their folder as --data DIR.",
)
FILES_OF_FASHION = Files(
    "Fashion-MNIST",
    FILES,
    ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "", "raw"),
    ("", ".gz"),
    _NOTE,
    "Fetch them with `torchvision.datasets.FashionMNIST(DIR, download=True)`, or take the four .gz files of the data "
    "set's own repository, zalandoresearch/fashion-mnist (folder data/fashion), and give their folder as --data DIR.",
)
_FIRST = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}
"""The first labels of the training images."""
_OF = {"mnist": FILES_OF_MNIST, "fashion-mnist": FILES_OF_FASHION}


def fashion_mnist(folder: str | Path) -> ImageSet:
    """Read Fashion-MNIST from ``folder``, ``folder/raw`` or ``folder/FashionMNIST/raw``; raw files or .gz.

    Raises ReclraError with one problem per file: RG703 where it is missing or cannot be opened, RG704 where it is
    damaged, is no IDX file, does not fit the others, or is MNIST's.
    """
    return _read_set("fashion-mnist", Path(folder))


def mnist(folder: str | Path) -> ImageSet:
    """Read MNIST from ``folder``, ``folder/raw`` or ``folder/MNIST/raw``; raw files or .gz. Raises as
    ``fashion_mnist`` does."""
    return _read_set("mnist", Path(folder))


def kinds(folder: Path) -> tuple[str, ...]:
    """Which of the two sets a folder holds: "mnist", "fashion-mnist", both, or none. What stands in neither's own
    sub-folder is told by its first training labels; it counts as "mnist" where they are neither's.

    Raises ReclraError RG703 or RG704."""
    found = {name: files.find(folder) for name, files in _OF.items()}
    if found["mnist"] != found["fashion-mnist"]:
        return tuple(name for name in _OF if _own(found[name], folder))
    if FILES[1] not in found["mnist"]:
        return tuple(name for name in _OF if found[name])[:1]
    labels = read_idx(found["mnist"][FILES[1]]).flatten()[:10].tolist()
    return (next((name for name, first in _FIRST.items() if first == labels), "mnist"),)


def _own(found: dict[str, Path], folder: Path) -> bool:
    """Whether files stand in a sub-folder that is named after the set."""
    return any(path.parent not in (folder, folder / "raw") for path in found.values())


def either(folder: str | Path) -> ImageSet:
    """Read MNIST or Fashion-MNIST, whichever a folder holds. Raises as ``fashion_mnist`` does."""
    return _read_set((*kinds(Path(folder)), "fashion-mnist")[0], Path(folder))


def _read_set(name: str, folder: Path) -> ImageSet:
    paths = _OF[name].located(folder)
    problems: list[Problem] = []
    read: dict[str, Tensor] = {}
    for file in FILES:
        try:
            read[file] = _read_checked(paths[file], images="images" in file)
        except ReclraError as error:
            problems.extend(error.problems)
    for split in ("train", "t10k"):
        images, labels = read.get(f"{split}-images-idx3-ubyte"), read.get(f"{split}-labels-idx1-ubyte")
        if images is not None and labels is not None and len(images) != len(labels):
            cause = f"{len(images):,} images but {len(labels):,} labels"
            problems.append(Problem("RG704", cause, str(paths[f"{split}-labels-idx1-ubyte"])))
    if problems:
        raise ReclraError(problems)
    train, train_labels, test, test_labels = (read[file] for file in FILES)
    for other, first in _FIRST.items():
        if other != name and train_labels[:10].tolist() == first:
            cause = f"these are the labels of {_OF[other].title}, not of {_OF[name].title}"
            raise ReclraError(
                Problem("RG704", cause, str(paths[FILES[1]]), f"Ask for {other}, or give another folder.")
            )
    labels, test_labels = train_labels.long(), test_labels.long()
    return ImageSet(_pixels(train), labels, _pixels(test), test_labels, CLASSES, name, str(folder))


def read_idx(path: str | Path) -> Tensor:
    """The uint8 tensor that an IDX file of unsigned bytes holds, decompressed where the name ends in .gz.

    Raises ReclraError: RG703 where the file cannot be opened, RG704 where it is damaged or is something else.
    """
    path = Path(path)
    content = content_of(path, "Give --data a folder that holds the data set's official files.")
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


def _read_checked(path: Path, *, images: bool) -> Tensor:
    """One file, with the shape and range that both sets give it. Raises ReclraError RG703 or RG704."""
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
