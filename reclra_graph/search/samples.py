"""The samples that a search trains on and those it holds out.

Before:  a folder with MNIST's or Fashion-MNIST's files, or a file that torch.save wrote, with "inputs" and "targets".
After:   training and held-out samples, split by the seed, the inputs in the shape that the model takes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reclra_graph.data import either
from reclra_graph.errors import Problem, ReclraError

_HOW = (
    "Give a folder with the files of MNIST or Fashion-MNIST, or a file from "
    '`torch.save({"inputs": x, "targets": y}, FILE)`.'
)


@dataclass(frozen=True)
class Samples:
    """Inputs [N, ...] and targets [N, ...] to train on, and others to judge by."""

    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor
    held_targets: Tensor

    @property
    def digest(self) -> str:
        """Sixteen hex digits of the samples' values and order: other samples, another digest."""
        found = hashlib.sha256()
        for item in (self.inputs, self.targets, self.held_inputs, self.held_targets):
            found.update(f"{tuple(item.shape)} {item.dtype}".encode())
            found.update(item.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def read_samples(source: str | Path, shape: Sequence[int], held_out: float, seed: int) -> Samples:
    """Samples from ``source`` for a model whose input is [B, *shape]; a share ``held_out`` is kept apart.

    Test images of a data set are never touched: what is held out comes from its training images.
    Raises ReclraError: RG703 where nothing is there, RG704 where it is damaged or does not fit the model.
    """
    path = Path(source)
    inputs, targets = _images(path) if path.is_dir() else _saved(path)
    if len(inputs) != len(targets):
        raise ReclraError(Problem("RG704", f"{len(inputs):,} inputs but {len(targets):,} targets", str(path), _HOW))
    for name, item in (("inputs", inputs), ("targets", targets)):
        if item.is_floating_point() and not bool(item.isfinite().all()):
            raise ReclraError(Problem("RG704", f"its {name} hold values that are not finite", str(path), _HOW))
    if tuple(inputs.shape[1:]) != tuple(shape):
        if math.prod(inputs.shape[1:]) != math.prod(shape):
            cause = f"its samples are {tuple(inputs.shape[1:])}; the model takes {tuple(shape)}"
            raise ReclraError(Problem("RG704", cause, str(path), "Bring a model for these samples, or other samples."))
        inputs = inputs.reshape(-1, *shape)
    kept = round(len(inputs) * held_out)
    if not 0 < kept < len(inputs):
        cause = f"a share of {held_out:g} of {len(inputs):,} samples leaves nothing to train on, or to judge by"
        raise ReclraError(Problem("RG405", cause, "--held-out", "Give a share between 0 and 1, such as 0.1."))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    train, held = order[kept:], order[:kept]
    return Samples(inputs[train], targets[train], inputs[held], targets[held])


def _images(folder: Path) -> tuple[Tensor, Tensor]:
    images = either(folder)
    return images.train_images, images.train_labels


def _saved(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise ReclraError(Problem("RG703", "there is no such file or folder", str(path), _HOW))
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way inside its reader
        raise ReclraError(Problem("RG704", f"cannot be read: {type(error).__name__}", str(path), _HOW)) from None
    inputs, targets = (held.get(key) if isinstance(held, dict) else None for key in ("inputs", "targets"))
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.dim() and targets.dim()):
        raise ReclraError(Problem("RG704", "it holds no tensors named inputs and targets", str(path), _HOW))
    return inputs, targets
