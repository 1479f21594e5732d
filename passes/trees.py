"""Wirings as (source, target) pairs: flat, chained, over relays, by blocks, in groups, or edge by edge as asked for.

Before:  a region graph and, where they are given, relays and a depth.
After:   pairs sorted by target; every region that learns below the output is a target.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import networkx as nx

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.regions import Region, RegionGraph

Parents = dict[int, int]
"""Tree of a wiring: region → the region that sends it its error."""


def supported(regions: RegionGraph) -> list[Region]:
    """Regions that learn, below the output, in order."""
    return [region for region in regions.regions if region.learns and region.id not in regions.outputs]


def bottlenecks(regions: RegionGraph) -> tuple[int, ...]:
    """Narrow layers: fewer units than the hidden regions before and behind. A model that only ever narrows has none."""
    hidden = [region for region in regions.regions if region.kind == "layer" and region.id not in regions.outputs]
    found, widens = [], False
    for index, region in enumerate(hidden):
        near = [hidden[place].units for place in (index - 1, index + 1) if 0 <= place < len(hidden)]
        if near and all(region.units < units for units in near):
            found.append(region.id)
            widens = widens or index + 1 < len(hidden)
    return tuple(found) if widens else ()


def pairs_of(
    regions: RegionGraph, parents: Parents, ahead: Mapping[int, set[int]] | None = None
) -> tuple[tuple[int, int], ...]:
    """(source, target), by target. What hangs on the output hears from every output that it flows into (``ahead``:
    ``reachable``, where it is known)."""
    found: list[tuple[int, int]] = []
    if ahead is None:
        ahead = reachable(regions) if len(regions.outputs) > 1 else {}
    for target, source in sorted(parents.items()):
        reached = [number for number in regions.outputs if number in ahead.get(target, ())]
        several = reached if source == regions.output and reached else [source]
        found.extend((number, target) for number in sorted(several))
    return tuple(found)


def flat(regions: RegionGraph) -> tuple[tuple[int, int], ...]:
    """Every region hears from the output itself."""
    return pairs_of(regions, {region.id: regions.output for region in supported(regions)})


def chain(regions: RegionGraph) -> tuple[tuple[int, int], ...]:
    """Backprop's order: every region hears from the next one that reads it."""
    following: dict[int, list[int]] = {}
    for source, target in regions.flow:
        following.setdefault(source, []).append(target)
    parents: Parents = {}
    waiting = [region.id for region in supported(regions)]
    while waiting:
        number = waiting.pop()
        if number in parents or number in regions.outputs:
            continue
        parents[number] = min((item for item in following.get(number, ()) if item > number), default=regions.output)
        if parents[number] in regions.outputs:
            parents[number] = regions.output
        waiting.append(parents[number])
    return pairs_of(regions, parents)


def relayed(regions: RegionGraph, relays: Sequence[int], depth: int) -> tuple[tuple[int, int], ...]:
    """Every region hangs on the nearest relay that it flows into; relays form a tree of depth − 1 below the output."""
    ahead = reachable(regions)
    parents = _tree(list(relays), regions.output, depth - 1)
    for region in supported(regions):
        if region.id not in relays:
            nearest = [relay for relay in relays if relay > region.id and relay in ahead[region.id]]
            parents[region.id] = min(nearest, default=regions.output)
    return pairs_of(regions, parents)


def block_wise(regions: RegionGraph, ends: Sequence[int], depth: int) -> tuple[tuple[int, int], ...]:
    """Every region of a block hangs on the block's output; regions outside blocks hang on the output."""
    end_of = {regions.regions[number].block: number for number in ends}
    parents = _tree(list(ends), regions.output, depth - 1)
    for region in supported(regions):
        if region.id not in ends:
            parents[region.id] = end_of.get(region.block, regions.output) if region.block else regions.output
    return pairs_of(regions, parents)


def grouped(regions: RegionGraph, depth: int) -> tuple[tuple[int, int], ...]:
    """A tree of exactly the depth asked for, from groups of neighbouring regions, the last of each its relay."""
    return pairs_of(regions, _tree([region.id for region in supported(regions)], regions.output, depth))


def _tree(members: list[int], parent: int, depth: int) -> Parents:
    """Hang ``members`` (in order) below ``parent``, as deep as ``depth`` where there are members enough."""
    if depth <= 1 or len(members) <= 1:
        return dict.fromkeys(members, parent)
    count = max(1, min(round(len(members) ** (1 / depth)), len(members) - depth + 1))
    parents: Parents = {}
    # Later groups take what an even split leaves over, so that one of them is large enough for the depth.
    sizes = _sizes(len(members), count, depth)
    start = 0
    for size in sizes:
        group = members[start : start + size]
        start += size
        parents[group[-1]] = parent
        parents.update(_tree(group[:-1], group[-1], depth - 1))
    return parents


def _sizes(total: int, count: int, depth: int) -> list[int]:
    sizes = [total // count + (index >= count - total % count) for index in range(count)]
    while sizes[-1] < depth and max(sizes[:-1], default=0) > 1:
        sizes[sizes.index(max(sizes[:-1]))] -= 1
        sizes[-1] += 1
    return sizes


def reachable(regions: RegionGraph) -> dict[int, set[int]]:
    """For every region, the regions that its representation flows into, at any distance."""
    ahead: dict[int, set[int]] = {region.id: set() for region in regions.regions}
    for source, target in sorted(regions.flow, reverse=True):
        ahead[source] |= {target} | ahead[target]
    return ahead


def explicit(regions: RegionGraph, wiring: str | Iterable[str], place: str = "wiring") -> tuple[tuple[int, int], ...]:
    """Edges given as ``"9->5"``; checked for everything that can be wrong with them. ``place``: where they stand."""
    items = wiring.replace(";", ",").split(",") if isinstance(wiring, str) else list(wiring)
    problems: list[Problem] = []
    pairs: list[tuple[int, int]] = []
    allowed = set(regions.sites)
    for item in items:
        ends = [part.strip() for part in str(item).split("->")]
        if len(ends) != 2 or not all(re.fullmatch("[0-9]{1,9}", part) for part in ends):
            problems.append(Problem("RG404", f"{str(item).strip()!r} is not an edge", place))
            continue
        source, target = int(ends[0]), int(ends[1])
        unknown = [number for number in (source, target) if number not in allowed]
        if unknown:
            problems.append(Problem("RG404", f"edge {item}: there is no region {unknown[0]} with error neurons", place))
        elif target in regions.outputs:
            problems.append(
                Problem("RG404", f"edge {item} leads into the output, whose error comes from the loss", place)
            )
        elif (source, target) in pairs:
            problems.append(Problem("RG404", f"edge {item} is given twice", place))
        else:
            pairs.append((source, target))
    if not problems:
        problems = _unsound(regions, pairs, place)
    if problems:
        raise ModelError(problems)
    return tuple(sorted(pairs, key=lambda pair: (pair[1], pair[0])))


def _unsound(regions: RegionGraph, pairs: Sequence[tuple[int, int]], place: str) -> list[Problem]:
    wires = nx.DiGraph(list(pairs))
    wires.add_nodes_from(regions.outputs)
    if not nx.is_directed_acyclic_graph(wires):
        cycle = " -> ".join(str(edge[0]) for edge in nx.find_cycle(wires))
        return [Problem("RG408", f"the error edges form a cycle: {cycle}", place)]
    reached = {number for output in regions.outputs for number in nx.descendants(wires, output)}
    dead = [region for region in supported(regions) if region.id not in reached]
    unfed = sorted({source for source, _ in pairs if source not in regions.outputs and source not in reached})
    return [
        Problem("RG407", f"no error reaches region {region.id} ({region.name})", region.line or region.name)
        for region in dead
    ] + [
        Problem("RG407", f"no error reaches region {number}, which should send one on", place)
        for number in unfed
        if number not in {region.id for region in dead}
    ]
