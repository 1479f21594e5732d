"""A model of the zoo with everything that a training step of it needs."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Inputs: TypeAlias = "tuple[Any, ...] | dict[str, Any]"
Loss: TypeAlias = "str | dict[str, str]"
Target: TypeAlias = "Tensor | dict[str, Tensor]"


@dataclass(frozen=True)
class ZooModel:
    """``inputs``: positional arguments as a tuple, or keyword arguments as a dict; ``loss`` and ``target`` as
    ``rg.compile`` and the step take them. ``head``: the output is a prediction, so that the loss must fall.
    ``options``: more of ``rg.compile``'s options."""

    name: str
    model: nn.Module
    inputs: Inputs
    loss: Loss
    target: Target
    head: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of forward()."""
        return self.inputs if isinstance(self.inputs, tuple) else ()

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of forward()."""
        return self.inputs if isinstance(self.inputs, dict) else {}

    def to(self, dtype: torch.dtype) -> ZooModel:
        """A copy with parameters, buffers and floating-point tensors of ``dtype``."""
        model = copy.deepcopy(self.model).to(dtype)
        return dataclasses.replace(
            self, model=model, inputs=converted(self.inputs, dtype), target=converted(self.target, dtype)
        )


def converted(value: Any, dtype: torch.dtype) -> Any:
    """``value``, a nest of dicts, lists and tuples, with its floating-point tensors as ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: converted(item, dtype) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(converted(item, dtype) for item in value)
    return value


def call(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns for ``inputs``."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def dry_run(model: nn.Module, inputs: Inputs, train: bool = True) -> Any:
    """The output of a copy of the model; neither the model nor the random numbers drawn afterwards change."""
    twin = copy.deepcopy(model).train(train)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(twin, inputs)


def labelled(output: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(label, tensor) of every tensor in an output, in order: ``"logits"``, ``"0"``, ``"aux.0"``; "" for a lone one."""
    if isinstance(output, Tensor):
        yield prefix, output
        return
    items: Any = ()
    if isinstance(output, Mapping):
        items = output.items()
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        items = ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        items = zip(output._fields, output, strict=True)
    elif isinstance(output, (tuple, list)):
        items = ((str(index), item) for index, item in enumerate(output))
    for key, item in items:
        yield from labelled(item, f"{prefix}.{key}" if prefix else str(key))


def chosen(output: Any) -> Tensor:
    """The tensor that a single loss applies to: ``logits``, else ``out``, else the first floating-point one.

    Raises ValueError where the output holds no floating-point tensor.
    """
    found = dict(labelled(output))
    for label in ("logits", "out"):
        if label in found:
            return found[label]
    for tensor in found.values():
        if tensor.is_floating_point():
            return tensor
    raise ValueError(f"no floating-point tensor in an output of type {type(output).__name__}")


def objective(output: Any, head: bool, seed: int = 1) -> tuple[str, Tensor]:
    """(loss, random target) that suit a model's output.

    With a head: [B, C] scores and [B, C, H, W] maps are classified over dimension 1, [B, T, V] token by token over
    the last. One score alone, complex shapes, and outputs without a head are regressed on normal random numbers.
    """
    tensor = chosen(output)
    shape = tuple(tensor.shape)
    draw = torch.Generator().manual_seed(seed)
    if head and len(shape) >= 2:
        classes, where = (shape[2], shape[:2]) if len(shape) == 3 else (shape[1], (shape[0], *shape[2:]))
        if classes > 1:
            return "cross-entropy", torch.randint(0, classes, where, generator=draw)
    return "mse", torch.randn(shape, generator=draw).to(tensor.dtype)
