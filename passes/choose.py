"""RegionGraph + costs → the wirings that are compared, and the one that wins.

Before:  regions, what the user asked for, and costs.
After:   for each wiring considered its edges and a ``Candidate``: makespan on the GPUs asked for, synapse memory,
         length of its error paths. The smallest makespan wins among those that hold the budgets with the usual forms of
         synapses, else among those that hold them with any; of equals the model's own relays, as in the paper's
         Figure 1, then less memory, then shorter paths.

In the unit-cost model no wiring is faster than flat, so that the named wirings are enough. With a device's costs or a
budget to keep, wirings over graph bottlenecks and a search (``improve``) join them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from reclra_graph.errors import ModelError, Problem
from reclra_graph.export.report import size
from reclra_graph.ir.costs import Costs
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Candidate
from reclra_graph.options import Options, Wired
from reclra_graph.passes.bottlenecks import narrow_cuts, narrow_dominators
from reclra_graph.passes.gpu_memory import Shares, room, shares
from reclra_graph.passes.improve import Search
from reclra_graph.passes.place import divided, handed_over
from reclra_graph.passes.reverse import left_out, reverse
from reclra_graph.passes.synapse_forms import OTHER, OVER, Fitted, SynapseForms
from reclra_graph.passes.trees import (
    Parents,
    block_wise,
    bottlenecks,
    chain,
    explicit,
    flat,
    grouped,
    pairs_of,
    reachable,
    relayed,
    supported,
)
from reclra_graph.passes.wired import synapse_problems
from reclra_graph.passes.wiring_jobs import levels, step_time

Placement = tuple[tuple[int, int], ...]
"""(region, GPU) for every region; empty where regions run anywhere."""

_STARTS = 3
_FEW = 40


@dataclass(frozen=True)
class Named:
    """A wiring by name. ``eligible``: it may be chosen, and is no mere yardstick. ``own``: its relays are the model's
    own."""

    name: str
    pairs: tuple[tuple[int, int], ...]
    eligible: bool = True
    own: bool = False


@dataclass(frozen=True)
class Row:
    """A wiring that was considered, with its edges and its figures."""

    named: Named
    fitted: Fitted
    candidate: Candidate
    share: Shares

    @property
    def key(self) -> tuple[int, int, int, int, int, int]:
        """Smaller is better."""
        item = self.candidate
        over = OVER if not self.share.fits else self.fitted.rank
        return (int(not self.named.eligible), over, item.makespan, int(not self.named.own), item.bytes, item.path)


@dataclass(frozen=True)
class Choice:
    """The winner, all that were considered, and why it won."""

    row: Row
    candidates: tuple[Candidate, ...]
    why: str


class Planner:
    """The wirings of one model under one set of options."""

    def __init__(self, regions: RegionGraph, options: Options, costs: Costs, relays: tuple[int, ...] | None) -> None:
        self.regions, self.options, self.costs, self.relays = regions, options, costs, relays
        self.forms = SynapseForms(regions, options)
        self.limited = options.synapse_memory is not None or options.gpu_memory is not None
        self.depth = options.depth if isinstance(options.depth, int) else None
        self.searches = options.wired == "auto" and relays is None and (costs.clock != "unit" or self.limited)
        self.given = options.wiring.placement if isinstance(options.wiring, Wired) else ()

    def choose(self) -> Choice:
        """The best wiring. Raises ModelError (RG440) where none holds the budgets."""
        rows = [self.row(item) for item in self._named()]
        if self.searches and self.depth != 1 and supported(self.regions):
            rows = self._searched(rows)
        if self.searches and self.depth is None and all(row.key[1] == OVER for row in rows):
            lean = Search(self.regions, self.options.gpus, self.costs, self.forms).lean()
            rows = [self.row(Named("searched", pairs_of(self.regions, lean))), *rows]
        best = min(range(len(rows)), key=lambda index: (rows[index].key, index))
        if rows[best].key[1] == OVER and self.limited:
            raise ModelError(self._over([row for row in rows if row.named.eligible]))
        candidates = tuple(replace(row.candidate, chosen=index == best) for index, row in enumerate(rows))
        return Choice(rows[best], candidates, self._why(rows[best], rows))

    def row(self, named: Named, fitted: Fitted | None = None) -> Row:
        """The figures of a wiring."""
        share = Shares(placement=self.given)
        if fitted is None:
            fitted = self.forms.fitted(named.pairs)
        if self.options.gpu_memory is not None:
            fitted, share = self._within(named, fitted)
            share = self._quickest(fitted, share)
        level = levels(self.regions.outputs, named.pairs)
        candidate = Candidate(
            named.name,
            max(level.values(), default=0),
            tuple(sorted({source for source, _ in named.pairs if source not in self.regions.outputs})),
            self._makespan(fitted, share),
            step_time(self.regions, fitted.edges, self.costs, 1),
            fitted.bytes,
            sum(level.values()),
        )
        if self.searches or self.limited:
            forms = tuple(sorted(Counter(edge.form for edge in fitted.edges).items()))
            candidate = replace(candidate, forms=forms, fits=fitted.rank != OVER and share.fits)
        return Row(named, fitted, candidate, share)

    def _makespan(self, fitted: Fitted, share: Shares) -> int:
        return step_time(self.regions, fitted.edges, self.costs, self.options.gpus, placement=share.placement)

    def _within(self, named: Named, fitted: Fitted) -> tuple[Fitted, Shares]:
        """Forms under which every GPU has room enough: the budget for synapses shrinks until it has."""
        limit = self.options.gpu_memory
        assert limit is not None
        share = self._shares(fitted, self.given)
        budget = fitted.bytes
        while not share.fits and budget > 0:
            # A synapse counts twice, itself and its update; below an eighth, what is left would be smallest forms.
            excess = max(1, (share.largest - limit) // 2, fitted.bytes // 8)
            budget = budget - excess if budget > excess else 0
            smaller = self.forms.fitted(named.pairs, budget)
            fitted = replace(smaller, rank=min(smaller.rank, OTHER))
            share = self._shares(smaller, self.given)
        return fitted, share

    def _shares(self, fitted: Fitted, placement: Placement) -> Shares:
        limit = self.options.gpu_memory
        assert limit is not None
        return shares(self.regions, fitted.edges, self.costs, self.options.gpus, limit, placement)

    def _quickest(self, fitted: Fitted, share: Shares) -> Shares:
        """Where regions must be shared out, the quicker of two ways that GPUs have room for: memory even, or work."""
        if self.given or not share.placement or not share.fits:
            return share
        even = self._shares(fitted, self.even)
        return min((share, even) if even.fits else (share,), key=lambda item: self._makespan(fitted, item))

    @cached_property
    def even(self) -> Placement:
        """The regions in stretches of about as much work each."""
        costs = self.costs
        work = [sum(item) for item in zip(costs.forward, costs.target, costs.update, strict=True)]
        stages = divided(work[1:], handed_over(self.regions)[1:], self.options.gpus)
        return ((0, 0), *enumerate(stages, start=1))

    # -- what is considered -------------------------------------------------------------------------------------------

    def _named(self) -> list[Named]:
        """What is compared. A wiring, relays, or a depth that the user fixed leaves the rest as yardsticks only."""
        regions, options, depth = self.regions, self.options, self.depth
        direct, chained = Named("flat", flat(regions)), Named("chain", chain(regions), eligible=False)
        yardsticks = [replace(direct, eligible=False), chained]
        wiring = options.wired
        if isinstance(wiring, Wired):
            pairs = explicit(regions, wiring.edges, wiring.place)
            problems = synapse_problems(regions, options, self.forms)
            if problems:
                raise ModelError(problems)
            return [Named("explicit", pairs), *yardsticks]
        if not isinstance(wiring, str) or "->" in wiring:
            return [Named("explicit", explicit(regions, wiring)), *yardsticks]
        if wiring == "reverse":
            return [Named("reverse", reverse(regions)), *yardsticks]
        if wiring == "flat":
            return [direct, chained]
        if wiring == "chain":
            return [replace(chained, eligible=True), yardsticks[0]]
        if self.relays is not None:
            return [Named("relays", relayed(regions, self.relays, depth or 2), own=True), *yardsticks]
        own = self._own(depth or 2)
        if wiring == "blocks":
            # A model without blocks has bottlenecks at best; without either, neighbouring regions make up a block.
            return [*(own or [Named("groups", grouped(regions, depth or 2))]), *yardsticks]
        if depth == 1:
            return [direct, chained]
        if depth is not None:
            own = [item for item in own if max(levels(regions.outputs, item.pairs).values()) == depth]
            return [*own, Named("groups", grouped(regions, depth)), *yardsticks]
        return [*own, *(self._by_graph() if self.searches else ()), direct, chained]

    def _own(self, depth: int) -> list[Named]:
        """Wirings whose relays are the model's own: block outputs, bottlenecks."""
        regions, found = self.regions, []
        ends = tuple(region.id for region in regions.regions if region.ends_block and region.id not in regions.outputs)
        if ends:
            found.append(Named("blocks", block_wise(regions, ends, depth), own=True))
        narrow = () if ends else bottlenecks(regions)  # narrow layers inside blocks are the blocks' own affair
        if narrow:
            found.append(Named("bottlenecks", relayed(regions, narrow, depth), own=True))
        return found

    def _by_graph(self) -> list[Named]:
        """Wirings over bottlenecks of the graph, and over groups of neighbours."""
        found: list[Named] = []
        for name, relays in (("dominators", narrow_dominators(self.regions)), ("cuts", narrow_cuts(self.regions))):
            pairs = relayed(self.regions, relays, 2)
            if relays and pairs not in [item.pairs for item in found]:
                found.append(Named(name, pairs))
        ahead = reachable(self.regions)
        groups = grouped(self.regions, 2)
        # Neighbours in a model with branches need not flow into each other.
        if len(groups) > 3 and all(source in ahead[target] for source, target in groups):
            found.append(Named("groups", groups))
        return found

    def _searched(self, rows: list[Row]) -> list[Row]:
        """The rows, and one more where the search finds a wiring that is better than all of them."""
        budget = self.forms.budget if self.forms.asked else None
        if self.options.gpu_memory is not None:
            most = room(self.regions, self.costs, self.options.gpus, self.options.gpu_memory)
            budget = min(self.forms.budget, most)
        search = Search(self.regions, self.options.gpus, self.costs, self.forms, budget, self.depth)
        seeds = [self._parents(row.named.pairs) for row in rows] + search.deadlines()
        unlike = {tuple(sorted(parents.items())): parents for parents in seeds}
        found = [item for item in (search.score(parents) for parents in unlike.values()) if item is not None]
        found.sort(key=lambda item: item.key)
        for item in found[:_STARTS]:
            search.improved(item)
        known = [row.named.pairs for row in rows if row.named.eligible]
        kept = search.best if len(search.members) <= _FEW else search.best[:_STARTS]
        named = [Named("searched", pairs_of(self.regions, item.parents, search.ahead)) for item in kept]
        # Only the row knows the limit of each GPU, and the best schedule.
        others = [self.row(item, best.fitted) for item, best in zip(named, kept, strict=True)
                  if item.pairs not in known]  # fmt: skip
        row = min(others, key=lambda item: item.key, default=None)
        return rows if row is None or any(other.key <= row.key for other in rows) else [row, *rows]

    def _parents(self, pairs: tuple[tuple[int, int], ...]) -> Parents:
        outputs = self.regions.outputs
        return {target: self.regions.output if source in outputs else source for source, target in pairs}

    # -- what is said about it ----------------------------------------------------------------------------------------

    def _over(self, rows: list[Row]) -> Problem:
        """No wiring holds the budgets: the smallest that one would."""
        search = Search(self.regions, self.options.gpus, self.costs, self.forms)
        lean = [row.named.pairs for row in rows]
        if self.searches and self.depth is None:
            lean.append(pairs_of(self.regions, search.lean()))
        fits = [self.forms.fitted(pairs, 0) for pairs in lean]
        least = min(fits, key=lambda item: item.bytes)
        limit = self.options.gpu_memory
        if self.options.synapse_memory is not None and least.bytes > self.options.synapse_memory:
            cause = f"the error synapses take {exact(least.bytes)} at least, not {exact(self.options.synapse_memory)}"
            return Problem("RG440", cause, "synapse_memory", f"Give synapse_memory {least.bytes} or more.")
        assert limit is not None
        need = min(self._shares(item, self.given).largest for item in fits)
        gpus = f"{self.options.gpus} GPU" + ("s" if self.options.gpus > 1 else "")
        cause = f"on {gpus} one holds {exact(need)} at least, not {exact(limit)}"
        return Problem("RG440", cause, "gpu_memory", f"Give gpu_memory {need} or more, or more GPUs.")

    def _why(self, winner: Row, rows: list[Row]) -> str:
        options, mine = self.options, winner.candidate
        gpus = f"{options.gpus} GPU" + ("s" if options.gpus > 1 else "")
        if mine.name == "reverse":
            asked = "asked for" if options.wiring == "reverse" else f"the rule {options.rule!r} mirrors forward weights"
            return "; ".join(filter(None, (f"reverse: {asked}", left_out(self.regions, winner.named.pairs))))
        if mine.name in ("explicit", "relays") or (options.wiring != "auto" and mine.name == options.wiring):
            return f"{mine.name}: asked for"
        rivals = [row for row in rows if row is not winner and row.named.eligible]
        if self.options.depth != "auto" or options.wiring != "auto":
            rivals = [row for row in rows if row is not winner and row.candidate.name != "chain"]
        faster = [row for row in rivals if row.candidate.makespan > mine.makespan]
        equal = [row for row in rivals if row.candidate.makespan == mine.makespan]
        said = f"{mine.name}: makespan {self._time(mine.makespan)} on {gpus}"
        if faster:
            said += ", before " + " and ".join(
                f"{row.candidate.name} with {self._time(row.candidate.makespan)}" for row in faster
            )
        for row in equal:
            said += f"; as fast as {row.candidate.name}, chosen since {self._since(winner, row)}"
        for row in rivals:
            if row.candidate.makespan < mine.makespan:
                said += f"; {row.candidate.name} with {self._time(row.candidate.makespan)} {self._against(winner, row)}"
        if options.placed and not winner.share.placement:
            said += "; these makespans are of regions that may run anywhere, before each gets a GPU of its own"
        return said

    def _since(self, winner: Row, row: Row) -> str:
        """Why the winner was chosen and not a row that is as fast."""
        mine, other = winner.candidate, row.candidate
        if winner.key[:2] != row.key[:2]:
            return f"the other {self._against(winner, row)}"
        if winner.named.own != row.named.own:
            return "its relays are the model's own"
        if mine.bytes != other.bytes:
            return f"it needs less synapse memory ({size(mine.bytes)}, not {size(other.bytes)})"
        return "its error paths are shorter" if mine.path < other.path else "it comes first of two that are equal"

    def _against(self, winner: Row, row: Row) -> str:
        """What speaks against a row that is no slower than the winner."""
        if not row.named.eligible and winner.named.eligible:
            return "is not what was asked for"
        return "does not hold the budget" if not row.candidate.fits else "needs other forms to hold the budget"

    def _time(self, value: int) -> str:
        return self.costs.device.shown(value)


def exact(count: int) -> str:
    """Bytes for people, and to copy: ``"1.5 MiB (1572864 bytes)"``."""
    text = size(count)
    return text if text.endswith(" B") else f"{text} ({count} bytes)"
