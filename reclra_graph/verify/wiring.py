"""WiringPlan: every region that learns hears from the output, shapes fit, depth and relays are what the plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import networkx as nx

from reclra_graph.errors import Problem
from reclra_graph.ir.wiring import Edge, WiringPlan
from reclra_graph.options import AS_WEIGHT, MIRRORING, SYNAPSE_RULES, UPDATES, known_form
from reclra_graph.rules.fit import misfit
from reclra_graph.rules.forms import own_bytes, shape
from reclra_graph.rules.way_back import ways


def wiring_problems(plan: WiringPlan) -> Iterator[Problem]:
    """Broken invariants of a wiring plan."""
    regions = plan.regions.regions
    sites = set(plan.regions.sites)
    outputs = set(plan.regions.outputs)
    wires = nx.DiGraph()
    wires.add_nodes_from(outputs)
    for edge in plan.edges:
        place = f"edge {edge.name}"
        if edge.source not in sites or edge.target not in sites:
            yield Problem("RG404", f"edge {edge.name} touches a region without error neurons", place)
            continue
        if edge.target in outputs:
            yield Problem("RG404", f"edge {edge.name} leads into the output", place)
        wires.add_edge(edge.source, edge.target)
        if edge.form != "adjoint":
            yield from _shape(plan, edge)
    yield from _adjoint(plan)
    yield from _sharing(plan)
    yield from _placement(plan)
    if [item.label for item in plan.losses] != [item.label for item in plan.regions.graph.outputs]:
        yield Problem("RG501", "the losses are not those of the outputs", "losses")
    for name, count in Counter(edge.name for edge in plan.edges).items():
        if count > 1:
            yield Problem("RG404", f"edge {name} is there {count} times", f"edge {name}")
    if not nx.is_directed_acyclic_graph(wires):
        cycle = " -> ".join(str(step[0]) for step in nx.find_cycle(wires))
        yield Problem("RG408", f"the error edges form a cycle: {cycle}", f"region {cycle.split(' ')[0]}")
        return
    reached = outputs | {node for output in outputs for node in nx.descendants(wires, output)}
    for region in regions:
        if region.learns and region.id not in reached:
            yield Problem(
                "RG407", f"no error reaches region {region.id} ({region.name})", region.line or f"region {region.id}"
            )
    for node in wires.nodes - reached:
        if not regions[node].learns:
            yield Problem("RG407", f"region {node} sends an error on, but none reaches it", f"region {node}")
    depth = nx.dag_longest_path_length(wires.subgraph(reached)) if len(reached) > 1 else 0
    if depth != plan.depth:
        yield Problem("RG501", f"the longest error path has {depth} edges, not {plan.depth}", "depth")
    relays = tuple(sorted(node for node in wires if node not in outputs and wires.out_degree(node)))
    if relays != plan.relays:
        yield Problem("RG501", f"the relays are {relays}, not {plan.relays}", "relays")
    for number, rule in plan.update:
        if rule not in UPDATES:
            yield Problem("RG501", f"region {number} learns by the unknown {rule!r}", f"region {number}")
    learning = {region.id for region in regions if region.learns}
    if set(plan.update_of) != learning:
        odd = sorted(set(plan.update_of) ^ learning)
        yield Problem(
            "RG501", f"regions {odd} learn without a rule, or have a rule and do not learn", f"region {odd[0]}"
        )


def _placement(plan: WiringPlan) -> Iterator[Problem]:
    """Regions are placed on the GPUs that there are, each once."""
    for number, count in Counter(region for region, _ in plan.placement).items():
        if count > 1:
            yield Problem("RG501", f"region {number} is placed {count} times", f"region {number}")
        if not 0 <= number < len(plan.regions.regions):
            yield Problem("RG501", f"there is no region {number} to place", f"region {number}")
    for number, gpu in plan.placement:
        if not 0 <= gpu < plan.gpus:
            cause = f"region {number} is placed on GPU {gpu}; there are GPUs 0 to {plan.gpus - 1}"
            yield Problem("RG401", cause, f"region {number}")


def _sharing(plan: WiringPlan) -> Iterator[Problem]:
    """A synapse is shared only between runs of one layer, and is one edge's own."""
    own = {edge.name: edge for edge in plan.edges if not edge.shared}
    for edge in plan.edges:
        if not edge.shared:
            continue
        other = own.get(edge.shared)
        if other is None:
            cause = f"edge {edge.name} shares the synapse {edge.shared}, which is no edge's own"
            yield Problem("RG404", cause, edge.name)
        alike = (edge.source, edge.shape, edge.form, edge.rule, "")
        if edge.form == "adjoint":  # of one weight, which several regions may use
            alike = (edge.source if other is None else other.source, edge.shape, edge.form, edge.rule, edge.weight)
        if other is not None and (other.source, other.shape, other.form, other.rule, other.weight) != alike:
            yield Problem("RG404", f"edge {edge.name} cannot share the synapse of {other.name}", edge.name)


def _adjoint(plan: WiringPlan) -> Iterator[Problem]:
    """Adjoint edges go against connections that there are, all branches of each, and have the shapes of the weights."""
    pairs: dict[tuple[int, int], list[Edge]] = {}
    sites, learning = set(plan.regions.sites), {key for item in plan.regions.regions for key in item.parameters}
    for edge in plan.edges:
        place = f"edge {edge.name}"
        if edge.form == "adjoint" and {edge.source, edge.target} <= sites:
            pairs.setdefault((edge.source, edge.target), []).append(edge)
        elif edge.branch or edge.weight:
            yield Problem("RG501", f"edge {edge.name} is {edge.form}, and yet the branch of a connection", place)
        elif edge.rule in MIRRORING:
            yield Problem(
                "RG442", f"edge {edge.name} is {edge.form}, and has no weight for the rule {edge.rule}", place
            )
    item = 8 if plan.regions.synapse_dtype == "float64" else 4
    for (source, target), edges in pairs.items():
        branches = ways(plan.regions).branches(source, target)
        numbers = range(1, len(branches) + 1) if len(branches) > 1 else [0] * len(branches)
        wanted = {number: item.weight for number, item in zip(numbers, branches, strict=True)}
        if not branches:
            yield Problem(
                "RG404", f"no error can go back from region {source} to region {target}", f"edge {source}->{target}"
            )
        elif {edge.branch: edge.weight for edge in edges} != wanted:
            cause = f"the branches from region {source} to region {target} are not those of the connection"
            yield Problem("RG501", cause, f"edge {source}->{target}")
            continue
        shapes = {item.weight: plan.regions.graph.types[item.value].shape if item.value else () for item in branches}
        for edge in edges if branches else ():
            place = f"edge {edge.name}"
            if edge.shape != shapes[edge.weight]:
                yield Problem("RG501", f"synapse {edge.name} is {edge.shape}, its weight {shapes[edge.weight]}", place)
            unfit = edge.rule in AS_WEIGHT and edge.weight not in learning
            if edge.rule not in SYNAPSE_RULES or unfit or (not edge.weight and edge.rule != "fixed"):
                yield Problem("RG404", f"edge {edge.name} cannot have the rule {edge.rule!r}", place)
            if edge.bytes != (own_bytes(edge.form, edge.shape, item) if edge.weight and edge.rule != "sign" else 0):
                yield Problem("RG501", f"synapse {edge.name} takes {edge.bytes} bytes in the plan", place)


def _shape(plan: WiringPlan, edge: Edge) -> Iterator[Problem]:
    place = f"edge {edge.name}"
    if edge.rule not in SYNAPSE_RULES:
        yield Problem("RG404", f"edge {edge.name} has the unknown rule {edge.rule!r}", place)
    if not known_form(edge.form):
        yield Problem("RG404", f"edge {edge.name} has the unknown form {edge.form!r}", place)
        return
    try:
        wanted = shape(plan.regions, edge.source, edge.target, edge.form)
    except ValueError:
        yield Problem("RG404", f"the form {edge.form!r} does not fit edge {edge.name}", place)
        return
    if edge.shape != wanted:
        yield Problem("RG501", f"synapse {edge.name} is {edge.shape}; {edge.form} needs {wanted}", place)
    size = 8 if plan.regions.graph.types[plan.regions.regions[edge.target].pre].dtype == "float64" else 4
    if edge.bytes != own_bytes(edge.form, edge.shape, size):
        yield Problem("RG501", f"synapse {edge.name} takes {edge.bytes} bytes in the plan", place)
    wrong = misfit(plan.regions, edge)
    if wrong:
        yield Problem("RG404", f"edge {edge.name} {wrong}", place)
