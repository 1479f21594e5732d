"""A model in the ONNX format: ``model.onnx``, and the files beside it that hold its larger tensors.

The graph is the one that was saved: exported in eval mode, its batch norms use their stored statistics and its dropouts
are gone, in training too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, inliner
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import Tensor

from reclra_graph.errors import Problem
from reclra_graph.example_inputs import made
from reclra_graph.formats.found import Failure, Found, first_line, present, what
from reclra_graph.formats.onnx_graph import build, graph_inputs
from reclra_graph.formats.onnx_operators.shapes import dtype_of

_OLDEST = 7
"""The first operator set in which two values broadcast as they do today."""


def from_onnx(path: Path) -> Found:
    """The graph as a module whose weights train, and inputs made from the shapes that the file declares; a free batch
    is 2.

    Raises Failure: RG101 and RG102 where there is no such file, RG112 where it is no ONNX model or is damaged, RG113
    where a file with its tensors is missing or cut short, RG114 for what cannot be read, each operator by its name.
    """
    present(path)
    place = str(path)
    proto = _read(path)
    opset = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST:
        advice = "Convert it with onnx.version_converter.convert_version(model, 13)."
        raise Failure(Problem("RG114", f"it uses operator set {opset}, older than {_OLDEST}", place, advice))
    inputs, problems = _example(proto.graph, place)
    try:
        model = build(proto, path, opset)
    except Failure as failure:
        raise Failure(*failure.problems, *problems) from None
    except Exception as error:  # the checker lets through what its own rules do not cover
        raise Failure(Problem("RG112", f"it cannot be read: {what(error)}", place)) from None
    return Found(model, inputs, {}, tuple(problems))


def _read(path: Path) -> ModelProto:
    place = str(path)
    advice = "Export it again with torch.onnx.export, and copy it whole, with the files beside it."
    try:
        skeleton = onnx.load(place, load_external_data=False)
    except Exception as error:  # protobuf's own, for the most part
        raise Failure(Problem("RG112", f"it is no ONNX model: {first_line(error)}", place, advice)) from None
    if not skeleton.ir_version or not skeleton.HasField("graph"):
        raise Failure(Problem("RG112", "it is no ONNX model: it holds no graph", place, advice))
    beside = list(_beside(skeleton.graph, path))
    if beside:
        raise Failure(*beside)
    try:
        # By its path: only so are files beside it checked, too.
        onnx.checker.check_model(place)
        proto = onnx.load(place)
    except Exception as error:  # the checker's own error, or one of the reader's
        raise Failure(Problem("RG112", f"the ONNX checker refuses it: {first_line(error)}", place, advice)) from None
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    return proto


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor in a graph, those in attributes and inner graphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _beside(graph: GraphProto, path: Path) -> Iterator[Problem]:
    """What is wrong with the files that hold tensors of the graph: each file once."""
    wanted: dict[str, int] = {}
    for tensor in _tensors(graph):
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            wanted[info.location] = max(wanted.get(info.location, 0), (info.offset or 0) + (info.length or 0))
    for name, size in wanted.items():
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts:
            yield Problem("RG113", f"it keeps tensors in {name!r}, outside its own folder", str(path))
            continue
        file = path.parent / name
        if not file.is_file():
            yield Problem("RG113", f"it keeps tensors in {name!r}, which is not there", str(file))
        elif file.stat().st_size < size:
            cause = f"{name!r} is cut short: {file.stat().st_size} bytes of at least {size}"
            yield Problem("RG113", cause, str(file))


def _example(graph: GraphProto, place: str) -> tuple[tuple[Tensor, ...], list[Problem]]:
    """One tensor for each input, and what keeps others from being made (RG106: a size is free)."""
    inputs: list[Tensor] = []
    problems: list[Problem] = []
    batch = ""
    for position, value in enumerate(graph_inputs(graph)):
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value")
            problems.append(Problem("RG114", f"input {value.name!r} is a {kind}, not a tensor", place))
            continue
        names = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        if position == 0 and names:
            batch = names[0]
        sizes = _sizes(value, batch)
        try:
            kind_of_number = dtype_of(value.type.tensor_type.elem_type)
        except (KeyError, TypeError):
            problems.append(Problem("RG114", f"input {value.name!r} holds no numbers", place))
            continue
        if sizes is None or not value.type.tensor_type.HasField("shape"):
            shown = "x".join(str(dim.dim_value or dim.dim_param or "?") for dim in value.type.tensor_type.shape.dim)
            cause = f"sizes of input {value.name!r} are free: {shown or 'no shape is given'}"
            advice = f"Pass a shape for each input, in order: `--input {_suggested(value)}`."
            problems.append(Problem("RG106", cause, place, advice))
            continue
        inputs.append(made(sizes, kind_of_number))
    if not inputs and not problems:
        problems.append(Problem("RG114", "the graph has no inputs", place))
    return tuple(inputs), problems


def _sizes(value: ValueInfoProto, batch: str) -> list[int] | None:
    """The input's sizes, with 2 for a free batch; None where another size is free. ``batch`` is the batch's name."""
    sizes = []
    for index, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.dim_value > 0:
            sizes.append(dim.dim_value)
        elif index == 0 or (batch and dim.dim_param == batch):
            sizes.append(2)
        else:
            return None
    return sizes


def _suggested(value: ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    shape = "x".join(str(dim.dim_value or (2 if index == 0 else 16)) for index, dim in enumerate(dims)) or "2x16"
    kind = dtype_of(value.type.tensor_type.elem_type)
    return shape if kind.is_floating_point else f"{shape}:{str(kind).removeprefix('torch.')}"
