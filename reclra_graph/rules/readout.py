"""A region's own readout: what its error synapse says of the output when it is read backwards, Eᵀ z_i.

The edge j → i leaves an output j. Instead of waiting for e_j, the region makes an error of its own: that of the loss of
j (``rules.loss``) for the logits Eᵀ z_i. Nøkland & Eidnes, "Training Neural Networks with Local Error Signals", ICML
2019; Belilovsky et al., "Greedy Layerwise Learning Can Scale to ImageNet", ICML 2019. Every function here is the
transpose of the form of the same name in ``rules.synapse``, but that a shared E, which sends to many positions alike
what few have said, reads their mean: z: [B, *target]; returns [B, *source].
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from reclra_graph.rules.precision import Low, conv_forward, matmul
from reclra_graph.rules.synapse import Shape, placed, rows, shared


def dense(z: Tensor, synapse: Tensor, source: Shape, target: Shape, last: bool = False, low: Low = None) -> Tensor:
    """Eᵀ z_i over all pairs of units."""
    return placed(matmul(rows(z, target, last), synapse, low), source, False)


def token(
    z: Tensor, synapse: Tensor, source: Shape, target: Shape, source_axis: int = -1, target_axis: int = -1,
    low: Low = None,
) -> Tensor:  # fmt: skip
    """Eᵀ z_i place by place on the grid on which E is applied, z_i averaged down to it, the result repeated up."""
    return shared(z, synapse.T, synapse, target, source, target_axis, source_axis, low)


def channel(z: Tensor, synapse: Tensor, source: Shape, target: Shape, low: Low = None) -> Tensor:
    """``token`` between features that stand first."""
    return token(z, synapse, source, target, 0, 0, low)


def conv(
    z: Tensor, synapse: Tensor, stride: Shape, padding: Shape, dilation: Shape, groups: int, low: Low = None
) -> Tensor:
    """The convolution whose transpose E is."""
    convolution: Any = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    return conv_forward(convolution, z, synapse, stride, padding, dilation, groups, low)
