"""Error edges → jobs for the list scheduler, and what a step would take.

Before:  edges with their forms, and costs.
After:   jobs: a target for every region that an error reaches, with the displacements that it needs; an update for each
         that learns; the learning of its synapses, where that takes time. In front of them all stands the forward pass,
         which takes no time in the unit-cost model and runs on the first lane. Where hand-overs between devices take
         time, jobs on other lanes wait for the values they read.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from reclra_graph.ir.costs import Costs
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Edge
from reclra_graph.passes.best_schedule import best_schedule
from reclra_graph.passes.list_schedule import Job, list_schedule, makespan

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


def step_time(regions: RegionGraph, edges: Sequence[Edge], costs: Costs, gpus: int, quick: bool = False) -> int:
    """The makespan of one step; ``quick``: by list scheduling alone."""
    jobs = wiring_jobs(regions, edges, costs)
    if gpus == 1:
        return sum(costs.forward) + sum(job.cost for job in jobs)
    if costs.transfer(1):
        jobs = _handed_over(regions, edges, costs, jobs)
        return makespan(list_schedule(jobs, gpus))
    placed = list_schedule(jobs, gpus) if quick else best_schedule(jobs, gpus)
    return sum(costs.forward) + makespan(placed)


def wiring_jobs(regions: RegionGraph, edges: Sequence[Edge], costs: Costs) -> list[Job]:
    """The jobs behind the forward pass, where hand-overs are free."""
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


def _handed_over(regions: RegionGraph, edges: Sequence[Edge], costs: Costs, jobs: Sequence[Job]) -> list[Job]:
    """The same behind a forward pass on lane 0, and with what each job on another lane must fetch first: h and z for a
    target, the region's inputs for an update, errors for both, the synapses themselves for their learning."""
    read: dict[int, int] = {}
    for source, target in regions.flow:
        read[target] = read.get(target, 0) + costs.output_bytes[source]
    held: dict[int, int] = {}
    for edge in edges:
        held[edge.target] = held.get(edge.target, 0) + edge.bytes
    found = [Job("forward", sum(costs.forward), lane=0)]
    for job in jobs:
        kind, _, text = job.name.partition(":")
        number = int(text)
        own = {"target": 2 * costs.output_bytes[number], "update": read.get(number, 0)}.get(kind, held.get(number, 0))
        errors = tuple(costs.transfer(costs.output_bytes[int(name.partition(":")[2])]) for name in job.after)
        lane = 0 if job.name == f"target:{regions.output}" else None
        transfer = (costs.transfer(own), *errors)
        found.append(Job(job.name, job.cost, ("forward", *job.after), job.urgent, job.near, transfer, lane))
    return found
