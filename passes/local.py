"""local_vjp: the error of a region, carried through the region's own operators and no further.

Before:  a region with its error e_i at z_i, and parameters some of which have no closed form.
After:   calls of plain operators that give each parameter's derivative, from the operators' derivatives (derive.py) in
         reverse order. Values of other regions are constants here: no derivative crosses a region's boundary.
"""

from __future__ import annotations

from collections.abc import Callable

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import OPAQUE, Operator, OperatorGraph, Ref, references
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call
from reclra_graph.passes.derive import NoDerivative, derive

FRESH = "!"
"""Marks names that are made here, apart from the operator graph's own."""


def local_derivatives(
    graph: OperatorGraph, region: Region, error: str, name: Callable[[str], str]
) -> tuple[list[Call], dict[str, str]]:
    """Calls, and for every parameter key of the region the name of its derivative, summed over the batch; keys whose
    derivative is zero everywhere, as behind a step function, are left out.

    ``error`` names e_i; ``name`` makes fresh names. In the calls, ``!x`` is such a name and ``x`` a value of the graph.
    Raises ModelError RG303 for all operators that have no derivative.
    """
    keys = {item.name: item.key for item in graph.parameters if item.key in region.parameters}
    moving = set(keys)
    inside = set(region.operators) | set(graph.derived)
    members = [operator for operator in graph.operators if operator.name in inside]
    for operator in members:
        if operator.differentiable and any(read in moving for read in operator.reads):
            moving.add(operator.name)
    at: dict[str, dict[int | None, list[str]]] = {region.post: {None: [FRESH + error]}}
    calls: list[Call] = []
    problems: list[Problem] = []

    def fresh(label: str) -> str:
        return FRESH + name(f"{label}{region.id}")

    def total(errors: list[str]) -> str:
        if len(errors) == 1:
            return errors[0]
        result = fresh(f"e{region.id}_sum")
        calls.append(Call("rules.target.total", tuple(Ref(item) for item in errors), (), (result,), (None,)))
        return result

    for operator in reversed(members):
        arrived = at.pop(operator.name, None)
        wanted = tuple(read for read in operator.reads if read in moving)
        if arrived is None or not wanted:
            continue
        source = graph.by_name.get(operator.reads[0])
        if operator.target == "operator.getitem" and source is not None and source.types:
            index = operator.args[1]
            assert isinstance(index, int)
            at.setdefault(source.name, {}).setdefault(index, []).append(total(arrived[None]))
            continue
        if operator.target == OPAQUE:
            _opaque(operator, arrived, wanted, graph, calls, at, fresh, total)
            continue
        try:
            errors = [(part, total(items)) for part, items in arrived.items()]
            made, found = derive(operator, graph, errors, wanted, fresh)
        except NoDerivative as failure:
            place = operator.line or operator.module or operator.name
            problems.append(Problem("RG303", f"{operator.target} has no local derivative: {failure}", place))
            continue
        calls.extend(made)
        for read, result in found.items():
            at.setdefault(read, {}).setdefault(None, []).append(result)
    if problems:
        raise ModelError(problems)
    return calls, {key: total(at[value][None]) for value, key in keys.items() if value in at}


def _opaque(
    operator: Operator,
    arrived: dict[int | None, list[str]],
    wanted: tuple[str, ...],
    graph: OperatorGraph,
    calls: list[Call],
    at: dict[str, dict[int | None, list[str]]],
    fresh: Callable[[str], str],
    total: Callable[[list[str]], str],
) -> None:
    """An opaque sub-module takes its own derivative, from its results to its arguments and parameters."""
    path, args, kwargs, parameters = operator.args
    sums = {part: Ref(total(items)) for part, items in arrived.items()}
    errors = tuple(sums.get(part) for part in range(len(operator.types)))
    inputs = references((args, kwargs))
    keys = {item.name: item.key for item in graph.parameters}
    held = references(parameters)
    results = tuple(fresh("opaque") if name in wanted else "" for name in (*inputs, *held))
    names = tuple(keys[name].removeprefix(f"{path}.") for name in held)
    sent = (path, Ref(operator.name), errors, names)
    calls.append(Call("opaque_vjp", sent, (), results, (None,) * len(results), True))
    for name, result in zip((*inputs, *held), results, strict=True):
        if result:
            at.setdefault(name, {}).setdefault(None, []).append(result)
