"""Regions that no error neurons fit on, extended to where they do.

Before:  regions as they grew; the representation of some has no batch dimension to tell samples apart by (messages
         along the edges of a graph, tokens sorted by expert, …).
After:   such a region reaches on to the nearest value that all its paths lead through and that has one. What lies
         between belongs to it, other regions included, and learns by local derivatives.
"""

from __future__ import annotations

import networkx as nx

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.passes.growing import Growing
from reclra_graph.rules.operators import STEPS, short

_SINK = ""


def extended(graph: OperatorGraph, grown: list[Growing]) -> list[Growing]:
    """Regions that all have error neurons. Raises ModelError RG305 where nothing behind a layer has a batch."""
    odd = [region for region in grown if not has_samples(graph, region.post)]
    if not odd:
        return grown
    flow = nx.DiGraph()
    for operator in graph.operators:
        flow.add_edges_from((name, operator.name) for name in operator.reads if name in graph.by_name)
    flow.add_edges_from((name, _SINK) for name in graph.output_values)
    behind = nx.immediate_dominators(flow.reverse(copy=False), _SINK)
    regions = {id(region): region for region in grown}
    owner = {name: region for region in grown for name in (*region.core, *region.activation)}
    problems: list[Problem] = []
    for region in odd:
        if id(region) not in regions or has_samples(graph, region.post):
            continue  # another one has taken it in, or has taken it further
        end = _end(graph, region, behind, owner)
        if end == _SINK:
            shape = graph.types[region.end].shape if region.end in graph.types else "a tuple"
            cause = f"{region.first.module or region.end} gives {shape}, and no single value behind it has a batch"
            problems.append(Problem("RG305", cause, region.first.line))
            continue
        last = owner.get(end)
        stop = last.post if last is not None else end
        before = nx.ancestors(flow, stop) | {stop}
        span = {name for start in region.core for name in nx.descendants(flow, start)} & before
        inner = {id(owner[name]): owner[name] for name in span if name in owner} | {id(region): region}
        names = span | {name for item in inner.values() for name in (*item.core, *item.activation)}
        tail = last.activation if last is not None else ()
        core = [operator.name for operator in graph.operators if operator.name in names - set(tail)]
        kind = "output" if last is not None and last.kind == "output" and not _learns(graph, core) else "layer"
        merged = Growing(core, last.end if last else end, region.first, region.block, tail, stop, kind, True)
        for key in inner:
            regions.pop(key, None)
        regions[id(merged)] = merged
        owner.update(dict.fromkeys((*core, *tail), merged))
    if problems:
        raise ModelError(problems)
    return list(regions.values())


def with_last_layers(graph: OperatorGraph, grown: list[Growing]) -> list[Growing]:
    """Regions in which every output that no layer ends with takes in the layers that lead to it alone.

    Before:  Linear, mean over time, output: the layer would hear from the output over a synapse.
    After:   one region from the layer to the output: the last layer learns from the loss's error itself.
    """
    for output in [region for region in grown if region.kind == "output"]:
        owner = {name: region for region in grown for name in (*region.core, *region.activation)}
        between: set[str] = {output.post}
        feeding: dict[int, Growing] = {}
        waiting = list(graph.by_name[output.post].reads)
        while waiting:
            name = waiting.pop()
            if name not in graph.by_name or name in between or name in graph.without_data:
                continue
            if name in owner:
                feeding[id(owner[name])] = owner[name]
            else:
                between.add(name)
                waiting.extend(graph.by_name[name].reads)
        last = [region for region in feeding.values() if _leads_only(graph, region, between)]
        if not last:
            continue
        members = between | {name for region in last for name in (*region.core, *region.activation)}
        fed = {name for region in last for name in (*region.core, *region.activation)}
        for operator in graph.operators:
            if operator.name in members and any(name in fed for name in operator.reads):
                fed.add(operator.name)
        core = [operator.name for operator in graph.operators if operator.name in fed]
        first = min(last, key=lambda region: graph.operators.index(region.first))
        grown = [region for region in grown if region is not output and region not in last]
        grown.append(Growing(core, output.end, first.first, "", (), output.post))
    return grown


def _leads_only(graph: OperatorGraph, region: Growing, between: set[str]) -> bool:
    """Whether a region leads nowhere but over these operators, and errors can pass back over its activation."""
    if any(short(graph.by_name[name].target) in STEPS for name in region.activation):
        return False
    waiting, seen = [region.post], set[str]()
    while waiting:
        name = waiting.pop()
        for user in graph.users.get(name, ()):
            if user in seen or user not in graph.reaching:
                continue
            seen.add(user)
            if user not in between and graph.by_name[user].differentiable:
                return False
            waiting.append(user)
    return region.post not in graph.output_values


def has_samples(graph: OperatorGraph, value: str) -> bool:
    """Whether error neurons can stand on a value: a floating-point tensor in which samples can be told apart."""
    kind = graph.types.get(value)
    return kind is not None and kind.dtype.startswith(("float", "bfloat")) and graph.sample_shape(value) is not None


def _end(graph: OperatorGraph, region: Growing, behind: dict[str, str], owner: dict[str, Growing]) -> str:
    """The nearest value that all paths from the region lead through and that has samples."""
    at = region.post
    while at != _SINK:
        at = behind.get(at) or _SINK
        holder = owner.get(at)
        if at != _SINK and has_samples(graph, holder.post if holder is not None else at):
            return at
    return _SINK


def _learns(graph: OperatorGraph, core: list[str]) -> bool:
    return any(name in graph.derived for operator in core for name in graph.by_name[operator].reads)
