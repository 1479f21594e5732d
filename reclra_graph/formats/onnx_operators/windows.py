"""ONNX operators with a window that slides over an image or a signal, and those that resize one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reclra_graph.formats.onnx_operators.table import Value, numbers, operator


def _window(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Padding before and after each dimension that a window slides over."""
    count = len(kernel)
    if auto_pad in ("NOTSET", ""):
        listed = list(pads or [0] * (2 * count))
        return listed[:count], listed[count:]
    if auto_pad == "VALID":
        return [0] * count, [0] * count
    before, after = [], []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before, after


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    return F.pad(x, [item for pair in reversed(list(zip(before, after, strict=True))) for item in pair], value=value)


_CONV = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVG_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@operator("Conv")
def _conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: list[int] | None = None,
    group: int = 1, kernel_shape: list[int] | None = None, pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    kernel = list(w.shape[2:])
    stride, dilation = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    before, after = _window(x, kernel, stride, dilation, pads, auto_pad)
    if before != after:
        x, before = _padded(x, before, after), [0] * len(kernel)
    made: Tensor = _CONV[len(kernel) - 1](x, w, b, stride, before, dilation, group)
    return made


@operator("ConvTranspose")
def _conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: list[int] | None = None,
    group: int = 1, kernel_shape: list[int] | None = None, output_padding: list[int] | None = None,
    output_shape: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    kernel = list(w.shape[2:])
    count = len(kernel)
    stride, dilation, extra = strides or [1] * count, dilations or [1] * count, list(output_padding or [0] * count)
    listed = list(pads or [0] * (2 * count))
    before, after = listed[:count], listed[count:]
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for index, size in enumerate(x.shape[2:]):
            wanted = output_shape[index - count] if output_shape is not None else size * stride[index]
            total = stride[index] * (size - 1) + extra[index] + (kernel[index] - 1) * dilation[index] + 1 - wanted
            extra[index] += max(-total, 0)
            total = max(total, 0)
            small, large = total // 2, total - total // 2
            before.append(large if auto_pad == "SAME_LOWER" else small)
            after.append(small if auto_pad == "SAME_LOWER" else large)
    run = _CONV_TRANSPOSE[count - 1]
    if before == after:
        same: Tensor = run(x, w, b, stride, before, extra, group, dilation)
        return same
    whole_output: Tensor = run(x, w, b, stride, [0] * count, extra, group, dilation)
    for index, (low, high) in enumerate(zip(before, after, strict=True), start=2):
        whole_output = whole_output.narrow(index, low, whole_output.shape[index] - low - high)
    return whole_output


def _ceil_pads(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], before: Sequence[int],
    after: Sequence[int],
) -> list[int]:  # fmt: skip
    """Padding after each dimension that lets the last window, which starts inside, end inside as well."""
    made = []
    for size, width, step, gap, low, high in zip(x.shape[2:], kernel, stride, dilation, before, after, strict=True):
        span = (width - 1) * gap + 1
        windows = -(-(size + low + high - span) // step) + 1
        if (windows - 1) * step >= size + low:  # it would start in the padding
            windows -= 1
        made.append(high + max((windows - 1) * step + span - (size + low + high), 0))
    return made


@operator("MaxPool", refuses=lambda a: "storage_order is not 0" if a.get("storage_order") else "")
def _max_pool(
    x: Tensor, *, kernel_shape: list[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: list[int] | None = None, pads: list[int] | None = None, storage_order: int = 0,
    strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    count = len(kernel_shape)
    stride, dilation = strides or [1] * count, dilations or [1] * count
    before, after = _window(x, kernel_shape, stride, dilation, pads, auto_pad)
    if ceil_mode:
        after = _ceil_pads(x, kernel_shape, stride, dilation, before, after)
    if before != after or any(2 * low > width for low, width in zip(before, kernel_shape, strict=True)):
        lowest = -math.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
        x, before = _padded(x, before, after, lowest), [0] * count
    made: Tensor = _MAX_POOL[count - 1](x, kernel_shape, stride, before, dilation)
    return made


@operator(
    "AveragePool",
    refuses=lambda a: "dilations are not 1" if any(item != 1 for item in a.get("dilations") or ()) else "",
)
def _average_pool(
    x: Tensor, *, kernel_shape: list[int], auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    count = len(kernel_shape)
    stride = strides or [1] * count
    before, after = _window(x, kernel_shape, stride, [1] * count, pads, auto_pad)
    pool = _AVG_POOL[count - 1]
    if not ceil_mode and before == after and all(2 * p <= k for p, k in zip(before, kernel_shape, strict=True)):
        made: Tensor = pool(x, kernel_shape, stride, before, count_include_pad=bool(count_include_pad))
        return made
    last = _ceil_pads(x, kernel_shape, stride, [1] * count, before, after) if ceil_mode else after
    ones = torch.ones_like(x[:1, :1])
    counted = _padded(ones, before, after, 1.0) if count_include_pad else _padded(ones, before, after)
    beyond = [wide - narrow for wide, narrow in zip(last, after, strict=True)]
    counted = _padded(counted, [0] * count, beyond)
    summed: Tensor = pool(_padded(x, before, last), kernel_shape, stride)
    share: Tensor = pool(counted, kernel_shape, stride)
    return summed / share


@operator("GlobalAveragePool")
def _global_average_pool(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1) if x.ndim == 4 else x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


# -- resizing ---------------------------------------------------------------------------------------------------------


def _resize_refuses(attributes: dict[str, Any]) -> str:
    mode = attributes.get("mode", "nearest")
    where = attributes.get("coordinate_transformation_mode", "half_pixel")
    allowed = _COORDINATES if mode == "nearest" else ("half_pixel", "pytorch_half_pixel", "align_corners")
    if where not in allowed:
        return f"coordinate_transformation_mode is {where!r}"
    if mode == "cubic" and not math.isclose(attributes.get("cubic_coeff_a", -0.75), -0.75):
        return "cubic_coeff_a is not -0.75"
    for name, usual in (("antialias", 0), ("exclude_outside", 0), ("keep_aspect_ratio_policy", "stretch")):
        if attributes.get(name, usual) != usual:
            return f"{name} is {attributes[name]!r}"
    return "axes is given" if attributes.get("axes") else ""


_MODES = {("nearest", 1): "nearest", ("nearest", 2): "nearest", ("nearest", 3): "nearest", ("linear", 1): "linear",
          ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}  # fmt: skip
# Where a result's position lies in the source: from (position, factor, size of the source, size of the result).
_COORDINATES: dict[str, Callable[[int, float, int, int], float]] = {
    "asymmetric": lambda at, factor, old, new: at / factor,
    "half_pixel": lambda at, factor, old, new: (at + 0.5) / factor - 0.5,
    "pytorch_half_pixel": lambda at, factor, old, new: (at + 0.5) / factor - 0.5 if new > 1 else 0.0,
    "align_corners": lambda at, factor, old, new: at * (old - 1) / (new - 1) if new > 1 else 0.0,
}
_ROUND: dict[str, Callable[[float], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
}


@operator("Resize", constants=(1, 2, 3), sizes=(2,), refuses=_resize_refuses)
def _resize(
    x: Tensor, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None, *,
    mode: str = "nearest", coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor", cubic_coeff_a: float = -0.75, extrapolation_value: float = 0.0,
    antialias: int = 0, exclude_outside: int = 0, keep_aspect_ratio_policy: str = "stretch",
    axes: list[int] | None = None,
) -> Tensor:  # fmt: skip
    factors = numbers(scales)[2:]
    old = x.shape[2:]
    wanted = numbers(sizes)[2:] or [math.floor(size * factor) for size, factor in zip(old, factors, strict=True)]
    where = coordinate_transformation_mode
    if mode == "nearest" and (where, nearest_mode) != ("asymmetric", "floor"):
        for axis, (before, after) in enumerate(zip(old, wanted, strict=True)):
            factor = factors[axis] if factors else after / before
            places = [_ROUND[nearest_mode](_COORDINATES[where](at, factor, before, after)) for at in range(after)]
            inside = [min(max(place, 0), before - 1) for place in places]
            x = x.index_select(axis + 2, torch.tensor(inside, device=x.device))
        return x
    corners = None if mode == "nearest" else where == "align_corners"
    if corners and any(size * factor != new for size, factor, new in zip(old, factors, wanted, strict=False)):
        raise NotImplementedError("Resize with align_corners, by a factor that gives no whole size")
    # torch keeps the factor that it is given, as ONNX does; it may differ from the ratio of the sizes.
    given: dict[str, Any] = {"scale_factor": factors} if factors and not corners else {"size": wanted}
    made: Tensor = F.interpolate(x, mode=_MODES[mode, x.ndim - 2], align_corners=corners, **given)
    return made


@operator("GridSample")
def _grid_sample(
    x: Tensor, grid: Tensor, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Tensor:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    return F.grid_sample(x, grid, names.get(mode, mode), padding_mode, bool(align_corners))
