"""Data sets in their official file formats, with generated images: classes that a net can tell apart."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reclra_graph.data import CIFAR_FILES, FILES


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape) + content


def pictures(count: int, size: int, seed: int) -> tuple[Any, Any]:
    """Bytes [count, size] and labels [count]: the tenth of an image that its label names is bright."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    found = draw.integers(0, 64, (count, size))
    for image, label in zip(found, labels, strict=True):
        image[label * size // 10 : (label + 1) * size // 10] += 190
    return found.astype(np.uint8), labels.astype(np.uint8)


def write_fashion(folder: Path, train: int = 100, test: int = 40) -> Path:
    """Fashion-MNIST's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, count in enumerate((train, test)):
        images, labels = pictures(count, 784, seed)
        (folder / FILES[2 * seed]).write_bytes(idx((count, 28, 28), images.tobytes()))
        (folder / FILES[2 * seed + 1]).write_bytes(idx((count,), labels.tobytes()))
    return folder


def write_cifar(folder: Path, each: int = 20, python: bool = False) -> Path:
    """CIFAR-10's six files, binary or as its Python version has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(CIFAR_FILES):
        images, labels = pictures(each, 3072, seed)
        if python:
            batch = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"generated"}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], images], 1).tobytes())
    return folder


def write_digits(folder: Path, train: int = 30, test: int = 20) -> Path:
    """The two text files of the 8x8 digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("optdigits.tra", train), ("optdigits.tes", test))):
        images, labels = pictures(count, 64, seed)
        rows = np.concatenate([images // 16 + (images > 190), labels[:, None]], 1)
        (folder / name).write_text("".join(",".join(map(str, row)) + "\n" for row in rows.tolist()))
    return folder


def write_own(place: Path, train: int = 60, test: int = 30) -> Path:
    """Tensors of three classes that a straight cut tells apart: a file, or a folder where the name has no suffix."""
    parts = {}
    for seed, (name, count) in enumerate((("train", train), ("test", test))):
        images = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
        parts[name] = {"images": images, "labels": images[:, :3].argmax(1)}
    if place.suffix:
        torch.save(parts, place)
    else:
        place.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            torch.save(part, place / f"{name}.pt")
    return place


def write_folder(root: Path, train: int = 4, val: int = 2, size: tuple[int, int] = (20, 16)) -> Path:
    """Pictures of three classes in ImageNet's layout: a bright channel tells them apart."""
    from PIL import Image

    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(("bird", "cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                draw = np.random.default_rng(100 * label + number + (50 if split == "val" else 0))
                pixels = draw.integers(0, 90, (size[1], size[0], 3))
                pixels[:, :, label] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.jpg")
    return root
