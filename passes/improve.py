"""Trees of parents → better trees: the planner's search beyond the named wirings.

Before:  seeds (trees in which every region that learns has the parent that sends it its error), and costs.
After:   the best tree found. Two means: wirings by deadline (every region takes the parent that costs least work among
         those through which it would still be done in time, for a range of deadlines), and a local search that gives
         single regions, or all that hang on a relay, another parent. Both are deterministic and bounded by a count of
         evaluations, never by time. A parent is always a region that the child's representation flows into.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from reclra_graph.ir.costs import Costs
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.passes.synapse_forms import USUAL, Fitted, SynapseForms
from reclra_graph.passes.trees import Parents, pairs_of, reachable, supported
from reclra_graph.passes.wiring_jobs import edge_cost, step_time

_EVALUATIONS = 1500
_JOBS = 40_000
_DEADLINES = 12
_NEAREST = 24
_FEW = 12
_KEPT = 8

Key = tuple[int, int, int, int]
"""(forms needed, makespan, bytes, sum of path lengths): smaller is better."""


@dataclass(frozen=True)
class Scored:
    """A tree with its edges and what it is worth."""

    parents: Parents
    fitted: Fitted
    key: Key


@dataclass
class Search:
    """What all evaluations of one model share. ``budget``: bytes for synapses where there is a limit; ``depth``: the
    longest path where one is asked for."""

    regions: RegionGraph
    gpus: int
    costs: Costs
    forms: SynapseForms
    budget: int | None = None
    depth: int | None = None
    evaluations: int = 0
    best: list[Scored] = field(default_factory=list)
    """The best trees of all that were evaluated."""
    _work: dict[tuple[int, int, str], tuple[int, int]] = field(default_factory=dict)
    _hung: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ahead = reachable(self.regions)
        self.members = [region.id for region in supported(self.regions)]
        self.limit = max(12, min(_EVALUATIONS, _JOBS // (3 * len(self.members) + 1)))
        narrow = sorted(self.members, key=lambda number: (self.regions.regions[number].units, -number))[:_NEAREST]
        self.choices = {number: self._parents(number, set(narrow)) for number in self.members}

    def _parents(self, number: int, narrow: set[int]) -> tuple[int, ...]:
        """Who may send a region its error: the output, and the regions that it flows into; of many, the nearest and
        those that are narrowest in the model."""
        ahead = sorted(self.ahead[number] & set(self.members))
        if len(ahead) > 2 * _NEAREST:
            ahead = sorted({*ahead[:_NEAREST], *(item for item in ahead if item in narrow)})
        return (*ahead, self.regions.output)

    def sources(self, parent: int, child: int) -> list[int]:
        """The regions whose errors the child hears when it hangs on the parent."""
        if parent != self.regions.output:
            return [parent]
        return [number for number in self.regions.outputs if number in self.ahead[child]] or [parent]

    def work(self, parent: int, child: int) -> tuple[int, int]:
        """(time of Eq. 3, time of Eq. 6) of the child's synapses, in their richest usual form."""
        found = self._hung.get((parent, child))
        if found is None:
            costs = [
                self._cost(source, child, self.forms.usual(source, child)[0].form)
                for source in self.sources(parent, child)
            ]
            found = sum(first for first, _ in costs), sum(second for _, second in costs)
            self._hung[parent, child] = found
        return found

    def _cost(self, source: int, child: int, form: str) -> tuple[int, int]:
        key = (source, child, form)
        if key not in self._work:
            self._work[key] = edge_cost(self.regions, self.forms.edge(source, child, form), self.costs)
        return self._work[key]

    # -- what a tree is worth -----------------------------------------------------------------------------------------

    def bound(self, parents: Parents, fitted: Fitted) -> int:
        """No schedule of this tree is shorter: its longest chain, and its work shared out evenly."""
        costs, output = self.costs, self.regions.output
        moved: dict[int, int] = {}
        learned: dict[int, int] = {}
        if costs.clock != "unit":
            for edge in fitted.edges:
                first, second = self._cost(edge.source, edge.target, edge.form)
                moved[edge.target] = moved.get(edge.target, 0) + first
                learned[edge.target] = learned.get(edge.target, 0) + second
        done = {output: costs.target[output]}
        longest, work = 0, costs.target[output]
        for number in self.regions.outputs:
            if self.regions.regions[number].learns:
                longest = max(longest, done[output] + costs.update[number])
                work += costs.update[number]
        for number in reversed(self.members):
            target = costs.target[number] + moved.get(number, 0)
            done[number] = done[parents[number]] + target
            last = max(costs.update[number], learned.get(number, 0))
            longest = max(longest, done[number] + last)
            work += target + costs.update[number] + learned.get(number, 0)
        return sum(costs.forward) + max(longest, -(-work // self.gpus))

    def path(self, parents: Parents) -> tuple[int, int]:
        """(sum over all regions of the length of their error path, the longest)."""
        level = {self.regions.output: 0}
        for number in reversed(self.members):
            level[number] = level[parents[number]] + 1
        return sum(level.values()), max(level.values())

    def score(self, parents: Parents, best: Key | None = None) -> Scored | None:
        """What the tree is worth; None where it is no better than ``best``, or not as deep as asked."""
        path, deepest = self.path(parents)
        if self.depth is not None and deepest != self.depth:
            return None
        fitted = self.forms.fitted(pairs_of(self.regions, parents, self.ahead), self.budget)
        if best is not None and (fitted.rank, self.bound(parents, fitted), fitted.bytes, path) >= best:
            return None
        self.evaluations += 1
        span = step_time(self.regions, fitted.edges, self.costs, self.gpus, quick=True)
        scored = Scored(dict(parents), fitted, (fitted.rank, span, fitted.bytes, path))
        if scored.parents not in [item.parents for item in self.best]:
            self.best = sorted([*self.best, scored], key=lambda item: item.key)[:_KEPT]
        return scored if best is None or scored.key < best else None

    # -- wirings by deadline ------------------------------------------------------------------------------------------

    def deadlines(self) -> list[Parents]:
        """Trees of least work for deadlines between the earliest that can be met and none at all."""
        soonest = self._by_deadline(0)
        latest = self._by_deadline(None)
        first, last = self._end(soonest), self._end(latest)
        steps = [first + (last - first) * step // _DEADLINES for step in range(1, _DEADLINES)]
        return [soonest, latest, *(self._by_deadline(step) for step in dict.fromkeys(steps)), self.lean()]

    def lean(self) -> Parents:
        """The tree whose synapses take the least memory in their smallest forms."""

        def least(number: int, parent: int) -> int:
            return sum(self.forms.least(source, number) for source in self.sources(parent, number))

        return {
            number: min(self.choices[number], key=lambda parent: (least(number, parent), -parent))
            for number in self.members
        }

    def _by_deadline(self, deadline: int | None) -> Parents:
        done = {self.regions.output: self.costs.target[self.regions.output]}
        parents: Parents = {}
        for number in reversed(self.members):
            options = []
            for parent in self.choices[number]:
                displace, learn = self.work(parent, number)
                end = done[parent] + self.costs.target[number] + displace
                late = 0 if deadline is None else max(0, end + max(self.costs.update[number], learn) - deadline)
                options.append((late, displace + learn, end, -parent))
            _, _, done[number], chosen = min(options)
            parents[number] = -chosen
        return parents

    def _end(self, parents: Parents) -> int:
        done = {self.regions.output: self.costs.target[self.regions.output]}
        latest = 0
        for number in reversed(self.members):
            displace, learn = self.work(parents[number], number)
            done[number] = done[parents[number]] + self.costs.target[number] + displace
            latest = max(latest, done[number] + max(self.costs.update[number], learn))
        return latest

    # -- local search -------------------------------------------------------------------------------------------------

    def improved(self, start: Scored) -> Scored:
        """The best tree that single moves lead to from here, within the search's count of evaluations."""
        best, tried = start, 0
        last = self.evaluations + self.limit
        while True:
            for move in self._moves(best.parents):
                tried += 1
                if self.evaluations >= last or tried > (4 if best.key[0] == USUAL else 1) * self.limit:
                    return best
                found = self.score({**best.parents, **move}, best.key)
                if found is not None:
                    best = found
                    break
            else:
                return best

    def _moves(self, parents: Parents) -> Iterator[Parents]:
        children: dict[int, list[int]] = {}
        for number, parent in parents.items():
            children.setdefault(parent, []).append(number)
        relays = [number for number in children if number != self.regions.output]
        for relay in sorted(relays):
            up = parents[relay]
            yield dict.fromkeys(children[relay], up)
        few = len(self.members) <= _FEW
        singles = []
        for number in self._urgent(parents):
            for parent in self.choices[number]:
                near = few or parent in children or parent == self.choices[number][0]
                if near and parent != parents[number]:
                    singles.append((number, parent))
                    yield {number: parent}
        for relay in self.members if few else []:
            under = [number for number in self.members if relay in self.choices[number] and parents[number] != relay]
            if len(under) > 1:
                yield dict.fromkeys(under, relay)
        if few:
            for index, (number, parent) in enumerate(singles):
                for other, second in singles[index + 1 :]:
                    if other != number:
                        yield {number: parent, other: second}

    def _urgent(self, parents: Parents) -> Sequence[int]:
        """The regions, those whose synapses cost most work first."""
        work = {number: sum(self.work(parents[number], number)) for number in self.members}
        return sorted(self.members, key=lambda number: (-work[number], number))
