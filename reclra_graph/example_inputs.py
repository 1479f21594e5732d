"""Example inputs: checked where a model comes with them, made where ``--input 64x1x28x28`` describes them.

The arguments of one call of forward(): each is a tensor, a plain constant, or a nest of lists, tuples, dicts and
dataclasses of these. The batch is the first dimension of the first tensor that has dimensions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reclra_graph.errors import Problem

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_SHAPE = re.compile(r"[0-9]+(x[0-9]+)*")
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, slice, torch.dtype, torch.device, torch.layout)
_ALLOWED = "tensors, None, numbers, strings, and lists, tuples, dicts or dataclasses of these"


@dataclass(frozen=True)
class NamedInput:
    """What one ``--input`` gives: a tensor, for the keyword ``name``, or for the next position where that is ``""``."""

    name: str
    tensor: Tensor


def make_input(text: str) -> NamedInput | Problem:
    """The input that ``text`` (``"64x1x28x28"``, ``"ids=64x128:int64"``) describes, or what is wrong with it (RG108).

    Floats are normal random numbers, the same in every process; whole numbers are 0, which any embedding accepts.
    """
    place = f"--input {text}"
    name, equals, described = text.strip().rpartition("=")
    shape, colon, dtype = described.partition(":")
    if equals and not name.isidentifier():
        return Problem("RG108", f"{name!r} is not the name of an argument", place)
    if not _SHAPE.fullmatch(shape):
        return Problem("RG108", f"{shape!r} is not a shape", place)
    if colon and dtype not in DTYPES:
        return Problem("RG108", f"{dtype!r} is not a dtype", place, f"Choose a dtype from {', '.join(DTYPES)}.")
    sizes = [int(size) for size in shape.split("x")]
    if 0 in sizes:
        return Problem("RG108", "a size is 0, so the input holds nothing", place)
    kind: torch.dtype = getattr(torch, dtype or "float32")
    try:
        return NamedInput(name, made(sizes, kind))
    except (RuntimeError, MemoryError, OverflowError, TypeError):
        return Problem("RG108", "an input of that size does not fit in memory", place)


def made(sizes: list[int], kind: torch.dtype) -> Tensor:
    """A tensor of that shape and dtype: the same normal random numbers in every process, or zeros for whole numbers."""
    if not kind.is_floating_point:
        return torch.zeros(sizes, dtype=kind)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(kind)


def call_of(inputs: Any, keywords: Any, place: str) -> tuple[tuple[Any, ...], dict[str, Any], list[Problem]]:
    """(positional, keyword arguments, everything wrong) of the ``example_inputs`` and ``example_kwargs`` at ``place``.

    ``inputs`` is a tuple or list of positional arguments, a mapping of keyword arguments, or the one argument itself;
    ``keywords`` a mapping or None. RG106 where both are None, RG107 for each other fault.
    """
    if inputs is None and keywords is None:
        return (), {}, [Problem("RG106", "it has no `example_inputs`", place)]
    if keywords is not None and not isinstance(keywords, Mapping):
        cause = f"example_kwargs is {kind_of(keywords)}, not a dict of keyword arguments"
        return (), {}, [Problem("RG107", cause, f"{place}: example_kwargs")]
    args: tuple[Any, ...] = ()
    named = dict(keywords or {})
    found: list[Problem] = []
    if isinstance(inputs, Mapping):
        twice = [str(key) for key in inputs if key in named]
        if twice:
            cause = f"{', '.join(twice)} stands in example_inputs and in example_kwargs"
            found.append(Problem("RG107", cause, f"{place}: example_kwargs"))
        named = {**inputs, **named}
    elif isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields"):
        args = tuple(inputs)
    elif inputs is not None:
        args = (inputs,)
    found += checked(args, named, f"{place}: ")
    return _detached(args), _detached(named), found


def checked(args: tuple[Any, ...], kwargs: Mapping[Any, Any], place: str = "") -> list[Problem]:
    """Everything that is wrong with the arguments of a call as an example (RG107): nothing there, no tensor with a
    batch, a tensor that holds nothing, an argument of a strange type. ``place`` goes before each place."""
    where = f"{place}example_inputs"
    if not args and not kwargs:
        return [Problem("RG107", "example_inputs is empty", where)]
    found = [
        Problem("RG107", f"{key!r} is not the name of an argument", where)
        for key in kwargs
        if not isinstance(key, str) or not key.isidentifier()
    ]
    dimensions: list[int] = []
    for label, item in leaves(args, kwargs):
        if isinstance(item, Tensor):
            dimensions.append(item.ndim)
            if item.numel() == 0:
                cause = f"it holds nothing: its shape is {tuple(item.shape)}"
                found.append(Problem("RG107", cause, place + label))
        elif not isinstance(item, _CONSTANTS):
            found.append(Problem("RG107", f"it is {kind_of(item)}, not a tensor", place + label, f"Give {_ALLOWED}."))
    if not dimensions and not found:
        found.append(Problem("RG107", "there is no tensor in it", where))
    elif dimensions and not any(dimensions):
        found.append(Problem("RG107", "no tensor in it has dimensions, so there is no batch", where))
    return found


def leaves(args: tuple[Any, ...], kwargs: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """(place such as ``"example_inputs[0]['ids']"``, value) of everything in the arguments that is no nest itself."""
    for index, item in enumerate(args):
        yield from _leaves(item, f"example_inputs[{index}]" if len(args) > 1 else "example_inputs")
    for key, item in kwargs.items():
        yield from _leaves(item, f"example_inputs[{key!r}]")


def _leaves(value: Any, label: str) -> Iterator[tuple[str, Any]]:
    children = _children(value)
    if children is None:
        yield label, value
        return
    for key, item in children:
        yield from _leaves(item, label + key)


def _children(value: Any) -> Iterator[tuple[str, Any]] | None:
    """(``".name"`` or ``"[key]"``, item) of a nest; None for anything else."""
    if isinstance(value, Mapping):
        return ((f"[{key!r}]", item) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ((f".{name}", item) for name, item in zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return ((f"[{index}]", item) for index, item in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    return None


def _detached(nest: Any) -> Any:
    """The nest with tensors that take no gradient; every list, tuple and dict is a new one, dataclasses stay."""
    if isinstance(nest, Tensor):
        return nest.detach()
    if type(nest) is dict:
        return {key: _detached(item) for key, item in nest.items()}
    if type(nest) in (tuple, list):
        return type(nest)(_detached(item) for item in nest)
    return nest


def kind_of(value: object) -> str:
    """The value's type with its article, for messages: ``"a list"``, ``"an int"``."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
