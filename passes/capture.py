"""nn.Module → OperatorGraph, through torch.export.

Before:  an nn.Module and a tuple of example inputs.
After:   a functional graph in train mode; every value has a shape, every operator its module path and source line,
         every mutation of a buffer is a value that replaces it at the end of the step.

The model itself is never touched: a copy is traced. The batch size stays free where the model allows it, else the
graph is right for the example's batch size alone and ``frontend`` says so.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import (
    BATCH,
    Argument,
    Buffer,
    DeviceArgument,
    Dim,
    Input,
    Operator,
    OperatorGraph,
    Parameter,
    Ref,
    TensorType,
    TorchConstant,
)
from reclra_graph.passes.quiet import hushed

# Results of tuple-valued operators that learning reads although the forward pass does not: a dropout's mask (errors
# pass through the same mask), a batch norm's mean and inverse deviation (its scale learns from the normalised input).
_ALSO_READ = {
    "aten.native_dropout.default": (1,),
    "aten._native_batch_norm_legit_functional.default": (1, 2),
}
_DROPPED = ("_assert", "sym_constrain_range", "_guards_fn")


def capture(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[OperatorGraph, dict[str, Tensor]]:
    """The operator graph of one forward pass in train mode, and the constants it needs beside ``state_dict()``.

    Raises ModelError: RG201 where the model rejects the inputs, RG202 where it cannot be traced, RG203–RG205 for
    values that a compiled step cannot handle.
    """
    inputs = _checked(example_inputs)
    _run_once(model, inputs)
    program, frontend = _export(model, inputs)
    return _translate(model, program, frontend)


def _checked(example_inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Example inputs, found to be tensors that share a batch."""
    problems = []
    for index, item in enumerate(example_inputs):
        place = f"example_inputs[{index}]"
        if not isinstance(item, Tensor):
            problems.append(Problem("RG107", f"example input {index} is a {type(item).__name__}", place))
        elif item.dim() == 0 or item.shape[0] == 0:
            problems.append(Problem("RG107", f"example input {index} has no batch dimension", place))
    if not example_inputs:
        problems.append(Problem("RG107", "there are no example inputs", "example_inputs"))
    if problems:
        raise ModelError(problems)
    if len({item.shape[0] for item in example_inputs}) > 1:
        sizes = ", ".join(str(item.shape[0]) for item in example_inputs)
        raise ModelError(Problem("RG107", f"the example inputs have batches of {sizes}", "example_inputs"))
    return tuple(item.detach() for item in example_inputs)


def _run_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run a copy of the model: what it says of its inputs itself is clearer than what the tracer would say."""
    failure: Exception | None = None
    # Two samples are quicker where the batch is free; a model for one batch size wants the inputs as they are.
    for batch in dict.fromkeys((2, inputs[0].shape[0])):
        given = tuple(torch.cat([item, item])[:2] if batch == 2 else item for item in inputs)
        try:
            with hushed(), torch.no_grad(), torch.random.fork_rng(devices=[]):
                copy.deepcopy(model).train()(*given)
            return
        except Exception as error:  # whatever user code raises becomes one coded error
            failure = error
    assert failure is not None
    shapes = ", ".join("x".join(str(size) for size in item.shape) for item in inputs)
    cause = f"forward() raised {type(failure).__name__} on inputs {shapes}: {_first_line(failure)}"
    raise ModelError(Problem("RG201", cause, _user_line(failure) or type(model).__name__)) from failure


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[ExportedProgram, str]:
    """Export a copy in train mode with a free batch, or with the example's own; then make it functional."""
    failure: Exception | None = None
    # torch.export takes a size of one for a constant.
    several = inputs if inputs[0].shape[0] > 1 else tuple(torch.cat([item, item]) for item in inputs)
    for free, frontend in ((True, "export"), (False, "export, static batch")):
        try:
            twin = copy.deepcopy(model).train()
            given = several if free else inputs
            dims = tuple({0: ExportDim.AUTO} for _ in given) if free else None
            # Values of the generator that tracing draws must not change what the user's run draws afterwards.
            with hushed(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                program = torch.export.export(twin, given, dynamic_shapes=dims, strict=False)
                if free and not _free_batch(program):
                    continue
                return program.run_decompositions({}), frontend
        except Exception as error:  # whatever the tracer raises becomes one coded error below
            failure = error
    assert failure is not None
    cause = f"torch.export raised {type(failure).__name__}: {_first_line(failure)}"
    raise ModelError(Problem("RG202", cause, _user_line(failure) or type(model).__name__)) from failure


def _free_batch(program: ExportedProgram) -> bool:
    """Whether the first size of every input is still a symbol."""
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}
    return all(
        _fixed(node.meta["val"].shape[0]) is None
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    )


def _fixed(size: Any) -> int | None:
    """A size that is a number, also where it is written as a symbol; None for one that is free."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return None if expression.free_symbols else int(expression)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "(no message)"


def _user_line(error: BaseException) -> str:
    """The innermost line of the traceback that is not PyTorch's own."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if _users(name) and name != __file__:
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _users(path: str) -> bool:
    """Whether a file is the user's own: not PyTorch's, and no text that was compiled at run time."""
    return "/torch/" not in path.replace("\\", "/") and not path.startswith(("<", "torch/"))


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')


def _source_line(node: torch.fx.Node) -> str:
    """``folder/file.py:12`` of the innermost frame that is the user's, from the trace that export leaves on a node."""
    frames = [frame for frame in _FRAME.findall(node.meta.get("stack_trace") or "") if _users(frame[0])]
    if not frames:
        return ""
    path, line = frames[-1]
    return f"{'/'.join(path.replace(chr(92), '/').split('/')[-2:])}:{line}"


def _module(node: torch.fx.Node) -> tuple[str, str]:
    """(path, class name) of the module that ran the node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else kind.__name__
    if path.startswith("_empty_nn_module_stack"):  # a placeholder of the tracer's, for questions about sizes
        return "", ""
    return re.sub(r"@\d+", "", path), name.rsplit(".", 1)[-1]


class _Translator:
    """Turns fx values and arguments into the IR's, with the batch symbol spelled ``B``."""

    def __init__(self, batch_symbols: set[str]) -> None:
        self.batch_symbols = batch_symbols
        self.problems: list[Problem] = []

    def size(self, value: Any, place: str) -> Dim:
        fixed = _fixed(value)
        if fixed is not None:
            return fixed
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


def _translate(model: nn.Module, program: ExportedProgram, frontend: str) -> tuple[OperatorGraph, dict[str, Tensor]]:
    graph, signature = program.graph, program.graph_signature
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    user_inputs = [spec.arg.name for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    batch_sizes = [placeholders[name].meta["val"].shape[0] for name in user_inputs]
    symbols = {str(size.node.expr) for size in batch_sizes if _fixed(size) is None}
    static = next((number for number in map(_fixed, batch_sizes) if number is not None), None)
    to_ir = _Translator(symbols)

    canonical, tied = _parameter_keys(model)
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    persistent = set(model.state_dict(keep_vars=True))
    updated = {
        str(spec.target): spec.arg.name for spec in signature.output_specs if spec.kind == OutputKind.BUFFER_MUTATION
    }
    constants: dict[str, Tensor] = {}
    inputs: list[Input] = []
    parameters: list[Parameter] = []
    buffers: list[Buffer] = []
    aliases: dict[str, str] = {}
    named_buffers = dict(model.named_buffers())
    for spec in signature.input_specs:
        name = spec.arg.name
        kind = to_ir.tensor_type(placeholders[name].meta["val"], name)
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(Input(name, kind))
        elif spec.kind == InputKind.PARAMETER:
            key = canonical[str(spec.target)]
            earlier = next((item.name for item in parameters if item.key == key), None)
            if earlier is not None:
                aliases[name] = earlier
                continue
            parameters.append(Parameter(name, key, kind, learns[key], tied.get(key, ())))
        else:
            key = str(spec.target)
            constant = key not in persistent
            if constant:
                source = named_buffers[key] if key in named_buffers else program.constants[key]
                constants[key] = source.detach().clone()
            buffers.append(Buffer(name, key, kind, updated.get(key), constant))

    operators: list[Operator] = []
    for node in graph.nodes:
        if node.op not in ("call_function", "get_attr") or any(word in str(node.target) for word in _DROPPED):
            continue
        operator = _operator(node, to_ir)
        if aliases:
            operator = replace(operator, args=_renamed(operator.args, aliases))
        operators.append(operator)
    outputs = [spec.arg for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    values = {node.name: node.meta.get("val") for node in graph.nodes}
    if len(outputs) != 1 or not isinstance(values.get(getattr(outputs[0], "name", "")), Tensor):
        cause = f"forward() returns {len(outputs)} values" if len(outputs) != 1 else "forward() returns no tensor"
        to_ir.problems.append(Problem("RG203", cause, f"{type(model).__name__}.forward"))
        raise ModelError(to_ir.problems)
    batch: Dim = BATCH if static is None else static
    name = type(model).__name__
    result = OperatorGraph(
        name,
        frontend,
        batch,
        tuple(inputs),
        tuple(parameters),
        tuple(buffers),
        _live(operators, {outputs[0].name, *updated.values()}),
        outputs[0].name,
        tuple((path, type(module).__name__) for path, module in model.named_modules() if path),
    )
    if result.sample_shape(result.output) is None:
        shape = result.types[result.output].shape
        to_ir.problems.append(
            Problem("RG203", f"forward() returns a tensor of shape {shape}, the batch not leading", f"{name}.forward")
        )
    if to_ir.problems:
        raise ModelError(to_ir.problems)
    return result, constants


def _operator(node: torch.fx.Node, to_ir: _Translator) -> Operator:
    path, kind = _module(node)
    line = _source_line(node)
    place = line or path or node.name
    target = _target(node)
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
    )


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


def _live(operators: list[Operator], wanted: set[str]) -> tuple[Operator, ...]:
    """The operators that the output or a buffer needs, with the results that learning reads beside them."""
    needed = set(wanted)
    for operator in reversed(operators):
        if operator.name in needed:
            needed.update(operator.reads)
    kept: list[Operator] = []
    for operator in operators:
        if operator.name in needed:
            kept.append(operator)
            kept.extend(_parts(operator, operators))
    return tuple(kept)


def _parts(operator: Operator, operators: list[Operator]) -> Iterator[Operator]:
    present = {
        item.args[1] for item in operators if item.target == "operator.getitem" and item.args[0] == Ref(operator.name)
    }
    for index in _ALSO_READ.get(operator.target, ()):
        if index not in present:
            yield replace(
                operator,
                name=f"{operator.name}_part{index}",
                target="operator.getitem",
                args=(Ref(operator.name), index),
                kwargs=(),
                type=operator.types[index],
                types=(),
            )
