"""Wiring "reverse": an error edge against every connection of the forward pass, and the adjoint edges of any wiring.

Before:  5 reads z_4 through conv2 and z_3 through the projection of its skip; 6 reads z_5
After:   edges 6->5, 5->4 and 5->3, each with the weight that it mirrors

On a chain of layers these are the edges of the wiring "chain". There are none to region 0, the input; none to outputs,
whose error is the loss's own; and none to regions through which no region that learns would hear anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Edge
from reclra_graph.options import AS_WEIGHT, MIRRORING, Options
from reclra_graph.passes.trees import reachable, supported
from reclra_graph.rules.forms import own_bytes
from reclra_graph.rules.way_back import TRACED, Branch, is_linear, ways

ADJOINT = "adjoint"


def reverse(regions: RegionGraph) -> tuple[tuple[int, int], ...]:
    """(source, target) pairs, by target. Raises ModelError RG445 for regions that learn and hear nothing."""
    found = ways(regions)
    hears = {number: tuple(found.of(number).branches) for number in regions.sites}
    useful: set[int] = set()
    for number in regions.sites:  # inputs of a region come before it
        if regions.regions[number].learns or any(item in useful for item in hears[number]):
            useful.add(number)
    reached, pairs = set(regions.outputs), []
    for source in reversed(regions.sites):
        if source in reached:
            targets = [item for item in hears[source] if item in useful and item not in regions.outputs]
            reached.update(targets)
            pairs += [(source, target) for target in targets]
    missing = [region.id for region in supported(regions) if region.id not in reached]
    if missing:
        raise ModelError([_unreached(regions, number) for number in missing])
    return tuple(sorted(pairs, key=lambda pair: (pair[1], pair[0])))


def _unreached(regions: RegionGraph, number: int) -> Problem:
    region, found = regions.regions[number], ways(regions)
    for source in sorted(reachable(regions)[number]):
        if number in found.of(source).blocked:
            cause, place = found.of(source).blocked[number]
            said = f"reverse does not reach region {number} ({region.name}): on the way from region {source}, {cause}"
            return Problem("RG445", said, place or region.line or region.name)
    said = f"reverse does not reach region {number} ({region.name}): no region that hears an error reads it"
    return Problem("RG445", said, region.line or region.name)


def left_out(regions: RegionGraph, pairs: Collection[tuple[int, int]]) -> str:
    """The connections of the forward pass that a reverse wiring has no edge, or not every branch, against, in a few
    words; nothing where there are none."""
    found = ways(regions)
    hearing = sorted({*regions.outputs, *(target for _, target in pairs)}, reverse=True)
    lost = [
        f"from region {source} to region {target}, since {cause}"
        for source in hearing
        for target, (cause, _) in sorted(found.of(source).blocked.items())
        if target
    ]
    more = f", and {len(lost) - 3} more" if len(lost) > 3 else ""
    return f"no error goes back {'; '.join(lost[:3])}{more}" if lost else ""


# -- adjoint edges ----------------------------------------------------------------------------------------------------


def adjoint_edges(
    regions: RegionGraph, pairs: Sequence[tuple[int, int]], rule: str, rules: Mapping[str, str]
) -> tuple[Edge, ...]:
    """The adjoint edges of these pairs: one for each branch of each connection. ``rules`` are those of single edges, by
    their names, or by the name of all branches. What has no weight that learns stays as it is."""
    found: list[Edge] = []
    first: dict[tuple[str, str], Edge] = {}
    learning, keys = _learning(regions), {item.key for item in regions.graph.parameters}
    item = 8 if regions.synapse_dtype == "float64" else 4
    for source, target in pairs:
        branches = ways(regions).branches(source, target)
        for number, branch in enumerate(branches, start=1):
            edge = Edge(source, target, ADJOINT, "fixed", (), 0, "", number if len(branches) > 1 else 0, branch.weight)
            asked = rules.get(edge.name, rules.get(f"{source}->{target}", rule))
            if branch.weight:
                frozen = asked in AS_WEIGHT and branch.weight in keys - learning
                edge = replace(edge, rule="fixed" if frozen else asked, shape=branch_shape(regions, branch))
            if edge.stored:
                shares = first.setdefault((branch.weight, edge.rule), edge)
                size = own_bytes(ADJOINT, edge.shape, item)
                edge = replace(edge, bytes=size, shared="" if shares is edge else shares.name)
            found.append(edge)
    return tuple(found)


def _learning(regions: RegionGraph) -> set[str]:
    """Keys of the parameters that learn."""
    return {key for region in regions.regions for key in region.parameters}


def branch_shape(regions: RegionGraph, branch: Branch) -> tuple[int, ...]:
    """The shape of the weight that leads over a branch; () for none."""
    sizes = regions.graph.types[branch.value].shape if branch.value else ()
    return tuple(size for size in sizes if isinstance(size, int))


def edge_problems(regions: RegionGraph, options: Options, edges: Sequence[Edge]) -> list[Problem]:
    """Rules that do not fit their edges, and derivatives on the way back that ``strict`` refuses."""
    problems, learning = [], _learning(regions)
    advice_for_one = "Give this edge another rule in a wiring file, or multiply with the parameter itself."
    advice = 'Use wiring="reverse", or the form adjoint between neighbours; or another rule.'
    for edge in edges:
        if edge.rule in MIRRORING and edge.form != ADJOINT:
            cause = f"edge {edge.name} has the rule {edge.rule!r}, which needs a weight to mirror; it is {edge.form}"
            problems.append(Problem("RG442", cause, f"edge {edge.name}", advice))
        elif edge.form == ADJOINT and edge.rule in AS_WEIGHT and edge.weight not in learning:
            cause = f"edge {edge.name} has the rule {edge.rule!r}, but {edge.weight}, which it mirrors, is no parameter"
            problems.append(Problem("RG442", cause, f"edge {edge.name}", advice_for_one))
    return problems + (_strict_problems(regions, edges) if options.strict else [])


def _strict_problems(regions: RegionGraph, edges: Sequence[Edge]) -> list[Problem]:
    """Operators between regions that an error could pass by their derivative alone."""
    graph, found = regions.graph, dict[str, Problem]()
    for edge in edges:
        way = ways(regions).of(edge.source) if edge.form == ADJOINT else None
        for link in way.towards([regions.regions[edge.target].post]) if way else ():
            operator = graph.by_name[link.operator]
            if link.how == TRACED and not is_linear(operator):
                cause = f"edge {edge.name} goes back over {operator.target}, which has no closed adjoint"
                place = operator.line or operator.module or operator.name
                found.setdefault(operator.name, Problem("RG304", cause, place))
    return list(found.values())
