"""OperatorGraph: every value has a shape, nothing is mutated, every name is bound once and before its use."""

from __future__ import annotations

from collections.abc import Iterator

from reclra_graph.errors import Problem
from reclra_graph.ir.operators import Operator, OperatorGraph
from reclra_graph.rules.operators import function


def operator_problems(graph: OperatorGraph) -> Iterator[Problem]:
    """Broken invariants of an operator graph."""
    bound: set[str] = set()
    for held in graph.given:
        if held.name in bound:
            yield Problem("RG501", f"value {held.name} is bound twice", held.name)
        bound.add(held.name)
    for operator in graph.operators:
        place = f"{operator.name} ({operator.line or operator.module or operator.target})"
        for name in operator.reads:
            if name not in bound:
                yield Problem("RG501", f"{operator.name} reads {name}, which nothing before it makes", place)
        if operator.name in bound:
            yield Problem("RG501", f"value {operator.name} is bound twice", place)
        bound.add(operator.name)
        if _mutates(operator):
            yield Problem("RG501", f"{operator.target} changes its argument in place", place)
        sized = operator.type is not None or operator.types or not operator.target.startswith("aten.")
        part = operator.target == "operator.getitem" and bool(graph.by_name.get(operator.reads[0], operator).types)
        if part and operator.type is None:
            yield Problem("RG501", f"{operator.name}, a part of a tuple, has no shape", place)
        if not sized and not operator.target.startswith("aten.sym_"):
            yield Problem("RG501", f"{operator.name} has no shape", place)
    if not graph.outputs:
        yield Problem("RG501", "there is no output", graph.model)
    for output in graph.outputs:
        if output.value not in bound:
            yield Problem("RG501", f"the output {output.value} is not computed", output.value)
    keys = [item.key for item in graph.held]
    for key in {key for key in keys if keys.count(key) > 1}:
        yield Problem("RG501", f"{key} is held twice", key)
    for buffer in graph.buffers:
        if buffer.updated is not None and buffer.updated not in bound:
            yield Problem(
                "RG501", f"buffer {buffer.key} is updated from {buffer.updated}, which is not computed", buffer.key
            )


def _mutates(operator: Operator) -> bool:
    if not operator.target.startswith("aten."):
        return False
    try:
        schema = getattr(function(operator.target), "_schema", None)
    except KeyError:
        return True
    return bool(schema is not None and schema.is_mutable)
