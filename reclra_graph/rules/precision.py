"""Products in a low precision, where a step computes with float32 masters under autocast.

Errors, displacements, targets and updates are float32. What multiplies and sums (matrix products, convolutions) takes
both its factors as ``low``, "bfloat16" or "float16", and its result is float32 again, before anything else is done with
it: before it is divided by the batch, and before it meets a rate. Without ``low`` every function here is the plain one.

bfloat16 has float32's range, and only its digits are fewer. float16 has not, so both factors are brought to the
largest magnitude 1 by powers of two, and the result is divided by them in float32. That changes no digit: no error is
so small that it vanishes, and no sum leaves the range. There is no loss to scale and no step to skip, as with
backpropagation, since every error is used where it is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

Low = str | None

_TINY = 2.0**-60
"""What is smaller than this everywhere counts as zero."""
_RANGE = 2.0**15
"""The largest power of two in float16."""


def unit(v: Tensor, terms: int | float = 1) -> Tensor:
    """The power of two by which v is brought to magnitudes of at most 1; to less, as far as a sum of so many ``terms``
    would else leave float16's range. Returns a 0-dim float32 tensor. (The emitted file has this function as text,
    ``template.UNIT``.)"""
    if has_torch_function_unary(v):  # it is being printed, not computed: as a call of the emitted file's own function
        return handle_torch_function(unit, (v,), v, terms)
    size = (v.abs().amax().float() * (1 + terms / _RANGE)).clamp(min=_TINY)
    scale: Tensor = torch.frexp(size)[0] / size
    return scale


def matmul(a: Tensor, b: Tensor, low: Low = None) -> Tensor:
    """a @ b. Shapes as torch.matmul takes them, of two dimensions or more."""
    if low is None:
        return a @ b
    if low == "bfloat16":
        return (a.bfloat16() @ b.bfloat16()).float()
    first, second = unit(a, a.shape[-1]), unit(b)
    product = (a.float() * first).half() @ (b.float() * second).half()
    return product.float() / first / second


def conv_weight(
    e: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...],
    dilation: tuple[int, ...], transposed: bool, output_padding: tuple[int, ...], groups: int, low: Low = None,
) -> Tensor:  # fmt: skip
    """The weight gradient of a convolution, e being the cotangent at its output: e [B, out, …], x [B, in, …]; of
    ``weight`` only shape and dtype are read, and with ``low`` the shape alone."""

    def summed(e: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        grads: Any = torch.ops.aten.convolution_backward.default(
            e, x, weight, None, list(stride), list(padding), list(dilation), transposed, list(output_padding), groups,
            [False, True, False],
        )  # fmt: skip
        return grads[1]  # type: ignore[no-any-return]

    if low is None:
        return summed(e, x, weight)
    if low == "bfloat16":
        return summed(e.bfloat16(), x.bfloat16(), weight.bfloat16()).float()
    # Every entry sums over samples and the positions of one side.
    first, second = unit(e, e.numel() / e.shape[1] + x.numel() / x.shape[1]), unit(x)
    scaled = ((e.float() * first).half(), (x.float() * second).half())
    return summed(*scaled, weight.half()).float() / first / second


def conv_transpose(
    function: Any, e: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...],
    output_padding: tuple[int, ...], groups: int, dilation: tuple[int, ...], low: Low = None,
) -> Tensor:  # fmt: skip
    """``function``, one of torch.nn.functional's transposed convolutions, without a bias. e: [B, in, …]; weight:
    [in, out / groups, *kernel]."""
    rest = (None, stride, padding, output_padding, groups, dilation)
    return _convolved(function, e, weight, rest, weight.shape[1], low)


def conv_forward(
    function: Any, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...],
    dilation: tuple[int, ...], groups: int, low: Low = None,
) -> Tensor:  # fmt: skip
    """``function``, one of torch.nn.functional's convolutions, without a bias. x: [B, in, …]; weight: [out, in /
    groups, *kernel]."""
    return _convolved(function, x, weight, (None, stride, padding, dilation, groups), weight.shape[0], low)


def _convolved(function: Any, x: Tensor, weight: Tensor, rest: tuple[Any, ...], ends: int, low: Low) -> Tensor:
    """A convolution whose weight leads to so many channels, or channels of a group: each sums over all the others."""
    if low is None:
        return function(x, weight, *rest)  # type: ignore[no-any-return]
    if low == "bfloat16":
        return function(x.bfloat16(), weight.bfloat16(), *rest).float()  # type: ignore[no-any-return]
    first, second = unit(x, weight.numel() / ends), unit(weight)
    scaled = ((x * first).half(), (weight * second).half())
    return function(*scaled, *rest).float() / first / second  # type: ignore[no-any-return]


def convolution(
    function: Any, e: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...],
    dilation: tuple[int, ...], groups: int, low: Low = None,
) -> Tensor:  # fmt: skip
    """``function``, one of torch.nn.functional's convolutions, without a bias. e: [B, in, …]; weight: [out, in /
    groups, *kernel]."""
    rest = (None, stride, padding, dilation, groups)
    if low is None:
        return function(e, weight, *rest)  # type: ignore[no-any-return]
    if low == "bfloat16":
        return function(e.bfloat16(), weight.bfloat16(), *rest).float()  # type: ignore[no-any-return]
    first, second = unit(e, weight.numel() / weight.shape[0]), unit(weight)
    return function((e * first).half(), (weight * second).half(), *rest).float() / first / second  # type: ignore[no-any-return]


def local_unit(e: Tensor, batch: int, positions: int) -> Tensor:
    """``unit`` of an error that a region's own float16 operators carry on; what they derive is divided by it. Room is
    left for sums over all positions of inputs of up to 16."""
    return unit(e, 16 * positions * batch)


def raised(v: Tensor, low: Low = None) -> Tensor:
    """A value that the forward pass left in the precision ``low``, in float32."""
    return v if low is None else v.float()
