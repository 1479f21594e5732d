"""Equilibrium propagation: a free phase, a weakly clamped phase, and the difference between the two.

Sources: B. Scellier, Y. Bengio, "Equilibrium propagation: bridging the gap between energy-based models and
backpropagation", Frontiers in Computational Neuroscience 11, 2017; for units other than hard sigmoids and for losses
other than the squared distance M. Ernoult, J. Grollier, D. Querlioz, Y. Bengio, B. Scellier, "Updates of equilibrium
prop match gradients of backprop through time in an RNN with static input", NeurIPS 2019, and A. Laborieux et al.,
"Scaling equilibrium propagation to deep ConvNets by drastically reducing its gradient estimator bias", 2021.

A net is a chain of affine maps A_l and rising functions φ_l; its states s_1 … s_L (s_0 = x) have the energy

    F(s) = Σ_l Ψ_l(s_l) − Σ_l ⟨s_l, A_l s_{l−1}⟩ + β C(s_L),        Ψ_l′ = φ_l⁻¹, C the loss

A state settles where ∂F/∂s_l = 0, i.e. at s_l = φ_l(drive_l). With φ the hard sigmoid these are the fixed points of the
original's own dynamics. The same weights act in both directions: A_l upwards, its adjoint downwards. Nothing here is a
derivative by anything but A's own linear argument.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reclra_graph.rules.operators import Chain, apply_chain


def drive(up: Tensor, down: Tensor | None) -> Tensor:
    """drive_l = A_l s_{l−1} + A_{l+1}ᵀ s_{l+1}; the last layer hears from below alone. All of the shape of h_l."""
    return up if down is None else up + down


def nudged(up: Tensor, e: Tensor, beta: float) -> Tensor:
    """drive_L of the clamped phase: A_L s_{L−1} − β ∂C/∂s_L, where the loss pulls the output a little. e: ∂C/∂s_L at
    the present s_L, per sample. β of either sign."""
    return up - beta * e


def settle(s: Tensor, drive: Tensor, rate: float, activation: Chain) -> Tensor:
    """s ← (1 − ε) s + ε φ(drive): one step towards the fixed point; for small ε the energy only falls."""
    moved: Tensor = apply_chain(activation, drive)
    return moved if rate == 1 else (1 - rate) * s + rate * moved


def contrast(free: Tensor, clamped: Tensor, beta: float) -> Tensor:
    """(∂Φ(free) − ∂Φ(clamped)) / β with ∂Φ the product of what a weight joins, s_l s_{l−1}ᵀ: the direction of descent's
    opposite, to be subtracted. As β → 0 it is the derivative of the loss at the free phase's fixed point."""
    return (free - clamped) / beta


def dense_down(s: Tensor, weight: Tensor) -> Tensor:
    """Wᵀ s of a layer W s′. s: [B, …, out]; weight: [out, in]; returns [B, …, in]."""
    return s @ weight


def matmul_down(s: Tensor, weight: Tensor) -> Tensor:
    """The same of a layer s′ W. weight: [in, out]."""
    return s @ weight.T


def conv_down(
    s: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    output_padding: tuple[int, ...],
    groups: int,
) -> Tensor:
    """The adjoint of a convolution of any rank and grouping, transposed or not. s: [B, out, …]; of x, [B, in, …], only
    the shape; returns that shape."""
    found: Any = torch.ops.aten.convolution_backward.default(
        s, x, weight, None, list(stride), list(padding), list(dilation), transposed, list(output_padding), groups,
        [True, False, False],
    )  # fmt: skip
    down: Tensor = found[0]
    return down
