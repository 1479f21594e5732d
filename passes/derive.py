"""Local derivatives as plain operators: how an error passes back over one operator, traced once at compile time.

Before:  an operator, the values it read and the error at its output.
After:   calls of ATen operators that compute the error at the arguments wanted, such as
         ``aten.gelu_backward.default(e3, h3)``; they run without autograd.

PyTorch's own derivative of the single operator is traced on tensors without data whose batch size is symbolic. Where
the trace computes the operator's own result again, the value that the forward pass left is read instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from reclra_graph.ir.operators import (
    BATCH,
    Argument,
    DeviceArgument,
    Operator,
    OperatorGraph,
    Ref,
    TensorType,
    TorchConstant,
)
from reclra_graph.ir.tasks import Call
from reclra_graph.rules.operators import function

# Any size will do that no layer is likely to have: only its symbol stays in the trace.
_BATCH_HINT = 9973


class NoDerivative(Exception):
    """PyTorch knows no derivative of the operator."""


class _Fakes:
    """Tensors without data for the values of a graph, sharing one symbol for the batch."""

    def __init__(self, graph: OperatorGraph) -> None:
        self.graph = graph
        self.environment = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.environment, allow_non_fake_inputs=True)

    def tensor(self, kind: TensorType) -> Tensor:
        if any(isinstance(size, str) and size != BATCH for size in kind.shape):
            raise NoDerivative(f"a size depends on the batch: {kind}")
        shape = [_BATCH_HINT if size == BATCH else int(size) for size in kind.shape]
        dynamic = [DimDynamic.DUCK if size == BATCH else DimDynamic.STATIC for size in kind.shape]
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=dynamic)
        source = torch.empty(shape, dtype=getattr(torch, kind.dtype), device="meta")
        fake = self.mode.from_tensor(source, symbolic_context=context)
        return fake


def derive(
    operator: Operator,
    graph: OperatorGraph,
    part: int | None,
    wanted: tuple[str, ...],
    error: str,
    new: Callable[[str], str],
) -> tuple[list[Call], dict[str, str]]:
    """Calls that compute the error at the values ``wanted`` of the operator from ``error`` at its output (or at part
    ``part`` of its tuple of outputs), and the name of the result for each; a derivative that is zero everywhere is left
    out. Names of values are the operator graph's;
    ``new`` makes fresh ones. Raises NoDerivative where there is none."""
    fakes = _Fakes(graph)
    read = [name for name in operator.reads if name in graph.types]
    kind = operator.type if part is None else operator.types[part]
    if kind is None or any(name in graph.by_name and graph.by_name[name].types for name in operator.reads):
        raise NoDerivative(f"{operator.target} does not give a tensor")
    sizes = [name for name in operator.reads if name not in graph.types]
    try:
        values = [fakes.tensor(graph.types[name]) for name in read]
        cotangent = fakes.tensor(kind)
        batch = cotangent.shape[kind.shape.index(BATCH)] if BATCH in kind.shape else None

        def backward(e: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(read, tensors, strict=True))

            def forward(*moving: Tensor) -> Tensor:
                held = {**given, **dict(zip(wanted, moving, strict=True)), **dict.fromkeys(sizes, batch)}
                result = function(operator.target)(
                    *(_given(item, held) for item in operator.args), **{k: _given(v, held) for k, v in operator.kwargs}
                )
                value: Tensor = result if part is None else result[part]
                return value

            pull = torch.func.vjp(forward, *(given[name] for name in wanted))[1]
            pulled: tuple[Tensor, ...] = pull(e)
            return pulled

        traced = make_fx(backward, tracing_mode="symbolic")(cotangent, *values)
    except NoDerivative:
        raise
    except Exception as failure:  # the tracer and PyTorch's formulas raise errors of many kinds
        raise NoDerivative(
            f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        ) from failure
    traced.graph.eliminate_dead_code()
    return _calls(traced.graph, [error, *read], operator, graph, wanted, new)


def _given(argument: Argument, held: dict[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return held[argument.name]
    if isinstance(argument, tuple):
        return [_given(item, held) for item in argument]
    return getattr(torch, argument.name) if isinstance(argument, TorchConstant) else argument


def _calls(
    traced: fx.Graph,
    sources: list[str],
    operator: Operator,
    graph: OperatorGraph,
    wanted: tuple[str, ...],
    new: Callable[[str], str],
) -> tuple[list[Call], dict[str, str]]:
    names: dict[fx.Node, Argument] = {}
    calls: list[Call] = []
    placeholders = iter(sources)
    for node in traced.nodes:
        if node in names:  # a part of a tuple, named when the tuple was
            continue
        if node.op == "placeholder":
            names[node] = Ref(next(placeholders))
        elif node.op == "output":
            return calls, _results(node, names, operator, wanted)
        elif node.op != "call_function":
            raise NoDerivative(f"{operator.target}: the derivative holds a {node.op}")
        elif _target(node) == "aten.sym_size.int" and re.fullmatch(r"s\d+", str(node.meta.get("val"))):
            names[node] = Ref("B")
        else:
            args = tuple(_argument(item, names) for item in node.args)
            kwargs = tuple((key, _argument(item, names)) for key, item in node.kwargs.items())
            again = (_target(node), args, kwargs) == (operator.target, operator.args, operator.kwargs)
            value = node.meta.get("val")
            parts = {int(user.args[1]): user for user in node.users} if isinstance(value, (list, tuple)) else {}
            if again and not parts:
                names[node] = Ref(operator.name)
            elif again and set(parts) <= set(_known_parts(operator, graph)):
                known = _known_parts(operator, graph)
                names.update({user: Ref(known[index]) for index, user in parts.items()})
            elif parts:
                fresh = {index: new(_target(node).split(".")[1].strip("_")) for index in sorted(parts)}
                results = tuple(fresh.get(index, "") for index in range(len(value)))
                kinds = tuple(_kind(item) if isinstance(item, Tensor) else None for item in value)
                calls.append(Call(_target(node), args, kwargs, results, kinds, True))
                names.update({user: Ref(fresh[index]) for index, user in parts.items()})
            else:
                name = new(_target(node).split(".")[1].strip("_"))
                kind = _kind(value) if isinstance(value, Tensor) else None
                calls.append(Call(_target(node), args, kwargs, (name,), (kind,)))
                names[node] = Ref(name)
    raise NoDerivative(operator.target)


def _target(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return f"operator.{getattr(node.target, '__name__', node.target)}"


def _known_parts(operator: Operator, graph: OperatorGraph) -> dict[int, str]:
    """Parts of the operator's tuple that the forward pass names, by index."""
    found: dict[int, str] = {}
    for name in graph.users.get(operator.name, ()):
        user = graph.by_name[name]
        if user.target == "operator.getitem" and isinstance(user.args[1], int):
            found[user.args[1]] = name
    return found


def _results(
    node: fx.Node, names: dict[fx.Node, Argument], operator: Operator, wanted: tuple[str, ...]
) -> dict[str, str]:
    results = node.args[0]
    assert isinstance(results, (list, tuple))
    found: dict[str, str] = {}
    moved = set[fx.Node]()
    for earlier in node.graph.nodes:
        first = earlier.op == "placeholder" and not moved
        if first or any(source in moved for source in earlier.all_input_nodes):
            moved.add(earlier)
    for value, item in zip(wanted, results, strict=True):
        if item not in moved:  # zero whatever the error is
            continue
        name = names[item] if isinstance(item, fx.Node) else None
        if not isinstance(name, Ref):
            raise NoDerivative(f"{operator.target} has no derivative by {value}")
        found[value] = name.name
    return found


def _kind(value: Tensor) -> TensorType:
    shape = tuple(size if isinstance(size, int) else re.sub(r"\bs\d+\b", BATCH, str(size)) for size in value.shape)
    return TensorType(shape, str(value.dtype).removeprefix("torch."))


def _argument(value: Any, names: dict[fx.Node, Argument]) -> Argument:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (list, tuple)):
        return tuple(_argument(item, names) for item in value)
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return TorchConstant(str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return DeviceArgument()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise NoDerivative(f"an argument of type {type(value).__name__}")
