"""Weight mirrors as tasks: noise at the regions whose synapses mirror, and what these learn from the responses.

Before:  an edge 9->5 with the rule "mirror"
After:   n5 = torch.randn_like(z5)                                    with the forward pass, region by region
         z5_n5 = z5 + 0.1 * n5;  …;  h9_n5 = F.linear(z8_n5, …)       every operator from z5 to h9 once more
         r9_5 = (h9 - h9_n5) / 0.1;  dE_9_5 = gamma / B * (n5.T @ r9_5)

The noise is drawn behind the forward pass, on its lane and in the order of regions, so that no lane can draw before
another. One noise at i serves all edges that end there. The tasks read weights as the forward pass had them; so they
come before all updates.
"""

from __future__ import annotations

from typing import Any

from reclra_graph.ir.operators import Argument, Operator, Ref, TensorType
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge
from reclra_graph.passes.lower_forward import is_part
from reclra_graph.passes.lower_state import Lowering, operator_flops
from reclra_graph.passes.lower_updates import optimise
from reclra_graph.passes.outer_calls import outer, sampled
from reclra_graph.rules.forms import work
from reclra_graph.rules.way import mask_of, way


def noises(state: Lowering) -> None:
    """n_i for every region at which a synapse mirrors."""
    for region, _ in _mirrored(state):
        name = state.noises[region.id] = state.namer.new(f"n{region.id}")
        args = (Ref(state.names[region.post]),)
        call = Call("rules.mirror.noise", args, (), (name,), (state.graph.types[region.post],))
        state.add(f"noise:{region.id}", "forward", region.id, "forward", [call], 0, region.units)


def mirrors(state: Lowering) -> None:
    """For every such region, how those that send to it respond, and what the synapses learn from that."""
    for region, edges in _mirrored(state):
        number, noise = region.id, state.noises[region.id]
        start = state.namer.new(f"{state.names[region.post]}_n{number}")
        kind = state.graph.types[region.post]
        given: tuple[Argument, ...] = (Ref(state.names[region.post]), Ref(noise), state.plan.rates.mirror_noise)
        calls = [Call("rules.mirror.noisy", given, (), (start,), (kind,))]
        passed = way(state.plan.regions, number, [edge.source for edge in edges])
        moved = _again(state, region, start, passed, calls)
        a = sampled(state, region, noise, "n", calls)
        deltas = []
        for edge in edges:
            b = _response(state, edge, moved, calls)
            delta = state.namer.new(f"dE_{edge.source}_{number}")
            calls.append(outer(state.plan, edge, a, b, delta, state.type_of(region).dtype))
            deltas.append((f"E[{edge.synapse}]", delta))
        flops = sum(operator_flops(state.graph, operator) for operator in passed)
        flops += sum(work(state.plan.regions, edge) for edge in edges)
        state.add(f"mirror:{number}", "synapse", number, f"mirror:{number}", calls, 0, flops)
        state.mirrored[number] = deltas


def mirror_update(state: Lowering, region: Region) -> None:
    """The optimiser's step for the synapses that mirror at a region, behind all that reads them: on the lane that owns
    them, wherever the responses were found."""
    number = region.id
    optimise(state, f"optimise:mirror:{number}", region, f"synapses:{number}", state.mirrored.get(number, []))


def _mirrored(state: Lowering) -> list[tuple[Region, list[Edge]]]:
    """Regions in order, with the edges that end there and mirror."""
    found = []
    for region in state.regions:
        edges = [edge for edge in state.plan.incoming.get(region.id, ()) if edge.rule == "mirror"]
        if edges:
            found.append((region, edges))
    return found


def _again(
    state: Lowering, region: Region, start: str, passed: tuple[Operator, ...], calls: list[Call]
) -> dict[str, str]:
    """Append the calls of these operators on the noisy z_i; returns the names of what they make by the graph's."""
    graph = state.graph
    moved = {region.post: start}
    for operator in passed:
        if not operator.types:
            moved[operator.name] = state.namer.new(f"{state.names[operator.name]}_n{region.id}")

    def put(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(put(item) for item in argument)
        if not isinstance(argument, Ref):
            return argument
        operator = graph.by_name.get(argument.name)
        counted = operator is not None and operator.size is not None and state.names[argument.name] != "B"
        if operator is not None and counted and argument.name not in moved:
            # A number is worked out on every lane anew: only tensors are handed over.
            moved[argument.name] = state.namer.new(f"{state.names[argument.name]}_n{region.id}")
            results = (moved[argument.name],)
            calls.append(Call(operator.target, put(operator.args), put(operator.kwargs), results, (None,)))
        return Ref(moved.get(argument.name) or state.names.get(argument.name, argument.name))

    for operator in passed:
        if mask_of(operator, graph):
            continue  # its result is made where it is taken out of the tuple
        if is_part(operator, graph):
            source = graph.by_name[operator.reads[0]]
            mask = mask_of(source, graph)
            if mask:
                keep = 1.0 - float(source.args[1])  # type: ignore[arg-type]
                args = (put(source.args[0]), Ref(state.names[mask]), keep)
                calls.append(Call("rules.carry.masked", args, (), (moved[operator.name],), (operator.type,)))
            continue
        results: tuple[str, ...] = (moved.get(operator.name, ""),)
        if operator.types:
            taken = [item for item in passed if is_part(item, graph) and item.reads[0] == operator.name]
            parts = {item.args[1]: moved[item.name] for item in taken}
            results = tuple(parts.get(index, "") for index in range(len(operator.types)))
        kinds = operator.types or (operator.type,)
        made = Call(operator.target, put(operator.args), put(operator.kwargs), results, kinds, bool(operator.types))
        calls.append(made)
    return moved


def _response(state: Lowering, edge: Edge, moved: dict[str, str], calls: list[Call]) -> str:
    """Append the calls for −(response of j) / σ, as synapses take it; returns its name."""
    source, sigma = state.regions[edge.source], state.plan.rates.mirror_noise
    kind = state.graph.types[source.pre]
    name = state.namer.new(f"r{edge.source}_{edge.target}")
    raised: tuple[Argument, ...] = () if kind.dtype == state.synapse_dtype else (state.synapse_dtype,)
    args = (Ref(state.names[source.pre]), Ref(moved[source.pre]), sigma, *raised)
    calls.append(Call("rules.mirror.response", args, (), (name,), (TensorType(kind.shape, state.synapse_dtype),)))
    return sampled(state, source, name, f"r{edge.target}_", calls, state.synapse_dtype)
