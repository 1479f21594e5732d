"""WiringPlan: every region that learns hears from the output, shapes fit, depth and relays are what the plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import networkx as nx

from reclra_graph.errors import Problem
from reclra_graph.ir.wiring import Edge, WiringPlan
from reclra_graph.options import SYNAPSE_RULES, UPDATES, known_form
from reclra_graph.rules.fit import misfit
from reclra_graph.rules.forms import own_bytes, shape


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
        yield from _shape(plan, edge)
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
        elif (other.source, other.shape, other.form, other.rule) != (edge.source, edge.shape, edge.form, edge.rule):
            yield Problem("RG404", f"edge {edge.name} cannot share the synapse of {other.name}", edge.name)


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
