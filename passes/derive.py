"""Local derivatives as plain operators: how an error passes back over one operator, traced once at compile time.

Before:  an operator, the values it read and the errors at its output, or at the parts of its tuple of outputs.
After:   calls of ATen operators that compute the error at the arguments wanted, such as
         ``aten.gelu_backward.default(e3, h3)``; they run without autograd.

PyTorch's own derivative of the single operator is traced on tensors without data whose batch size is symbolic. Where
the trace computes the operator's own result again, the value that the forward pass left is read instead. Operators that
differ in names alone share one trace.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from reclra_graph.ir.operators import (
    BATCH,
    Argument,
    DeviceArgument,
    Dim,
    Operator,
    OperatorGraph,
    Ref,
    TensorType,
    TorchConstant,
)
from reclra_graph.ir.tasks import Call
from reclra_graph.passes.mended import mended
from reclra_graph.rules.operators import function

# A prime that no layer's sizes have as a factor. PyTorch's composite formulas sometimes turn the batch's symbol into
# this number; wherever it divides a number of the trace, the batch size is meant.
_BATCH_HINT = 1_000_003


_VIEWS = dict.fromkeys(("aten.view.default", "aten._unsafe_view.default"), "aten.reshape.default")


# Operators that read the sizes of what they are given, and none of its numbers.
_SIZES_ALONE = {
    f"aten.{name}"
    for name in (
        "zeros_like.default", "ones_like.default", "full_like.default", "empty_like.default", "new_zeros.default",
        "new_ones.default", "new_full.default", "new_empty.default", "sym_size.int",
    )
}  # fmt: skip


class NoDerivative(Exception):
    """PyTorch knows no derivative of the operator."""


@dataclass(frozen=True)
class _Problem:
    """An operator without its names: references are ``a0``, ``a1``, …; what stays is what the trace depends on."""

    target: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    kinds: tuple[TensorType | Dim, ...]
    """Type of each value read, or the number that it is."""
    results: tuple[tuple[int | None, TensorType], ...]
    """(part, type) of each output that has an error."""
    wanted: tuple[int, ...]
    parts: tuple[int, ...]
    """Parts of the operator's tuple that the forward pass names."""


def derive(
    operator: Operator,
    graph: OperatorGraph,
    errors: Sequence[tuple[int | None, str]],
    wanted: tuple[str, ...],
    new: Callable[[str], str],
) -> tuple[list[Call], dict[str, str]]:
    """Calls that compute the error at the values ``wanted`` of the operator from ``errors``, (part of its tuple of
    outputs or None, name of the error), and the name of the result for each; a derivative that is zero everywhere is
    left out. Names of values are the operator graph's; ``new`` makes fresh ones. Raises NoDerivative where there is
    none."""
    kinds: list[TensorType | Dim] = []
    for name in operator.reads:
        source = graph.by_name.get(name)
        if name in graph.types:
            kinds.append(graph.types[name])
        elif source is not None and source.size is not None:
            kinds.append(source.size)
        else:
            raise NoDerivative(f"{operator.target} takes a tuple of tensors")
    results = []
    for part, _ in errors:
        kind = operator.type if part is None else operator.types[part]
        if kind is None:
            raise NoDerivative(f"{operator.target} does not give a tensor")
        results.append((part, kind))
    short = {name: f"a{index}" for index, name in enumerate(operator.reads)}
    known = _known_parts(operator, graph)
    problem = _Problem(
        operator.target,
        _renamed(operator.args, short),
        _renamed(operator.kwargs, short),
        tuple(kinds),
        tuple(results),
        tuple(operator.reads.index(name) for name in wanted),
        tuple(sorted(known)),
    )
    calls, found = _solved(problem)
    names = {value: name for name, value in short.items()} | {"out": operator.name, BATCH: BATCH}
    names.update({f"part{part}": name for part, name in known.items()})
    names.update({f"e{index}": name for index, (_, name) in enumerate(errors)})
    for call in calls:
        for item in call.results:
            if item:
                names[item] = new(item.partition("!")[2])
    made = [
        Call(
            call.function,
            _renamed(call.args, names),
            _renamed(call.kwargs, names),
            tuple(names[item] if item else "" for item in call.results),
            call.types,
            call.unpack,
        )
        for call in calls
    ]
    return made, {operator.reads[index]: names[name] for index, name in found}


def _renamed(argument: Any, names: dict[str, str]) -> Any:
    if isinstance(argument, Ref):
        return Ref(names[argument.name])
    return tuple(_renamed(item, names) for item in argument) if isinstance(argument, tuple) else argument


def _known_parts(operator: Operator, graph: OperatorGraph) -> dict[int, str]:
    """Parts of the operator's tuple that the forward pass names, by index."""
    found: dict[int, str] = {}
    for name in graph.users.get(operator.name, ()) if operator.types else ():
        user = graph.by_name[name]
        if user.target == "operator.getitem" and isinstance(user.args[1], int):
            found[user.args[1]] = name
    return found


class _Fakes:
    """Tensors without data that share one symbol for the batch."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK])
        source = torch.empty(_BATCH_HINT, device="meta")
        self.counter = self.mode.from_tensor(source, symbolic_context=context)
        self.batch = self.counter.shape[0]

    def size(self, size: Dim) -> Any:
        if isinstance(size, int):
            return size
        if not re.fullmatch(r"[B\d\s+\-*/()]+", size):
            raise NoDerivative(f"a size depends on the batch as {size}")
        return eval(size, {"__builtins__": {}}, {BATCH: self.batch})  # only digits, B and arithmetic signs

    def tensor(self, kind: TensorType) -> Tensor:
        with self.mode:
            return torch.empty([self.size(size) for size in kind.shape], dtype=getattr(torch, kind.dtype))


@lru_cache(maxsize=4096)
def _solved(problem: _Problem) -> tuple[tuple[Call, ...], tuple[tuple[int, str], ...]]:
    """Calls and (position of a value wanted, name of its error) with the problem's own names; fresh ones are
    ``number!label``."""
    held = [index for index, kind in enumerate(problem.kinds) if isinstance(kind, TensorType)]
    try:
        fakes = _Fakes()
        values = [fakes.tensor(problem.kinds[index]) for index in held]  # type: ignore[arg-type]
        sizes = {
            f"a{index}": fakes.size(kind)
            for index, kind in enumerate(problem.kinds)
            if not isinstance(kind, TensorType)
        }
        cotangents = tuple(fakes.tensor(kind) for _, kind in problem.results)

        def backward(counter: Tensor, errors: tuple[Tensor, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
            given = {f"a{index}": value for index, value in zip(held, tensors, strict=True)}

            def forward(*moving: Tensor) -> tuple[Tensor, ...]:
                moved = {f"a{index}": value for index, value in zip(problem.wanted, moving, strict=True)}
                known = {**given, **sizes, **moved}
                result = (_copied if problem.target == "aten.copy.default" else function(problem.target))(
                    *(_given(item, known) for item in problem.args),
                    **{key: _given(item, known) for key, item in problem.kwargs},
                )
                return tuple(result if part is None else result[part] for part, _ in problem.results)

            pull = torch.func.vjp(forward, *(given[f"a{index}"] for index in problem.wanted))[1]
            pulled: tuple[Tensor, ...] = pull(errors)
            return pulled

        # Attention as products and a softmax: the kernels that PyTorch has for each device run on no other.
        with mended(), sdpa_kernel(SDPBackend.MATH):
            traced = make_fx(backward, tracing_mode="symbolic")(fakes.counter, cotangents, *values)
    except NoDerivative:
        raise
    except Exception as failure:  # the tracer and PyTorch's formulas raise errors of many kinds
        said = str(failure).splitlines()[0] if str(failure) else ""
        raise NoDerivative(f"{type(failure).__name__}: {said}") from failure
    _without_zeros(traced.graph, len(cotangents))
    sources = [BATCH, *(f"e{index}" for index in range(len(cotangents))), *(f"a{index}" for index in held)]
    return _calls(traced.graph, sources, problem)


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``aten.copy``, what copy_() becomes without mutation, for which PyTorch has no derivative."""
    return source.to(target.dtype).expand_as(target).clone()


def _given(argument: Argument, held: dict[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return held[argument.name]
    if isinstance(argument, tuple):
        return [_given(item, held) for item in argument]
    if isinstance(argument, DeviceArgument):
        return torch.device("cpu")
    return getattr(torch, argument.name) if isinstance(argument, TorchConstant) else argument


def _calls(
    traced: fx.Graph, sources: list[str], problem: _Problem
) -> tuple[tuple[Call, ...], tuple[tuple[int, str], ...]]:
    names: dict[fx.Node, Argument] = {}
    calls: list[Call] = []
    count = 0
    placeholders = iter(sources)

    def fresh(label: str) -> str:
        nonlocal count
        count += 1
        return f"{count}!{label}"

    def multiple(factor: int) -> Ref:
        if factor == 1:
            return Ref(BATCH)
        name = fresh("size")
        calls.append(Call("operator.mul", (Ref(BATCH), factor), (), (name,), (None,)))
        return Ref(name)

    for node in traced.nodes:
        if node in names:  # a part of a tuple, named when the tuple was
            continue
        value = node.meta.get("val")
        if node.op == "placeholder":
            names[node] = Ref(next(placeholders))
        elif node.op == "output":
            return tuple(calls), _results(node, names, problem)
        elif node.op != "call_function":
            raise NoDerivative(f"{problem.target}: the derivative holds a {node.op}")
        elif isinstance(value, (int, torch.SymInt)) and str(value) != "1" and _expression(value) == BATCH:
            names[node] = Ref(BATCH)
        else:
            args = tuple(_argument(item, names, multiple) for item in node.args)
            kwargs = tuple((key, _argument(item, names, multiple)) for key, item in node.kwargs.items())
            again = (_target(node), args, kwargs) == (problem.target, problem.args, problem.kwargs)
            label = _target(node).split(".")[1].strip("_")
            parts = {int(user.args[1]): user for user in node.users} if isinstance(value, (list, tuple)) else {}
            if again and not parts:
                names[node] = Ref("out")
            elif again and set(parts) <= set(problem.parts):
                names.update({user: Ref(f"part{index}") for index, user in parts.items()})
            elif parts:
                made = {index: fresh(label) for index in sorted(parts)}
                results = tuple(made.get(index, "") for index in range(len(value)))
                kinds = tuple(_kind(item) if isinstance(item, Tensor) else None for item in value)
                calls.append(Call(_target(node), args, kwargs, results, kinds, True))
                names.update({user: Ref(made[index]) for index, user in parts.items()})
            else:
                # The trace's tensors are contiguous; those of a step may be views, which not every view() fits.
                target = _target(node) if _target(node) not in _VIEWS else "aten.reshape.default"
                name = fresh("reshape" if target in _VIEWS.values() else label)
                kind = _kind(value) if isinstance(value, Tensor) else None
                calls.append(Call(target, args, kwargs, (name,), (kind,)))
                names[node] = Ref(name)
    raise NoDerivative(problem.target)


def _target(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    module = getattr(node.target, "__module__", "").lstrip("_")
    return f"{module}.{getattr(node.target, '__name__', node.target)}"


def _without_zeros(traced: fx.Graph, errors: int) -> None:
    """Leave out results that no error moves: a derivative is linear in the error, so they are zero."""
    inputs = [node for node in traced.nodes if node.op == "placeholder"]
    moved = set(inputs[1 : 1 + errors])
    for node in traced.nodes:
        if node.op == "output":
            results = node.args[0]
            assert isinstance(results, (list, tuple))
            node.args = (tuple(item if item in moved else None for item in results),)
        elif _target(node) not in _SIZES_ALONE and any(source in moved for source in node.all_input_nodes):
            moved.add(node)
    traced.eliminate_dead_code()


def _results(node: fx.Node, names: dict[fx.Node, Argument], problem: _Problem) -> tuple[tuple[int, str], ...]:
    results = node.args[0]
    assert isinstance(results, (list, tuple))
    found: list[tuple[int, str]] = []
    for index, item in zip(problem.wanted, results, strict=True):
        if item is None:  # zero whatever the error is
            continue
        name = names[item] if isinstance(item, fx.Node) else None
        if not isinstance(name, Ref):
            raise NoDerivative(f"{problem.target} has no derivative by argument {index}")
        found.append((index, name.name))
    return tuple(found)


def _kind(value: Tensor) -> TensorType:
    shape = tuple(_expression(size) for size in value.shape)
    return TensorType(shape, str(value.dtype).removeprefix("torch."))


def _expression(size: int | torch.SymInt) -> Dim:
    text = re.sub(r"\bs\d+\b", BATCH, str(size))
    if not text.isdigit():
        return text
    factor, rest = divmod(int(text), _BATCH_HINT)
    return int(text) if rest or not factor else BATCH if factor == 1 else f"{factor}*{BATCH}"


def _argument(value: Any, names: dict[fx.Node, Argument], multiple: Callable[[int], Ref]) -> Argument:
    """An argument of the trace; a number that holds the batch size becomes that size again."""
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (list, tuple)):
        return tuple(_argument(item, names, multiple) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and value and value % _BATCH_HINT == 0:
        return multiple(value // _BATCH_HINT)
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return TorchConstant(str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return DeviceArgument()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise NoDerivative(f"an argument of type {type(value).__name__}")
