"""RegionGraph: every operator in one region, regions in an order that can run, every parameter accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import networkx as nx

from reclra_graph.errors import Problem
from reclra_graph.ir.operators import Ref
from reclra_graph.ir.regions import RegionGraph


def region_problems(regions: RegionGraph) -> Iterator[Problem]:
    """Broken invariants of a region graph."""
    graph = regions.graph
    seen = Counter(name for region in regions.regions for name in region.operators)
    for operator in graph.operators:
        if seen[operator.name] != 1:
            yield Problem(
                "RG501", f"operator {operator.name} is in {seen[operator.name]} regions", operator.line or operator.name
            )
    for name in seen.keys() - graph.by_name.keys():
        yield Problem("RG501", f"operator {name} is in a region but not in the graph", name)
    for index, region in enumerate(regions.regions):
        if region.id != index:
            yield Problem("RG501", f"region {region.name} has id {region.id} at place {index}", f"region {region.id}")
    if any(seen[operator.name] != 1 for operator in graph.operators):
        return
    quotient = nx.DiGraph(list(regions.edges))
    if not nx.is_directed_acyclic_graph(quotient):
        cycle = " -> ".join(f"region {edge[0]}" for edge in nx.find_cycle(quotient))
        yield Problem("RG501", f"the regions wait for each other: {cycle}", cycle)
    for source, target in regions.edges:
        if source > target:
            yield Problem("RG501", f"region {target} reads from the later region {source}", f"region {target}")
    for region in regions.regions:
        place = f"region {region.id} ({region.name})"
        if region.kind == "input":
            continue
        for name in (region.pre, *region.activation, region.post):
            if regions.region_of.get(name) != region.id:
                yield Problem("RG501", f"{name} is not in the region that it is named by", place)
        at = region.pre
        for name in region.activation:
            if name in graph.by_name and Ref(at) not in graph.by_name[name].args:
                yield Problem("RG501", f"{name} does not apply to {at}", place)
            at = name
        if at != region.post:
            yield Problem("RG501", f"the activation leads to {at}, not to {region.post}", place)
        if graph.layouts.get(region.pre) != region.layout:
            yield Problem("RG501", f"the layout of {region.pre} is not {region.layout}", place)
        if graph.sample_shape(region.pre) != region.shape:
            yield Problem("RG501", f"shape {region.shape} is not that of {region.pre}", place)
    if [regions.regions[number].post for number in regions.outputs] != [item.value for item in graph.outputs]:
        numbers = ", ".join(str(number) for number in regions.outputs)
        yield Problem("RG501", f"region {numbers} does not make the output", f"region {numbers}")
    yield from _parameters(regions)


def _parameters(regions: RegionGraph) -> Iterator[Problem]:
    graph = regions.graph
    readers = {item.key: len(graph.users.get(item.name, ())) for item in graph.parameters}
    uses = Counter(update.parameter for region in regions.regions for update in region.updates)
    frozen = dict(regions.frozen)
    derived = {source for name, sources in graph.derived.items() if name in graph.by_name for source in sources}
    for item in graph.parameters:
        if item.key in frozen:
            if uses[item.key]:
                yield Problem("RG501", f"{item.key} is frozen ({frozen[item.key]}) and updated", item.key)
        elif item.learns and uses[item.key] == 0:
            yield Problem("RG501", f"{item.key} requires grad, is not updated, and no reason is given", item.key)
        elif item.name not in derived and uses[item.key] > readers[item.key]:
            yield Problem(
                "RG501", f"{item.key} is updated {uses[item.key]} times and used {readers[item.key]} times", item.key
            )
    for key in uses.keys() - readers.keys():
        yield Problem("RG501", f"{key} is updated but is no parameter", key)
