"""Data sets in their official file formats, with generated images: classes that a net can tell apart."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

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
