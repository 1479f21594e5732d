"""Bottlenecks of a model by its graph: regions, or few regions together, that everything flows through.

Before:  a region graph.
After:   regions that make good relays: dominators (every path from the input to the outputs leads through them), and
         narrow cuts (sets of regions that every path meets, with the fewest units together). Bottlenecks by width are
         in ``trees.bottlenecks``.
"""

from __future__ import annotations

import networkx as nx

from reclra_graph.ir.regions import RegionGraph
from reclra_graph.passes.trees import supported

_SOURCE, _SINK = 0, -1
_CUTS = 15


def dominators(regions: RegionGraph) -> tuple[int, ...]:
    """Regions that learn, below the output, through which every path from the input leads; all of them in a chain."""
    flow = _flow(regions)
    above = nx.immediate_dominators(flow, _SOURCE)
    found, number = [], above.get(_SINK, _SOURCE)
    while number != _SOURCE:
        if regions.regions[number].learns and number not in regions.outputs:
            found.append(number)
        number = above[number]
    return tuple(sorted(found))


def narrow_dominators(regions: RegionGraph) -> tuple[int, ...]:
    """Dominators where the graph branches between them; of those in a row without branches only the narrowest."""
    flow = _flow(regions)
    found: list[int] = []
    row: list[int] = []
    for number in dominators(regions):
        if row and list(flow.successors(row[-1])) != [number]:
            found.append(min(row, key=lambda item: (regions.regions[item].units, -item)))
            row = []
        row.append(number)
    if row:
        found.append(min(row, key=lambda item: (regions.regions[item].units, -item)))
    return tuple(found)


def narrow_cuts(regions: RegionGraph) -> tuple[int, ...]:
    """Regions of narrow cuts: the narrowest of all (a minimum vertex cut, weighted by units), then the narrowest
    before and behind it, and so on while they are narrower than what lies around them."""
    flow = _flow(regions)
    inner = {region.id for region in supported(regions)}
    found: list[int] = []
    waiting = [frozenset(inner)]
    cuts = 0
    while waiting and cuts < _CUTS:
        members = waiting.pop(0)
        if len(members) < 3:
            continue
        cut = _cut(regions, flow, members)
        width = sum(regions.regions[number].units for number in cut)
        widest = max(regions.regions[number].units for number in members)
        if not cut or width >= widest:
            continue
        cuts += 1
        found += cut
        before = {number for end in cut for number in nx.ancestors(flow, end)} & members - cut
        waiting += [frozenset(before), frozenset(members - before - cut)]
    return tuple(sorted(found))


def _cut(regions: RegionGraph, flow: nx.DiGraph, members: frozenset[int]) -> frozenset[int]:
    """The members with the fewest units that every path through the members meets; not the first or last of a path
    through all of them, which would part nothing."""
    split = nx.DiGraph()
    inside = flow.subgraph(members)
    for number in members:
        ends = inside.in_degree(number) == 0 or inside.out_degree(number) == 0
        if not ends:
            split.add_edge((number, 0), (number, 1), capacity=regions.regions[number].units)
        else:
            split.add_edge((number, 0), (number, 1))  # without a capacity: never cut
        if inside.in_degree(number) == 0:
            split.add_edge(_SOURCE, (number, 0))
        if inside.out_degree(number) == 0:
            split.add_edge((number, 1), _SINK)
    split.add_edges_from(((first, 1), (second, 0)) for first, second in inside.edges)
    try:
        _, (near, _) = nx.minimum_cut(split, _SOURCE, _SINK)
    except nx.NetworkXUnbounded:
        return frozenset()
    return frozenset(number for number in members if (number, 0) in near and (number, 1) not in near)


def _flow(regions: RegionGraph) -> nx.DiGraph:
    """The regions' flow between one source and one sink."""
    flow = nx.DiGraph()
    flow.add_nodes_from((_SOURCE, *regions.sites, _SINK))
    flow.add_edges_from(regions.flow)
    for number in regions.sites:
        if flow.in_degree(number) == 0:
            flow.add_edge(_SOURCE, number)
    flow.add_edges_from((number, _SINK) for number in regions.outputs)
    return flow
