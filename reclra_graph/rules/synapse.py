"""Error synapses: what they transmit (Eq. 3, first half) and how they learn (Eq. 6).

Shapes without the batch are given as ``source`` and ``target``. A ``dense`` E is [units of target, units of source].
With ``last`` its rows follow a map [C, H, W] position by position, all features of one behind the other, as images in
channels_last stand in memory.
The other forms share one E, [features of target, features of source], among positions: ``channel`` where features stand
first on both sides ([C, H, W], axis 0), ``token`` where they stand last on one side at least ([T, D], axis −1).

A shared E is applied position by position between equal grids, and between a map and the sequence of its positions
([D, 14, 14], [196, D]). Between other grids of one rank, the error is averaged down to the smaller size in every
dimension and repeated up to the larger. Everywhere else (a side without positions; a map and a sequence with a class
token), the error's mean over its positions is sent to all positions alike.

A ``lowrank`` E is A B, A [units of target, r] and B [r, units of source]; only B learns. A ``conv`` E has the shape of
the weight of the convolution that leads from the target to the source; it sends by the transposed convolution.
``low`` is the precision of products (``rules.precision``).
``implicit`` synapses stand in ``rules.implicit``; what they learn is a matrix M_j, [units of source, units of source].
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from reclra_graph.rules.precision import Low, conv_transpose, conv_weight, matmul

Shape = tuple[int, ...]


def flat(e: Tensor, shape: Shape) -> Tensor:
    """[B, *shape] as a matrix."""
    if not shape:
        return e.unsqueeze(1)
    return e if len(shape) == 1 else e.flatten(1)


def rows(h: Tensor, shape: Shape, last: bool) -> Tensor:
    """[B, *shape] as a matrix with the units in the order of E's rows: position by position where ``last``."""
    return h.movedim(1, -1).flatten(1) if last else flat(h, shape)


def placed(d: Tensor, shape: Shape, last: bool) -> Tensor:
    """The reverse: [B, units in the order of E's rows] as [B, *shape]."""
    if last:
        return d.reshape(-1, *shape[1:], shape[0]).movedim(-1, 1)
    return d if len(shape) == 1 else d.reshape(-1, *shape)


def dense_displace(
    e: Tensor, synapse: Tensor, source: Shape, target: Shape, last: bool = False, low: Low = None
) -> Tensor:
    """d_i = E_{j→i} e_j (Eq. 3). e: [B, *source]; returns [B, *target]."""
    return placed(matmul(flat(e, source), synapse.T, low), target, last)


def _rate(gamma: float, samples: int, descend: bool) -> float:
    """γ over the samples for the sign that shrinks E; −γ for the other reading of Eq. 6, E ← E − η ΔE: E grows."""
    return gamma / samples if descend else -gamma / samples


def dense_eq6(
    d: Tensor,
    e: Tensor,
    gamma: float,
    batch: int,
    descend: bool,
    source: Shape,
    target: Shape,
    last: bool = False,
    low: Low = None,
) -> Tensor:
    """γ d_i e_jᵀ, mean over the batch: −ΔE of Eq. 6, the direction that descends D when it is subtracted from E."""
    return _rate(gamma, batch, descend) * matmul(rows(d, target, last).T, flat(e, source), low)


def dense_eq6_few(
    synapse: Tensor, e: Tensor, gamma: float, batch: int, descend: bool, source: Shape, low: Low = None
) -> Tensor:
    """The same as γ E (e_j e_jᵀ), since d_i = E e_j: far less work where the source has few units."""
    e = flat(e, source)
    return _rate(gamma, batch, descend) * matmul(synapse, e.T @ e, low)


def lowrank_displace(e: Tensor, left: Tensor, right: Tensor, source: Shape, target: Shape, low: Low = None) -> Tensor:
    """d_i = A (B e_j): ``dense_displace`` with E = A B, left A and right B."""
    d = matmul(matmul(flat(e, source), right.T, low), left.T, low)
    return d if len(target) == 1 else d.reshape(-1, *target)


def lowrank_eq6(
    right: Tensor, e: Tensor, gamma: float, batch: int, descend: bool, source: Shape, low: Low = None
) -> Tensor:
    """γ B (e_j e_jᵀ) for B alone: E = A B then moves by γ A B e eᵀ = γ E e eᵀ, which is Eq. 6 of a dense E."""
    e = flat(e, source)
    return _rate(gamma, batch, descend) * matmul(matmul(e, right.T, low).T, e, low)


def matrix_eq6(
    sent: Tensor, e: Tensor, gamma: float, batch: int, descend: bool, source: Shape, runs: int, low: Low = None
) -> Tensor:
    """γ M_j (e_j e_jᵀ), with ``sent`` = M_j e_j: then E(0) M_j moves as a dense E does. Of a synapse that is used
    ``runs`` times in a step, as by a layer that runs so often, the changes add up."""
    delta = _rate(gamma, batch, descend) * matmul(sent.T, flat(e, source), low)
    return delta if runs == 1 else runs * delta


def conv_displace(
    e: Tensor,
    synapse: Tensor,
    stride: Shape,
    padding: Shape,
    output_padding: Shape,
    dilation: Shape,
    groups: int,
    low: Low = None,
) -> Tensor:
    """d_i = E_{j→i} e_j, E the transposed convolution. e: [B, channels of source, …]; synapse: [channels of source,
    channels of target / groups, *kernel]; returns [B, channels of target, …]."""
    transposed: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(stride) - 1]
    return conv_transpose(transposed, e, synapse, stride, padding, output_padding, groups, dilation, low)


def conv_eq6(
    d: Tensor, e: Tensor, synapse: Tensor, gamma: float, batch: int, descend: bool, positions: int, stride: Shape,
    padding: Shape, dilation: Shape, groups: int, low: Low = None,
) -> Tensor:  # fmt: skip
    """γ d_i e_jᵀ on the entries that a shared E has, mean over the batch and over the positions of the source.

    What d eᵀ says to a shared weight is its sum over all pairs of units that the weight connects: the derivative of
    ⟨d, E e⟩ by it. Since ⟨d, E e⟩ = ⟨conv(d), e⟩, that is the weight gradient of the convolution itself, d being its
    input and e the cotangent. Of ``synapse`` only the shape is read.
    """
    delta = conv_weight(e, d, synapse, stride, padding, dilation, False, (0,) * len(stride), groups, low)
    return _rate(gamma, batch * positions, descend) * delta


def features(shape: Shape, axis: int) -> int:
    """How many features stand at one position: the size of a shared E on that side."""
    return shape[axis] if shape else 1


def places(shape: Shape, axis: int) -> Shape:
    """The positions of a shape, whose features are first (axis 0) or last (−1); () for a vector."""
    return shape[1:] if axis == 0 else shape[:-1]


def grid(source: Shape, target: Shape) -> Shape:
    """Positions at which a shared E is applied, between these of the source and those of the target; () for one."""
    if prod(source) == 1 or prod(target) == 1:
        return ()
    if len(source) == len(target) <= 3:
        small = tuple(map(min, source, target))
        return small if prod(small) > 1 else ()
    return source if prod(source) == prod(target) else ()


def _sizes(sizes: Shape) -> int | Shape:
    """As PyTorch takes them: a single one is a number."""
    return sizes[0] if len(sizes) == 1 else sizes


def mean_over_positions(e: Tensor, source: Shape, axis: int) -> Tensor:
    """e_j averaged over its positions: [B, features]."""
    sizes = places(source, axis)
    if prod(sizes) == 1:
        return flat(e, source)
    first = 2 if axis == 0 else 1
    return e.mean(_sizes(tuple(range(first, first + len(sizes)))))


def _everywhere(d: Tensor, target: Shape, axis: int) -> Tensor:
    """[B, features], the same at every position: a view of [B, *target]."""
    sizes = places(target, axis)
    if len(target) == 1:
        return d
    if prod(sizes) == 1:
        return d.reshape(-1, *target)
    ones = (1,) * len(sizes)
    shape = (target[0], *ones) if axis == 0 else (*ones, target[-1])
    return d.reshape(-1, *shape).expand(-1, *target)


def pooled(e: Tensor, source: Shape, axis: int, sizes: Shape) -> tuple[Tensor, int]:
    """e_j on the grid where E is applied, and the axis of its features then."""
    if sizes == places(source, axis):
        return e, axis
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(sizes) - 1]
    found: Tensor = pool(e if axis == 0 else e.movedim(-1, 1), _sizes(sizes))
    return found, 0


def _columns(e: Tensor, axis: int, sizes: Shape) -> Tensor:
    """[B, features, positions]."""
    if axis == 0:
        return e if len(sizes) == 1 else e.flatten(2)
    return (e if len(sizes) == 1 else e.flatten(1, -2)).mT


def token_displace(
    e: Tensor,
    synapse: Tensor,
    source: Shape,
    target: Shape,
    source_axis: int = -1,
    target_axis: int = -1,
    low: Low = None,
) -> Tensor:
    """d_i = E_{j→i} e_j at every position. e: [B, *source]; returns [B, *target], a view where d repeats."""
    return shared(e, synapse, synapse.T, source, target, source_axis, target_axis, low)


def shared(
    e: Tensor, left: Tensor, right: Tensor, source: Shape, target: Shape, source_axis: int, target_axis: int,
    low: Low = None,
) -> Tensor:  # fmt: skip
    """The product of a shared ``left``, [features of target, features of source], and e, position by position;
    ``right`` is its transpose."""
    there = places(target, target_axis)
    sizes = grid(places(source, source_axis), there)
    if not sizes:
        return _everywhere(matmul(mean_over_positions(e, source, source_axis), right, low), target, target_axis)
    e, axis = pooled(e, source, source_axis, sizes)
    repeats = len(sizes) == len(there) and sizes != there
    if target_axis == -1 and not repeats:
        d = matmul(e if axis == -1 else _columns(e, axis, sizes).mT, right, low)
        done = sizes == there if axis == -1 else len(there) == 1
        return d if done else d.reshape(-1, *target)
    d = matmul(left, _columns(e, axis, sizes), low)
    if not repeats:
        return d if len(there) == 1 else d.reshape(-1, *target)
    if len(sizes) > 1:
        d = d.reshape(-1, features(target, target_axis), *sizes)
    d = F.interpolate(d, _sizes(there), mode="nearest")
    return d if target_axis == 0 else d.movedim(1, -1)


def token_eq6(
    synapse: Tensor, e: Tensor, gamma: float, batch: int, descend: bool, source: Shape, target: Shape,
    source_axis: int = -1, target_axis: int = -1, low: Low = None,
) -> Tensor:  # fmt: skip
    """γ d_i e_jᵀ of a shared E, mean over the batch and over the positions where it is applied.

    Both d_i and e_j are those of the grid on which E works; E (e_j e_jᵀ) where that is less work than (E e_j) e_jᵀ.
    """
    sizes = grid(places(source, source_axis), places(target, target_axis))
    rate = _rate(gamma, batch * prod(sizes) if sizes else batch, descend)
    few = features(source, source_axis) <= features(target, target_axis)
    if sizes:
        e, axis = pooled(e, source, source_axis, sizes)
        e = (e if axis == -1 else _columns(e, axis, sizes).mT).flatten(0, -2)
    else:
        e = mean_over_positions(e, source, source_axis)
    if few:
        return rate * matmul(synapse, matmul(e.T, e, low), low)
    return rate * matmul(matmul(e, synapse.T, low).T, e, low)


def channel_displace(e: Tensor, synapse: Tensor, source: Shape, target: Shape, low: Low = None) -> Tensor:
    """``token_displace`` between features that stand first. e: [B, *source]; returns [B, *target]."""
    return token_displace(e, synapse, source, target, 0, 0, low)


def channel_eq6(
    synapse: Tensor, e: Tensor, gamma: float, batch: int, descend: bool, source: Shape, target: Shape, low: Low = None
) -> Tensor:
    """``token_eq6`` between features that stand first."""
    return token_eq6(synapse, e, gamma, batch, descend, source, target, 0, 0, low)
