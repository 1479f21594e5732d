"""RegionGraph → WiringPlan: choose which region sends its error to which.

Before:  regions, and what the user asked for (GPUs, depth, relays, a wiring by name or edge by edge).
After:   error edges from the output to every region that learns, each with its form and rule, and the candidates that
         were compared: for each its makespan on the GPUs asked for in the unit-cost model (a target and an update cost
         1 each), its synapse memory, and the length of its error paths.

The automatic choice is between flat wiring (every region hangs on the output) and relays at depth 2: the outputs of
the model's blocks, and its bottlenecks. The smallest makespan wins; among equals the model's own relays, as in the
paper's Figure 1, then less memory, then shorter paths. Deeper wirings are built when asked for: each hop shrinks the
error by about β.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.regions import LOCAL, Region, RegionGraph
from reclra_graph.ir.wiring import Candidate, Edge, Rates, WiringPlan
from reclra_graph.options import Options
from reclra_graph.passes.list_schedule import Job, list_schedule, makespan

Parents = dict[int, int]
"""Tree of a wiring: region → the region that sends it its error."""


@dataclass(frozen=True)
class _Wiring:
    name: str
    pairs: tuple[tuple[int, int], ...]
    """(source, target), by target."""
    eligible: bool = True
    structural: bool = False


def wire(regions: RegionGraph, options: Options) -> WiringPlan:
    """The wiring plan. Raises ModelError with all that is wrong about depth, relays and edges (RG304, RG402–RG408)."""
    relays, problems = _relays(regions, options)
    problems += _depth_problems(regions, options) + _strict_problems(regions, options)
    if problems:
        raise ModelError(problems)
    considered = _candidates(regions, options, relays)
    rows: list[tuple[tuple[int, int, int, int, int], _Wiring, Candidate, tuple[Edge, ...]]] = []
    for wiring in considered:
        edges = tuple(_edge(regions, source, target, options) for source, target in wiring.pairs)
        levels = _levels(regions.output, wiring.pairs)
        jobs = unit_jobs(regions, wiring.pairs)
        candidate = Candidate(
            wiring.name,
            max(levels.values(), default=0),
            _sources(wiring.pairs, regions.output),
            makespan(list_schedule(jobs, options.gpus)),
            sum(job.cost for job in jobs),
            sum(edge.bytes for edge in edges),
            sum(levels.values()),
        )
        key = (not wiring.eligible, candidate.makespan, not wiring.structural, candidate.bytes, candidate.path)
        rows.append(((int(key[0]), key[1], int(key[2]), key[3], key[4]), wiring, candidate, edges))
    best = min(range(len(rows)), key=lambda index: (rows[index][0], index))
    _, wiring, winner, edges = rows[best]
    candidates = tuple(replace(row[2], chosen=index == best) for index, row in enumerate(rows))
    update = tuple((region.id, _update_rule(region, options)) for region in regions.regions if region.learns)
    return WiringPlan(
        regions, options.gpus, wiring.name, winner.depth, winner.relays, edges, update, _rates(options), candidates,
        _why(winner, wiring, candidates, options), options.seed,
    )  # fmt: skip


def _rates(options: Options) -> Rates:
    return Rates(
        options.beta, options.gamma, options.kappa, options.norm, options.sign, options.gain, options.loss,
        options.optimizer, options.lr,
    )  # fmt: skip


def _supported(regions: RegionGraph) -> list[Region]:
    """Regions that learn, below the output, in order."""
    return [region for region in regions.regions if region.learns and region.id != regions.output]


def _relays(regions: RegionGraph, options: Options) -> tuple[tuple[int, ...] | None, list[Problem]]:
    """The relays asked for, as ids, and what is wrong with them."""
    if options.relays is None:
        return None, []
    by_name: dict[str, int] = {}
    for region in regions.regions:
        if region.kind == "layer":
            by_name.setdefault(region.name, region.id)
            if region.ends_block:
                by_name.setdefault(region.block, region.id)
    allowed = {site for site in regions.sites if site != regions.output}
    found: list[int] = []
    problems: list[Problem] = []
    for item in options.relays:
        number = int(item) if isinstance(item, int) or str(item).isdigit() else by_name.get(str(item), -1)
        if number not in allowed:
            known = f"regions 1 to {max(allowed, default=0)}" if allowed else "no regions"
            what = "the output, which sends to all relays" if number == regions.output else "no region below the output"
            problems.append(Problem("RG403", f"relay {item!r} is {what}; the model has {known}", "relays"))
        found.append(number)
    return tuple(sorted(set(found))), problems


def _depth_problems(regions: RegionGraph, options: Options) -> list[Problem]:
    most = len(_supported(regions))
    if isinstance(options.depth, int) and options.depth > max(most, 1):
        return [
            Problem("RG402", f"depth {options.depth} is more than the {most} regions below the output allow", "depth")
        ]
    return []


def _strict_problems(regions: RegionGraph, options: Options) -> list[Problem]:
    """Parameters without a closed form, where strict=True refuses the local derivative."""
    if not options.strict:
        return []
    graph = regions.graph
    return [
        Problem(
            "RG304",
            f"{update.parameter} is read by {graph.by_name[update.operator].target}, which has no analytic rule",
            graph.by_name[update.operator].line or graph.by_name[update.operator].module or update.operator,
        )
        for region in regions.regions
        for update in region.updates
        if update.rule == LOCAL
    ]


def _update_rule(region: Region, options: Options) -> str:
    """``local_vjp`` where it is asked for, or where a parameter of the region has no closed form."""
    return LOCAL if options.update == LOCAL or any(item.rule == LOCAL for item in region.updates) else "analytic"


def _candidates(regions: RegionGraph, options: Options, relays: tuple[int, ...] | None) -> list[_Wiring]:
    """What is compared. A wiring, relays, or a depth that the user fixed leaves the rest as yardsticks only."""
    flat, chain = _Wiring("flat", _flat(regions)), _Wiring("chain", _chain(regions), eligible=False)
    yardsticks = [replace(flat, eligible=False), chain]
    if not isinstance(options.wiring, str) or "->" in options.wiring:
        return [_Wiring("explicit", _explicit(regions, options.wiring)), *yardsticks]
    depth = options.depth if isinstance(options.depth, int) else None
    if options.wiring == "flat":
        return [flat, chain]
    if options.wiring == "chain":
        return [replace(chain, eligible=True), yardsticks[0]]
    if relays is not None:
        return [_Wiring("relays", _relayed(regions, relays, depth or 2), structural=True), *yardsticks]
    own = _own_relays(regions, depth or 2)
    if options.wiring == "blocks":
        # A model without blocks has bottlenecks at best; without either, neighbouring regions make up a block.
        return [*(own[:1] or [_Wiring("groups", _grouped(regions, depth or 2))]), *yardsticks]
    if depth == 1:
        return [flat, chain]
    if depth is not None:
        own = [item for item in own if max(_levels(regions.output, item.pairs).values()) == depth]
        return [*own, _Wiring("groups", _grouped(regions, depth)), *yardsticks]
    return [*own, flat, chain]


def _own_relays(regions: RegionGraph, depth: int) -> list[_Wiring]:
    """Wirings whose relays are the model's own: block outputs, bottlenecks."""
    found = []
    ends = tuple(region.id for region in regions.regions if region.ends_block and region.id != regions.output)
    if ends:
        found.append(_Wiring("blocks", _block_wise(regions, ends, depth), structural=True))
    narrow = bottlenecks(regions)
    if narrow:
        found.append(_Wiring("bottlenecks", _relayed(regions, narrow, depth), structural=True))
    return found


def bottlenecks(regions: RegionGraph) -> tuple[int, ...]:
    """Narrow layers: fewer units than the hidden regions before and behind. A model that only ever narrows has none."""
    hidden = [region for region in regions.regions if region.kind == "layer" and region.id != regions.output]
    found, widens = [], False
    for index, region in enumerate(hidden):
        near = [hidden[place].units for place in (index - 1, index + 1) if 0 <= place < len(hidden)]
        if near and all(region.units < units for units in near):
            found.append(region.id)
            widens = widens or index + 1 < len(hidden)
    return tuple(found) if widens else ()


def _pairs(parents: Parents) -> tuple[tuple[int, int], ...]:
    return tuple((source, target) for target, source in sorted(parents.items()))


def _flat(regions: RegionGraph) -> tuple[tuple[int, int], ...]:
    return _pairs({region.id: regions.output for region in _supported(regions)})


def _chain(regions: RegionGraph) -> tuple[tuple[int, int], ...]:
    """Backprop's order: every region hears from the next one that reads it."""
    following: dict[int, list[int]] = {}
    for source, target in regions.edges:
        following.setdefault(source, []).append(target)
    parents: Parents = {}
    waiting = [region.id for region in _supported(regions)]
    while waiting:
        number = waiting.pop()
        if number in parents or number == regions.output:
            continue
        parents[number] = min((item for item in following.get(number, ()) if item > number), default=regions.output)
        waiting.append(parents[number])
    return _pairs(parents)


def _relayed(regions: RegionGraph, relays: Sequence[int], depth: int) -> tuple[tuple[int, int], ...]:
    """Every region hangs on the nearest relay that it flows into; relays form a tree of depth − 1 below the output."""
    ahead = _reachable(regions)
    parents = _tree(list(relays), regions.output, depth - 1)
    for region in _supported(regions):
        if region.id not in relays:
            nearest = [relay for relay in relays if relay > region.id and relay in ahead[region.id]]
            parents[region.id] = min(nearest, default=regions.output)
    return _pairs(parents)


def _block_wise(regions: RegionGraph, ends: Sequence[int], depth: int) -> tuple[tuple[int, int], ...]:
    """Every region of a block hangs on the block's output; regions outside blocks hang on the output."""
    end_of = {regions.regions[number].block: number for number in ends}
    parents = _tree(list(ends), regions.output, depth - 1)
    for region in _supported(regions):
        if region.id not in ends:
            parents[region.id] = end_of.get(region.block, regions.output) if region.block else regions.output
    return _pairs(parents)


def _grouped(regions: RegionGraph, depth: int) -> tuple[tuple[int, int], ...]:
    """A tree of exactly the depth asked for, from groups of neighbouring regions, the last of each its relay."""
    return _pairs(_tree([region.id for region in _supported(regions)], regions.output, depth))


def _tree(members: list[int], parent: int, depth: int) -> Parents:
    """Hang ``members`` (in order) below ``parent``, as deep as ``depth`` where there are members enough."""
    if depth <= 1 or len(members) <= 1:
        return dict.fromkeys(members, parent)
    count = max(1, min(round(len(members) ** (1 / depth)), len(members) - depth + 1))
    parents: Parents = {}
    # Later groups take what an even split leaves over, so that one of them is large enough for the depth.
    sizes = _sizes(len(members), count, depth)
    start = 0
    for size in sizes:
        group = members[start : start + size]
        start += size
        parents[group[-1]] = parent
        parents.update(_tree(group[:-1], group[-1], depth - 1))
    return parents


def _sizes(total: int, count: int, depth: int) -> list[int]:
    sizes = [total // count + (index >= count - total % count) for index in range(count)]
    while sizes[-1] < depth and max(sizes[:-1], default=0) > 1:
        sizes[sizes.index(max(sizes[:-1]))] -= 1
        sizes[-1] += 1
    return sizes


def _reachable(regions: RegionGraph) -> dict[int, set[int]]:
    """For every region, the regions that its representation flows into, at any distance."""
    ahead: dict[int, set[int]] = {region.id: set() for region in regions.regions}
    for source, target in sorted(regions.edges, reverse=True):
        ahead[source] |= {target} | ahead[target]
    return ahead


def _explicit(regions: RegionGraph, wiring: str | Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Edges given as ``"9->5"``; checked for everything that can be wrong with them."""
    items = wiring.replace(";", ",").split(",") if isinstance(wiring, str) else list(wiring)
    problems: list[Problem] = []
    pairs: list[tuple[int, int]] = []
    allowed = set(regions.sites)
    for item in items:
        ends = [part.strip() for part in str(item).split("->")]
        if len(ends) != 2 or not all(part.isdigit() for part in ends):
            problems.append(Problem("RG404", f"{str(item).strip()!r} is not an edge", "wiring"))
            continue
        source, target = int(ends[0]), int(ends[1])
        unknown = [number for number in (source, target) if number not in allowed]
        if unknown:
            problems.append(
                Problem("RG404", f"edge {item}: there is no region {unknown[0]} with error neurons", "wiring")
            )
        elif target == regions.output:
            problems.append(
                Problem("RG404", f"edge {item} leads into the output, whose error comes from the loss", "wiring")
            )
        elif (source, target) in pairs:
            problems.append(Problem("RG404", f"edge {item} is given twice", "wiring"))
        else:
            pairs.append((source, target))
    if not problems:
        problems = _unsound(regions, pairs)
    if problems:
        raise ModelError(problems)
    return tuple(sorted(pairs, key=lambda pair: (pair[1], pair[0])))


def _unsound(regions: RegionGraph, pairs: Sequence[tuple[int, int]]) -> list[Problem]:
    wires = nx.DiGraph(list(pairs))
    wires.add_node(regions.output)
    if not nx.is_directed_acyclic_graph(wires):
        cycle = " -> ".join(str(edge[0]) for edge in nx.find_cycle(wires))
        return [Problem("RG408", f"the error edges form a cycle: {cycle}", "wiring")]
    reached = nx.descendants(wires, regions.output)
    dead = [region for region in _supported(regions) if region.id not in reached]
    unfed = sorted({source for source, _ in pairs if source != regions.output and source not in reached})
    return [
        Problem("RG407", f"no error reaches region {region.id} ({region.name})", region.line or region.name)
        for region in dead
    ] + [
        Problem("RG407", f"no error reaches region {number}, which should send one on", "wiring")
        for number in unfed
        if number not in {region.id for region in dead}
    ]


def _edge(regions: RegionGraph, source: int, target: int, options: Options) -> Edge:
    first, second = regions.regions[source], regions.regions[target]
    item = 8 if regions.graph.types[second.pre].dtype == "float64" else 4
    shape, form = (second.units, first.units), "dense"
    if shape[0] * shape[1] > options.synapse_entries and len(second.shape) > 1:
        shape, form = (second.shape[0], first.shape[0]), "channel"
    return Edge(source, target, form, options.rule, shape, shape[0] * shape[1] * item)


def _levels(output: int, pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Length of the longest error path to every region that is reached."""
    wires = nx.DiGraph(list(pairs))
    wires.add_node(output)
    levels = {output: 0}
    for number in nx.topological_sort(wires):
        for _, target in wires.out_edges(number):
            if number in levels:
                levels[target] = max(levels.get(target, 0), levels[number] + 1)
    return levels


def _sources(pairs: Sequence[tuple[int, int]], output: int) -> tuple[int, ...]:
    return tuple(sorted({source for source, _ in pairs if source != output}))


def unit_jobs(regions: RegionGraph, pairs: Sequence[tuple[int, int]]) -> list[Job]:
    """Jobs of the unit-cost model: a target for every region that an error reaches, an update for each that learns."""
    incoming: dict[int, list[int]] = {}
    for source, target in pairs:
        incoming.setdefault(target, []).append(source)
    levels = _levels(regions.output, pairs)
    reached = sorted(levels, key=lambda number: (levels[number], -number))
    targets = [
        Job(f"target:{number}", 1, tuple(f"target:{source}" for source in incoming.get(number, ())),
            near=f"target:{max(incoming[number])}" if number in incoming else "")
        for number in reached
    ]  # fmt: skip
    updates = [
        Job(f"update:{number}", 1, (f"target:{number}",), urgent=False, near=f"target:{number}")
        for number in reached
        if regions.regions[number].learns
    ]
    return [*targets, *updates]


def _why(winner: Candidate, wiring: _Wiring, candidates: Sequence[Candidate], options: Options) -> str:
    gpus = f"{options.gpus} GPU" + ("s" if options.gpus > 1 else "")
    if winner.name in ("explicit", "relays") or (options.wiring != "auto" and winner.name == options.wiring):
        return f"{winner.name}: asked for"
    rivals = [item for item in candidates if item.name != winner.name and item.name != "chain"]
    faster = [item for item in rivals if item.makespan > winner.makespan]
    equal = [item for item in rivals if item.makespan == winner.makespan]
    said = f"{winner.name}: makespan {winner.makespan} on {gpus}"
    if faster:
        said += ", before " + " and ".join(f"{item.name} with {item.makespan}" for item in faster)
    for item in equal:
        memory = _less(winner.bytes, item.bytes)
        reason = "its relays are the model's own" if wiring.structural else "its error paths are shorter"
        said += f"; as fast as {item.name}, chosen since {memory or reason}"
    return said


def _less(mine: int, other: int) -> str:
    return f"it needs less synapse memory ({mine} bytes, not {other})" if mine < other else ""
