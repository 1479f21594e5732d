"""Error neurons: Eq. 4, the derivative of the discrepancy of Eq. 2 by z."""

from __future__ import annotations

import torch
from torch import Tensor


def mismatch(z: Tensor, y: Tensor, norm: int, kappa: float) -> Tensor:
    """e_i = κ_i (z_i − y_i) for p = q = 2, κ_i sign(z_i − y_i) for p = q = 1. Shapes: all that of z_i."""
    e = z - y
    return scaled(torch.sign(e) if norm == 1 else e, kappa)


def straight(d: Tensor, beta: float, kappa: float) -> Tensor:
    """κ_i (z_i − y_i) = κ_i β d_i where φ_i is the identity, so that y_i = z_i − β d_i; or κ_i β e_j, of which e_i is
    then the displacement."""
    return scaled(beta * d, kappa)


def scaled(e: Tensor, kappa: float) -> Tensor:
    """κ_i e_i, without work where κ_i = 1."""
    return e if kappa == 1.0 else kappa * e


def gained(e: Tensor, beta: float) -> Tensor:
    """e_i / β: keeps errors from shrinking with every hop; chain wiring then tends to backprop as β → 0 (ours)."""
    return e / beta
