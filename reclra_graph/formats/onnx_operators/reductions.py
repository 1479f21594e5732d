"""ONNX operators that take a sum, a maximum or the like over dimensions, and those that sort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reclra_graph.formats.onnx_operators.table import Value, known, number, numbers, operator, tensor

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep)
    return x


_REDUCE: dict[str, Reduction] = {
    "ReduceSum": lambda x, dims, keep: x.sum(dims, keepdim=keep).to(x.dtype),
    "ReduceMean": lambda x, dims, keep: x.mean(dims, keepdim=keep),
    "ReduceMax": lambda x, dims, keep: x.amax(dims, keepdim=keep),
    "ReduceMin": lambda x, dims, keep: x.amin(dims, keepdim=keep),
    "ReduceProd": _prod,
    "ReduceL1": lambda x, dims, keep: x.abs().sum(dims, keepdim=keep).to(x.dtype),
    "ReduceL2": lambda x, dims, keep: x.square().sum(dims, keepdim=keep).sqrt().to(x.dtype),
    "ReduceSumSquare": lambda x, dims, keep: x.square().sum(dims, keepdim=keep).to(x.dtype),
    "ReduceLogSum": lambda x, dims, keep: x.sum(dims, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, dims, keep: x.logsumexp(dims, keepdim=keep),
}
_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "ReduceSum": np.add.reduce,
    "ReduceProd": np.multiply.reduce,
    "ReduceMax": np.maximum.reduce,
    "ReduceMin": np.minimum.reduce,
}


def _reduce(name: str, function: Reduction) -> Callable[..., Value]:
    def run(
        x: Value, along: Value | None = None, *, axes: list[int] | None = None, keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Value:  # fmt: skip
        dims = numbers(along) if along is not None else list(axes or [])
        if not dims and noop_with_empty_axes:
            return x
        if not dims:
            dims = list(range(x.ndim))
        if isinstance(x, np.ndarray) and name in _ON_NUMBERS:
            reduced = _ON_NUMBERS[name](x, axis=tuple(dims), keepdims=bool(keepdims)) if x.ndim else x
            return reduced if isinstance(reduced, np.ndarray) else known(reduced)
        data = tensor(x)
        return function(data, dims, bool(keepdims)) if data.ndim else function(data.reshape(1), [0], False)

    return run


for _name, _function in _REDUCE.items():
    operator(_name, constants=(1,))(_reduce(_name, _function))


def _arg(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if not select_last_index:
            return function(x, axis, keepdim=bool(keepdims))
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=bool(keepdims))

    return run


operator("ArgMax")(_arg(torch.argmax))
operator("ArgMin")(_arg(torch.argmin))


@operator("TopK", constants=(1,), outputs=2)
def _top_k(
    x: Tensor, count: Value | None = None, *, axis: int = -1, largest: int = 1, sorted: int = 1, k: int = 0
) -> tuple[Tensor, Tensor]:
    wanted = k if count is None else int(number(count))
    found = torch.topk(x, wanted, dim=axis, largest=bool(largest), sorted=bool(sorted))
    return found.values, found.indices


@operator("CumSum", constants=(1,))
def _cumulative_sum(x: Tensor, along: Value, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    axis = int(number(along))
    data = x.flip(axis) if reverse else x
    summed = data.cumsum(axis).to(x.dtype)
    if exclusive:
        summed = summed - data
    return summed.flip(axis) if reverse else summed
