"""Error edges → jobs for the list scheduler: what a step does behind its forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from reclra_graph.ir.costs import Costs
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Edge
from reclra_graph.passes.list_schedule import Job

Pairs = Sequence[tuple[int, int]]


def levels(outputs: Sequence[int], pairs: Pairs) -> dict[int, int]:
    """Length of the longest error path to every region that is reached, in edges; outputs are at 0."""
    wires = nx.DiGraph(list(pairs))
    wires.add_nodes_from(outputs)
    found = dict.fromkeys(outputs, 0)
    for number in nx.topological_sort(wires):
        for _, target in wires.out_edges(number):
            if number in found:
                found[target] = max(found.get(target, 0), found[number] + 1)
    return found


def edge_cost(regions: RegionGraph, edge: Edge, costs: Costs) -> tuple[int, int]:
    """(time of Eq. 3, time of Eq. 6) of one error synapse."""
    source, target = regions.regions[edge.source], regions.regions[edge.target]
    ends = (source.shape, source.axis, target.shape, target.axis, edge.form)
    return costs.displace(*ends), costs.learn(*ends) if edge.rule != "fixed" else 0


def wiring_jobs(regions: RegionGraph, edges: Sequence[Edge], costs: Costs) -> list[Job]:
    """A target for every region that an error reaches, with the displacements that it needs; an update for each that
    learns; and the learning of its synapses, where that takes time."""
    incoming: dict[int, list[int]] = {}
    moved: dict[int, int] = {}
    learned: dict[int, int] = {}
    for edge in edges:
        # All outputs get their errors at once, from the loss.
        sender = regions.output if edge.source in regions.outputs else edge.source
        if sender not in incoming.setdefault(edge.target, []):
            incoming[edge.target].append(sender)
        if costs.clock != "unit":
            displace, learn = edge_cost(regions, edge, costs)
            moved[edge.target] = moved.get(edge.target, 0) + displace
            learned[edge.target] = learned.get(edge.target, 0) + learn
    level = levels(regions.outputs, [(edge.source, edge.target) for edge in edges])
    reached = sorted(level, key=lambda number: (level[number], -number))
    targets = [
        Job(f"target:{number}", costs.target[number] + moved.get(number, 0),
            tuple(f"target:{source}" for source in incoming.get(number, ())),
            near=f"target:{max(incoming[number])}" if number in incoming else "")
        for number in reached
        if number == regions.output or number not in regions.outputs
    ]  # fmt: skip
    after = {number: f"target:{regions.output if number in regions.outputs else number}" for number in reached}
    updates = [
        Job(f"update:{number}", costs.update[number], (after[number],), urgent=False, near=after[number])
        for number in reached
        if regions.regions[number].learns
    ]
    synapses = [
        Job(f"synapses:{number}", learned[number], (after[number],), urgent=False, near=after[number])
        for number in reached
        if learned.get(number)
    ]
    return [*targets, *updates, *synapses]
