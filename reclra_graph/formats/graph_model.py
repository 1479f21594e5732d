"""A model that is a graph read from a file, as an nn.Module that trains and can be captured again.

Unlike what ``ExportedProgram.module()`` returns, it knows train mode from eval mode (its operators do not: they are
fixed in the file), and whoever traces it sees each operator's own module path and line, wherever it is called from.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx import traceback
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Plan:
    """What a GraphModel runs: a graph whose ``get_attr`` nodes name its parameters and buffers, and how it is called.

    in_spec, out_spec: the nests of (args, kwargs) and of the result, whose leaves are the graph's placeholders and
    results. positional, keywords: names of the arguments. Copies of a model share it: nobody changes it.
    """

    graph: fx.Graph
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    positional: tuple[str, ...]
    keywords: tuple[str, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self


class GraphModel(nn.Module):
    """Runs a plan's graph. ``graph_model`` makes one whose forward() has the right signature."""

    plan: Plan

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The graph's result, in the nest that the file describes. Raises TypeError for a call of another form."""
        plan = self.plan
        names = plan.positional[len(args) :]
        arguments = (*args, *(kwargs.pop(name) for name in names if name in kwargs))
        in_order = {name: kwargs[name] for name in (*plan.keywords, *kwargs) if name in kwargs}
        leaves, spec = pytree.tree_flatten((arguments, in_order))
        if spec != plan.in_spec:
            wanted = ", ".join((*plan.positional, *(f"{name}=" for name in plan.keywords)))
            raise TypeError(f"the saved graph takes ({wanted}), each of them nested as it was when it was saved")
        with traceback.preserve_node_meta():
            result = fx.Interpreter(self, graph=plan.graph).run(*leaves, enable_io_processing=False)
        return pytree.tree_unflatten(list(result), plan.out_spec)


def graph_model(
    kind: str, graph: fx.Graph, names: Sequence[str], in_spec: pytree.TreeSpec, out_spec: pytree.TreeSpec
) -> GraphModel:
    """A GraphModel without parameters yet. kind: the name of its class. names: of all arguments, where the file has
    them."""
    args, kwargs = pytree.tree_unflatten([None] * in_spec.num_leaves, in_spec)
    known = len(names) == len(args) + len(kwargs) and all(name.isidentifier() for name in names)
    positional = tuple(names[: len(args)]) if known else tuple(f"input_{index}" for index in range(len(args)))
    parameter = inspect.Parameter
    signature = inspect.Signature(
        [
            parameter("self", parameter.POSITIONAL_ONLY),
            *(parameter(name, parameter.POSITIONAL_OR_KEYWORD) for name in positional),
            *(parameter(name, parameter.KEYWORD_ONLY) for name in kwargs),
        ]
    )

    def forward(self: GraphModel, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    made: GraphModel = type(_class_name(kind), (GraphModel,), {"forward": forward})()
    made.plan = Plan(graph, in_spec, out_spec, positional, tuple(kwargs))
    return made


def leaf_spec(count: int) -> pytree.TreeSpec:
    """The nest of a call with ``count`` plain positional arguments."""
    return pytree.tree_structure(((0,) * count, {}))


def register(root: nn.Module, name: str, value: Tensor, kinds: Mapping[str, str]) -> str:
    """Put a parameter or buffer below ``root``, its name split at dots, and return the name that it got.

    ``kinds`` gives the class names of the modules on the way, by their paths. A name that is taken, or that nn.Module
    keeps for itself, gets an underscore.
    """
    *path, last = [part or "_" for part in name.split(".")]
    holder = root
    for depth, part in enumerate(path, start=1):
        child = holder._modules.get(part)
        while child is None and hasattr(holder, part):
            part += "_"
            child = holder._modules.get(part)
        if child is None:
            child = scope(kinds.get(".".join(path[:depth]), "ModuleList"))
            holder.add_module(part, child)
        holder = child
        path[depth - 1] = part
    while hasattr(holder, last):
        last += "_"
    if isinstance(value, nn.Parameter):
        holder.register_parameter(last, value)
    else:
        holder.register_buffer(last, value)
    return ".".join((*path, last))


def scope(kind: str) -> nn.Module:
    """An empty module whose class has the name of the original's, by which repeated blocks are found."""
    made: nn.Module = type(_class_name(kind), (nn.Module,), {})()
    return made


def _class_name(kind: str) -> str:
    name = kind.rpartition(".")[2]
    return name if name.isidentifier() else "Module"


def tag(node: fx.Node, path: str, kind: str, line: str) -> None:
    """Say of a node which module ran it, and where that stands: ``line`` is ``FILE:NUMBER``."""
    file, _, number = line.rpartition(":")
    node.meta["nn_module_stack"] = {"": ("", "GraphModel"), path: (path, kind)}
    node.meta["stack_trace"] = f'  File "{file}", line {number}, in {kind}'


def keep_places(graph: fx.Graph) -> None:
    """Drop what another tracer noted of the graph's values; module paths and source lines stay."""
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
