"""Error neurons: Eq. 4, the derivative of the discrepancy of Eq. 2 by z."""

from __future__ import annotations

import torch
from torch import Tensor


def mismatch(z: Tensor, y: Tensor, norm: int, kappa: float) -> Tensor:
    """e_i = κ_i (z_i − y_i) for p = q = 2, κ_i sign(z_i − y_i) for p = q = 1. Shapes: all that of z_i."""
    e = z - y
    return scaled(torch.sign(e) if norm == 1 else e, kappa)


def scaled(e: Tensor, kappa: float) -> Tensor:
    """κ_i e_i, without work where κ_i = 1."""
    return e if kappa == 1.0 else kappa * e


def gained(e: Tensor, beta: float) -> Tensor:
    """e_i / β: keeps errors from shrinking with every hop; chain wiring then tends to backprop as β → 0 (ours)."""
    return e / beta
