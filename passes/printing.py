"""Calls as Python expressions: an operator by the name people write, a rule by the expression it computes.

Before:  Call("rules.target.target", (h3, d3, beta, (tanh,)), results=("y3",))
After:   y3 = torch.tanh(h3 - beta * d3)

A rule is run once on symbolic tensors (torch.fx), and the graph that this leaves is printed as one expression; parts
that are used twice get a line of their own. So the emitted file and the reference interpreter share every formula.
"""

from __future__ import annotations

import ast
import inspect
import operator as python_operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import _get_qualified_name
from torch.fx.proxy import GraphAppendingTracer

from reclra_graph.ir.operators import Argument, DeviceArgument, Ref, TorchConstant
from reclra_graph.ir.tasks import Call
from reclra_graph.rules import rule
from reclra_graph.rules.operators import STRIDE_BOUND
from reclra_graph.rules.precision import unit

_BINARY: dict[str, ast.operator] = {
    "add": ast.Add(), "sub": ast.Sub(), "mul": ast.Mult(), "truediv": ast.Div(), "div": ast.Div(),
    "matmul": ast.MatMult(), "floordiv": ast.FloorDiv(), "mod": ast.Mod(), "pow": ast.Pow(),
}  # fmt: skip
_FUNCTIONAL = {
    "linear", "conv1d", "conv2d", "conv3d", "gelu", "silu", "elu", "selu", "relu6", "hardtanh", "leaky_relu",
    "softplus", "mish", "hardswish", "hardsigmoid", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "celu",
    "logsigmoid",
}  # fmt: skip
_TORCH = {
    "relu", "tanh", "sigmoid", "sign", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos", "erf", "cat", "stack",
    "bernoulli", "where", "matmul", "bmm", "mm", "addmm",
}  # fmt: skip
_METHODS = {
    "reshape", "permute", "transpose", "flatten", "squeeze", "unsqueeze", "expand", "contiguous", "copy_",
    "mean", "sum", "t", "chunk", "split_with_sizes", "unbind",
}  # fmt: skip
_FUNCTIONAL_LIMITS = {"elu": 2}  # F.elu knows fewer arguments than the operator behind it

Read = Callable[[str], ast.expr]
"""How a value's name is written where it is read: ``z3``, ``P["net.0.weight"]``, ``here(z3)``."""


def name(identifier: str) -> ast.expr:
    """An identifier, or a dotted name."""
    return ast.parse(identifier, mode="eval").body


def call(function: ast.expr | str, args: list[ast.expr], kwargs: dict[str, ast.expr] | None = None) -> ast.expr:
    """``function(*args, **kwargs)``."""
    head = name(function) if isinstance(function, str) else function
    return ast.Call(head, args, [ast.keyword(key, value) for key, value in (kwargs or {}).items()])


def argument(value: Argument, read: Read) -> ast.expr:
    """An IR argument as an expression."""
    if isinstance(value, Ref):
        return read(value.name)
    if isinstance(value, TorchConstant):
        return name(f"torch.{value.name}")
    if isinstance(value, DeviceArgument):
        return name("device")
    if isinstance(value, tuple):
        return ast.List([argument(item, read) for item in value], ast.Load())
    return _literal(value)


def _literal(value: Any) -> ast.expr:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return call("float", [ast.Constant(str(value))])
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
        return ast.UnaryOp(ast.USub(), ast.Constant(-value))
    return ast.Constant(value)


def operator_call(target: str, args: list[ast.expr], kwargs: dict[str, ast.expr]) -> ast.expr:
    """An ATen or Python operator as people write it; in full (``aten.…``) where that is not sure to be the same."""
    space, _, rest = target.partition(".")
    short, _, overload = rest.partition(".")
    if target in STRIDE_BOUND:
        return call(ast.Attribute(args[0], "reshape", ast.Load()), args[1:], kwargs)
    if space == "operator":
        if short == "getitem":
            return ast.Subscript(args[0], args[1], ast.Load())
        return ast.BinOp(args[0], _BINARY[short], args[1]) if short in _BINARY else call(f"operator.{short}", args)
    if space in ("math", "torch"):
        return call(target, args, kwargs)
    if short in ("add", "sub", "mul", "div") and len(args) == 2 and not kwargs:
        return ast.BinOp(args[0], _BINARY[short], args[1])
    if short == "_to_copy" and len(args) == 1 and set(kwargs) == {"dtype"}:
        return call(ast.Attribute(args[0], "to", ast.Load()), [kwargs["dtype"]])
    if short == "neg":
        return ast.UnaryOp(ast.USub(), args[0])
    if short in _FUNCTIONAL and overload in ("default", "padding") and len(args) <= _FUNCTIONAL_LIMITS.get(short, 99):
        return call(f"F.{short}", args, kwargs)
    if short in _TORCH and overload in ("default", "Tensor", "self", "p"):
        return call(f"torch.{short}", args, kwargs)
    if short in _METHODS and overload in ("default", "int", "dim", "dim_IntList", "using_ints") and not kwargs:
        return call(ast.Attribute(args[0], short, ast.Load()), args[1:])
    if short == "sym_size":
        return ast.Subscript(ast.Attribute(args[0], "shape", ast.Load()), args[1], ast.Load())
    return call(target, args, kwargs)  # aten = torch.ops.aten at the top of the file


def rule_lines(item: Call, read: Read, result: str) -> list[tuple[str, ast.expr]]:
    """(name, expression) pairs that compute a rule's result: helpers that are used twice first, ``result`` last."""
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    sources: dict[str, str] = {}

    def symbolic(value: Argument) -> Any:
        if isinstance(value, Ref) and value.name != "_":
            node = graph.placeholder(f"v{len(sources)}")
            sources[node.name] = value.name
            return fx.Proxy(node, tracer)
        if isinstance(value, tuple) and not _is_chain(value):
            return tuple(symbolic(part) for part in value)
        return value

    output = rule(item.function)(*(symbolic(value) for value in item.args), **dict(item.kwargs))
    graph.output(output.node)
    written: dict[fx.Node, ast.expr] = {}
    lines: list[tuple[str, ast.expr]] = []
    helpers = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            written[node] = read(sources[node.name])
        elif node.op == "output":
            (final,) = node.args
            assert isinstance(final, fx.Node)
            lines.append((result, written[final]))
        else:
            expression = _node(node, written)
            if len(node.users) > 1 or sum(argument is node for user in node.users for argument in user.args) > 1:
                helpers += 1
                helper = f"{result}_{'abcdefghijklmnopqrstuvwxyz'[helpers - 1]}"
                lines.append((helper, expression))
                expression = ast.Name(helper, ast.Load())
            written[node] = expression
    return lines


def _is_chain(value: Any) -> bool:
    """Whether a tuple is a chain of operators (rules.operators.Chain), which a rule takes as it is."""
    return bool(value) and all(
        isinstance(link, tuple) and len(link) == 3 and isinstance(link[0], str) for link in value
    )


def _node(node: fx.Node, written: dict[fx.Node, ast.expr]) -> ast.expr:
    args = [_value(item, written) for item in node.args]
    kwargs = {key: _value(item, written) for key, item in node.kwargs.items()}
    if node.op == "call_method":
        return call(ast.Attribute(args[0], str(node.target), ast.Load()), args[1:], kwargs)
    target = node.target
    assert callable(target)
    if isinstance(target, torch._ops.OpOverload):
        return operator_call(str(target), args, kwargs)
    if target is getattr:
        attribute = node.args[1]
        assert isinstance(attribute, str)
        return ast.Attribute(args[0], attribute, ast.Load())
    if getattr(python_operator, target.__name__, None) is target:
        if target is python_operator.neg:
            return ast.UnaryOp(ast.USub(), args[0])
        return operator_call(f"operator.{target.__name__}", args, kwargs)
    if target is unit:
        return call("unit", args, kwargs)  # a function of the emitted file's own
    written_name = _get_qualified_name(target).replace("torch.nn.functional.", "F.").replace("torch._C._nn.", "F.")
    return call(written_name, args, _without_defaults(target, node, kwargs))


def _without_defaults(target: Callable[..., Any], node: fx.Node, kwargs: dict[str, ast.expr]) -> dict[str, ast.expr]:
    """Keyword arguments that say more than the function's own defaults; tracing fills all of them in."""
    try:
        known = inspect.signature(target).parameters
    except ValueError:  # a builtin without a signature
        return kwargs
    return {key: item for key, item in kwargs.items() if key not in known or known[key].default != node.kwargs[key]}


def _value(value: Any, written: dict[fx.Node, ast.expr]) -> ast.expr:
    if isinstance(value, fx.Node):
        return written[value]
    if isinstance(value, tuple):
        return ast.Tuple([_value(item, written) for item in value], ast.Load())
    if isinstance(value, list):
        return ast.List([_value(item, written) for item in value], ast.Load())
    if isinstance(value, slice):
        return ast.Slice(
            *(None if item is None else _value(item, written) for item in (value.start, value.stop, value.step))
        )
    if value is Ellipsis:
        return ast.Constant(...)
    if isinstance(value, torch.dtype):
        return name(str(value))
    return _literal(value)


def unparsed(expression: ast.expr) -> str:
    """Source of an expression."""
    return ast.unparse(ast.fix_missing_locations(expression))
