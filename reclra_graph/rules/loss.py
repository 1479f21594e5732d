"""Losses and their error at the output, e_L. Errors are per sample; losses are means over the batch.

Every error here is B times the derivative of its loss by z_L, in closed form: B, because updates are means over the
batch. ``axis`` is the dimension of the classes: 1 for [B, C, …], −1 for [B, …, C]; a loss over classes is a mean over
all positions too. ``weights`` of classes are a tensor [C] or a tuple of numbers. ``batch`` is B, which a loss reads off
z where it is not given.

Where a loss is not defined (every target ignored, or all of weight 0), it is nan, as in PyTorch, and a step refuses it;
the error is 0 there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Tensor | tuple[float, ...] | None

# What PyTorch ignores unless told otherwise; here also "no next token".
_IGNORED = -100
# Less than any sum of class weights, 0 apart.
_TINY = 1e-30


def cross_entropy(
    z: Tensor, target: Tensor, axis: int = 1, smoothing: float = 0.0, ignore: int | None = None,
    weights: Weights = None, shift: bool = False,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy, by ``F.cross_entropy``. z: logits; target: class indices (int64), of z's shape less ``axis``.

    smoothing: the share of every target that all classes get alike. ignore: the index of targets that do not count.
    weights: of the classes, in the mean too. shift: the logits at t are for the target at t + 1 (z: [B, T, C]), as of a
    causal language model. Returns a 0-dim tensor.
    """
    if shift:
        target = following(target, ignore)
    w, index = _weights(z, weights), _IGNORED if ignore is None else ignore
    if axis == -1:
        z, target = z.flatten(0, -2), target.flatten()
    return F.cross_entropy(z, target, w, ignore_index=index, label_smoothing=smoothing)


def cross_entropy_error(
    z: Tensor, target: Tensor, classes: int, positions: int, axis: int = 1, smoothing: float = 0.0,
    ignore: int | None = None, weights: Weights = None, shift: bool = False, batch: int | None = None,
) -> Tensor:  # fmt: skip
    """e_L = softmax(z_L) − one-hot(target), shared among the positions where there are several. Shape of z.

    ``positions`` is how many targets a sample has. [B, C] is axis = 1 with positions = 1; a map of one position, as
    [B, C, 1, 1], needs its axis counted from the end. With the options of ``cross_entropy``, for a target t: smoothing
    s makes q = (1 − s)·one-hot(t) + s / C of the one-hot, weights w make e_L = p Σ w q − w q, and B / Σ w_t over the
    targets that count takes the place of 1 / positions.
    """
    p = torch.softmax(z, axis)
    if ignore is None and weights is None and not shift:
        return _plain_error(p, z, target, classes, positions, axis, smoothing)
    if shift:
        target, ignore = following(target, ignore), _IGNORED if ignore is None else ignore
    at = target.unsqueeze(axis)
    counts = None if ignore is None else at.ne(ignore)
    if counts is not None:
        at = torch.where(counts, at, 0)  # any class: it gets no share
    w = _weights(z, weights)
    if w is None:
        assert counts is not None
        share = counts.to(z.dtype)
    else:
        share = w[at] if counts is None else w[at] * counts
    each = (z.shape[0] if batch is None else batch) / share.sum().clamp(min=1 if w is None else _TINY)
    share = share * each
    if not smoothing:
        return (p * share).scatter_add_(axis, at, -share)
    if w is None:
        return ((p - smoothing / classes) * share).scatter_add_(axis, at, (smoothing - 1) * share)
    share = (1 - smoothing) * share
    even = smoothing / classes * (each if counts is None else counts * each)
    smooth = _less(p * w.sum(), w, axis) * even
    return (p * share + smooth).scatter_add_(axis, at, -share)


def _plain_error(
    p: Tensor, z: Tensor, target: Tensor, classes: int, positions: int, axis: int, smoothing: float
) -> Tensor:
    """Where all targets count alike. Of many positions no one-hot is made: in int64 it is twice the logits' size."""
    if positions == 1 and axis == 1 and not smoothing:
        return p - F.one_hot(target, classes)
    at = target.unsqueeze(axis)
    if smoothing:
        p = p - smoothing / classes
    e = p.scatter_add_(axis, at, torch.full_like(at, smoothing - 1, dtype=z.dtype))
    return e if positions == 1 else e / positions


def following(target: Tensor, ignore: int | None) -> Tensor:
    """The target of the next position; at the last, one that is ignored. target: [B, T], and so is what returns."""
    return F.pad(target[:, 1:], (0, 1), value=ignored(ignore))


def ignored(ignore: int | None) -> int:
    """The index of targets that do not count: PyTorch's own unless another was given."""
    return _IGNORED if ignore is None else ignore


def _weights(z: Tensor, weights: Weights) -> Tensor | None:
    return z.new_tensor(list(weights)) if isinstance(weights, tuple) else weights


def _less(x: Tensor, w: Tensor, axis: int) -> Tensor:
    """x − w, w: [C], C at ``axis``."""
    return x - w if axis == -1 else (x.movedim(axis, -1) - w).movedim(-1, axis)


def soft_cross_entropy(
    z: Tensor, target: Tensor, axis: int = 1, smoothing: float = 0.0, weights: Weights = None
) -> Tensor:
    """Mean cross-entropy with probabilities of classes as targets, by ``F.cross_entropy``. target: shape of z.

    Unlike class indices, probabilities give a plain mean over positions, whatever the weights (as in PyTorch).
    """
    w = _weights(z, weights)
    if axis == -1:
        z, target = z.flatten(0, -2), target.flatten(0, -2)
    return F.cross_entropy(z, target, w, label_smoothing=smoothing)


def soft_cross_entropy_error(
    z: Tensor, target: Tensor, classes: int, positions: int, axis: int = 1, smoothing: float = 0.0,
    weights: Weights = None,
) -> Tensor:  # fmt: skip
    """e_L = softmax(z_L) Σ q − q, with q = w ((1 − s)·target + s / C). Shape of z."""
    q = (1 - smoothing) * target + smoothing / classes if smoothing else target
    w = _weights(z, weights)
    if w is not None:
        q = q * w if axis == -1 else (q.movedim(axis, -1) * w).movedim(-1, axis)
    e = torch.softmax(z, axis) * q.sum(axis, keepdim=True) - q
    return e if positions == 1 else e / positions


def mse(z: Tensor, target: Tensor, batch: int | None = None) -> Tensor:
    """Half the squared distance ‖z_L − y‖², mean over the batch. Both [B, …]."""
    return (z - target).square().sum() / (2 * (z.shape[0] if batch is None else batch))


def mse_error(z: Tensor, target: Tensor) -> Tensor:
    """e_L = z_L − y."""
    return z - target


def bce_with_logits(z: Tensor, target: Tensor, batch: int | None = None) -> Tensor:
    """Binary cross-entropy of sigmoid(z_L), summed over outputs, mean over the batch. target: in [0, 1], shape of z."""
    total = F.binary_cross_entropy_with_logits(z, target, reduction="sum")
    return total / (z.shape[0] if batch is None else batch)


def bce_with_logits_error(z: Tensor, target: Tensor) -> Tensor:
    """e_L = sigmoid(z_L) − y."""
    return torch.sigmoid(z) - target
