"""Updates from errors that are never made.

Where φ_i is the identity, Eqs. 3 and 4 give e_i = κ_i (h_i − (h_i − β d_i)) = E s with s = κ_i β e_j: the error of
region i is linear in that of region j (``rules.discrepancy.straight``). Every update f of Eq. 5 sums over the batch
what is linear in e_i and linear in the operator's input x, so that

    Σ_b f(E s[b], x[b])  =  Σ_b Σ_k s[b, k] f(E[:, k], x[b])  =  Σ_k f(E[:, k], Σ_b s[b, k] x[b]).

On the right the columns of E (``basis``) stand in the place of errors, and inputs that are mixed once for every unit of
the source (``mixed``) in that of inputs: the update of as many samples as the source has units, with the same rule. A
synapse that is shared over positions works on every position as on a sample of its own; where it sends one error to all
positions, these are summed first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reclra_graph.rules.precision import Low, matmul, raised
from reclra_graph.rules.synapse import Shape, flat, mean_over_positions, placed


def basis(synapse: Tensor, target: Shape, last: bool = False) -> Tensor:
    """The columns of E, as errors of one sample each. synapse: [units of target, K]; returns [K, *target], a view."""
    return placed(synapse.T, target, last)


def mixed(s: Tensor, x: Tensor, source: Shape, sizes: Shape, low: Low = None) -> Tensor:
    """Σ_b s[b, k] x[b]. s: [B, *source], with K units; x: [B, *sizes]; returns [K, *sizes]."""
    found = matmul(flat(s, source).T, flat(x, sizes), low)
    return found if len(sizes) == 1 else found.reshape(-1, *sizes)


def mixed_by_position(s: Tensor, x: Tensor, low: Low = None) -> Tensor:
    """Σ_{b, t} s[b, t, k] x[b, t]. s: [B, …, K], x: [B, …, I] at the same positions; returns [K, I]."""
    return matmul(s.flatten(0, -2).T, x.flatten(0, -2), low)


def mixed_over_positions(s: Tensor, x: Tensor, source: Shape, axis: int, rank: int, low: Low = None) -> Tensor:
    """Σ_b s̄[b, k] Σ_t x[b, t], s̄ the mean over the source's positions. x: [B, …, I]; returns [K, I]."""
    places = tuple(range(1, rank - 1))
    found = x.sum(places) if low is None else x.sum(places, dtype=torch.float32)
    return matmul(mean_over_positions(s, source, axis).T, found, low)


def sent(s: Tensor, synapse: Tensor, source: Shape, target: Shape, last: bool = False) -> Tensor:
    """Σ_b e_i[b] as the error of one sample. s: [B, *source]; returns [1, *target]."""
    return placed((flat(s, source).sum(0) @ synapse.T).unsqueeze(0), target, last)


def sent_by_position(s: Tensor, synapse: Tensor) -> Tensor:
    """Σ_{b, t} e_i[b, t]. s: [B, …, K]; returns [1, D]."""
    return (s.flatten(0, -2).sum(0) @ synapse.T).unsqueeze(0)


def sent_over_positions(s: Tensor, synapse: Tensor, source: Shape, axis: int, positions: int) -> Tensor:
    """The same where all ``positions`` of region i hear the source's mean error. Returns [1, D]."""
    return positions * (mean_over_positions(s, source, axis).sum(0) @ synapse.T).unsqueeze(0)


def normalised(x: Tensor, shape: Shape, eps: float, low: Low = None) -> Tensor:
    """x̂ of a layer norm, over the last ``len(shape)`` dimensions."""
    normal: Tensor = torch.ops.aten.layer_norm.default(raised(x, low), list(shape), None, None, eps)
    return normal
