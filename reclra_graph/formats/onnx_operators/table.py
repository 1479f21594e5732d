"""How an operator is looked up and called, and the values that travel between operators.

Sizes, and what is computed from them, are Python numbers in NumPy arrays of objects, not tensors: a tracer sees the
same numbers that PyTorch code would have used, symbolic sizes among them. ``Known`` is such an array; 0 dimensions make
it a scalar. Tensors are everything else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Known = np.ndarray[Any, np.dtype[np.object_]]
Value = Tensor | Known
"""What travels between operators. An optional input that is left out is None."""

LARGEST_KNOWN = 64
"""Whole numbers of up to this many entries, in one dimension or none, are sizes; more of them are data."""


@dataclass(frozen=True)
class OnnxOperator:
    """A function of the operator's inputs, by position, and its attributes, by name.

    refuses: from the attributes and the numbers of inputs and of outputs used, why this use cannot be read; "" where it
    can.
    constants: positions of inputs that are constants by the operator's definition, and never train. sizes: those among
    them whose numbers must be known, though they are no whole numbers.
    """

    function: Callable[..., Any]
    constants: tuple[int, ...]
    sizes: tuple[int, ...]
    refuses: Callable[[dict[str, Any], int, int], str]

    @property
    def attributes(self) -> frozenset[str]:
        """Names of the attributes that the function takes."""
        parameters = inspect.signature(self.function).parameters.values()
        return frozenset(item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY)


TABLE: dict[str, OnnxOperator] = {}

Function = Callable[..., Any]


def operator(
    name: str,
    constants: tuple[int, ...] = (),
    sizes: tuple[int, ...] = (),
    outputs: int = 1,
    refuses: Callable[[dict[str, Any]], str] = lambda attributes: "",
) -> Callable[[Function], Function]:
    """Enter a function under an operator's name. outputs: how many results it gives at most."""

    def enter(function: Function) -> Function:
        kinds = [item.kind for item in inspect.signature(function).parameters.values()]
        most = (
            1 << 16
            if inspect.Parameter.VAR_POSITIONAL in kinds
            else kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
        )

        def check(attributes: dict[str, Any], inputs: int, used: int) -> str:
            if inputs > most:
                return f"its input {inputs} is used"
            if used > outputs:
                return f"its output {used} is used"
            return refuses(attributes)

        TABLE[name] = OnnxOperator(function, constants, sizes, check)
        return function

    return enter


def known(value: object) -> Known:
    """A number, or a list of numbers, as an array of objects."""
    if isinstance(value, (list, tuple)):
        array = np.empty(len(value), dtype=object)
        for index, item in enumerate(value):
            array[index] = item
        return array
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def is_known(*values: object) -> bool:
    """Whether all of them are numbers."""
    return all(isinstance(value, np.ndarray) for value in values)


def numbers(value: Value | None) -> list[Any]:
    """A list of numbers, whatever holds it; of a tensor its values, which a tracer can then not know."""
    if value is None:
        return []
    listed = value.reshape(-1).tolist()
    return list(listed)


def number(value: Value) -> Any:
    """The one number in it."""
    return value.item()


def tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """A tensor, of the dtype and on the device of ``like`` where that is given."""
    if isinstance(value, Tensor):
        return value
    device = like.device if like is not None else None
    if like is not None:
        dtype = like.dtype
    else:
        first = value.reshape(-1)[0] if value.size else 0
        is_float = isinstance(first, (float, torch.SymFloat))
        dtype = torch.bool if isinstance(first, bool) else torch.float32 if is_float else torch.int64
    return torch.tensor(value.tolist(), dtype=dtype, device=device).reshape(value.shape)


def first_tensor(*values: Value | None) -> Tensor | None:
    """The first of them that is a tensor."""
    return next((value for value in values if isinstance(value, Tensor)), None)


def scalar_or_tensor(value: Value, like: Tensor | None) -> Any:
    """A Python number where the value has no dimensions, else a tensor: how torch's own operators take a constant."""
    return value.item() if is_known(value) and value.ndim == 0 else tensor(value, like)
