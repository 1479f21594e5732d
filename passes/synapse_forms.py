"""Pairs of regions → error edges: the form of each synapse, under a budget for the memory of all.

Before:  (source, target) pairs of a wiring.
After:   edges. Without a budget asked for, each has its usual form: over sequences position by position, else dense;
         shared over positions where dense would be larger than ``synapse_entries``. A budget that is asked for replaces
         that limit: every synapse starts with the richest of its usual forms, and as few as possible give way, the
         ones that save most first, until the budget holds. Only where the usual forms cannot hold it are the others
         considered, richest first.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.ir.wiring import Edge
from reclra_graph.options import Options, Wired

_LEAST = 256 << 20
_TIMES = 4

USUAL, OTHER, OVER = 0, 1, 2
"""Which forms a wiring needs to hold the budget: its usual ones, others as well, or none does."""


@dataclass(frozen=True)
class Fitted:
    """Edges with their forms; ``bytes`` they take together, ``least`` the smallest number that any forms would."""

    edges: tuple[Edge, ...]
    bytes: int
    rank: int
    least: int


def default_budget(regions: RegionGraph) -> int:
    """Bytes for synapses where none were asked for: four times the parameters, and at least 256 MiB."""
    held = 0
    for item in regions.graph.parameters:
        sizes = [size for size in item.type.shape if isinstance(size, int)]
        held += prod(sizes) * (8 if item.type.dtype == "float64" else 4)
    return max(_TIMES * held, _LEAST)


class SynapseForms:
    """The forms that the synapses of one model can have, each worked out once."""

    def __init__(self, regions: RegionGraph, options: Options) -> None:
        self.regions, self.options = regions, options
        self.asked = options.synapse_memory is not None
        self.budget = options.synapse_memory if options.synapse_memory is not None else default_budget(regions)
        wired = options.wiring if isinstance(options.wiring, Wired) else Wired("", ())
        self._given, self._rules = dict(wired.forms), dict(wired.rules)
        self._ladders: dict[tuple[int, int], tuple[tuple[Edge, ...], int]] = {}

    def usual(self, source: int, target: int) -> Edge:
        """The edge with its richest usual form."""
        return self.ladder(source, target)[0][0]

    def ladder(self, source: int, target: int) -> tuple[tuple[Edge, ...], int]:
        """The edge in its forms, richest first, each smaller than the one before, and how many of them are usual."""
        found = self._ladders.get((source, target))
        if found is None:
            found = self._ladders[source, target] = self._forms(source, target)
        return found

    def edge(self, source: int, target: int, form: str) -> Edge:
        """The edge with this form."""
        first, second = self.regions.regions[source], self.regions.regions[target]
        item = 8 if self.regions.graph.types[second.pre].dtype == "float64" else 4
        shape = (second.units, first.units) if form == "dense" else (second.features, first.features)
        rule = self._rules.get(f"{source}->{target}", self.options.rule)
        return Edge(source, target, form, rule, shape, shape[0] * shape[1] * item)

    def fitting(self, source: int, target: int) -> tuple[str, ...]:
        """All forms that fit an edge, richest first."""
        form = shared_form(self.regions.regions[source], self.regions.regions[target])
        return ("dense", form) if form else ("dense",)

    def fits(self, source: int, target: int, form: str) -> bool:
        """Whether a form exists and fits an edge."""
        return form in self.fitting(source, target)

    def _forms(self, source: int, target: int) -> tuple[tuple[Edge, ...], int]:
        given = self._given.get(f"{source}->{target}")
        if given is not None:
            return (self.edge(source, target, given),), 1
        first, second = self.regions.regions[source], self.regions.regions[target]
        shared = shared_form(first, second)
        large = not self.asked and first.units * second.units > self.options.synapse_entries
        usual = ["dense", shared] if shared else ["dense"]
        if shared and (large or along(first, second)):
            usual = [shared]
        edges = [self.edge(source, target, form) for form in usual]
        kept = [item for index, item in enumerate(edges) if all(item.bytes < other.bytes for other in edges[:index])]
        return tuple(kept), len(kept)

    def fitted(self, pairs: Sequence[tuple[int, int]], budget: int | None = None) -> Fitted:
        """The edges of a wiring, with forms that hold the budget where any do."""
        strict = self.asked or budget is not None
        budget = self.budget if budget is None else budget
        edges = shared(self.regions, [self.usual(*pair) for pair in pairs])
        total = sum(edge.bytes for edge in edges if not edge.shared)
        if total <= budget:
            return Fitted(edges, total, USUAL, total)
        groups = self._groups(edges)
        ladders = [self.ladder(*members[0]) for members in groups]
        for rank in (USUAL, OTHER) if strict else (USUAL,):
            steps = [[item.bytes for item in (ladder if rank else ladder[:usual])] for ladder, usual in ladders]
            levels = downgraded(steps, budget)
            least = sum(step[-1] for step in steps)
            if least <= budget:
                break
        form_of = {
            pair: ladder[level].form
            for members, (ladder, _), level in zip(groups, ladders, levels, strict=True)
            for pair in members
        }
        edges = shared(self.regions, [self.edge(*pair, form_of[pair]) for pair in pairs])
        total = sum(edge.bytes for edge in edges if not edge.shared)
        # A default that cannot be held is no reason to refuse a model.
        return Fitted(edges, total, rank if total <= budget or not strict else OVER, least)

    def _groups(self, edges: Sequence[Edge]) -> list[list[tuple[int, int]]]:
        """Edges that use one synapse, and so take its form together."""
        groups: dict[str, list[tuple[int, int]]] = {}
        for edge in edges:
            groups.setdefault(edge.synapse, []).append((edge.source, edge.target))
        return list(groups.values())


def along(source: Region, target: Region) -> bool:
    """Whether the two are sequences of one length, between which a synapse works position by position."""
    return source.axis == target.axis == -1 and source.shape[:-1] == target.shape[:-1] and len(target.shape) > 1


def shared_form(source: Region, target: Region) -> str:
    """The form that shares a synapse over positions, or nothing where the target has none."""
    if len(target.shape) < 2:
        return ""
    return "token" if -1 in (source.axis, target.axis) else "channel"


def downgraded(steps: Sequence[Sequence[int]], budget: int) -> list[int]:
    """For every synapse the index of its form (bytes of its forms, richest first), so that the budget holds, or as near
    as it goes: what saves most gives way first; then what turns out to fit gets richer again, the smallest first."""
    levels = [0] * len(steps)
    total = sum(step[0] for step in steps)
    waiting = [(step[1] - step[0], index) for index, step in enumerate(steps) if len(step) > 1]
    heapq.heapify(waiting)
    while total > budget and waiting:
        saved, index = heapq.heappop(waiting)
        total += saved
        levels[index] += 1
        step, level = steps[index], levels[index]
        if level + 1 < len(step):
            heapq.heappush(waiting, (step[level + 1] - step[level], index))
    for index in sorted(range(len(steps)), key=lambda item: (steps[item][0], item)):
        step = steps[index]
        for level in range(levels[index]):
            if total - step[levels[index]] + step[level] <= budget:
                total += step[level] - step[levels[index]]
                levels[index] = level
                break
    return levels


def shared(regions: RegionGraph, edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Edges to a layer that runs several times, each through the synapse of its first run."""
    first: dict[tuple[int, tuple[str, ...], tuple[int, int], str], str] = {}
    found = []
    for edge in edges:
        key = (edge.source, tuple(sorted(regions.regions[edge.target].parameters)), edge.shape, edge.form)
        name = first.setdefault(key, edge.name) if key[1] else edge.name
        found.append(edge if name == edge.name else replace(edge, shared=name))
    return tuple(found)
