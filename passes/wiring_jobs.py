"""Error edges → jobs for the list scheduler, and what a step would take.

Before:  edges with their forms, and costs.
After:   jobs: a target for every region that an error reaches, with the displacements that it needs; an update for each
         that learns; the learning of its synapses, where that takes time. In front of them all stands the forward pass,
         which takes no time in the unit-cost model and runs on the first lane. Where hand-overs between devices take
         time, jobs on other lanes fetch the values they read, one after the other and once for each lane, and synapses
         learn on the lane of their target, as in the schedule that is made of the plan. Where every region lives on a
         GPU of its own, so do its jobs, and the forward pass goes from GPU to GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

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
    """(time of Eq. 3, time of Eq. 6, or of what is learned instead) of one error synapse; a readout takes the synapse
    both ways."""
    source, target = regions.regions[edge.source], regions.regions[edge.target]
    if edge.form == "adjoint":
        sent = costs.send_back(source.shape, source.axis, target.shape, edge.shape)
        return sent, costs.learn_back(edge.shape) if edge.rule not in ("fixed", "sign") else 0
    displace, learn = costs.synapse(source.shape, source.axis, target.shape, target.axis, edge.form)
    return displace * (2 if edge.rule == "readout" else 1), learn if edge.rule != "fixed" else 0


def step_time(
    regions: RegionGraph,
    edges: Sequence[Edge],
    costs: Costs,
    gpus: int,
    quick: bool = False,
    placement: Sequence[tuple[int, int]] = (),
) -> int:
    """The makespan of one step; ``quick``: without a search for the best schedule; ``placement``: (region, GPU) where
    regions may not run anywhere. Of many jobs by ``appended``, and of very many that hand over values as well."""
    jobs = wiring_jobs(regions, edges, costs)
    if gpus == 1:
        return sum(costs.forward) + sum(job.cost for job in jobs) + costs.buffers
    if placement:
        jobs = _placed(regions, edges, costs, jobs, dict(placement))
        return appended(jobs, gpus) if len(jobs) > _MOST else makespan(list_schedule(jobs, gpus))
    over = costs.transfer(1) > 0
    if over:
        jobs = _handed_over(regions, edges, costs, jobs)
    before = 0 if over else sum(costs.forward) + costs.buffers
    if len(jobs) > (_MANY if quick else _MOST) and (quick or over):
        found = appended(jobs, gpus)
        return before + (min(found, sum(job.cost for job in jobs)) if over else found)
    return before + makespan(list_schedule(jobs, gpus) if quick or over else best_schedule(jobs, gpus))


def appended(jobs: Sequence[Job], lanes: int) -> int:
    """The makespan of a schedule that leaves no gap to fill later: jobs by the costliest chain behind each, where they
    end earliest. Much less work than ``list_schedule``, and seldom much longer."""
    place = {job.name: index for index, job in enumerate(jobs)}
    before = [[place[name] for name in job.after] for job in jobs]
    reads = [[(value, place[name], over) for value, name, over in job.reads] for job in jobs]
    rank = [job.cost for job in jobs]
    behind = [0] * len(jobs)
    for index in range(len(jobs) - 1, -1, -1):
        rank[index] += behind[index]
        for other in before[index]:
            over = sum(cost for _, maker, cost in reads[index] if maker == other)
            behind[other] = max(behind[other], rank[index] + over * (lanes - 1) // lanes)
    free, lane_of, ends = [0] * lanes, [0] * len(jobs), [0] * len(jobs)
    there: dict[str, set[int]] = {}  # lanes that have a value: where it was made, and where it was brought
    for index in sorted(range(len(jobs)), key=lambda item: (-rank[item], item)):
        job = jobs[index]
        ready = max([ends[other] for other in before[index]], default=0)
        brought, spared = job.cost, [0] * lanes
        for value, maker, over in reads[index]:
            brought += over
            for lane in there.setdefault(value, {lane_of[maker]}):
                spared[lane] += over
        allowed = range(lanes) if job.lane is None else (job.lane,)
        best, chosen = -1, 0
        for lane in (lane_of[place[job.beside]],) if job.beside else allowed:
            end = (free[lane] if free[lane] > ready else ready) + brought - spared[lane]
            if best < 0 or end < best:
                best, chosen = end, lane
        free[chosen] = ends[index] = best
        lane_of[index] = chosen
        for value, _, _ in reads[index]:
            there[value].add(chosen)
    return max(ends, default=0)


def wiring_jobs(regions: RegionGraph, edges: Sequence[Edge], costs: Costs) -> list[Job]:
    """The jobs behind the forward pass, where hand-overs are free."""
    incoming: dict[int, list[int]] = {}
    moved: dict[int, int] = {}
    learned: dict[int, int] = {}
    own = {edge.target for edge in edges if edge.rule == "readout"}
    carried: set[tuple[int, str]] = set()  # what several adjoint edges have in common goes back once
    for edge in edges:
        # All outputs get their errors at once, from the loss.
        sender = regions.output if edge.source in regions.outputs else edge.source
        if edge.rule != "readout" and sender not in incoming.setdefault(edge.target, []):
            incoming[edge.target].append(sender)
        if costs.clock != "unit":
            displace, learn = edge_cost(regions, edge, costs)
            if edge.weight and (edge.source, edge.weight) in carried:
                displace = edge_cost(regions, replace(edge, shape=()), costs)[0]
            carried.add((edge.source, edge.weight))
            at = sender if edge.form == "adjoint" else edge.target  # where the displacement is computed
            moved[at] = moved.get(at, 0) + displace
            learned[edge.home] = learned.get(edge.home, 0) + (0 if edge.shared and edge.form == "adjoint" else learn)
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
    checked = (f"target:{regions.output}",) if own else ()  # nothing learns before the loss was looked at
    updates = [
        Job(
            f"update:{number}",
            costs.update[number],
            tuple(dict.fromkeys((after[number], *checked))),
            urgent=False,
            near=after[number],
        )
        for number in reached
        if regions.regions[number].learns
    ]
    synapses = [
        Job(
            f"synapses:{number}",
            learned[number],
            tuple(dict.fromkeys((after[number], *checked))),
            urgent=False,
            near=after[number],
        )
        for number in reached
        if learned.get(number)
    ]
    return [*targets, *updates, *synapses]


def _sources(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """The first of every pair, by the second."""
    found: dict[int, list[int]] = {}
    for source, target in pairs:
        found.setdefault(target, []).append(source)
    return found


def _handed_over(regions: RegionGraph, edges: Sequence[Edge], costs: Costs, jobs: Sequence[Job]) -> list[Job]:
    """The same behind a forward pass on lane 0, and with what each job on another lane must fetch first: for a target
    h, z and the errors that it hears, for an update the region's inputs and its own error. Synapses learn where their
    target was computed, which has all that they read."""
    inputs = _sources(regions.flow)
    heard = _sources((edge.source, edge.target) for edge in edges if edge.rule != "readout")
    sent = [costs.transfer(size) for size in costs.output_bytes]
    output = regions.output
    found = [Job("forward", sum(costs.forward), lane=0)]
    for job in jobs:
        kind, _, text = job.name.partition(":")
        number = int(text)
        reads: list[tuple[str, str, int]] = []
        if kind == "target":
            reads = [(f"{value}{number}", "forward", sent[number]) for value in "hz"]
            errors = heard.get(number, [])
        elif kind == "update":
            reads = [(f"z{source}", "forward", sent[source]) for source in inputs.get(number, ())]
            errors = [number]
        else:
            errors = []
        for source in errors:
            sender = output if source in regions.outputs else source
            reads.append((f"e{source}", f"target:{sender}", sent[source]))
        pinned = 0 if job.name == f"target:{output}" else None
        beside = job.near if kind == "synapses" else ""
        after = ("forward", *job.after)
        found.append(Job(job.name, job.cost, after, job.urgent, job.near, tuple(reads), pinned, beside))
    if costs.buffers:
        found.append(Job("buffers", costs.buffers, ("forward", f"target:{output}"), urgent=False, lane=0))
    return found


def _placed(
    regions: RegionGraph, edges: Sequence[Edge], costs: Costs, jobs: Sequence[Job], gpu: Mapping[int, int]
) -> list[Job]:
    """The same behind a forward pass that visits every region where it lives, each job on the GPU of its region: what
    crosses are representations on their way forward, and errors."""
    inputs = _sources(regions.flow)
    heard = _sources((edge.source, edge.target) for edge in edges if edge.rule != "readout")
    sent = [costs.transfer(size) for size in costs.output_bytes]
    found = []
    for region in regions.regions:
        sources = inputs.get(region.id, [])
        reads = tuple((f"z{source}", f"forward:{source}", sent[source]) for source in sources)
        after = tuple(f"forward:{source}" for source in sources)
        found.append(Job(f"forward:{region.id}", costs.forward[region.id], after, reads=reads, lane=gpu[region.id]))
    for job in jobs:
        kind, _, text = job.name.partition(":")
        number = int(text)
        own = list(regions.outputs) if number == regions.output else [number]
        errors = heard.get(number, []) if kind == "target" else []
        senders = [(source, regions.output if source in regions.outputs else source) for source in errors]
        after = (*job.after, *(f"forward:{item}" for item in own))
        fetched = tuple((f"e{source}", f"target:{sender}", sent[source]) for source, sender in senders)
        if kind == "target" and number == regions.output:  # the loss is where the last output is
            fetched = tuple((f"h{item}", f"forward:{item}", sent[item]) for item in own)
        found.append(Job(job.name, job.cost, after, job.urgent, reads=fetched, lane=gpu[number]))
    if costs.buffers:
        after = (f"target:{regions.output}",)
        found.append(Job("buffers", costs.buffers, after, urgent=False, lane=gpu[regions.output]))
    return found
