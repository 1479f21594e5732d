"""ONNX operators that move, repeat, select or make numbers; most of them are met on sizes, too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from reclra_graph.formats.onnx_operators.table import (
    LARGEST_KNOWN,
    Known,
    Value,
    first_tensor,
    is_known,
    known,
    number,
    numbers,
    operator,
    tensor,
)


def dtype_of(code: int) -> torch.dtype:
    """The torch dtype of an ONNX element type. Raises KeyError or TypeError where there is none."""
    if code == TensorProto.BFLOAT16:
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, np.dtype(helper.tensor_dtype_to_np_dtype(code)))).dtype


# -- shapes -----------------------------------------------------------------------------------------------------------


@operator("Shape")
def _shape(x: Value, *, start: int = 0, end: int | None = None) -> Known:
    return known(list(x.shape)[start:end])


@operator("Size")
def _size(x: Value) -> Known:
    return known(math.prod(x.shape))


@operator("Reshape", constants=(1,))
def _reshape(x: Value, shape: Value | None = None, *, allowzero: int = 0) -> Value:
    wanted = numbers(shape)
    sizes = [x.shape[index] if size == 0 and not allowzero else size for index, size in enumerate(wanted)]
    return x.reshape(sizes)


@operator("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    first = axis + x.ndim if axis < 0 else axis
    if first == 1 and x.ndim > 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))


@operator("Transpose")
def _transpose(x: Value, *, perm: list[int] | None = None) -> Value:
    order = list(range(x.ndim))[::-1] if perm is None else list(perm)
    return x.permute(order) if isinstance(x, Tensor) else x.transpose(order)


@operator("Squeeze", constants=(1,))
def _squeeze(x: Value, dims: Value | None = None, *, axes: list[int] | None = None) -> Value:
    wanted = numbers(dims) if dims is not None else axes
    if wanted is None:
        wanted = [index for index, size in enumerate(x.shape) if size == 1]
    gone = {axis % x.ndim for axis in wanted} if x.ndim else set()
    return x.reshape([size for index, size in enumerate(x.shape) if index not in gone])


@operator("Unsqueeze", constants=(1,))
def _unsqueeze(x: Value, dims: Value | None = None, *, axes: list[int] | None = None) -> Value:
    wanted = numbers(dims) if dims is not None else list(axes or [])
    rank = x.ndim + len(wanted)
    for axis in sorted(item % rank for item in wanted):
        x = x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)
    return x


@operator("Concat")
def _concat(*values: Value, axis: int) -> Value:
    if is_known(*values):
        return np.concatenate(values, axis=axis)
    like = first_tensor(*values)
    return torch.cat([tensor(value, like) for value in values], dim=axis)


@operator("Split", constants=(1,), outputs=1 << 16)
def _split(
    x: Value, sizes: Value | None = None, *, axis: int = 0, split: list[int] | None = None, num_outputs: int = 0,
    used: int = 0,
) -> tuple[Value, ...]:  # fmt: skip
    wanted = numbers(sizes) if sizes is not None else split
    if wanted is None:
        parts = num_outputs or used
        size = -(-x.shape[axis] // parts)
        wanted = [size] * (parts - 1) + [x.shape[axis] - size * (parts - 1)]
    if isinstance(x, Tensor):
        return tuple(torch.split(x, wanted, dim=axis))
    return tuple(np.split(x, np.cumsum(wanted)[:-1], axis=axis))


@operator("Expand", constants=(1,))
def _expand(x: Value, shape: Value) -> Tensor:
    data, wanted = tensor(x), numbers(shape)
    rank = max(data.ndim, len(wanted))
    mine = [1] * (rank - data.ndim) + list(data.shape)
    theirs = [1] * (rank - len(wanted)) + wanted
    return data.expand([own if size == 1 else size for own, size in zip(mine, theirs, strict=True)])


@operator("Tile", constants=(1,))
def _tile(x: Value, repeats: Value) -> Value:
    return tensor(x).repeat(numbers(repeats)) if isinstance(x, Tensor) else np.tile(x, numbers(repeats))


@operator("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(
        batch, channels // blocksize**2, height * blocksize, width * blocksize
    )


@operator("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    order = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    return parts.permute(*order).reshape(batch, channels * blocksize**2, height // blocksize, width // blocksize)


# -- selection --------------------------------------------------------------------------------------------------------


@operator("Slice", constants=(1, 2, 3, 4))
def _slice(
    x: Value, begin: Value | None = None, until: Value | None = None, along: Value | None = None,
    by: Value | None = None, *, starts: list[int] | None = None, ends: list[int] | None = None,
    axes: list[int] | None = None,
) -> Value:  # fmt: skip
    first = numbers(begin) if begin is not None else list(starts or [])
    last = numbers(until) if until is not None else list(ends or [])
    dims = numbers(along) if along is not None else list(axes) if axes is not None else list(range(len(first)))
    steps = numbers(by) or [1] * len(first)
    for start, end, axis, step in zip(first, last, dims, steps, strict=True):
        axis %= x.ndim
        if step < 0 and isinstance(x, Tensor):  # torch slices forwards only
            picked = list(range(x.shape[axis]))[slice(start, end if end >= -x.shape[axis] else None, step)]
            x = x.index_select(axis, torch.tensor(picked, dtype=torch.int64, device=x.device))
            continue
        end = None if step < 0 and end < -x.shape[axis] else end
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


@operator("Gather")
def _gather(x: Value, indices: Value, *, axis: int = 0) -> Value:
    if is_known(x, indices):
        return np.asarray(np.take(x, np.asarray(indices, dtype=np.int64), axis=axis), dtype=object)
    data = tensor(x)
    axis %= data.ndim
    if is_known(indices) and indices.ndim == 0:
        return data.select(axis, int(number(indices)))
    chosen = tensor(indices).to(data.device, torch.int64)
    return data[(slice(None),) * axis + (chosen,)]


def embedding(table: Tensor, indices: Value) -> Tensor:
    """Gather along the first axis of a matrix that trains: rows of an embedding."""
    return F.embedding(tensor(indices).to(torch.int64), table)


def _not_negative(indices: Tensor, size: Any) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).to(torch.int64)


@operator("GatherElements")
def _gather_elements(x: Tensor, indices: Value, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _not_negative(tensor(indices), x.shape[axis]))


@operator("GatherND", refuses=lambda attributes: "batch_dims is not 0" if attributes.get("batch_dims") else "")
def _gather_nd(x: Tensor, indices: Value, *, batch_dims: int = 0) -> Tensor:
    return x[tuple(tensor(indices).unbind(-1))]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements")
def _scatter_elements(x: Tensor, indices: Value, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places = _not_negative(tensor(indices), x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])


@operator(
    "ScatterND",
    refuses=lambda a: "reduction is not none or add" if a.get("reduction", "none") in ("max", "min", "mul") else "",
)
def _scatter_nd(x: Value, indices: Value, updates: Value, *, reduction: str = "none") -> Tensor:
    data = tensor(x)
    return data.index_put(tuple(tensor(indices).unbind(-1)), tensor(updates, data), accumulate=reduction == "add")


@operator("NonZero")
def _non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).T


@operator("Trilu", constants=(1,))
def _trilu(x: Tensor, diagonal: Value | None = None, *, upper: int = 1) -> Tensor:
    k = 0 if diagonal is None else int(number(diagonal))
    return torch.triu(x, k) if upper else torch.tril(x, k)


@operator("Pad", constants=(1, 2, 3))
def _pad(
    x: Tensor, amounts: Value | None = None, constant: Value | None = None, along: Value | None = None, *,
    mode: str = "constant", pads: list[int] | None = None, value: float = 0.0,
) -> Tensor:  # fmt: skip
    listed = numbers(amounts) if amounts is not None else list(pads or [])
    dims = [axis % x.ndim for axis in numbers(along)] if along is not None else list(range(x.ndim))
    before = dict(zip(dims, listed[: len(dims)], strict=True))
    after = dict(zip(dims, listed[len(dims) :], strict=True))
    if mode == "constant":
        fill = value if constant is None else number(constant)
        pairs = [(before.get(axis, 0), after.get(axis, 0)) for axis in range(x.ndim)]
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=fill)
    for axis in dims:
        if before[axis] or after[axis]:
            size = x.shape[axis]
            places = torch.arange(-before[axis], size + after[axis], device=x.device)
            if mode == "edge":
                places = places.clamp(0, size - 1)
            elif mode == "wrap":
                places = places % size
            else:  # reflect
                places = (size - 1) - ((places % (2 * (size - 1))) - (size - 1)).abs()
            x = x.index_select(axis, places)
    return x


# -- new values -------------------------------------------------------------------------------------------------------


@operator("ConstantOfShape", constants=(0,))
def _constant_of_shape(shape: Value, *, value: TensorProto | None = None) -> Value:
    sizes = numbers(shape)
    kind = torch.float32 if value is None else dtype_of(value.data_type)
    fill = 0.0 if value is None else numpy_helper.to_array(value).reshape(()).item()
    small = len(sizes) <= 1 and all(isinstance(size, int) and size <= LARGEST_KNOWN for size in sizes)
    if small and kind in (torch.int64, torch.bool):
        return known([fill] * sizes[0]) if sizes else known(fill)
    return torch.full(sizes, fill, dtype=kind)


@operator("Range", constants=(0, 1, 2))
def _range(start: Value, limit: Value, delta: Value) -> Value:
    ends = [number(item) for item in (start, limit, delta)]
    if is_known(start, limit, delta) and all(isinstance(item, int) for item in ends):
        listed = range(*ends)
        if len(listed) <= LARGEST_KNOWN:
            return known(list(listed))
    like = first_tensor(start, limit, delta)
    return torch.arange(*ends, dtype=None if like is None else like.dtype)


@operator("EyeLike")
def _eye_like(x: Tensor, *, k: int = 0, dtype: int | None = None) -> Tensor:
    kind = x.dtype if dtype is None else dtype_of(dtype)
    rows, columns = x.shape
    places = torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device)[:, None]
    return (places == k).to(kind)


@operator("OneHot", constants=(1,))
def _one_hot(indices: Value, depth: Value, values: Value, *, axis: int = -1) -> Tensor:
    count = int(number(depth))
    off, on = tensor(values).unbind(0)
    places = tensor(indices)
    axis = axis + places.ndim + 1 if axis < 0 else axis
    classes = torch.arange(count, device=places.device).reshape([-1] + [1] * (places.ndim - axis))
    return torch.where(_not_negative(places, count).unsqueeze(axis) == classes, on, off)


@operator("Cast")
def _cast(x: Value, *, to: int, saturate: int = 1) -> Value:
    kind = dtype_of(to)
    if isinstance(x, Tensor):
        return x.to(kind)
    as_number = bool if kind is torch.bool else torch.sym_float if kind.is_floating_point else torch.sym_int
    return known([as_number(item) for item in x.reshape(-1)]).reshape(x.shape)


@operator("CastLike")
def _cast_like(x: Value, like: Value) -> Value:
    return tensor(x).to(tensor(like).dtype)
