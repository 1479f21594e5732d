"""How an error at an operator's output becomes one at its input, inside one region and without any derivative.

Only operators that are linear in that input are here, by their exact adjoint (a max-pool selects, a dropout masks:
given what they selected, they are linear), and normalisations, over which the error passes as it is: Eq. 5 has no φ′,
and a norm is part of what stands between weights and error neurons. Where none of this applies, a region's error
neurons are placed right at the parametrised operator instead. ``low``: the precision of x, where it is not the error's
(``rules.precision``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reclra_graph.rules.precision import Low, raised


def same(e: Tensor) -> Tensor:
    """Over an addition, a copy, or a normalisation."""
    return e


def negated(e: Tensor) -> Tensor:
    """Over the right side of a subtraction."""
    return -e


def scaled(e: Tensor, factor: Tensor | float) -> Tensor:
    """Over a product with something that does not come from this region."""
    return e * factor


def divided(e: Tensor, divisor: Tensor | float) -> Tensor:
    """Over a quotient whose divisor does not come from this region."""
    return e / divisor


def reshaped(e: Tensor, x: Tensor) -> Tensor:
    """Over a view, reshape, flatten, squeeze or unsqueeze of x."""
    return e.reshape(x.shape)


def permuted(e: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Over ``x.permute(dims)``."""
    return e.permute([dims.index(place) for place in range(len(dims))])


def transposed(e: Tensor, first: int, second: int) -> Tensor:
    """Over ``x.transpose(first, second)``."""
    return e.transpose(first, second)


def selected(e: Tensor, dim: int, index: int) -> Tensor:
    """Over a stack, of which x was number ``index`` along ``dim``."""
    return e.select(dim, index)


def sliced(e: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Over a concatenation, in which x stood from ``start`` on along ``dim``."""
    return e.narrow(dim, start, length)


def masked(e: Tensor, mask: Tensor, keep: float) -> Tensor:
    """Over a dropout: through the same mask, by the same scale. ``keep`` is 1 − p."""
    return e * mask / keep if keep else e * mask


def avg_pooled(
    e: Tensor, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None, low: Low = None,
) -> Tensor:  # fmt: skip
    """Over a 2-D average pooling: every input of a window gets its share. e: [B, C, h, w], x: [B, C, H, W]."""
    result: Any = torch.ops.aten.avg_pool2d_backward.default(
        e, raised(x, low), list(kernel), list(stride), list(padding), ceil_mode, count_include_pad, divisor
    )
    return result  # type: ignore[no-any-return]


def adaptive_avg_pooled(e: Tensor, x: Tensor, low: Low = None) -> Tensor:
    """Over a 2-D adaptive average pooling. e: [B, C, h, w], x: [B, C, H, W]."""
    result: Any = torch.ops.aten._adaptive_avg_pool2d_backward.default(e, raised(x, low))
    return result  # type: ignore[no-any-return]


def max_pooled(
    e: Tensor, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...],
    dilation: tuple[int, ...], ceil_mode: bool, low: Low = None,
) -> Tensor:  # fmt: skip
    """Over a 2-D max pooling: to the input that was selected. e: [B, C, h, w], x: [B, C, H, W]."""
    window = (list(kernel), list(stride), list(padding), list(dilation), ceil_mode)
    x = raised(x, low)
    chosen: Any = torch.ops.aten.max_pool2d_with_indices.default(x, *window)
    result: Any = torch.ops.aten.max_pool2d_with_indices_backward.default(e, x, *window, chosen[1])
    return result  # type: ignore[no-any-return]
