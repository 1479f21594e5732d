"""RegionGraph → WiringPlan: choose which region sends its error to which.

Before:  regions, what the user asked for (GPUs, depth, relays, budgets, a wiring by name, edge by edge, or from a
         file), and what everything costs.
After:   error edges from the output to every region that learns, each with its form and rule, and the candidates that
         were compared: for each its makespan on the GPUs asked for, its synapse memory, and the length of its error
         paths (``choose``, ``improve``).
"""

from __future__ import annotations

import re
from dataclasses import replace

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.costs import Costs
from reclra_graph.ir.regions import LOCAL, Region, RegionGraph
from reclra_graph.ir.wiring import Edge, Loss, Rates, WiringPlan
from reclra_graph.options import Options, Wired, known_form
from reclra_graph.passes.choose import Planner
from reclra_graph.passes.costs import unit_costs
from reclra_graph.passes.reverse import edge_problems
from reclra_graph.passes.trees import supported
from reclra_graph.passes.wired import model_problems, placement_problems
from reclra_graph.rules.fit import REMEDY, form_fits, misfit
from reclra_graph.rules.forms import asked_for
from reclra_graph.rules.operators import STEPS, short


def wire(regions: RegionGraph, options: Options, costs: Costs | None = None) -> WiringPlan:
    """The wiring plan; ``costs`` are those of the unit-cost model unless given.

    Raises ModelError with all that is wrong about depth, relays, edges, their forms and budgets (RG304, RG402 to RG408,
    RG440, RG442, RG443, RG445, RG605).
    """
    costs = unit_costs(regions) if costs is None else costs
    relays, problems = _relays(regions, options)
    problems += _depth_problems(regions, options) + _kappa_problems(regions, options)
    problems += _strict_problems(regions, options)
    problems += model_problems(regions, options) or placement_problems(regions, options)
    if problems:
        raise ModelError(problems)
    planner = Planner(regions, options, costs, relays)
    choice = planner.choose()
    winner, edges = choice.row.candidate, choice.row.fitted.edges
    problems = [*_rule_problems(regions, options, edges), *edge_problems(regions, options, edges)]
    if problems:
        raise ModelError(problems)
    idle = sorted(set(relays or ()) - set(winner.relays))
    if idle:
        cause = f"no region would hang on relay {idle[0]}: none that learns flows into it before another relay"
        raise ModelError(Problem("RG403", cause, "relays", "Leave it out, or choose one further on."))
    if isinstance(options.depth, int) and options.depth != winner.depth:
        cause = f"depth {options.depth} was asked for, but {winner.name} wiring as given has depth {winner.depth}"
        raise ModelError(Problem("RG402", cause, "depth", "Leave out depth, or choose another wiring or other relays."))
    why = "; ".join(filter(None, (choice.why, asked_for(options, edges))))
    update = tuple((region.id, _update_rule(regions, region, options)) for region in regions.regions if region.learns)
    return WiringPlan(
        regions, options.gpus, choice.row.named.name, winner.depth, winner.relays, edges, update, _rates(options),
        _losses(regions, options), choice.candidates, why, options.seed,
        costs.device, 0 if costs.clock == "unit" else costs.batch, choice.row.share.placement,
        options.synapse_memory or 0, "channels_last" if options.memory_format == "channels_last" else "contiguous",
    )  # fmt: skip


def _rates(options: Options) -> Rates:
    return Rates(
        options.beta, options.synapse_rate, options.kappa, options.norm, options.sign, options.gain, options.optimizer,
        options.lr, options.momentum, options.betas, options.eps, options.weight_decay,
        synapse_decay=options.synapse_decay, mirror_noise=options.mirror_noise,
    )  # fmt: skip


def _rule_problems(regions: RegionGraph, options: Options, edges: tuple[Edge, ...]) -> list[Problem]:
    """Edges whose rule does not fit them, and a form that was asked for and fits no rule given."""
    found = []
    for edge in edges:
        wrong = misfit(regions, edge)
        if wrong:
            found.append(Problem("RG442", f"edge {edge.name} {wrong}", f"edge {edge.name}", REMEDY))
    refused = [edge for edge in edges if known_form(options.synapse) and not form_fits(options.synapse, edge.rule)]
    if refused and len(refused) == len(edges):
        wrong = misfit(regions, replace(refused[0], form=options.synapse))
        found.append(Problem("RG442", f"edge {refused[0].name} {wrong}", "synapse", REMEDY))
    return found


def _relays(regions: RegionGraph, options: Options) -> tuple[tuple[int, ...] | None, list[Problem]]:
    """The relays asked for, as ids, and what is wrong with them."""
    if options.relays is None:
        return None, []
    if options.wiring != "auto":
        wiring = f"the wiring of {options.wiring.place}" if isinstance(options.wiring, Wired) else repr(options.wiring)
        cause = f"relays were given together with {wiring}, which has relays of its own or none"
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
        plain = re.fullmatch("[0-9]{1,9}", str(item))
        number = int(item) if isinstance(item, int) or plain else by_name.get(str(item), -1)
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
        if region.features == 1:
            cause = f"{kind} of the single number {item.label!r} is always 0: there is one class"
            advice = "Use loss='bce-with-logits' for yes or no, 'mse' for a number, or an output with more classes."
            raise ModelError(Problem("RG406", cause, region.line or region.name, advice))
        weights = options.class_weights
        if weights and len(weights) != region.features:
            cause = f"there are {len(weights)} class weights for the {region.features} classes of {item.label!r}"
            raise ModelError(Problem("RG405", cause, "class_weights"))
        if kind == "causal-lm" and (axis != -1 or len(region.shape) != 2 or region.shape[0] < 2):
            cause = f"{item.label!r} is {region.shape} per sample, not (positions, classes) with two positions or more"
            raise ModelError(Problem("RG405", cause, "loss"))
        found.append(Loss(item.label, kind, axis, options.label_smoothing, options.ignore_index, weights))
    return tuple(found)
