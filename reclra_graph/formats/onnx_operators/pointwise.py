"""ONNX operators that work on each number by itself, and comparisons and arithmetic with broadcasting."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reclra_graph.formats.onnx_operators.table import (
    Known,
    Value,
    first_tensor,
    is_known,
    operator,
    scalar_or_tensor,
    tensor,
)

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
# Also met among sizes: with what they do to a Python number.
_UNARY_KNOWN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any]]] = {
    "Abs": (torch.abs, abs),
    "Ceil": (torch.ceil, math.ceil),
    "Floor": (torch.floor, math.floor),
    "Identity": (lambda x: x, lambda x: x),
    "Neg": (torch.neg, python.neg),
    "Not": (torch.logical_not, python.not_),
    "Reciprocal": (torch.reciprocal, lambda x: 1 / x),
    "Sqrt": (torch.sqrt, math.sqrt),
}


def _unary(on_tensor: Callable[[Tensor], Tensor], on_number: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    def run(x: Value) -> Value:
        if isinstance(x, np.ndarray):
            return _each(on_number, x) if on_number is not None else on_tensor(tensor(x))
        return on_tensor(x)

    return run


def _each(function: Callable[..., Any], *values: Known) -> Known:
    """The function of each number, as an array of objects of the broadcast shape."""
    made = np.asarray(np.frompyfunc(function, len(values), 1)(*values), dtype=object)
    return made


for _name, _function in _UNARY.items():
    operator(_name)(_unary(_function))
for _name, (_function, _on_number) in _UNARY_KNOWN.items():
    operator(_name)(_unary(_function, _on_number))


# -- two values -------------------------------------------------------------------------------------------------------


def _binary(on_values: Callable[[Any, Any], Any], on_numbers: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def run(a: Value, b: Value) -> Value:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return _each(on_numbers, a, b)
        like = first_tensor(a, b)
        made: Tensor = on_values(scalar_or_tensor(a, like), scalar_or_tensor(b, like))
        return made

    return run


def _divide(a: Any, b: Any) -> Any:
    like = a if isinstance(a, Tensor) else b
    if like.dtype.is_floating_point:
        return a / b
    a, b = (item if isinstance(item, Tensor) else torch.tensor(item, dtype=like.dtype) for item in (a, b))
    return torch.div(a, b, rounding_mode="trunc")


def _divide_numbers(a: Any, b: Any) -> Any:
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def _logical(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    def run(a: Any, b: Any) -> Tensor:
        a, b = (item if isinstance(item, Tensor) else torch.tensor(item) for item in (a, b))
        return function(a, b)

    return run


_COMPARE = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
for _name, _on_values, _on_numbers in (
    ("Add", python.add, python.add),
    ("Sub", python.sub, python.sub),
    ("Mul", python.mul, python.mul),
    ("Div", _divide, _divide_numbers),
    ("Equal", python.eq, python.eq),
    ("Greater", python.gt, python.gt),
    ("GreaterOrEqual", python.ge, python.ge),
    ("Less", python.lt, python.lt),
    ("LessOrEqual", python.le, python.le),
    ("And", _logical(torch.logical_and), lambda a, b: a and b),
    ("Or", _logical(torch.logical_or), lambda a, b: a or b),
    ("Xor", _logical(torch.logical_xor), python.xor),
    ("BitwiseAnd", python.and_, python.and_),
    ("BitwiseOr", python.or_, python.or_),
    ("BitwiseXor", python.xor, python.xor),
):
    # A weight that is compared, or that fills in, was not trained by it.
    operator(_name, constants=(0, 1) if _name in _COMPARE else ())(_binary(_on_values, _on_numbers))


@operator("Pow", constants=(1,))
def _power(a: Value, b: Value) -> Value:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _each(python.pow, a, b)
    base = a if isinstance(a, Tensor) else tensor(a, first_tensor(b))
    made: Tensor = base ** scalar_or_tensor(b, None)
    return made.to(base.dtype)


@operator("Mod")
def _modulo(a: Value, b: Value, *, fmod: int = 0) -> Value:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _each(math.fmod if fmod else python.mod, a, b)
    like = first_tensor(a, b)
    function = torch.fmod if fmod else torch.remainder
    return function(tensor(a, like), tensor(b, like))


# -- several values ---------------------------------------------------------------------------------------------------


def _variadic(on_tensors: Callable[[Tensor, Tensor], Tensor], on_numbers: Callable[[Any, Any], Any]) -> Any:
    def run(*values: Value) -> Value:
        if is_known(*values):
            return reduce(lambda a, b: _each(on_numbers, a, b), values)  # type: ignore[arg-type]
        like = first_tensor(*values)
        return reduce(on_tensors, [tensor(value, like) for value in values])

    return run


operator("Max")(_variadic(torch.maximum, max))
operator("Min")(_variadic(torch.minimum, min))
operator("Sum")(_variadic(torch.add, python.add))


@operator("Mean")
def _mean(*values: Tensor) -> Tensor:
    return reduce(torch.add, values) / len(values)


@operator("Where", constants=(1, 2))
def _where(condition: Value, a: Value, b: Value) -> Value:
    if is_known(condition, a, b):
        return _each(lambda c, x, y: x if c else y, condition, a, b)  # type: ignore[arg-type]
    like = first_tensor(a, b)
    if is_known(a, b):
        return torch.where(tensor(condition), tensor(a), tensor(b))
    return torch.where(tensor(condition), tensor(a, like), tensor(b, like))


# -- non-linearities with parameters ----------------------------------------------------------------------------------


@operator("Clip", constants=(1, 2))
def _clip(
    x: Value, low: Value | None = None, high: Value | None = None, *, min: float | None = None, max: float | None = None
) -> Tensor:
    data = tensor(x)
    lowest = min if low is None else scalar_or_tensor(low, data)
    highest = max if high is None else scalar_or_tensor(high, data)
    return data if lowest is None and highest is None else torch.clamp(data, lowest, highest)


@operator("LeakyRelu")
def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("PRelu")
def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@operator("Celu")
def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@operator("Selu")
def _selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    if math.isclose(alpha, 1.6732632423543772, rel_tol=1e-6) and math.isclose(gamma, 1.0507009873554805, rel_tol=1e-6):
        return F.selu(x)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@operator("Gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@operator("Swish")
def _swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@operator("HardSigmoid")
def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("ThresholdedRelu")
def _thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.threshold(x, alpha, 0.0)


@operator("IsInf")
def _is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_positive:
        return torch.isposinf(x)
    return torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)


def _softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
        if opset >= 13:
            return function(x, -1 if axis is None else axis)
        first = (1 if axis is None else axis) % max(x.ndim, 1)  # over all dimensions from the axis on, until opset 13
        return function(x.flatten(first), first).reshape(x.shape)

    return run


operator("Softmax")(_softmax(torch.softmax))
operator("LogSoftmax")(_softmax(torch.log_softmax))


@operator("Dropout", constants=(1, 2))
def _dropout(
    x: Tensor, share: Value | None = None, training: Value | None = None, *, ratio: float = 0.5, seed: int = 0
) -> Tensor:
    """As saved: only a file exported in train mode drops anything."""
    if training is None or not bool(training.item()):
        return x
    return F.dropout(x, ratio if share is None else float(share.item()), True)
