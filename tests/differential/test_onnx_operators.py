"""Every ONNX operator that is read, against ONNX's own reference and, marked slow, its conformance tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, checker, helper
from onnx.reference import ReferenceEvaluator

from reclra_graph.formats.found import Failure
from reclra_graph.formats.onnx_graph import build
from reclra_graph.formats.onnx_operators import all_operators
from tests.differential.onnx_cases import Case, cases
from tests.unit.onnx_files import Array, model, node

ALL = list(cases())


@pytest.mark.parametrize("case", ALL, ids=str)
def test_as_the_reference_does(case: Case) -> None:
    names = [f"x{index}" for index in range(len(case.inputs))]
    weights = {f"w{index}": value for index, value in enumerate(case.weights) if value is not None}
    fed = dict(zip(names, case.inputs, strict=True))
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in fed.items()}
    arguments = [*names, *(f"w{index}" if f"w{index}" in weights else "-" for index in range(len(case.weights)))]
    results = " ".join(f"y{index}" for index in range(case.outputs))
    operator = node(case.kind, " ".join(arguments), results, **case.attributes)
    shapes = {name: value.shape for name, value in fed.items()}
    proto = model([operator], shapes, weights, outputs=results, opset=case.opset, kinds=kinds)
    checker.check_model(proto)
    wanted = ReferenceEvaluator(proto).run(None, fed)
    compare(build(proto, Path("net.onnx"), case.opset), case.inputs, wanted)


def compare(module: torch.nn.Module, inputs: Any, wanted: Any, loose: bool = False) -> None:
    with torch.no_grad():
        made = module(*(torch.from_numpy(np.array(item)) for item in inputs))
    results = list(made.values()) if isinstance(made, dict) else [made]
    for result, value in zip(results, wanted, strict=False):
        expected: Array = np.asarray(value)
        assert result.numpy().dtype == expected.dtype
        assert result.shape == expected.shape
        coarse = loose or expected.dtype == np.float16
        tolerance = {"rtol": 2e-3, "atol": 1e-4} if coarse else {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(result.numpy(), expected, **tolerance)


def test_softmax_once_ran_over_all_dimensions_from_its_axis_on() -> None:
    proto = model([node("Softmax", "x", "y", axis=1)], {"x": (2, 3, 4)}, {}, opset=11)
    x = torch.randn(2, 3, 4)
    wanted = torch.softmax(x.reshape(2, 12), 1).reshape(2, 3, 4)
    torch.testing.assert_close(build(proto, Path("net.onnx"), 11)(x), wanted)


def test_no_operator_is_left_out() -> None:
    # Those made of sizes alone, or rarely met, are left to the conformance tests.
    apart = {"ConstantOfShape", "Range", "Attention", "RMSNormalization", "ReduceLogSum", "Swish", "BitwiseAnd",
             "BitwiseOr", "BitwiseXor", "BitwiseNot"}  # fmt: skip
    assert {case.kind for case in ALL} | apart == set(all_operators())


# ONNX's own tests that fail, and why.
BEYOND = {
    "uint16": "torch has no arithmetic of these", "uint32": "the same", "uint64": "the same",
    "training_dropout": "random", "top_k_same_values": "which of several equal numbers comes first is open",
    "empty_set": "torch takes no maximum of nothing", "align_corners": "a factor that gives no whole size",
    "resize_downsample_sizes_linear_pytorch_half_pixel": "an output of size one: torch does as half_pixel says",
    "bitwise_not_3d": "torch has no arithmetic of these", "equal_string": "text",
}  # fmt: skip


@pytest.mark.slow
def test_onnx_conformance() -> None:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    passed, failed = 0, []
    for case in found:
        opset = next((item.version for item in case.model.opset_import if item.domain == ""), 0)
        try:
            module = build(case.model, Path("net.onnx"), opset)
        except Failure:
            continue
        for inputs, outputs in case.data_sets:
            kinds = {getattr(item, "dtype", np.dtype(object)).name for item in (*inputs, *outputs)}
            if not kinds <= {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}:
                continue
            try:
                compare(module, inputs, outputs, loose=True)
                passed += 1
            except Exception as error:
                if not any(name in case.name for name in BEYOND):
                    failed.append(f"{case.name}: {type(error).__name__}: {str(error)[:200]}")
    assert failed == []
    assert passed > 900
    assert TensorProto.FLOAT == 1
