"""An ONNX graph as a module: each operator a node of an fx graph, each weight a parameter under its own name.

A file does not say which of its tensors were trained. Those that hold floating-point numbers in one dimension or more
train, unless an operator that reads them takes them for constants by its definition: running statistics, bounds,
exponents, values to fill with.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reclra_graph.errors import Problem
from reclra_graph.formats.found import Failure
from reclra_graph.formats.graph_model import GraphModel, graph_model, leaf_spec, register, tag
from reclra_graph.formats.onnx_operators import all_operators
from reclra_graph.formats.onnx_operators.layers import recurrent
from reclra_graph.formats.onnx_operators.shapes import embedding
from reclra_graph.formats.onnx_operators.table import LARGEST_KNOWN, known, tensor
from reclra_graph.formats.onnx_recurrent import RECURRENT, STATES, recurrent_refuses, recurrent_weights

_STANDARD = ("", "ai.onnx")
# Names that torch.onnx.export gives to what it computed itself.
_MADE_UP = re.compile(r"_?val_\d+|onnx::.*|/.*")


def graph_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The graph's inputs, without weights that an old file lists among them."""
    weights = {item.name for item in graph.initializer}
    return [item for item in graph.input if item.name not in weights]


def build(proto: ModelProto, path: Path, opset: int) -> GraphModel:
    """The module. Raises Failure (RG114) with everything that cannot be read, each operator by its name."""
    problems = _unreadable(proto.graph, str(path))
    if problems:
        raise Failure(*problems)
    return _Builder(proto.graph, path.name, opset).build(proto.graph.name)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values; strings are text."""
    found = {}
    for item in node.attribute:
        value = helper.get_attribute_value(item)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, (list, tuple)):
            value = [part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in value]
        found[item.name] = value
    return found


def _unreadable(graph: GraphProto, place: str) -> list[Problem]:
    """Operators, and uses of operators, that there is no function for; each once, with how often it occurs."""
    table = all_operators()
    causes: Counter[str] = Counter()
    first: dict[str, str] = {}
    for number, node in enumerate(graph.node, start=1):
        cause = ""
        attributes = attributes_of(node)
        used = max((index for index, name in enumerate(node.output, start=1) if name), default=1)
        if node.domain not in _STANDARD:
            cause = f"the operator {node.domain}::{node.op_type} is not known"
        elif node.op_type in RECURRENT:
            cause = recurrent_refuses(node, attributes, {item.name for item in graph.initializer})
        elif node.op_type == "Constant":
            if not {"value", "value_float", "value_floats", "value_int", "value_ints"} & attributes.keys():
                cause = f"Constant with {', '.join(attributes)}"
        elif node.op_type not in table:
            cause = f"the operator {node.op_type} is not known"
        else:
            entry = table[node.op_type]
            strange = sorted(attributes.keys() - entry.attributes - {"consumed_inputs"})
            detail = f"attribute {', '.join(strange)}" if strange else entry.refuses(attributes, len(node.input), used)
            cause = f"{node.op_type}: {detail}" if detail else ""
        if cause:
            causes[cause] += 1
            first.setdefault(cause, f"{place}: {node.name or f'node {number}'}")
    if graph.sparse_initializer:
        causes["sparse weights"] += 1
        first["sparse weights"] = f"{place}: {graph.sparse_initializer[0].values.name}"
    for item in graph.initializer:
        if item.data_type == TensorProto.STRING:
            causes[f"the weight {item.name!r} holds text"] += 1
            first.setdefault(f"the weight {item.name!r} holds text", place)
    return [
        Problem("RG114", f"{cause}{f' ({count} times)' if count > 1 else ''}", first[cause])
        for cause, count in causes.items()
    ]


class _Builder:
    def __init__(self, graph: GraphProto, file: str, opset: int) -> None:
        self.proto, self.file, self.opset = graph, file, opset
        self.graph = fx.Graph()
        self.holder = nn.Module()
        self.weights = {item.name: item for item in graph.initializer}
        self.trains, self.sizes = _roles(graph)
        self.values: dict[str, Any] = {}
        self.kinds = _kinds(graph)

    def build(self, name: str) -> GraphModel:
        names = []
        for value in graph_inputs(self.proto):
            node = self.graph.placeholder(re.sub(r"\W", "_", value.name) if value.name[:1].isalpha() else "input")
            self.values[value.name] = node
            names.append(node.name)
        for number, node in enumerate(self.proto.node, start=1):
            self._add(node, f"{self.file}:{number}")
        outputs = {item.name: self._as_tensor(self._value(item.name)) for item in self.proto.output}
        self.graph.output(tuple(outputs.values()))
        result: Any = 0 if len(outputs) == 1 else dict.fromkeys(outputs, 0)
        model = graph_model(
            re.sub(r"\W", "_", name) or "OnnxModel", self.graph, names, leaf_spec(len(names)),
            pytree.tree_structure(result),
        )  # fmt: skip
        model._parameters.update(self.holder._parameters)
        model._buffers.update(self.holder._buffers)
        model._modules.update(self.holder._modules)
        return model

    def _as_tensor(self, value: Any) -> fx.Node:
        return self.graph.call_function(tensor, (value,))

    def _value(self, name: str) -> Any:
        """What travels under a name: a node, numbers known now, or None for an input that is left out."""
        if not name:
            return None
        if name not in self.values:
            self.values[name] = self._constant(numpy_helper.to_array(self.weights[name]), name, name in self.trains)
        return self.values[name]

    def _constant(self, array: np.ndarray[Any, Any], name: str, trains: bool) -> Any:
        plain = array.ndim == 0 or (array.ndim == 1 and (array.dtype.kind in "iub" or name in self.sizes))
        if plain and array.size <= LARGEST_KNOWN and array.dtype.kind in "iubf":
            return known(array.tolist())
        value = _torch(array)
        if trains:
            value = nn.Parameter(value)
        return self.graph.get_attr(register(self.holder, re.sub(r"[^\w.]", "_", name), value, self.kinds))

    def _add(self, node: NodeProto, line: str) -> None:
        attributes = attributes_of(node)
        if node.op_type == "Identity":
            self.values[node.output[0]] = self._value(node.input[0])
            return
        if node.op_type == "Constant":
            self.values[node.output[0]] = self._constant(_constant_value(attributes), node.output[0], False)
            return
        scopes = _scopes(node)
        path = scopes[-1][0] if scopes else re.sub(r"[^\w.]", "_", node.name)
        kind = scopes[-1][1] if scopes and scopes[-1][1] else node.op_type
        if node.op_type in RECURRENT:
            made = self._recurrent(node, attributes, path)
        else:
            entry = all_operators()[node.op_type]
            arguments = [self._value(name) for name in node.input]
            keywords = {key: value for key, value in attributes.items() if key in entry.attributes}
            if "opset" in entry.attributes:
                keywords["opset"] = self.opset
            if "used" in entry.attributes:
                keywords["used"] = len(node.output)
            function = entry.function
            if node.op_type == "Gather" and node.input[0] in self.trains and not attributes.get("axis"):
                function, keywords = embedding, {}
            made = self.graph.call_function(function, tuple(arguments), keywords)
        tag(made, path, kind, line)
        single = len(node.output) == 1 and node.op_type not in ("Split", *RECURRENT)
        for index, name in enumerate(node.output):
            self.values[name] = made if single else self.graph.call_function(_item, (made, index))

    def _recurrent(self, node: NodeProto, attributes: dict[str, Any], path: str) -> fx.Node:
        rule, weights, rest = recurrent_weights(node, attributes, self.weights)
        prefix = f"{path}." if path else ""
        registered = [
            self.graph.get_attr(register(self.holder, prefix + name, nn.Parameter(value), self.kinds))
            for name, value in weights
        ]
        starts = [self._value(name) for name in node.input[5:7]]
        return self.graph.call_function(recurrent, (rule, self._value(node.input[0]), starts, registered), rest)


def _item(values: Any, index: int) -> Any:
    """One of an operator's results; the only one stands for itself."""
    return values[index] if isinstance(values, (tuple, list)) else values


def _torch(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.name == "bfloat16":  # NumPy has no such numbers of its own
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def _constant_value(attributes: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    if "value" in attributes:
        return numpy_helper.to_array(attributes["value"])
    name, value = next(iter(attributes.items()))
    return np.array(value, dtype=np.float32 if "float" in name else np.int64)


def _roles(graph: GraphProto) -> tuple[set[str], set[str]]:
    """(names of the weights that train, names of the values whose numbers an operator must know)."""
    table = all_operators()
    alias = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    # A factor such as 1/√d that an exporter folded is no weight; one that carries a name of the model's may be.
    factors = {item.name for item in graph.initializer if math.prod(item.dims) == 1 and _MADE_UP.fullmatch(item.name)}
    fixed: set[str] = set()
    sizes: set[str] = set()
    for node in graph.node:
        if node.op_type in ("Mul", "Div"):
            fixed.update(factors & set(node.input))
        entry = table.get(node.op_type)
        for index, name in enumerate(node.input):
            while name in alias:
                name = alias[name]
            if index in (entry.constants if entry is not None else STATES):
                fixed.add(name)
            if entry is not None and index in entry.sizes:
                sizes.add(name)
    trained = {
        item.name
        for item in graph.initializer
        if item.name not in fixed and item.dims and math.prod(item.dims) and _finite_floats(item)
    }
    return trained, sizes


def _finite_floats(item: TensorProto) -> bool:
    if item.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return False
    return bool(torch.isfinite(_torch(numpy_helper.to_array(item))).all())


# -- where an operator stood in the model that was exported -----------------------------------------------------------


def _scopes(node: NodeProto) -> list[tuple[str, str]]:
    """(path, class or "") of the modules around an operator, outermost first, as torch.onnx.export notes them."""
    notes = {item.key: item.value for item in node.metadata_props}
    try:
        paths = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        classes = ast.literal_eval(notes.get("pkg.torch.onnx.class_hierarchy", "[]"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        paths, classes = [], []
    if isinstance(paths, list) and isinstance(classes, list) and 1 < len(paths) == len(classes):
        return [(str(path), str(kind)) for path, kind in zip(paths[:-1], classes[:-1], strict=True)]
    if not node.name.startswith("/"):
        return []
    parts: list[str] = []
    for part in node.name[1:].split("/")[:-1]:  # "/layer1/layer1.0/conv1/Conv"
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part
        else:
            parts.append(part)
    return [(".".join(parts), "")] if parts else []


def _kinds(graph: GraphProto) -> dict[str, str]:
    return {path: kind for node in graph.node for path, kind in _scopes(node) if kind}
