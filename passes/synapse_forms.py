"""Pairs of regions → error edges: the form of each synapse, under a budget for the memory of all.

Before:  (source, target) pairs of a wiring.
After:   edges. Without a budget asked for, each has its usual form: over sequences position by position, else dense;
         shared over positions where dense would be larger than ``synapse_entries``. A budget that is asked for replaces
         that limit: every synapse starts with the richest of its usual forms, and as few as possible give way, the
         ones that save most first, until the budget holds. Only where the usual forms cannot hold it are the others
         considered: ``conv``, ``lowrank(r)``, ``implicit``. A form that the user asks for is kept wherever it fits.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.ir.wiring import Edge, matrices, matrix_bytes, total_bytes
from reclra_graph.options import Options, Wired, known_form, rank_of
from reclra_graph.passes.reverse import ADJOINT, adjoint_edges
from reclra_graph.rules.fit import default_rule
from reclra_graph.rules.forms import fitting, item_bytes, new_edge, own_bytes, pick, shape
from reclra_graph.rules.way_back import ways

_ANY = 1 << 62
_RANKS = (64, 16, 4, 1)
_TRIES = 8
_LEAST = 256 << 20
_TIMES = 4

USUAL, OTHER, OVER = 0, 1, 2
"""Which forms a wiring needs to hold the budget: its usual ones, others as well, or none does."""


@dataclass(frozen=True)
class Fitted:
    """Edges with their forms, the ``bytes`` that they take together, and which forms they needed. Those that are over
    the budget have the smallest forms there are."""

    edges: tuple[Edge, ...]
    bytes: int
    rank: int


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
        self._edge_of: dict[tuple[int, int, str], Edge] = {}
        self._common: dict[int, int] = {}
        self._usual: dict[tuple[int, int], tuple[Edge, ...]] = {}
        self._others: dict[tuple[int, int], tuple[str, ...]] = {}

    def edge(self, source: int, target: int, form: str) -> Edge:
        """The edge with this form; for all branches of an adjoint one together, without their shapes. Raises ValueError
        where the form does not fit."""
        found = self._edge_of.get((source, target, form))
        if found is None and form == ADJOINT:
            size = sum(edge.bytes for edge in self.adjoint([(source, target)]))
            found = self._edge_of[source, target, form] = Edge(source, target, form, self.options.rule, (), size)
        if found is None:
            rule = self.rule(source, target)
            found = self._edge_of[source, target, form] = new_edge(self.regions, source, target, form, rule)
        return found

    def fitting(self, source: int, target: int, *forms: str) -> tuple[str, ...]:
        """All forms that fit an edge, richest first; low-rank ones only of these forms' ranks, or of the usual one."""
        ranks = [rank_of(form) for form in forms if rank_of(form)]
        offered = {"ranks": ranks} if ranks else {}
        return fitting(self.regions, source, target, rule=self.rule(source, target), largest=_ANY, **offered)

    def rule(self, source: int, target: int) -> str:
        """The learning rule of an edge."""
        return self._rules.get(f"{source}->{target}") or default_rule(self.regions, source, self.options)

    def adjoint(self, pairs: Sequence[tuple[int, int]]) -> tuple[Edge, ...]:
        """The adjoint edges of these pairs."""
        return adjoint_edges(self.regions, pairs, self.options.rule, self._rules)

    def fits(self, source: int, target: int, form: str) -> bool:
        """Whether a form exists and fits an edge."""
        if form == ADJOINT:
            return bool(ways(self.regions).branches(source, target))
        return known_form(form) and form in self.fitting(source, target, form)

    # -- the forms of one edge ----------------------------------------------------------------------------------------

    def usual(self, source: int, target: int) -> tuple[Edge, ...]:
        """The edge in its usual forms, richest first, each smaller than the one before."""
        found = self._usual.get((source, target))
        if found is None:
            edges = [self.edge(source, target, form) for form in self._forms(source, target)]
            kept = (item for index, item in enumerate(edges) if all(item.bytes < one.bytes for one in edges[:index]))
            found = self._usual[source, target] = tuple(kept)
        return found

    def _forms(self, source: int, target: int) -> list[str]:
        given = self._given.get(f"{source}->{target}")
        if given is not None:
            return [given]
        if self.options.synapse != "auto":
            return [pick(self.regions, source, target, self.options)]
        if self.options.wired == "reverse":
            return [ADJOINT]
        first, second = self.regions.regions[source], self.regions.regions[target]
        over = shared_form(first, second)
        large = not self.asked and first.units * second.units > self.options.synapse_entries
        if over and (large or along(first, second)):
            return [over]
        return ["dense", over] if over else ["dense"]

    def others(self, source: int, target: int) -> tuple[Edge, ...]:
        """The edge in the forms that are considered only where the usual ones cannot hold a budget."""
        return tuple(self.edge(source, target, form) for form in self._other_forms(source, target))

    def _other_forms(self, source: int, target: int) -> tuple[str, ...]:
        found = self._others.get((source, target))
        if found is None:
            usual = {edge.form for edge in self.usual(source, target)}
            asked = self.options.synapse != "auto" or f"{source}->{target}" in self._given
            forms = () if asked else self.fitting(source, target, *(f"lowrank({rank})" for rank in _RANKS))
            found = self._others[source, target] = tuple(form for form in forms if form not in usual)
        return found

    def least(self, source: int, target: int) -> int:
        """Bytes of the smallest form that stores all its numbers for itself."""
        usual = self.usual(source, target)
        rule, item = usual[0].rule, item_bytes(self.regions, target)
        found = [edge.bytes for edge in usual if edge.form != "implicit" or rule == "fixed"]
        for form in self._other_forms(source, target) if self.asked else ():
            if form != "implicit" or rule == "fixed":
                found.append(own_bytes(form, shape(self.regions, source, target, form), item))
        return min(found)

    # -- the forms of a wiring ----------------------------------------------------------------------------------------

    def fitted(self, pairs: Sequence[tuple[int, int]], budget: int | None = None) -> Fitted:
        """The edges of a wiring, with forms that hold the budget where any do. Adjoint edges have no other form."""
        strict = self.asked or budget is not None
        budget = self.budget if budget is None else budget
        held = {pair: self.usual(*pair)[0].form == ADJOINT for pair in pairs}
        if not any(held.values()):
            return self._fitted(pairs, budget, strict)
        edges = self.adjoint([pair for pair in pairs if held[pair]])
        total = total_bytes(self.regions, edges)
        rest = self._fitted([pair for pair in pairs if not held[pair]], max(0, budget - total), strict)
        edges = tuple(sorted((*edges, *rest.edges), key=lambda edge: (edge.target, edge.source, edge.branch)))
        over = strict and total + rest.bytes > budget
        return Fitted(edges, total + rest.bytes, OVER if over else rest.rank)

    def _fitted(self, pairs: Sequence[tuple[int, int]], budget: int, strict: bool) -> Fitted:
        """The same for edges whose forms can be chosen."""
        edges = shared(self.regions, [self.usual(*pair)[0] for pair in pairs])
        total = total_bytes(self.regions, edges)
        if total <= budget:
            return Fitted(edges, total, USUAL)
        groups: dict[str, list[Edge]] = {}  # edges that use one synapse, and so take its form together
        for edge in edges:
            groups.setdefault(edge.synapse, []).append(edge)
        members = list(groups.values())
        edges = self._chosen(members, [self.usual(edge.source, edge.target) for edge, *_ in members], budget)
        total = total_bytes(self.regions, edges)
        if total <= budget or not strict:
            # A default that cannot be held is no reason to refuse a model.
            return Fitted(edges, total, USUAL)
        smallest = self._smallest(members)
        least = total_bytes(self.regions, smallest)
        if least <= budget:
            aim = budget
            for _ in range(_TRIES):
                edges = self._chosen(members, self._ladders(members), aim)
                total = total_bytes(self.regions, edges)
                if total <= budget:
                    return Fitted(edges, total, OTHER)
                aim -= total - budget
        return Fitted(smallest, least, OTHER if least <= budget else OVER)

    def _chosen(self, members: list[list[Edge]], ladders: Sequence[Sequence[Edge]], budget: int) -> tuple[Edge, ...]:
        levels = downgraded([[edge.bytes for edge in ladder] for ladder in ladders], budget)
        return self._edges(members, [ladder[level].form for ladder, level in zip(ladders, levels, strict=True)])

    def _edges(self, members: list[list[Edge]], forms: Sequence[str]) -> tuple[Edge, ...]:
        found = [
            self.edge(edge.source, edge.target, form)
            for group, form in zip(members, forms, strict=True)
            for edge in group
        ]
        return shared(self.regions, sorted(found, key=lambda edge: (edge.target, edge.source)))

    def _ladders(self, members: list[list[Edge]]) -> list[tuple[Edge, ...]]:
        """All forms of each synapse, largest first. What implicit synapses share is counted in equal parts."""
        count = Counter(group[0].source for group in members)
        ladders = []
        for group in members:
            edge, found = group[0], list[Edge]()
            for item in (*self.usual(edge.source, edge.target), *self.others(edge.source, edge.target)):
                common = self._matrix(item) // count[edge.source] if item.form == "implicit" else 0
                found.append(replace(item, bytes=item.bytes + common) if common else item)
            found.sort(key=lambda item: -item.bytes)
            ladders.append(
                tuple(item for index, item in enumerate(found) if item.bytes < found[index - 1].bytes or not index)
            )
        return ladders

    def _matrix(self, edge: Edge) -> int:
        """Bytes that the implicit synapses of a source share; none where they do not learn."""
        if edge.source not in self._common:
            self._common[edge.source] = sum(matrix_bytes(self.regions, one) for one in matrices([edge]).values())
        return self._common[edge.source]

    def _total(self, edges: Iterable[Edge]) -> int:
        return total_bytes(self.regions, tuple(edges))

    def _smallest(self, members: list[list[Edge]]) -> tuple[Edge, ...]:
        """The least memory that the edges can take: for each source, with implicit synapses or without any."""
        by_source: dict[int, list[list[Edge]]] = {}
        for group in members:
            by_source.setdefault(group[0].source, []).append(group)
        chosen: list[Edge] = []
        for groups in by_source.values():
            tries = []
            for implicit in (False, True):
                forms = []
                for edge, *_ in groups:
                    options = (*self.usual(edge.source, edge.target), *self.others(edge.source, edge.target))
                    allowed = [item for item in options if implicit or item.form != "implicit"] or list(options)
                    forms.append(min(allowed, key=lambda item: item.bytes).form)
                tries.append(self._edges(groups, forms))
            chosen += min(tries, key=self._total)
        return shared(
            self.regions,
            sorted((replace(edge, shared="") for edge in chosen), key=lambda edge: (edge.target, edge.source)),
        )


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
    first: dict[tuple[int, tuple[str, ...], tuple[int, ...], str], str] = {}
    found = []
    for edge in edges:
        key = (edge.source, tuple(sorted(regions.regions[edge.target].parameters)), edge.shape, edge.form)
        name = first.setdefault(key, edge.name) if key[1] else edge.name
        found.append(edge if name == edge.name else replace(edge, shared=name))
    return tuple(found)
