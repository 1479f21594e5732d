"""The model's own operators as tasks: the forward pass region by region, and what follows it in the buffers."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from reclra_graph.ir.operators import OPAQUE, Operator, OperatorGraph, Ref, references
from reclra_graph.ir.tasks import Call
from reclra_graph.passes.lower_state import Lowering, operator_flops
from reclra_graph.rules.operators import is_random


def bookkeeping(graph: OperatorGraph) -> frozenset[str]:
    """Operators that only turn an old buffer into its new value (counting batches): done after the loss's check."""
    updated = {buffer.updated for buffer in graph.buffers if buffer.updated}
    buffers = {buffer.name for buffer in graph.buffers}
    return frozenset(
        operator.name
        for operator in graph.operators
        if operator.name in updated and set(operator.reads) <= buffers and not graph.users.get(operator.name)
    )


def forward_pass(state: Lowering, late: frozenset[str]) -> None:
    """Every operator but those in ``late``, in one task for each piece of a region."""
    pieces: Counter[int] = Counter()
    for region, names in _pieces(state, late):
        calls = _calls(state, names)
        if calls:
            pieces[region] += 1
            label = f"forward:{region}" + (f":{pieces[region]}" if pieces[region] > 1 else "")
            flops = sum(operator_flops(state.graph, state.graph.by_name[name]) for name in names)
            state.add(label, "forward", region, "forward", calls, 0, flops)


def buffer_updates(state: Lowering, late: frozenset[str]) -> None:
    """The operators in ``late``, and every buffer's new value (running statistics, counts) written over the old."""
    calls = _calls(state, tuple(item.name for item in state.graph.operators if item.name in late))
    for buffer in state.graph.buffers:
        if buffer.updated is not None:
            stored, new = state.names[buffer.name], state.names[buffer.updated]
            calls.append(Call("aten.copy_.default", (Ref(stored), Ref(new))))
    if calls:
        # Read of the loss: running statistics move only after the loss was found finite.
        calls.append(Call("after", (Ref("loss"),)))
        state.add("buffers", "buffer", 0, "buffers", calls)


def _pieces(state: Lowering, late: frozenset[str]) -> list[tuple[int, tuple[str, ...]]]:
    """(region, operators) in the order of the forward pass: region by region; in the model's own order where random
    numbers would else be drawn in another, as by dropouts in two branches."""
    graph = state.graph
    whole = [(region.id, tuple(name for name in region.operators if name not in late)) for region in state.regions]
    drawn = [name for _, names in whole for name in names if is_random(graph.by_name[name])]
    if drawn == [item.name for item in graph.operators if item.name in set(drawn)]:
        return whole
    owner = state.plan.regions.region_of
    ordered = [item.name for item in graph.operators if item.name not in late]
    return [(number, tuple(names)) for number, names in groupby(ordered, key=owner.__getitem__)]


def _calls(state: Lowering, names: tuple[str, ...]) -> list[Call]:
    """One call for each of these operators; a call that makes a tuple names those of its parts that are read."""
    graph = state.graph
    calls: list[Call] = []
    parts: dict[str, dict[int, str]] = {}
    for name in names:
        operator = graph.by_name[name]
        if is_part(operator, graph):
            index = operator.args[1]
            assert isinstance(index, int)
            parts.setdefault(operator.reads[0], {})[index] = state.names[name]
    for name in names:
        operator = graph.by_name[name]
        if state.names.get(name) == "B" or is_part(operator, graph):
            continue
        used = parts.get(name, {})
        results = tuple(used.get(index, "") for index in range(len(operator.types)))
        args, kwargs = state.renamed(operator.args), state.renamed(operator.kwargs)
        if operator.target == OPAQUE:
            owner = state.plan.regions.region_of
            through = any(owner.get(read) == owner[name] for read in references(operator.args[1:3]))
            given = (*args[:3], through)
            calls.append(Call("opaque", given, (), (*results, state.names[name]), (*operator.types, None)))
        elif operator.types:
            calls.append(Call(operator.target, args, kwargs, results, operator.types, True))
        else:
            calls.append(Call(operator.target, args, kwargs, (state.names[name],), (operator.type,)))
    return calls


def is_part(operator: Operator, graph: OperatorGraph) -> bool:
    """Whether an operator only takes a part out of another operator's tuple of results."""
    if operator.target != "operator.getitem":
        return False
    source = graph.by_name.get(operator.reads[0])
    return source is not None and bool(source.types)
