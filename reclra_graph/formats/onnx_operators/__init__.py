"""ONNX operators as functions of torch. ``TABLE`` has them by name, after ``all_operators()``."""

from __future__ import annotations

from reclra_graph.formats.onnx_operators.table import TABLE, OnnxOperator


def all_operators() -> dict[str, OnnxOperator]:
    """Every operator that can be read, by its name in the standard domain."""
    from reclra_graph.formats.onnx_operators import layers, pointwise, reductions, shapes, windows

    assert layers
    assert pointwise
    assert reductions
    assert shapes
    assert windows
    return TABLE
