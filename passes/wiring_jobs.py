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

_MANY, _MOST = 120, 1000


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
    """The makespan of one step; ``quick``: without a search for the best schedule. Of many jobs by ``appended``, and of
    very many that hand over values as well."""
    jobs = wiring_jobs(regions, edges, costs)
    if gpus == 1:
        return sum(costs.forward) + sum(job.cost for job in jobs)
    over = costs.transfer(1) > 0
    if over:
        jobs = _handed_over(regions, edges, costs, jobs)
    before = 0 if over else sum(costs.forward)
    if len(jobs) > (_MANY if quick else _MOST) and (quick or over):
        return before + appended(jobs, gpus)
    return before + makespan(list_schedule(jobs, gpus) if quick or over else best_schedule(jobs, gpus))


def appended(jobs: Sequence[Job], lanes: int) -> int:
    """The makespan of a schedule that leaves no gap to fill later: jobs by the costliest chain behind each, where they
    end earliest. Much less work than ``list_schedule``, and seldom much longer."""
    place = {job.name: index for index, job in enumerate(jobs)}
    before = [
        [(place[name], over) for name, over in zip(job.after, job.transfer or (0,) * len(job.after), strict=True)]
        for job in jobs
    ]
    rank = [job.cost for job in jobs]
    behind = [0] * len(jobs)
    for index in range(len(jobs) - 1, -1, -1):
        rank[index] += behind[index]
        for other, over in before[index]:
            behind[other] = max(behind[other], rank[index] + over * (lanes - 1) // lanes)
    free, lane_of, ends = [0] * lanes, [0] * len(jobs), [0] * len(jobs)
    for index in sorted(range(len(jobs)), key=lambda item: (-rank[item], item)):
        cost, pinned = jobs[index].cost, jobs[index].lane
        best, chosen = -1, 0
        for lane in range(lanes) if pinned is None else (pinned,):
            start = free[lane]
            for other, over in before[index]:
                ready = ends[other] if lane_of[other] == lane else ends[other] + over
                start = max(start, ready)
            if best < 0 or start + cost < best:
                best, chosen = start + cost, lane
        free[chosen] = ends[index] = best
        lane_of[index] = chosen
    return max(ends, default=0)


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
    sent = [costs.transfer(size) for size in costs.output_bytes]
    found = [Job("forward", sum(costs.forward), lane=0)]
    for job in jobs:
        kind, _, text = job.name.partition(":")
        number = int(text)
        own = {"target": 2 * costs.output_bytes[number], "update": read.get(number, 0)}.get(kind, held.get(number, 0))
        errors = tuple(sent[int(name.partition(":")[2])] for name in job.after)
        lane = 0 if job.name == f"target:{regions.output}" else None
        transfer = (costs.transfer(own), *errors)
        found.append(Job(job.name, job.cost, ("forward", *job.after), job.urgent, job.near, transfer, lane))
    return found
