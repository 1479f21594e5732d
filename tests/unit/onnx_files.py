"""Small ONNX models made by hand, read as a user's file would be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from reclra_graph.errors import ModelError
from reclra_graph.model_file import LoadedModel, load_model

Array = np.ndarray[Any, Any]
IR = 10


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """``node("Add", "a b", "c")``; a dash is an input that is left out."""
    names = [name if name != "-" else "" for name in inputs.split()]
    domain = attributes.pop("domain", "")
    return helper.make_node(kind, names, outputs.split(), name=attributes.pop("name", ""), domain=domain, **attributes)


def model(
    nodes: Sequence[NodeProto], inputs: dict[str, Sequence[Any]], weights: dict[str, Array], outputs: str = "y",
    opset: int = 20, kinds: dict[str, int] | None = None,
) -> ModelProto:  # fmt: skip
    """A model; ``inputs`` are shapes, whose sizes may be names; ``kinds`` the element types that are not float."""
    kinds = kinds or {}
    graph = helper.make_graph(
        nodes,
        "made",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), ["any"]) for name in outputs.split()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    domains = sorted({item.domain for item in nodes} - {""})
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR)


def load(folder: Path, proto: ModelProto, *inputs: str, name: str = "net.onnx") -> LoadedModel:
    path = folder / name
    onnx.save(proto, path)
    return load_model(str(path), inputs)


def refused(folder: Path, proto: ModelProto, *inputs: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(folder, proto, *inputs)
    for problem in caught.value.problems:
        assert problem.cause
        assert problem.place
    return caught.value


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: Any) -> Array:
    return np.array(values, dtype=np.int64)
