"""Closed forms of Eq. 5: ΔW = e_i z_kᵀ, for every kind of parameter. All are means over the batch.

``e`` is the error at the output of the operator that reads the parameter, ``x`` the operator's input. For a linear
operator other than dense, ΔW is its weight gradient with ``e`` as the output cotangent; no φ′ appears anywhere.
``low``: the precision of x, and so of products
(``rules.precision``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reclra_graph.rules import precision
from reclra_graph.rules.precision import Low, matmul, raised


def linear_weight(e: Tensor, x: Tensor, batch: int, rank: int, low: Low = None) -> Tensor:
    """ΔW = e xᵀ of a dense layer. e: [B, …, out], x: [B, …, in], both of ``rank`` dimensions; returns [out, in]."""
    if rank == 2:
        return matmul(e.T, x, low) / batch
    return matmul(e.flatten(0, -2).T, x.flatten(0, -2), low) / batch


def linear_bias(e: Tensor, batch: int, rank: int) -> Tensor:
    """Δb = e, summed over positions. e: [B, …, out]; returns [out]."""
    return e.sum(0 if rank == 2 else tuple(range(rank - 1))) / batch


def matmul_weight(e: Tensor, x: Tensor, batch: int, rank: int, low: Low = None) -> Tensor:
    """ΔW of x @ W. e: [B, …, out], x: [B, …, in]; returns [in, out]."""
    if rank == 2:
        return matmul(x.T, e, low) / batch
    return matmul(x.flatten(0, -2).T, e.flatten(0, -2), low) / batch


def conv_weight(
    e: Tensor,
    x: Tensor,
    weight: Tensor,
    batch: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    output_padding: tuple[int, ...],
    groups: int,
    low: Low = None,
) -> Tensor:
    """ΔW of a convolution of any rank and grouping. e: [B, out, …], x: [B, in, …]; of ``weight`` only the shape."""
    rest = (stride, padding, dilation, transposed, output_padding, groups, low)
    return precision.conv_weight(e, x, weight, *rest) / batch


def channel_bias(e: Tensor, batch: int, rank: int) -> Tensor:
    """Δb of a convolution, or of a norm over channels: the error of each channel. e: [B, C, …]; returns [C]."""
    return e.sum(0 if rank == 2 else (0, *range(2, rank))) / batch


def batch_norm_scale(
    e: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, batch: int, eps: float, low: Low = None
) -> Tensor:
    """Δγ = Σ e x̂ with x̂ = (x − mean)·invstd, the batch's own statistics. e, x: [B, C, …]; returns [C].

    Of PyTorch's operator for all derivatives of a batch norm, only this sum is asked for: one pass over e and x.
    """
    sums: Any = torch.ops.aten.native_batch_norm_backward.default(
        e, raised(x, low), None, None, None, mean, invstd, True, eps, [False, True, False]
    )
    delta: Tensor = sums[1] / batch
    return delta


def layer_norm_scale(
    e: Tensor, x: Tensor, batch: int, rank: int, shape: tuple[int, ...], eps: float, low: Low = None
) -> Tensor:
    """Δγ = Σ e x̂, x̂ normalised over the last ``len(shape)`` dimensions. e, x: [B, …, *shape]; returns ``shape``."""
    normal: Tensor = torch.ops.aten.layer_norm.default(raised(x, low), list(shape), None, None, eps)
    return norm_scale(e, normal, batch, rank, shape)


def norm_scale(e: Tensor, normal: Tensor, batch: int, rank: int, shape: tuple[int, ...]) -> Tensor:
    """Δγ = Σ e x̂ of a layer norm whose x̂ is at hand. e, normal: [B, …, *shape]; returns ``shape``."""
    return (e * normal).sum(tuple(range(rank - len(shape)))) / batch


def layer_norm_shift(e: Tensor, batch: int, rank: int, shape: tuple[int, ...]) -> Tensor:
    """Δβ = Σ e over all but the normalised dimensions; returns ``shape``."""
    return e.sum(tuple(range(rank - len(shape)))) / batch


def group_norm_scale(e: Tensor, x: Tensor, batch: int, rank: int, groups: int, eps: float, low: Low = None) -> Tensor:
    """Δγ = Σ e x̂, x̂ normalised within groups of channels. e, x: [B, C, …]; returns [C]."""
    normal = torch.ops.aten.group_norm.default(raised(x, low), groups, None, None, eps)
    delta: Tensor = (e * normal).sum((0, *range(2, rank))) / batch
    return delta


def embedding_weight(e: Tensor, index: Tensor, batch: int, rows: int, padding_index: int) -> Tensor:
    """ΔW of a table: each row gathers the errors of the places that looked it up. e: [B, …, d], index: [B, …]."""
    grads: Any = torch.ops.aten.embedding_dense_backward.default(e, index, rows, padding_index, False)
    delta: Tensor = grads / batch
    return delta


def added(e: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    """Δp of x + p: the error, summed over the dimensions along which p was repeated. Returns ``shape``."""
    return e.sum_to_size(shape) / batch


def subtracted(e: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    """Δp of x − p. Returns ``shape``."""
    return -e.sum_to_size(shape) / batch


def multiplied(e: Tensor, x: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    """Δp of x · p: e x, summed over the dimensions along which p was repeated. Returns ``shape``."""
    return (e * x).sum_to_size(shape) / batch
