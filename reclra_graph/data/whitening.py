"""Global contrast normalisation and ZCA whitening, as CIFAR-10 is often prepared (Coates, Lee and Ng 2011; the numbers
are pylearn2's, Goodfellow et al. 2013).

Contrast: from each image its own mean over all values is taken, and what is left is divided by √(b + variance); b keeps
images without contrast from being blown up.

ZCA: with the mean μ and the covariance C = U Λ Uᵀ of the training images' values, x ← (x − μ) U (Λ + ε)^(−1/2) Uᵀ. The
result has the covariance U Λ (Λ + ε)⁻¹ Uᵀ: directions with a variance far above the regulariser ε come out with
variance 1, those far below it with nearly none, so that noise of the camera and of the file format is not blown up.
ε = 0 would make the covariance the identity, where C has full rank.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from reclra_graph.errors import Problem, UsageError
from reclra_graph.user_cache import cache_folder

CONTRAST = 10 / 255**2
"""b, for pixels in 0…1: pylearn2 adds 10 to the variance of pixels in 0…255."""
EPSILON = 0.1 / 55**2
"""ε, for images of variance 1: pylearn2 adds 0.1 where images have a deviation of 55."""
LARGEST = 12288
"""Values of an image, at most: its covariance is that number squared, and takes 1.2 GB in float64 there."""
_AT_ONCE = 4096
_VERSION = 1


@dataclass(frozen=True)
class Whitening:
    """μ: float32 [F], and U (Λ + ε)^(−1/2) Uᵀ: float32 [F, F], for images of F values."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, …] of F values each, normalised and whitened; the same shape."""
        found = torch.empty_like(images)
        for at in range(0, len(images), _AT_ONCE):  # so that no second copy of all images is made on the way
            part = contrast(images[at : at + _AT_ONCE])
            found[at : at + _AT_ONCE] = ((part.flatten(1) - self.mean) @ self.matrix).reshape(part.shape)
        return found


def contrast(images: Tensor, bias: float = CONTRAST) -> Tensor:
    """Images [N, …], each with its own mean taken out and divided by √(bias + its variance); the same shape."""
    flat = images.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return (centred / (bias + centred.square().mean(1, keepdim=True)).sqrt()).reshape(images.shape)


def fitted(images: Tensor, epsilon: float = EPSILON) -> Whitening:
    """The whitening of training images [N, …] in 0…1; covariance and eigenvectors are computed in float64.

    Raises UsageError RG405 where an image has too many values for that.
    """
    size = prod(images.shape[1:])
    if size > LARGEST:
        cause = f"images of {size:,} values: the covariance for whitening would be that squared"
        raise UsageError(Problem("RG405", cause, "whiten", f"Whiten images of up to {LARGEST:,} values."))
    total = torch.zeros(size, dtype=torch.float64)
    square = torch.zeros(size, size, dtype=torch.float64)
    shift = contrast(images[:1]).flatten().double()  # near the mean, so that no digits cancel
    for at in range(0, len(images), _AT_ONCE):
        part = contrast(images[at : at + _AT_ONCE]).flatten(1).double() - shift
        total += part.sum(0)
        square.addmm_(part.T, part)
    mean = total / len(images)
    covariance = square / len(images) - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = (vectors / (values.clamp(min=0) + epsilon).sqrt()) @ vectors.T
    return Whitening((mean + shift).float(), matrix.float())


def whitening(images: Tensor, epsilon: float = EPSILON, folder: Path | None = None) -> Whitening:
    """``fitted``, kept in ``folder`` (by default in the user's cache folder) by the digest of images and ε: of 45,000
    images of CIFAR-10 it takes a minute or so the first time, and no time ever after."""
    home = cache_folder("whitening") if folder is None else folder
    found = hashlib.sha256(f"{_VERSION} {epsilon!r} {CONTRAST!r} {tuple(images.shape)} {images.dtype}".encode())
    found.update(images.contiguous().numpy().tobytes())
    path = home / f"{found.hexdigest()[:32]}.pt"
    size = prod(images.shape[1:])
    with contextlib.suppress(OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError):
        held = torch.load(path, map_location="cpu", weights_only=True)
        if held["mean"].shape == (size,) and held["matrix"].shape == (size, size):
            return Whitening(held["mean"], held["matrix"])
    made = fitted(images, epsilon)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError, RuntimeError):  # what cannot be kept is computed again next time
        home.mkdir(parents=True, exist_ok=True)
        try:
            torch.save({"mean": made.mean, "matrix": made.matrix}, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return made
