"""Blocks: the parts of a model that repeat, each of which wires its own layers.

Before:  an operator graph.
After:   for every operator inside a block the block's name: the path of a module whose class occurs again; or, in a
         model whose modules do not repeat, ``block 1``, ``block 2``, … for isomorphic parts between values that every
         path from the inputs to the outputs leads through (dominators), such as an imported graph's residual blocks.
"""

from __future__ import annotations

import networkx as nx

from reclra_graph.ir.operators import OperatorGraph

_SOURCE, _SINK = "<", ">"


def find_blocks(graph: OperatorGraph) -> dict[str, str]:
    """Block of every operator that lies in one."""
    paths = module_blocks(graph)
    if not paths:
        return _repeated_parts(graph)
    found = {}
    for operator in graph.operators:
        path = next((path for path in paths if f"{operator.module}.".startswith(f"{path}.")), "")
        if path:
            found[operator.name] = path
    return found


def module_blocks(graph: OperatorGraph) -> tuple[str, ...]:
    """Paths of the modules that repeat: the outermost whose class occurs again and that hold two layers or more.

    PyTorch's own containers count only where no class of the model's own repeats.
    """
    owners: dict[str, set[str]] = {}
    for parameter in graph.parameters:
        for key in (parameter.key, *parameter.tied):
            owner = key.rpartition(".")[0]
            parts = owner.split(".")
            for depth in range(1, len(parts)):
                owners.setdefault(".".join(parts[:depth]), set()).add(owner)
    classes = dict(graph.modules)
    holders = [(path, kind) for path, kind in graph.modules if len(owners.get(path, ())) >= 2]
    for containers in (False, True):
        kinds = [kind for _, kind in holders]
        repeated = [
            path
            for path, kind in holders
            if kinds.count(kind) > 1
            and kind not in ("ModuleList", "ModuleDict")
            and (containers or kind != "Sequential")
        ]
        outermost = [path for path in repeated if not any(path.startswith(other + ".") for other in repeated)]
        if len(outermost) > 1:
            return tuple(path for path in classes if path in outermost)
    return ()


def _repeated_parts(graph: OperatorGraph) -> dict[str, str]:
    """Operators of isomorphic parts with two layers or more, each between two values that all paths lead through."""
    flow = nx.DiGraph()
    inputs = {item.name for item in graph.inputs}
    for operator in graph.operators:
        if operator.name in graph.reaching and operator.name not in graph.without_data:
            reads = [name for name in operator.reads if name in flow or name in inputs]
            flow.add_edges_from((name if name not in inputs else _SOURCE, operator.name) for name in reads)
    flow.add_edges_from((name, _SINK) for name in graph.output_values if name in flow)
    if _SOURCE not in flow or _SINK not in flow:
        return {}
    above = nx.immediate_dominators(flow, _SOURCE)
    cuts = [_SINK]
    while cuts[-1] != _SOURCE:
        cuts.append(above[cuts[-1]])
    end_of = {name: index for index, name in enumerate(reversed(cuts))}
    part_of: dict[str, int] = {}
    for name in (_SOURCE, *(operator.name for operator in graph.operators if operator.name in flow), _SINK):
        part = end_of.get(name)
        # A value between two cuts belongs to the part that ends with the second.
        part_of[name] = (
            part
            if part is not None
            else 1
            + max(part_of[source] if source in end_of else part_of[source] - 1 for source in flow.predecessors(name))
        )
    parts: dict[int, list[str]] = {}
    for name, part in part_of.items():
        if name not in (_SOURCE, _SINK):
            parts.setdefault(part, []).append(name)
    # Blocks made by the same code have the same operators in the same order, which is isomorphism enough.
    kinds: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
    for part, names in parts.items():
        reads = [read for name in names for read in graph.by_name[name].reads if read in graph.derived]
        layers = sum(any(read in graph.derived for read in graph.by_name[name].reads) for name in names)
        # What reads its parameters again and again is a loop, such as a recurrent layer, and no block of layers.
        if layers >= 2 and len(set(reads)) == len(reads):
            place = {name: index for index, name in enumerate(names)}
            members = [graph.by_name[name] for name in names]
            kind = tuple((item.target, tuple(place.get(read, -1) for read in item.reads)) for item in members)
            kinds.setdefault(kind, []).append(part)
    chosen = sorted(part for members in kinds.values() if len(members) > 1 for part in members)
    return {name: f"block {number}" for number, part in enumerate(chosen, start=1) for name in parts[part]}
