"""A model as a chain of pieces, each of which reads nothing but what the one before puts out.

Before:  regions, with an operator graph of any form.
After:   links f_1 … f_L with z_l = f_l(z_{l−1}), z_0 the input. A link ends at the representation of a region that
         every path from an input to the output leads through. It is one region, or several of one block of the model,
         where something inside the block (a skip connection, the heads of an attention) leads past them. What leads
         past a whole region outside of any block is refused: a loop that takes derivatives inside a link would there
         be backpropagation.
"""

from __future__ import annotations

from dataclasses import dataclass

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import OPAQUE, Operator
from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.rules.operators import STEPS, short

WITHOUT_A_CHAIN = "Use a method whose errors travel over synapses, such as reclra: it takes models of any form."


@dataclass(frozen=True)
class Link:
    """f_l: ``operators`` lead from ``start``, a value, to z_l, the representation of ``end``; ``before`` is the region
    of z_{l−1} (region 0: the input). ``regions`` are those inside, ``end`` the last of them."""

    start: str
    before: Region
    end: Region
    regions: tuple[Region, ...]
    operators: tuple[Operator, ...]


def links_of(regions: RegionGraph, method: str, blocks: bool = True) -> tuple[Link, ...]:
    """The chain, first link first. ``blocks``: whether a block whose regions are no chain may be a link.

    Raises ModelError RG460 with everything in the way of ``method``: several losses, sub-modules that are not captured,
    and connections past a region that may not be inside a link.
    """
    graph = regions.graph
    problems = [
        Problem(
            "RG460",
            f"{method} needs every operator, and {operator.module or operator.name} is a sub-module kept whole",
            operator.line or operator.module,
        )
        for operator in graph.operators
        if operator.target == OPAQUE
    ]
    if len(regions.outputs) > 1:
        labels = ", ".join(item.label for item in graph.outputs)
        cause = f"{method} knows one output, and the model has {len(regions.outputs)} with a loss: {labels}"
        problems.append(Problem("RG460", cause, graph.model, "Name one of them with output."))
    if problems:
        raise ModelError(problems)
    cuts = _cuts(regions)
    found = []
    for before, end in zip((0, *cuts), cuts, strict=False):
        inside = tuple(item for item in regions.regions[before + 1 : end + 1] if item.post in graph.reaching)
        homes = {item.block for item in inside}
        if len(inside) > 1 and (not blocks or len(homes) > 1 or homes == {""}):
            problems.append(_past(regions, "layers or blocks" if blocks else "layers", method, before, end))
            continue
        operators = _between(regions, before, end)
        found.append(Link(regions.regions[before].post, regions.regions[before], inside[-1], inside, operators))
    if problems:
        raise ModelError(problems)
    return tuple(found)


def steps_of(links: tuple[Link, ...], regions: RegionGraph, method: str) -> list[Problem]:
    """Step functions among the activations: a method that takes derivatives inside a link learns nothing there."""
    graph = regions.graph
    return [
        Problem(
            "RG460",
            f"{method} takes derivatives inside a layer, and that of {graph.by_name[name].target} in region "
            f"{region.id} ({region.name}) is 0",
            graph.by_name[name].line or region.name,
            "Use a method without derivatives, such as reclra.",
        )
        for link in links
        for region in link.regions
        for name in region.activation
        if short(graph.by_name[name].target) in STEPS
    ]


def _data(regions: RegionGraph) -> list[Operator]:
    """Operators on the way to the output that hold something of the batch, in order."""
    graph = regions.graph
    return [item for item in graph.operators if item.name in graph.reaching and item.name not in graph.without_data]


def _cuts(regions: RegionGraph) -> tuple[int, ...]:
    """Regions that every path from an input to the output leads through, the output last: behind their representation
    nothing that was there before it is read any more."""
    graph = regions.graph
    ends = {region.post: region.id for region in regions.regions[1:]}
    data = _data(regions)
    last = {name: index for index, operator in enumerate(data) for name in operator.reads}
    waiting = {item.name for item in graph.inputs if item.name in last}
    found = []
    for index, operator in enumerate(data):
        waiting = {name for name in waiting if last[name] > index}
        if operator.name in ends and not waiting:
            found.append(ends[operator.name])
        if operator.name in last:
            waiting.add(operator.name)
    output = regions.output
    return (*(number for number in found if number < output), output)


def _past(regions: RegionGraph, pieces: str, method: str, before: int, end: int) -> Problem:
    """The first connection that leads past a region between two cuts."""
    inside, names = range(before + 1, end + 1), regions.regions
    fed = {(0, regions.region_of[reader]) for item in regions.graph.inputs for reader in regions.graph.users[item.name]}
    flow = sorted((i, j) for i, j in {*regions.flow, *fed} if before <= i and j in inside)
    source, target = next(((i, j) for i, j in flow if j > i + 1), (before, end))
    past = ", ".join(str(number) for number in inside if source < number < target)
    cause = (
        f"{method} needs a chain of {pieces}, and what {names[source].name} gives to {names[target].name} "
        f"({source}->{target}) leads past region {past or end}"
    )
    return Problem("RG460", cause, names[target].line or names[target].name, WITHOUT_A_CHAIN)


def _between(regions: RegionGraph, before: int, end: int) -> tuple[Operator, ...]:
    """The operators that lead from one cut to the next, in order."""
    start, wanted = regions.regions[before].post, {regions.regions[end].post}
    found = []
    for operator in reversed(_data(regions)):
        if operator.name in wanted and operator.name != start:
            wanted.update(operator.reads)
            found.append(operator)
    return tuple(reversed(found))
