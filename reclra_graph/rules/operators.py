"""What the compiler knows about single ATen operators: how to find and call them, and which are pointwise."""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from reclra_graph.ir.operators import Argument, DeviceArgument, Operator, OperatorGraph, Ref, TorchConstant
from reclra_graph.ir.regions import Region

# Pointwise operators that are linear in their one tensor: errors pass through them exactly (rules.carry), so they
# belong to the pre-activation and are no non-linearity.
_LINEAR = {
    "add", "sub", "rsub", "mul", "div", "neg", "clone", "alias", "detach", "_to_copy", "to", "contiguous", "positive",
    "lift_fresh_copy", "conj",
}  # fmt: skip
# Not pointwise, yet used as the last non-linearity of a layer: normalised exponentials along one dimension.
_ALONG_A_DIMENSION = {"softmax", "log_softmax", "_softmax", "_log_softmax"}
# Step functions carry PyTorch's pointwise tag in some versions only.
_ALWAYS_POINTWISE = {
    "sign",
    "relu",
    "tanh",
    "sigmoid",
    "elu",
    "gelu",
    "silu",
    "leaky_relu",
    "hardtanh",
    "softplus",
    "selu",
}


# A plan says nothing of strides, which differ from batch to batch (channels_last images, an error computed elsewhere):
# what was a view of the example's values may need a copy of others.
STRIDE_BOUND = ("aten.view.default", "aten._unsafe_view.default")


_PICKING = {"relu", "sign", "neg", "abs"}
"""Pointwise operators whose result is 0, 1, or what they are given, but for its sign."""

STEPS = {"sign", "sgn", "round", "floor", "ceil", "trunc", "heaviside", "gt", "ge", "lt", "le", "eq", "ne"}
"""Step functions: their derivative is zero everywhere."""


def short(target: str) -> str:
    """``"conv2d"`` for ``"aten.conv2d.default"``."""
    return target.split(".")[1]


@cache
def function(target: str) -> Callable[..., Any]:
    """The callable behind an operator's target; reshape for a view. Raises KeyError where this PyTorch has none."""
    target = "aten.reshape.default" if target in STRIDE_BOUND else target
    space, _, rest = target.partition(".")
    try:
        if space == "aten":
            name, _, overload = rest.partition(".")
            found: Callable[..., Any] = getattr(getattr(torch.ops.aten, name), overload)
            return found
        if space in ("operator", "math"):
            home = python_operator if space == "operator" else math
            return getattr(home, rest)  # type: ignore[no-any-return]
        if space == "torch" and rest.startswith("sym_"):
            return getattr(torch, rest)  # type: ignore[no-any-return]
    except AttributeError:
        pass
    raise KeyError(target)


@cache
def _pointwise(target: str) -> bool:
    if short(target) in _ALWAYS_POINTWISE:
        return True
    try:
        tags = getattr(function(target), "tags", ())
    except KeyError:
        return False
    return torch.Tag.pointwise in tags


def is_pointwise(target: str) -> bool:
    """Whether an ATen operator works number by number, and gives the same for the same."""
    return _pointwise(target) and not draws(target)


def is_random(operator: Operator) -> bool:
    """Whether the operator draws random numbers."""
    return draws(operator.target)


def draws(target: str) -> bool:
    """Whether what stands behind a name draws random numbers; rules and the step's own functions do not."""
    try:
        return torch.Tag.nondeterministic_seeded in getattr(function(target), "tags", ())
    except KeyError:
        return False


def is_activation(operator: Operator) -> bool:
    """Whether the operator is a non-linearity φ of one tensor: the only values it reads is that tensor, given first."""
    if not operator.target.startswith("aten.") or operator.type is None:
        return False
    if len(operator.reads) != 1 or not operator.args or operator.args[0] != Ref(operator.reads[0]):
        return False
    name = short(operator.target)
    if name in _ALONG_A_DIMENSION:
        return True
    if name == "pow" or name not in _LINEAR:
        return _pointwise(operator.target)
    return False


def is_exact(region: Region, graph: OperatorGraph) -> bool:
    """Whether φ_i rounds nothing: of an h_i with few digits, z_i has all of float32's."""
    return all(short(graph.by_name[name].target) in _PICKING for name in region.activation)


def resolve(argument: Argument, values: dict[str, Any], device: torch.device | None = None) -> Any:
    """An IR argument as the Python value that a function takes; ``Ref``\\ s are looked up in ``values``."""
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, TorchConstant):
        return getattr(torch, argument.name)
    if isinstance(argument, DeviceArgument):
        return device
    if isinstance(argument, tuple):
        return [resolve(item, values, device) for item in argument]
    return argument


Chain = tuple[tuple[str, tuple[Argument, ...], tuple[tuple[str, Argument], ...]], ...]
"""Operators one after another: (target, arguments, keyword arguments), with ``Ref("_")`` for what came before."""


def apply_chain(chain: Chain, value: Any) -> Any:
    """φ(value) for a chain of operators; the empty chain is the identity."""
    for target, args, kwargs in chain:
        values = {"_": value}
        value = function(target)(
            *(resolve(item, values) for item in args), **{k: resolve(v, values) for k, v in kwargs}
        )
    return value
