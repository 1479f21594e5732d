"""What synapses learn as an outer product: γ a bᵀ for each form that stores E itself, in the direction that is
subtracted from it; a stands at the target i, b at the source j.

    dkp      a = z_i    b = e_j                              (Webster et al.: direct Kolen-Pollack)
    mirror   a = ξ_i    b = −(response of j to ξ_i) / σ²     (Akrout et al. 2019: weight mirror; ``rules.mirror``)
    readout  a = z_i    b = the readout's own error          (Nøkland & Eidnes 2019; ``rules.readout``)

Eq. 6 is a = d_i, b = e_j. With d_i = E e_j it has forms that are less work (``rules.synapse``); a test compares them
with these. Shapes and forms are those of ``rules.synapse``; a is [B, *target], b [B, *source]. All are means over the
batch, and over the places at which a shared E is applied.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from reclra_graph.rules.precision import Low, matmul
from reclra_graph.rules.synapse import (
    Shape,
    conv_eq6,
    dense_eq6,
    grid,
    mean_over_positions,
    places,
    pooled,
)


def dense(
    a: Tensor, b: Tensor, gamma: float, batch: int, source: Shape, target: Shape, last: bool = False, low: Low = None
) -> Tensor:
    """γ a bᵀ over all pairs of units: [units of target, units of source]."""
    return dense_eq6(a, b, gamma, batch, True, source, target, last, low)


def conv(
    a: Tensor, b: Tensor, synapse: Tensor, gamma: float, batch: int, positions: int, stride: Shape, padding: Shape,
    dilation: Shape, groups: int, low: Low = None,
) -> Tensor:  # fmt: skip
    """γ a bᵀ on the entries of a transposed convolution, each the sum over all pairs of units that it connects. Of
    ``synapse`` only the shape is read; ``positions``: of the source."""
    return conv_eq6(a, b, synapse, gamma, batch, True, positions, stride, padding, dilation, groups, low)


def token(
    a: Tensor, b: Tensor, gamma: float, batch: int, source: Shape, target: Shape, source_axis: int = -1,
    target_axis: int = -1, low: Low = None,
) -> Tensor:  # fmt: skip
    """γ a bᵀ over pairs of features: [features of target, features of source]. Both are averaged down to the grid on
    which E is applied: b as the errors that E sends are, a over the positions to which it sends the same."""
    sizes = grid(places(source, source_axis), places(target, target_axis))
    if sizes:
        a = _rows(*_gathered(a, target, target_axis, sizes), len(places(target, target_axis)))
        b = _rows(*pooled(b, source, source_axis, sizes), len(sizes))
        batch = batch * prod(sizes)
    else:
        a, b = mean_over_positions(a, target, target_axis), mean_over_positions(b, source, source_axis)
    return gamma / batch * matmul(a.T, b, low)


def channel(a: Tensor, b: Tensor, gamma: float, batch: int, source: Shape, target: Shape, low: Low = None) -> Tensor:
    """``token`` between features that stand first."""
    return token(a, b, gamma, batch, source, target, 0, 0, low)


def _rows(v: Tensor, axis: int, dims: int) -> Tensor:
    """[B · positions, features], of positions in so many dimensions."""
    if axis == 0:
        v = (v if dims == 1 else v.flatten(2)).mT
    return v.flatten(0, -2)


def _gathered(a: Tensor, target: Shape, axis: int, sizes: Shape) -> tuple[Tensor, int]:
    """a averaged over the positions that hear from the same place of the grid, and the axis of its features then: the
    mean that repeating undoes."""
    there = places(target, axis)
    if sizes == there or len(sizes) != len(there):
        return a, axis
    if not any(many % few for many, few in zip(there, sizes, strict=True)):
        return pooled(a, target, axis, sizes)  # windows of equal size, side by side
    a = a if axis == 0 else a.movedim(-1, 1)
    for dim, (many, few) in enumerate(zip(there, sizes, strict=True), start=2):
        if many != few:
            starts = [
                -(-place * many // few) for place in range(few + 1)
            ]  # nearest interpolation: ⌊position · few / many⌋
            a = torch.stack([a.narrow(dim, start, end - start).mean(dim) for start, end in pairwise(starts)], dim)
    return a, 0
