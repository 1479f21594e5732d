"""Targets: Eq. 3 of the paper, second half."""

from __future__ import annotations

from torch import Tensor

from reclra_graph.rules.operators import Chain, apply_chain


def total(first: Tensor, *others: Tensor) -> Tensor:
    """Displacements over several error synapses add (our reading; the paper has one edge per region)."""
    for other in others:
        first = first + other
    return first


def target(h: Tensor, d: Tensor, beta: float, activation: Chain) -> Tensor:
    """y_i = φ_i(h_i − β d_i): the representation that region i should have had. Shapes: all that of h_i."""
    moved: Tensor = apply_chain(activation, h - beta * d)
    return moved
