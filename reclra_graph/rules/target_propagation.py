"""Target propagation (TP) and difference target propagation (DTP).

Sources: Y. Bengio, "How auto-encoders could provide credit assignment in deep networks via target propagation", 2014;
D.-H. Lee, S. Zhang, A. Fischer, Y. Bengio, "Difference target propagation", ECML/PKDD 2015 (Algorithm 1).

A net is a chain z_l = f_l(z_{l−1}); G_l is a learned inverse of f_l. Errors are the derivatives of half a squared
distance by its first argument, per sample. ``z``, ``y`` and what else belongs to one layer have one shape, [B, …].
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


def first_target(z: Tensor, e: Tensor, rate: float) -> Tensor:
    """y = z − η̂ e: where the chain of targets begins, a small step down the loss. e: the loss's derivative by z."""
    return z - rate * e


def difference_target(z: Tensor, back: Tensor, back_of_target: Tensor) -> Tensor:
    """DTP: y_{l−1} = z_{l−1} − G_l(z_l) + G_l(y_l), so that y_l = z_l gives y_{l−1} = z_{l−1} whatever G_l is. (TP:
    y_{l−1} = G_l(y_l).)"""
    return z - back + back_of_target


def noisy(z: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """z_{l−1} + ε, ε = σ ξ: around where the net is, G_l learns to undo f_l. noise: ξ, standard normal."""
    return z + sigma * noise


def distance(z: Tensor, y: Tensor, batch: int) -> Tensor:
    """½ ‖z − y‖², mean over the batch (a 0-dim tensor): what f_l lowers for y = y_l, and G_l for z = G_l(f_l(z_{l−1} +
    ε)) and y = z_{l−1} + ε."""
    return (z - y).square().sum() / (2 * batch)


def dense_inverse(z: Tensor, weight: Tensor, bias: Tensor, shape: tuple[int, ...]) -> Tensor:
    """V z + c. z: [B, …] of n numbers per sample; weight: [m, n]; returns [B, *shape], of m numbers per sample."""
    return F.linear(z.flatten(1), weight, bias).reshape(-1, *shape)


def token_inverse(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """V z + c at every position of a sequence. z: [B, …, n]; weight: [m, n]; returns [B, …, m]."""
    return F.linear(z, weight, bias)


def map_inverse(
    z: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], transposed: bool
) -> Tensor:
    """A convolution of any rank, or with ``transposed`` a transposed one: back to the map that a layer with pooling or
    stride made smaller. z: [B, n, …]; weight: [n, m, *kernel] if transposed, else [m, n, *kernel]; returns [B, m, …].
    """
    ones, zeros = [1] * len(stride), [0] * len(stride)
    return torch.convolution(z, weight, bias, list(stride), list(padding), ones, transposed, zeros, 1)


def window(small: int, large: int) -> tuple[int, int]:
    """(kernel, stride) with which, padded by 1, a transposed convolution takes ``small`` positions to ``large``, and a
    convolution ``large`` to ``small``: positions side by side, and one on each side of them."""
    stride = large // small
    return large - (small - 1) * stride + 2, stride


def fan_in(weight: tuple[int, ...], stride: tuple[int, ...], transposed: bool) -> float:
    """Numbers that are summed into one result: of a dense weight, or of a convolution's."""
    return weight[0] * prod(weight[2:]) / prod(stride) if transposed else float(prod(weight[1:]))
