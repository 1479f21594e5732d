"""Losses and their error at the output, e_L. Errors are per sample; losses are means over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy. z: logits [B, C, …]; target: class indices [B, …] (int64). Returns a 0-dim tensor."""
    return F.cross_entropy(z, target)


def cross_entropy_error(z: Tensor, target: Tensor, classes: int, positions: int) -> Tensor:
    """e_L = softmax(z_L) − one-hot(target), shared among the positions where there are several. Shape of z."""
    one_hot = F.one_hot(target, classes)
    if positions == 1:
        return torch.softmax(z, 1) - one_hot
    return (torch.softmax(z, 1) - one_hot.movedim(-1, 1)) / positions


def mse(z: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance ‖z_L − y‖², mean over the batch. Both [B, …]."""
    return (z - target).square().flatten(1).sum(1).mean() / 2


def mse_error(z: Tensor, target: Tensor) -> Tensor:
    """e_L = z_L − y."""
    return z - target


def bce_with_logits(z: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(z_L), summed over outputs, mean over the batch. target: in [0, 1], shape of z."""
    return F.binary_cross_entropy_with_logits(z, target, reduction="sum") / z.shape[0]


def bce_with_logits_error(z: Tensor, target: Tensor) -> Tensor:
    """e_L = sigmoid(z_L) − y."""
    return torch.sigmoid(z) - target
