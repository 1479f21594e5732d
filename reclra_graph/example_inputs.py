"""Example inputs: checked where a model file offers them, made where ``--input 64x1x28x28`` describes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from reclra_graph.errors import Problem

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_SHAPE = re.compile(r"[0-9]+(x[0-9]+)*")


def make_input(text: str) -> Tensor | Problem:
    """The tensor that ``text`` (``"64x1x28x28"``, or ``"64x128:int64"``) describes, or what is wrong with it (RG108).

    Floats are normal random numbers, the same in every process; whole numbers are 0, which any embedding accepts.
    """
    place = f"--input {text}"
    shape, colon, dtype = text.strip().partition(":")
    if not _SHAPE.fullmatch(shape):
        return Problem("RG108", f"{shape!r} is not a shape", place)
    if colon and dtype not in DTYPES:
        return Problem("RG108", f"{dtype!r} is not a dtype", place, f"Choose a dtype from {', '.join(DTYPES)}.")
    sizes = [int(size) for size in shape.split("x")]
    if 0 in sizes:
        return Problem("RG108", "a size is 0, so the input holds nothing", place)
    kind: torch.dtype = getattr(torch, dtype or "float32")
    try:
        if not kind.is_floating_point:
            return torch.zeros(sizes, dtype=kind)
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(kind)
    except (RuntimeError, MemoryError, OverflowError, TypeError):
        return Problem("RG108", "an input of that size does not fit in memory", place)


def check_inputs(value: object, place: str) -> tuple[tuple[Tensor, ...], list[Problem]]:
    """(the tensors of ``value``, everything wrong with it): RG106 where it is None, RG107 for each other fault.

    ``value`` is what the file at ``place`` calls ``example_inputs``: a tensor, or a tuple or list of tensors whose
    first dimensions, the batch, are equal.
    """
    if value is None:
        return (), [Problem("RG106", "it has no `example_inputs`", place)]
    items: Sequence[object] = value if isinstance(value, (tuple, list)) else (value,)
    where = f"{place}: example_inputs"
    found: list[Problem] = []
    if not items:
        found.append(Problem("RG107", "example_inputs is empty", where))
    tensors: list[Tensor] = []
    for index, item in enumerate(items):
        label = f"{where}[{index}]" if len(items) > 1 else where
        if not isinstance(item, Tensor):
            found.append(Problem("RG107", f"it is {kind_of(item)}, not a tensor", label))
        elif item.ndim == 0:
            found.append(Problem("RG107", "it has no dimensions, so no batch", label))
        elif item.numel() == 0:
            found.append(Problem("RG107", f"it holds nothing: its shape is {tuple(item.shape)}", label))
        else:
            tensors.append(item.detach())
    batches = [int(item.shape[0]) for item in tensors]
    if len(set(batches)) > 1:
        found.append(Problem("RG107", f"the batches differ: the first dimensions are {batches}", where))
    return tuple(tensors), found


def kind_of(value: object) -> str:
    """The value's type with its article, for messages: ``"a list"``, ``"an int"``."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
