"""Error synapses against a connection of the forward pass: the adjoint of its layer, E in the place of the weight.

With E = W these are the operators' input gradients, so that an error goes back as backpropagation sends it, but for
φ′. E has the weight's own layout. What stands between the operator and h_j, or between z_i and the operator, is passed
by ``rules.carry``. ``low``: the precision of products (``rules.precision``).

| rule | E |
|---|---|
| ``fixed`` | as drawn (feedback alignment: Lillicrap et al. 2016) |
| ``kp`` | moves by γ ΔW, the change of the weight itself (Kolen and Pollack 1994; Akrout et al. 2019) |
| ``sign`` | s sign(W), made anew in every step (Liao, Leibo and Poggio 2016; Xiao et al. 2019) |
| ``eq6`` | moves by γ d eᵀ on the entries that the weight has |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reclra_graph.rules import precision
from reclra_graph.rules.precision import Low, matmul
from reclra_graph.rules.target import total

Shape = tuple[int, ...]


def linear(e: Tensor, synapse: Tensor, low: Low = None) -> Tensor:
    """d = Eᵀ e at the input of a dense layer, position by position. e: [B, …, out], E: [out, in]; returns
    [B, …, in]."""
    return matmul(e, synapse, low)


def product(e: Tensor, synapse: Tensor, low: Low = None) -> Tensor:
    """d = E e at the left factor of x W. e: [B, …, out], E: [in, out]; returns [B, …, in]."""
    return matmul(e, synapse.T, low)


def transposed_convolution(
    e: Tensor, synapse: Tensor, stride: Shape, padding: Shape, dilation: Shape, groups: int, low: Low = None
) -> Tensor:
    """d = Eᵀ e at the input of a transposed convolution: the convolution with E. e: [B, out, …], E: [in, out / groups,
    *kernel]; returns [B, in, …]. (At the input of a convolution it is ``rules.synapse.conv_displace``.)"""
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    return precision.convolution(function, e, synapse, stride, padding, dilation, groups, low)


def signed(weight: Tensor, scale: float) -> Tensor:
    """E = s sign(W). Shapes: both that of the weight."""
    return scale * torch.sign(weight)


def mirrored(gamma: float, *deltas: Tensor) -> Tensor:
    """γ ΔW, the weight's own change as a sum over its uses: then E − W keeps its size, and shrinks under weight decay
    of both. Shapes: all that of the weight."""
    return gamma * total(*deltas)


def outer_eq6(outer: Tensor, gamma: float, positions: int, descend: bool) -> Tensor:
    """γ d eᵀ, mean over the batch and over the positions of e, from their outer product in the weight's layout, a mean
    over the batch (``rules.way_back.outer``): −ΔE of Eq. 6."""
    return (gamma if descend else -gamma) / positions * outer
