"""Targets: Eq. 3 of the paper, second half."""

from __future__ import annotations

import torch
from torch import Tensor

from reclra_graph.rules.operators import Chain, apply_chain
from reclra_graph.rules.synapse import flat, placed, rows


def total(first: Tensor, *others: Tensor) -> Tensor:
    """Displacements over several error synapses add (our reading; the paper has one edge per region)."""
    for other in others:
        first = first + other
    return first


def target(h: Tensor, d: Tensor, beta: float, activation: Chain) -> Tensor:
    """y_i = φ_i(h_i − β d_i): the representation that region i should have had. Shapes: all that of h_i."""
    moved: Tensor = apply_chain(activation, h - beta * d)
    return moved


def representation(h: Tensor, activation: Chain) -> Tensor:
    """z_i = φ_i(h_i) in float32, of an h_i with fewer digits: so that e_i = z_i − y_i is what the displacement makes,
    and not what the forward pass rounded off."""
    z: Tensor = apply_chain(activation, h.float())
    return z


def target_at_once(
    h: Tensor,
    e: Tensor,
    synapse: Tensor,
    beta: float,
    source: tuple[int, ...],
    shape: tuple[int, ...],
    activation: Chain,
    last: bool = False,
) -> Tensor:
    """y_i = φ_i(h_i − β E_{j→i} e_j) with a dense synapse, in one product that never writes d_i down.

    h: [B, *shape]; e: [B, *source]. For large maps this is most of the time that a target takes.
    """
    h = torch.addmm(rows(h, shape, last), flat(e, source), synapse.T, alpha=-beta)
    moved: Tensor = apply_chain(activation, placed(h, shape, last))
    return moved
