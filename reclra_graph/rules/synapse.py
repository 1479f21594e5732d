"""Error synapses: what they transmit (Eq. 3, first half) and how they learn (Eq. 6).

Shapes without the batch are given as ``source`` and ``target``. A ``dense`` E is [units of target, units of source]. A
``channel`` E is [channels of target, channels of source], applied at every position: the error is pooled to the
target's positions where it has more, and repeated where it has fewer or none.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


def _flat(e: Tensor, shape: tuple[int, ...]) -> Tensor:
    return e if len(shape) == 1 else e.flatten(1)


def dense_displace(e: Tensor, synapse: Tensor, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    """d_i = E_{j→i} e_j (Eq. 3). e: [B, *source]; returns [B, *target]."""
    d = _flat(e, source) @ synapse.T
    return d if len(target) == 1 else d.reshape(-1, *target)


def _rate(gamma: float, batch: int, descend: bool) -> float:
    """γ over the batch for the sign that shrinks E; −γ for the other reading of Eq. 6, E ← E − η ΔE, which grows E."""
    return gamma / batch if descend else -gamma / batch


def dense_eq6(
    d: Tensor, e: Tensor, gamma: float, batch: int, descend: bool, source: tuple[int, ...], target: tuple[int, ...]
) -> Tensor:
    """γ d_i e_jᵀ, mean over the batch: −ΔE of Eq. 6, the direction that descends D when it is subtracted from E."""
    return _rate(gamma, batch, descend) * (_flat(d, target).T @ _flat(e, source))


def dense_eq6_few(
    synapse: Tensor, e: Tensor, gamma: float, batch: int, descend: bool, source: tuple[int, ...]
) -> Tensor:
    """The same as γ E (e_j e_jᵀ), since d_i = E e_j: far less work where the source has few units."""
    e = _flat(e, source)
    return _rate(gamma, batch, descend) * (synapse @ (e.T @ e))


def channel_error(e: Tensor, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    """e_j as a ``channel`` synapse sees it: pooled where the source has more positions than the target; [B, C, n]."""
    if len(source) == 1:
        return e.unsqueeze(2)
    if len(target) == 1:
        return e.flatten(2).mean(2, keepdim=True)
    if len(source) == 3 and len(target) == 3 and (source[1] > target[1] or source[2] > target[2]):
        e = F.adaptive_avg_pool2d(e, (min(source[1], target[1]), min(source[2], target[2])))
    elif len(source) != len(target):
        e = e.flatten(2).mean(2, keepdim=True)
    return e.flatten(2)


def channel_grid(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """Positions at which a ``channel`` synapse is applied; () for one."""
    if len(source) == 1 or len(target) == 1 or len(source) != len(target):
        return ()
    if len(source) == 3:
        return (min(source[1], target[1]), min(source[2], target[2]))
    return source[1:]


def channel_displace(e: Tensor, synapse: Tensor, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    """d_i = E_{j→i} e_j at every position. e: [B, *source]; returns [B, *target] (repeated positions are a view)."""
    d = synapse @ channel_error(e, source, target)
    grid = channel_grid(source, target)
    if len(target) == 1:
        return d.squeeze(2)
    if not grid:
        return d.reshape(-1, target[0], *(1,) * len(target[1:])).expand(-1, *target)
    if grid == target[1:]:
        return d.reshape(-1, target[0], *grid)
    return F.interpolate(d.reshape(-1, target[0], *grid), size=target[1:], mode="nearest")


def channel_eq6(
    synapse: Tensor,
    e: Tensor,
    gamma: float,
    batch: int,
    descend: bool,
    source: tuple[int, ...],
    target: tuple[int, ...],
) -> Tensor:
    """γ d_i e_jᵀ of a ``channel`` synapse, mean over the batch and over the positions where it is applied."""
    seen = channel_error(e, source, target)
    positions = prod(channel_grid(source, target))
    return _rate(gamma, batch * positions, descend) * torch.einsum("bip,bjp->ij", synapse @ seen, seen)
