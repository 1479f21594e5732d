"""Calls of a task graph, run on tensors outside the emitted step: without numbers to be priced, with them to be timed.

Before:  Call("rules.target.target", (h3, d3, beta, (tanh,)), results=("y3",))
After:   values["y3"] is the tensor that the rule gave for the tensors in values["h3"] and values["d3"]
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reclra_graph.ir.operators import Argument, Dim, Ref, TensorType
from reclra_graph.ir.tasks import Call, TaskGraph
from reclra_graph.passes.names import value_names
from reclra_graph.passes.target_types import target_types
from reclra_graph.rules import rule
from reclra_graph.rules.forms import stored
from reclra_graph.rules.operators import function, resolve

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}

IMPLICIT = "rules.implicit.displace"
"""The rule of a synapse whose entries are made where they are used."""

Make = Callable[[tuple[int, ...], torch.dtype, int], Tensor]
"""A new tensor of a shape and dtype; whole numbers lie below the third argument."""


@cache
def sized(size: Dim, batch: int) -> int:
    """A size in numbers: ``"4*B"`` is 256 for a batch of 64. What is no plain arithmetic counts as the batch."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _ARITHMETIC:
                return _ARITHMETIC[type(operation)](value(left), value(right))
        return batch

    return size if isinstance(size, int) else value(ast.parse(size.strip(), mode="eval").body)


def without_numbers(shape: tuple[int, ...], dtype: torch.dtype, below: int) -> Tensor:
    """A tensor on the device ``meta``."""
    return torch.empty(shape, dtype=dtype, device="meta")


MEANS = {"sgd": 0, "momentum": 1, "adamw": 2}
"""Running means of every parameter that an optimiser keeps."""


class Values:
    """The values of one step by name, made by running its calls in order; ``make`` makes those that it starts with."""

    def __init__(self, tasks: TaskGraph, batch: int, make: Make) -> None:
        plan = tasks.plan
        graph = plan.regions.graph
        names, _ = value_names(plan.regions)
        self.batch, self.make = batch, make
        rates = plan.rates
        self.optimizer = rates.optimizer
        self.held: dict[str, Any] = {"B": batch, "beta": rates.beta, "gamma": rates.gamma, "lr": rates.lr}
        for item in graph.given:
            self.held[names[item.name]] = self.tensor(item.type)
        dtype = plan.regions.synapse_dtype
        for synapse in stored(plan, tasks.matrices.values()):
            kind = "int32" if synapse.start == "key" else dtype
            self.held[f"E[{synapse.name}]"] = self.tensor(TensorType(synapse.shape, kind))
        for label, (shape, dtype, classes, _) in target_types(plan).items():
            self.held[f"T[{label}]" if label else "target"] = self.tensor(TensorType(shape, dtype), max(classes, 2))
        self.device = next(item.device for item in self.held.values() if isinstance(item, Tensor))

    def tensor(self, kind: TensorType, below: int = 2) -> Tensor:
        """A new tensor of a type, at the batch size."""
        shape = tuple(sized(size, self.batch) for size in kind.shape)
        return self.make(shape, getattr(torch, kind.dtype), below)

    def run(self, call: Call) -> None:
        """Run one call and keep its results. Raises whatever the operator does: some need numbers, or a sub-module.

        Raises NotImplementedError for an implicit synapse: the rule makes it whole, the emitted step tile by tile.
        """
        if call.function == IMPLICIT:
            raise NotImplementedError(call.function)
        values, args = self.held, call.args
        if call.function == "after":
            return
        if call.function == "beside":  # the synapses lie one behind the other already
            parts = [values[name.name] for name in args if isinstance(name, Ref)]
            values[call.results[0]] = parts[0].new_empty((sum(len(part) for part in parts), *parts[0].shape[1:]))
            return
        if call.function == "check":
            loss, *inputs = (values[name.name] for name in args if isinstance(name, Ref))
            for value in (loss, *inputs):
                torch.isfinite(value).all()
            return
        if call.function == "optimise":
            store, delta = (values[name.name] for name in args[:2] if isinstance(name, Ref))
            for _ in range(MEANS[self.optimizer]):
                torch.zeros_like(store).lerp_(delta, 0.5)
            store.sub_(delta, alpha=values["lr"])
            return
        if call.function.startswith("rules."):
            out = rule(call.function)(*(_rule_argument(item, values) for item in args), **dict(call.kwargs))
        else:
            keywords = {key: resolve(item, values, self.device) for key, item in call.kwargs}
            out = function(call.function)(*(resolve(item, values, self.device) for item in args), **keywords)
        made = out if call.unpack else (out,)
        values.update({name: item for name, item in zip(call.results, made, strict=False) if name})

    def declare(self, call: Call) -> None:
        """Put tensors of the declared types where a call's results would be. A result that declares none is a number
        per sample."""
        kinds = (*call.types, *([None] * (len(call.results) - len(call.types))))
        for name, kind in zip(call.results, kinds, strict=False):
            if name:
                self.held[name] = self.tensor(kind if kind is not None else TensorType(("B",)))


def _rule_argument(argument: Argument, values: dict[str, Any]) -> Any:
    """As the emitter hands arguments to rules: shapes stay tuples, a chain of operators stays as it is."""
    if isinstance(argument, tuple):
        chain = bool(argument) and all(isinstance(item, tuple) and len(item) == 3 for item in argument)
        return argument if chain else tuple(_rule_argument(item, values) for item in argument)
    return values[argument.name] if isinstance(argument, Ref) else argument
