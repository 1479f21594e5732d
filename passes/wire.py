"""RegionGraph → WiringPlan: choose which region sends its error to which.

Before:  regions, and what the user asked for (GPUs, depth, relays, a wiring by name or edge by edge).
After:   error edges from the output to every region that learns, each with its form and rule, and the candidates that
         were compared: for each its makespan on the GPUs asked for in the unit-cost model (a target and an update cost
         1 each), its synapse memory, and the length of its error paths.

The automatic choice is between flat wiring (every region hangs on the output) and relays at depth 2: the outputs of
the model's blocks, or in a model without blocks its bottlenecks. The smallest makespan wins; among equals the model's
own relays, as in the paper's Figure 1, then less memory, then shorter paths. Deeper wirings are built when asked for:
each hop shrinks the error by about β.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import networkx as nx

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.costs import Costs
from reclra_graph.ir.device import Device
from reclra_graph.ir.regions import LOCAL, Region, RegionGraph
from reclra_graph.ir.wiring import Candidate, Edge, Loss, Rates, WiringPlan
from reclra_graph.options import Options
from reclra_graph.passes.costs import unit_costs
from reclra_graph.passes.list_schedule import Job, list_schedule, makespan
from reclra_graph.passes.trees import block_wise, bottlenecks, chain, explicit, flat, grouped, relayed, supported
from reclra_graph.rules.operators import STEPS, short


@dataclass(frozen=True)
class _Wiring:
    name: str
    pairs: tuple[tuple[int, int], ...]
    """(source, target), by target."""
    eligible: bool = True
    structural: bool = False


def wire(regions: RegionGraph, options: Options, costs: Costs | None = None) -> WiringPlan:
    """The wiring plan, by the costs of the regions (none: the unit-cost model).

    Raises ModelError with all that is wrong about depth, relays and edges (RG304, RG402–RG408).
    """
    costs = costs or unit_costs(regions)
    relays, problems = _relays(regions, options)
    problems += _depth_problems(regions, options) + _kappa_problems(regions, options)
    problems += _strict_problems(regions, options)
    if problems:
        raise ModelError(problems)
    considered = _candidates(regions, options, relays)
    rows: list[tuple[tuple[int, int, int, int, int], _Wiring, Candidate, tuple[Edge, ...]]] = []
    for wiring in considered:
        edges = _shared(regions, tuple(_edge(regions, source, target, options) for source, target in wiring.pairs))
        levels = _levels(regions.outputs, wiring.pairs)
        jobs = wiring_jobs(regions, edges, costs)
        candidate = Candidate(
            wiring.name,
            max(levels.values(), default=0),
            _sources(wiring.pairs, regions.outputs),
            makespan(list_schedule(jobs, options.gpus)),
            sum(job.cost for job in jobs),
            sum(edge.bytes for edge in edges if not edge.shared),
            sum(levels.values()),
        )
        key = (not wiring.eligible, candidate.makespan, not wiring.structural, candidate.bytes, candidate.path)
        rows.append(((int(key[0]), key[1], int(key[2]), key[3], key[4]), wiring, candidate, edges))
    best = min(range(len(rows)), key=lambda index: (rows[index][0], index))
    _, wiring, winner, edges = rows[best]
    candidates = tuple(replace(row[2], chosen=index == best) for index, row in enumerate(rows))
    idle = sorted(set(relays or ()) - set(winner.relays))
    if idle:
        cause = f"no region would hang on relay {idle[0]}: none that learns flows into it before another relay"
        raise ModelError(Problem("RG403", cause, "relays", "Leave it out, or choose one further on."))
    if isinstance(options.depth, int) and options.depth != winner.depth:
        cause = f"depth {options.depth} was asked for, but {winner.name} wiring as given has depth {winner.depth}"
        raise ModelError(Problem("RG402", cause, "depth", "Leave out depth, or choose another wiring or other relays."))
    update = tuple((region.id, _update_rule(regions, region, options)) for region in regions.regions if region.learns)
    return WiringPlan(
        regions, options.gpus, wiring.name, winner.depth, winner.relays, edges, update, _rates(options),
        _losses(regions, options), candidates, _why(winner, wiring, candidates, options, costs.device), options.seed,
        costs.device, 0 if costs.clock == "unit" else costs.batch,
    )  # fmt: skip


def _rates(options: Options) -> Rates:
    return Rates(
        options.beta, options.gamma, options.kappa, options.norm, options.sign, options.gain, options.optimizer,
        options.lr,
    )  # fmt: skip


def _relays(regions: RegionGraph, options: Options) -> tuple[tuple[int, ...] | None, list[Problem]]:
    """The relays asked for, as ids, and what is wrong with them."""
    if options.relays is None:
        return None, []
    if options.wiring != "auto":
        cause = f"relays were given together with {options.wiring!r} wiring, which has relays of its own or none"
        return None, [Problem("RG403", cause, "relays", "Leave out one of the two.")]
    by_name: dict[str, int] = {}
    for region in regions.regions:
        if region.kind == "layer":
            by_name.setdefault(region.name, region.id)
            if region.ends_block:
                by_name.setdefault(region.block, region.id)
    allowed = {site for site in regions.sites if site not in regions.outputs}
    found: list[int] = []
    problems: list[Problem] = []
    for item in options.relays:
        number = int(item) if isinstance(item, int) or str(item).isdigit() else by_name.get(str(item), -1)
        if number not in allowed:
            known = f"regions 1 to {max(allowed, default=0)}" if allowed else "no regions"
            wrong = "no region below the output"
            if number in regions.outputs:
                wrong = "the output, which sends to all relays"
            problems.append(Problem("RG403", f"relay {item!r} is {wrong}; the model has {known}", "relays"))
        found.append(number)
    return tuple(sorted(set(found))), problems


def _depth_problems(regions: RegionGraph, options: Options) -> list[Problem]:
    most = len(supported(regions))
    if isinstance(options.depth, int) and options.depth > max(most, 1):
        return [
            Problem("RG402", f"depth {options.depth} is more than the {most} regions below the output allow", "depth")
        ]
    return []


def _kappa_problems(regions: RegionGraph, options: Options) -> list[Problem]:
    return [
        Problem(
            "RG405", f"kappa names region {number}, which has no error neurons", "kappa", "Use region ids of the plan."
        )
        for number, _ in options.kappa
        if number not in regions.sites
    ]


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


def _update_rule(regions: RegionGraph, region: Region, options: Options) -> str:
    """``local_vjp`` where a parameter of the region has no closed form, or where it is asked for and the region does
    not end with a step function, whose derivative is zero."""
    step = any(short(regions.graph.by_name[name].target) in STEPS for name in region.activation)
    asked = options.update == LOCAL and not step
    return LOCAL if asked or any(item.rule == LOCAL for item in region.updates) else "analytic"


def _candidates(regions: RegionGraph, options: Options, relays: tuple[int, ...] | None) -> list[_Wiring]:
    """What is compared. A wiring, relays, or a depth that the user fixed leaves the rest as yardsticks only."""
    direct, chained = _Wiring("flat", flat(regions)), _Wiring("chain", chain(regions), eligible=False)
    yardsticks = [replace(direct, eligible=False), chained]
    if not isinstance(options.wiring, str) or "->" in options.wiring:
        return [_Wiring("explicit", explicit(regions, options.wiring)), *yardsticks]
    depth = options.depth if isinstance(options.depth, int) else None
    if options.wiring == "flat":
        return [direct, chained]
    if options.wiring == "chain":
        return [replace(chained, eligible=True), yardsticks[0]]
    if relays is not None:
        return [_Wiring("relays", relayed(regions, relays, depth or 2), structural=True), *yardsticks]
    own = _own_relays(regions, depth or 2)
    if options.wiring == "blocks":
        # A model without blocks has bottlenecks at best; without either, neighbouring regions make up a block.
        return [*(own or [_Wiring("groups", grouped(regions, depth or 2))]), *yardsticks]
    if depth == 1:
        return [direct, chained]
    if depth is not None:
        own = [item for item in own if max(_levels(regions.outputs, item.pairs).values()) == depth]
        return [*own, _Wiring("groups", grouped(regions, depth)), *yardsticks]
    return [*own, direct, chained]


def _own_relays(regions: RegionGraph, depth: int) -> list[_Wiring]:
    """Wirings whose relays are the model's own: block outputs, bottlenecks."""
    found = []
    ends = tuple(region.id for region in regions.regions if region.ends_block and region.id not in regions.outputs)
    if ends:
        found.append(_Wiring("blocks", block_wise(regions, ends, depth), structural=True))
    narrow = () if ends else bottlenecks(regions)  # narrow layers inside blocks are the blocks' own affair
    if narrow:
        found.append(_Wiring("bottlenecks", relayed(regions, narrow, depth), structural=True))
    return found


def _edge(regions: RegionGraph, source: int, target: int, options: Options) -> Edge:
    """An edge with the form of its synapse: over sequences position by position, else dense; shared over positions
    where dense would be too large."""
    first, second = regions.regions[source], regions.regions[target]
    item = 8 if regions.graph.types[second.pre].dtype == "float64" else 4
    shape, form = (second.units, first.units), "dense"
    sequences = first.axis == second.axis == -1 and first.shape[:-1] == second.shape[:-1] and len(second.shape) > 1
    if sequences or (shape[0] * shape[1] > options.synapse_entries and len(second.shape) > 1):
        shape, form = (second.features, first.features), "token" if -1 in (first.axis, second.axis) else "channel"
    return Edge(source, target, form, options.rule, shape, shape[0] * shape[1] * item)


def _shared(regions: RegionGraph, edges: tuple[Edge, ...]) -> tuple[Edge, ...]:
    """Edges to a layer that runs several times, each through the synapse of its first run."""
    first: dict[tuple[int, tuple[str, ...], tuple[int, int], str], str] = {}
    found = []
    for edge in edges:
        key = (edge.source, tuple(sorted(regions.regions[edge.target].parameters)), edge.shape, edge.form)
        name = first.setdefault(key, edge.name) if key[1] else edge.name
        found.append(replace(edge, shared="" if name == edge.name else name))
    return tuple(found)


def _losses(regions: RegionGraph, options: Options) -> tuple[Loss, ...]:
    """The loss of each output."""
    found = []
    for item, number in zip(regions.graph.outputs, regions.outputs, strict=True):
        kind, region = options.loss_of(item.label), regions.regions[number]
        if kind not in ("cross-entropy", "causal-lm"):
            found.append(Loss(item.label, kind))
            continue
        # A map of one position, [B, C, 1, 1], has its classes counted from the end (see rules.loss).
        first = 1 if len(region.shape) == 1 or region.units > region.features else -len(region.shape)
        axis = first if region.axis == 0 else -1
        weights = options.class_weights
        if weights and len(weights) != region.features:
            cause = f"there are {len(weights)} class weights for the {region.features} classes of {item.label!r}"
            raise ModelError(Problem("RG405", cause, "class_weights"))
        if kind == "causal-lm" and (axis != -1 or len(region.shape) != 2 or region.shape[0] < 2):
            cause = f"{item.label!r} is {region.shape} per sample, not (positions, classes) with two positions or more"
            raise ModelError(Problem("RG405", cause, "loss"))
        found.append(Loss(item.label, kind, axis, options.label_smoothing, options.ignore_index, weights))
    return tuple(found)


def _levels(outputs: Sequence[int], pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Length of the longest error path to every region that is reached."""
    wires = nx.DiGraph(list(pairs))
    wires.add_nodes_from(outputs)
    levels = dict.fromkeys(outputs, 0)
    for number in nx.topological_sort(wires):
        for _, target in wires.out_edges(number):
            if number in levels:
                levels[target] = max(levels.get(target, 0), levels[number] + 1)
    return levels


def _sources(pairs: Sequence[tuple[int, int]], outputs: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({source for source, _ in pairs if source not in outputs}))


def wiring_jobs(regions: RegionGraph, edges: Sequence[Edge], costs: Costs) -> list[Job]:
    """A target, with the displacements that it adds up, for every region that an error reaches; an update for each that
    learns."""
    pairs = [(edge.source, edge.target) for edge in edges]
    incoming: dict[int, list[int]] = {}
    moved: dict[int, int] = {}
    for edge in edges:
        # All outputs get their errors at once, from the loss.
        sender = regions.output if edge.source in regions.outputs else edge.source
        if sender not in incoming.setdefault(edge.target, []):
            incoming[edge.target].append(sender)
        source, target = regions.regions[edge.source], regions.regions[edge.target]
        moved[edge.target] = moved.get(edge.target, 0) + costs.displace(
            source.shape, source.axis, target.shape, target.axis, edge.form
        )
    levels = _levels(regions.outputs, pairs)
    reached = sorted(levels, key=lambda number: (levels[number], -number))
    targets = [
        Job(f"target:{number}", costs.target[number] + moved.get(number, 0),
            tuple(f"target:{source}" for source in incoming.get(number, ())),
            near=f"target:{max(incoming[number])}" if number in incoming else "")
        for number in reached
        if number == regions.output or number not in regions.outputs
    ]  # fmt: skip
    after = {number: regions.output if number in regions.outputs else number for number in reached}
    updates = [
        Job(f"update:{number}", costs.update[number], (f"target:{after[number]}",), urgent=False,
            near=f"target:{after[number]}")
        for number in reached
        if regions.regions[number].learns
    ]  # fmt: skip
    return [*targets, *updates]


def _why(winner: Candidate, wiring: _Wiring, candidates: Sequence[Candidate], options: Options, device: Device) -> str:
    gpus = f"{options.gpus} GPU" + ("s" if options.gpus > 1 else "")
    if winner.name in ("explicit", "relays") or (options.wiring != "auto" and winner.name == options.wiring):
        return f"{winner.name}: asked for"
    rivals = [item for item in candidates if item.name != winner.name and item.name != "chain"]
    faster = [item for item in rivals if item.makespan > winner.makespan]
    equal = [item for item in rivals if item.makespan == winner.makespan]
    said = f"{winner.name}: makespan {device.shown(winner.makespan)} on {gpus}"
    if faster:
        said += ", before " + " and ".join(f"{item.name} with {device.shown(item.makespan)}" for item in faster)
    for item in equal:
        memory = _less(winner.bytes, item.bytes)
        reason = "its relays are the model's own" if wiring.structural else "its error paths are shorter"
        said += f"; as fast as {item.name}, chosen since {memory or reason}"
    return said


def _less(mine: int, other: int) -> str:
    return f"it needs less synapse memory ({mine} bytes, not {other})" if mine < other else ""
