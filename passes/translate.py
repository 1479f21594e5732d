"""ExportedProgram → OperatorGraph: the IR's own names, shapes in terms of the batch, and nothing that nobody reads.

Before:  what torch.export or the recorder made of a call of forward() on flat tensors.
After:   operators with shapes, module paths and source lines; parameters by their keys, tied ones under their first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import (
    BATCH,
    OPAQUE,
    Argument,
    Buffer,
    DeviceArgument,
    Dim,
    Input,
    Operator,
    OperatorGraph,
    Output,
    Parameter,
    Ref,
    TensorType,
    TorchConstant,
)
from reclra_graph.options import Options
from reclra_graph.passes.draws import draws
from reclra_graph.passes.opaque import OpaqueCall
from reclra_graph.passes.places import module_of, source_line

# Results of tuple-valued operators that learning reads although the forward pass does not: a dropout's mask (errors
# pass through the same mask), a batch norm's mean and inverse deviation (its scale learns from the normalised input).
_ALSO_READ = {
    "aten.native_dropout.default": (1,),
    "aten._native_batch_norm_legit_functional.default": (1, 2),
}


_NONE: Mapping[str, OpaqueCall] = MappingProxyType({})


class _Translator:
    """Turns fx values and arguments into the IR's, with the batch symbol spelled ``B``."""

    def __init__(self, batch_symbols: set[str]) -> None:
        self.batch_symbols = batch_symbols
        self.problems: list[Problem] = []

    def size(self, value: Any, place: str) -> Dim:
        number = fixed(value)
        if number is not None:
            return number
        expression = value.node.expr
        names = {str(symbol) for symbol in expression.free_symbols}
        if not names <= self.batch_symbols:
            self.problems.append(Problem("RG204", f"a size depends on the data: {expression}", place))
        text = str(expression)
        for name in names:
            text = re.sub(rf"\b{name}\b", BATCH, text)
        return text

    def tensor_type(self, value: Tensor, place: str) -> TensorType:
        shape = tuple(self.size(size, place) for size in value.shape)
        return TensorType(shape, str(value.dtype).removeprefix("torch."))

    def argument(self, value: Any, place: str) -> Argument:
        if isinstance(value, torch.fx.Node):
            return Ref(value.name)
        if isinstance(value, (list, tuple)):
            return tuple(self.argument(item, place) for item in value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return TorchConstant(str(value).removeprefix("torch."))
        if isinstance(value, torch.device):
            return DeviceArgument()
        self.problems.append(Problem("RG204", f"an operator takes a {type(value).__name__}", place))
        return None


def _target(node: torch.fx.Node) -> str:
    """``aten.linear.default``, ``operator.getitem``, ``math.ceil``; the name by which every pass knows the operator."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "").lstrip("_")
    return f"{module}.{getattr(target, '__name__', str(target))}"


def fixed(size: Any) -> int | None:
    """A size that is a number, also where it is written as a symbol; None for one that is free."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return None if expression.free_symbols else int(expression)


def translate(
    model: nn.Module,
    program: ExportedProgram,
    frontend: str,
    paths: Sequence[tuple[int | str, ...]],
    names: Sequence[str],
    labels: Sequence[str],
    options: Options,
    notes: tuple[str, ...] = (),
    opaque: Mapping[str, OpaqueCall] = _NONE,
) -> tuple[OperatorGraph, dict[str, Tensor]]:
    """The operator graph of a program of ``model``, and the constants it needs beside ``state_dict()``.

    ``paths`` and ``names`` belong to its inputs in order, ``labels`` to its results; ``opaque`` says how opaque
    sub-modules are called.
    """
    signature = program.graph_signature
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = [
        spec
        for spec in signature.input_specs
        if spec.kind == InputKind.USER_INPUT and isinstance(placeholders[spec.arg.name].meta.get("val"), Tensor)
    ]
    leading = [placeholders[spec.arg.name].meta["val"].shape[:1] for spec in specs]
    symbols = {str(size.node.expr) for sizes in leading for size in sizes if fixed(size) is None}
    to_ir = _Translator(symbols)
    inputs, aliases = _inputs(specs, placeholders, paths, names, to_ir)
    parameters, buffers, constants = _held(model, program, placeholders, to_ir, aliases)
    batch: Dim = BATCH if symbols else next(int(sizes[0]) for sizes in leading if sizes)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    results = [spec.arg.name for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    tensors = [name for name in results if isinstance(values.get(name), Tensor)]
    found = [(name, aliases.get(value, value), values[value]) for name, value in zip(labels, tensors, strict=True)]
    place = f"{type(model).__name__}.forward"
    chosen = chosen_outputs([(name, item) for name, _, item in found], options, place)
    outputs = tuple(Output(name, value) for name, value, _ in found if name in chosen)
    live = _live(program.graph, {item.value for item in outputs} | {item.updated for item in buffers if item.updated})
    operators: list[Operator] = []
    for node in program.graph.nodes:
        if node not in live or node.op not in ("call_function", "get_attr"):
            continue
        operator = _operator(node, to_ir, opaque)
        operators.append(
            replace(operator, args=_renamed(operator.args, aliases), kwargs=_renamed(operator.kwargs, aliases))
        )
    modules = tuple((path, type(module).__name__) for path, module in model.named_modules() if path)
    unused = tuple(name for name, _, _ in found if name not in chosen)
    result = OperatorGraph(
        type(model).__name__, frontend, batch, inputs, parameters, buffers, _with_parts(operators), outputs, modules,
        unused, notes,
    )  # fmt: skip
    if to_ir.problems:
        raise ModelError(dict.fromkeys(to_ir.problems))
    wrong = [(item, _no_samples(result, item)) for item in outputs]
    problems = [Problem("RG203", f"result {item.label!r} {cause}", place) for item, cause in wrong if cause]
    first: dict[str, str] = {}
    for item in outputs:
        if first.setdefault(item.value, item.label) != item.label:
            cause = f"results {first[item.value]!r} and {item.label!r} are one tensor, which can have one loss"
            problems.append(Problem("RG203", cause, place))
    if problems:
        raise ModelError(problems)
    return result, constants


def _no_samples(graph: OperatorGraph, output: Output) -> str:
    """Why a result cannot have a loss, or ""."""
    if output.value in graph.without_data:
        return "does not depend on the inputs"
    if graph.sample_shape(output.value) is None:
        return f"has the shape {graph.types[output.value].shape}, in which there is no batch"
    return ""


def chosen_outputs(found: Sequence[tuple[str, Tensor]], options: Options, place: str) -> tuple[str, ...]:
    """Labels of the results that have a loss: those that ``loss`` names, the one that ``output`` names, else "logits",
    "out", or the first floating-point tensor. Raises ModelError RG203 where there is none, RG409 for an unknown one."""
    labels = [name for name, _ in found]
    floating = [name for name, item in found if isinstance(item, Tensor) and item.is_floating_point() and item.dim()]
    asked = options.loss_labels
    unknown = [name for name in asked if name not in labels]
    if unknown:
        cause = f"forward() returns no {unknown[0]!r}; its results are {', '.join(labels) or 'none'}"
        raise ModelError(Problem("RG409", cause, place))
    wrong = [name for name in asked if name not in floating]
    if wrong or not floating:
        what = f"result {wrong[0]!r} is" if wrong else "forward() returns"
        raise ModelError(Problem("RG203", f"{what} no floating-point tensor", place))
    if asked:
        return tuple(name for name in labels if name in asked)
    return (next((name for name in ("logits", "out") if name in floating), floating[0]),)


def _inputs(
    specs: Sequence[InputSpec],
    placeholders: dict[str, torch.fx.Node],
    paths: Sequence[tuple[int | str, ...]],
    names: Sequence[str],
    to_ir: _Translator,
) -> tuple[tuple[Input, ...], dict[str, str]]:
    """The inputs under their own names, and those names by the placeholders'."""
    inputs: list[Input] = []
    aliases: dict[str, str] = {}
    # The batch size and the error are called so in calls made later on.
    taken = {BATCH, "_"} | (set(placeholders) - {spec.arg.name for spec in specs})
    for spec, path, wanted in zip(specs, paths, names, strict=True):
        name = wanted
        while name in taken:
            name += "_"
        taken.add(name)
        aliases[spec.arg.name] = name
        inputs.append(Input(name, to_ir.tensor_type(placeholders[spec.arg.name].meta["val"], name), path))
    return tuple(inputs), aliases


def _held(
    model: nn.Module,
    program: ExportedProgram,
    placeholders: dict[str, torch.fx.Node],
    to_ir: _Translator,
    aliases: dict[str, str],
) -> tuple[tuple[Parameter, ...], tuple[Buffer, ...], dict[str, Tensor]]:
    """Parameters, buffers and constants; ``aliases`` learns the names of what is tied."""
    signature = program.graph_signature
    canonical, tied = _parameter_keys(model)
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    persistent = set(model.state_dict(keep_vars=True))
    updated = {
        str(spec.target): spec.arg.name for spec in signature.output_specs if spec.kind == OutputKind.BUFFER_MUTATION
    }
    named_buffers = dict(model.named_buffers())
    constants: dict[str, Tensor] = {}
    parameters: list[Parameter] = []
    buffers: list[Buffer] = []
    for spec in signature.input_specs:
        name, key = spec.arg.name, str(spec.target)
        if spec.kind in (InputKind.USER_INPUT, InputKind.TOKEN):
            continue
        kind = to_ir.tensor_type(placeholders[name].meta["val"], name)
        if spec.kind == InputKind.PARAMETER:
            key = canonical[key]
            earlier = next((item.name for item in parameters if item.key == key), None)
            if earlier is not None:
                aliases[name] = earlier
                continue
            parameters.append(Parameter(name, key, kind, learns[key], tied.get(key, ())))
            continue
        constant = key not in persistent
        if constant:
            source = named_buffers[key] if key in named_buffers else program.constants[key]
            constants[key] = source.detach().clone()
        buffers.append(Buffer(name, key, kind, updated.get(key), constant))
    return tuple(parameters), tuple(buffers), constants


def _operator(node: torch.fx.Node, to_ir: _Translator, opaque: Mapping[str, OpaqueCall]) -> Operator:
    path, kind = module_of(node)
    line = source_line(node)
    place = line or path or node.name
    target = _target(node)
    if target == OPAQUE:
        return _opaque(node, to_ir, opaque[str(node.args[0])], line)
    if not target.startswith(("aten.", "operator.", "math.", "torch.sym_")):
        code = "RG205" if isinstance(node.target, torch._ops.OpOverload) else "RG204"
        to_ir.problems.append(Problem(code, f"operator {target} is not PyTorch's own", place))
    value = node.meta.get("val")
    types: tuple[TensorType | None, ...] = ()
    if isinstance(value, (list, tuple)):
        types = tuple(to_ir.tensor_type(item, place) if isinstance(item, Tensor) else None for item in value)
    return Operator(
        node.name,
        target,
        tuple(to_ir.argument(item, place) for item in node.args),
        tuple((key, to_ir.argument(item, place)) for key, item in node.kwargs.items()),
        to_ir.tensor_type(value, place) if isinstance(value, Tensor) else None,
        types,
        path,
        kind,
        line,
        to_ir.size(value, place) if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool) else None,
    )


def _opaque(node: torch.fx.Node, to_ir: _Translator, call: OpaqueCall, line: str) -> Operator:
    """The call of an opaque sub-module: (path, positional arguments, keyword arguments as pairs, parameters)."""
    _, inputs, parameters = node.args
    assert isinstance(inputs, (list, tuple))
    args, kwargs = call.takes.fill(inputs)
    place = line or call.path
    given = (
        call.path,
        tuple(to_ir.argument(item, place) for item in args),
        tuple((str(key), to_ir.argument(item, place)) for key, item in kwargs.items()),
        to_ir.argument(parameters, place),
    )
    types = tuple(to_ir.tensor_type(item, place) for item in node.meta["val"])
    return Operator(node.name, OPAQUE, given, (), None, types, call.path, "opaque", line)


def _renamed(argument: Any, aliases: dict[str, str]) -> Any:
    if isinstance(argument, Ref):
        return Ref(aliases.get(argument.name, argument.name))
    if isinstance(argument, tuple):
        return tuple(_renamed(item, aliases) for item in argument)
    return argument


def _parameter_keys(model: nn.Module) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """(every key → the first key of the same parameter, first key → the others)."""
    first: dict[int, str] = {}
    canonical: dict[str, str] = {}
    tied: dict[str, tuple[str, ...]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        canonical[key] = first.setdefault(id(parameter), key)
        if canonical[key] != key:
            tied[canonical[key]] = (*tied.get(canonical[key], ()), key)
    return canonical, tied


def _live(graph: torch.fx.Graph, wanted: set[str]) -> set[torch.fx.Node]:
    """The nodes that an output or a buffer needs, and those that draw random numbers: what is drawn later depends on
    them, even where Python alone read what they gave."""
    waiting = [node for node in graph.nodes if node.name in wanted or draws(node)]
    found: set[torch.fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _with_parts(operators: list[Operator]) -> tuple[Operator, ...]:
    """The operators with those results that learning reads beside the forward pass."""
    present = {(item.reads[0], item.args[1]) for item in operators if item.target == "operator.getitem"}
    kept: list[Operator] = []
    for operator in operators:
        kept.append(operator)
        for index in _ALSO_READ.get(operator.target, ()):
            if (operator.name, index) not in present:
                name, args = f"{operator.name}_part{index}", (Ref(operator.name), index)
                part = replace(operator, name=name, target="operator.getitem", args=args, kwargs=(), types=())
                kept.append(replace(part, type=operator.types[index]))
    return tuple(kept)
