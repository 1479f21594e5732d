"""OperatorGraph: the model as a functional operator graph, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from reclra_graph.ir.layouts import Layout, find_layouts
from reclra_graph.ir.text import register

Dim: TypeAlias = int | str
"""A size: a number, or an expression in the batch size ``B`` such as ``"B"`` or ``"4*B"``."""

BATCH = "B"

OPAQUE = "reclra.opaque.default"
"""Target of an operator that is a whole sub-module, run as it is: its arguments are the sub-module's path, positional
arguments, (keyword, argument) pairs, and its parameters."""


@register
@dataclass(frozen=True)
class TensorType:
    """Shape and dtype of a tensor; ``dtype`` as torch names it, e.g. ``"float32"``."""

    shape: tuple[Dim, ...]
    dtype: str = "float32"

    @property
    def short(self) -> str:
        """The dtype in a few letters: ``"f32"``."""
        known = {
            "float32": "f32",
            "float64": "f64",
            "float16": "f16",
            "bfloat16": "bf16",
            "int64": "i64",
            "int32": "i32",
        }
        return known.get(self.dtype, self.dtype)

    def __str__(self) -> str:
        return f"{self.short}[{', '.join(str(size) for size in self.shape)}]"


@register
@dataclass(frozen=True)
class Ref:
    """An argument that is another value of the graph."""

    name: str


@register
@dataclass(frozen=True)
class TorchConstant:
    """An argument that torch names: ``TorchConstant("float32")`` is ``torch.float32``."""

    name: str


@register
@dataclass(frozen=True)
class DeviceArgument:
    """An argument that is a device; it is always the device of the step's own input."""


Argument: TypeAlias = "Ref | TorchConstant | DeviceArgument | int | float | bool | str | None | tuple[Argument, ...]"


CAST = "aten._to_copy.default"
"""Target of an operator that brings a value into another dtype."""
LOW = ("bfloat16", "float16")
"""Dtypes that autocast computes products in."""


def references(argument: Argument | tuple[tuple[str, Argument], ...]) -> tuple[str, ...]:
    """Names of the values an argument (or a tuple of them) refers to, in order, with repeats."""
    if isinstance(argument, Ref):
        return (argument.name,)
    if isinstance(argument, tuple):
        return tuple(name for item in argument for name in references(item))
    return ()


@register
@dataclass(frozen=True)
class Operator:
    """One operator and the value it defines.

    ``size`` is the number that the operator gives, in terms of ``B``, where it gives one instead of a tensor.

    ``target`` is an ATen overload (``"aten.linear.default"``) or a Python operator (``"operator.getitem"``).
    ``type`` is None where the value is no single tensor (a size, or a tuple taken apart by getitem); ``types`` then
    holds the tensors of the tuple, None for unused ones.
    ``module`` is the path of the module that ran it, ``line`` the user's own source line (``"net.py:12"``).
    """

    name: str
    target: str
    args: tuple[Argument, ...] = ()
    kwargs: tuple[tuple[str, Argument], ...] = ()
    type: TensorType | None = None
    types: tuple[TensorType | None, ...] = ()
    module: str = ""
    module_class: str = ""
    line: str = ""
    size: Dim | None = None

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of the values read, in order of first use."""
        return tuple(dict.fromkeys(references(self.args) + references(self.kwargs)))

    @cached_property
    def differentiable(self) -> bool:
        """Whether the value can have a derivative: it holds floating-point or complex numbers."""
        kinds = (self.type, *self.types)
        return any(kind is not None and kind.dtype.startswith(("float", "bfloat", "complex")) for kind in kinds)


@register
@dataclass(frozen=True)
class Input:
    """One tensor among the arguments of forward(). ``path`` leads to it: the argument's position or keyword, then keys,
    indices or field names inside it."""

    name: str
    type: TensorType
    path: tuple[int | str, ...] = ()


@register
@dataclass(frozen=True)
class Output:
    """A tensor among the results of forward() that has a loss: its label (``"logits"``, ``"aux.0"``), and the value."""

    label: str
    value: str


@register
@dataclass(frozen=True)
class Parameter:
    """A parameter: the value's name in the graph, its key in ``state_dict()``, and the keys tied to it."""

    name: str
    key: str
    type: TensorType
    learns: bool = True
    tied: tuple[str, ...] = ()


@register
@dataclass(frozen=True)
class Buffer:
    """A buffer; ``updated`` names the value that replaces it at the end of a step. Not ``persistent``, or ``constant``:
    it is not in ``state_dict()`` and travels with the step instead."""

    name: str
    key: str
    type: TensorType
    updated: str | None = None
    constant: bool = False


@register
@dataclass(frozen=True)
class OperatorGraph:
    """A functional operator graph in train mode: what one forward pass computes.

    ``batch`` is ``"B"`` where the batch size is free, else the one size the graph is right for. ``frontend`` says how
    it was captured, ``notes`` what the user should know about that. ``operators`` stand in an order in which they can
    run. ``unused`` are the labels of results without a loss.
    """

    model: str
    frontend: str
    batch: Dim
    inputs: tuple[Input, ...]
    parameters: tuple[Parameter, ...]
    buffers: tuple[Buffer, ...]
    operators: tuple[Operator, ...]
    outputs: tuple[Output, ...]
    modules: tuple[tuple[str, str], ...] = ()
    """(path, class) of every sub-module, in ``named_modules()`` order: where blocks are found."""
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    autocast: str = ""
    """The dtype of products, "bfloat16" or "float16", where casts were put in (``passes.autocast``); or ""."""

    @cached_property
    def output(self) -> str:
        """The value of the first output."""
        return self.outputs[0].value

    @cached_property
    def output_values(self) -> frozenset[str]:
        """Values of all outputs."""
        return frozenset(item.value for item in self.outputs)

    @cached_property
    def held(self) -> tuple[Parameter | Buffer, ...]:
        """What the model itself holds: its parameters, then its buffers and constants."""
        return (*self.parameters, *self.buffers)

    @cached_property
    def given(self) -> tuple[Input | Parameter | Buffer, ...]:
        """Every value that no operator makes."""
        return (*self.inputs, *self.held)

    @cached_property
    def by_name(self) -> dict[str, Operator]:
        """Operators by the value they define."""
        return {operator.name: operator for operator in self.operators}

    @cached_property
    def types(self) -> dict[str, TensorType]:
        """Type of every single-tensor value: inputs, parameters, buffers, operators."""
        table = {item.name: item.type for item in self.given}
        table.update({operator.name: operator.type for operator in self.operators if operator.type is not None})
        return table

    @cached_property
    def users(self) -> dict[str, tuple[str, ...]]:
        """For every value, the operators that read it, in order."""
        table: dict[str, list[str]] = {name: [] for name in self.types}
        for operator in self.operators:
            for name in operator.reads:
                table.setdefault(name, []).append(operator.name)
        return {name: tuple(users) for name, users in table.items()}

    @cached_property
    def parameter_names(self) -> frozenset[str]:
        """Value names of all parameters."""
        return frozenset(item.name for item in self.parameters)

    def is_low(self, name: str) -> bool:
        """Whether a value has fewer digits than the float32 that errors are computed in."""
        return bool(self.autocast) and name in self.types and self.types[name].dtype in LOW

    def cast_from(self, name: str) -> tuple[str, ...]:
        """A value, and under autocast the values of other floating-point dtypes it was cast from, nearest first."""
        found = [name]
        while self.autocast and name in self.by_name and self.by_name[name].target == CAST:
            name = self.by_name[name].reads[0]
            if name not in self.types or "float" not in self.types[name].dtype + self.types[found[-1]].dtype:
                break
            found.append(name)
        return tuple(found)

    @cached_property
    def derived(self) -> dict[str, frozenset[str]]:
        """Values computed from parameters and nothing of the batch (a transposed weight, a table of positions), with
        the parameters that they come from; parameters come from themselves."""
        fixed = {item.name for item in self.buffers}
        found = {item.name: frozenset({item.name}) for item in self.parameters}
        for operator in self.operators:
            if all(name in found or name in fixed for name in operator.reads):
                sources = frozenset(source for name in operator.reads for source in found.get(name, ()))
                if sources:
                    found[operator.name] = sources
                else:
                    fixed.add(operator.name)
            elif operator.type is None and not operator.types:
                fixed.add(operator.name)
        return found

    @cached_property
    def reaching(self) -> frozenset[str]:
        """Operators on the way to an output; the others only move buffers."""
        found = set(self.output_values)
        for operator in reversed(self.operators):
            if operator.name in found:
                found.update(operator.reads)
        return frozenset(found)

    @cached_property
    def without_data(self) -> frozenset[str]:
        """Values that hold nothing of the batch's data: parameters, buffers, sizes, and what these alone give."""
        found = {item.name for item in self.held}
        for operator in self.operators:
            if (operator.type is None and not operator.types) or all(name in found for name in operator.reads):
                found.add(operator.name)
        return frozenset(found)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Where the batch stands in each value in which it can be told apart."""
        return find_layouts(self)

    def sample_shape(self, name: str) -> tuple[int, ...] | None:
        """Sizes of a value without the batch, or None where the batch cannot be told apart in it."""
        layout = self.layouts.get(name)
        shape = self.types[name].shape if name in self.types else ()
        rest = () if layout is None else (*shape[: layout.dim], *shape[layout.dim + 1 :])
        return None if layout is None or not all(isinstance(size, int) for size in rest) else layout.sample(shape)
