"""What a step learns, as tasks: parameters from their region's error (Eq. 5, or local derivatives), synapses from the
errors at both their ends (Eq. 6), and from a sum what several regions or synapses share."""

from __future__ import annotations

import itertools
from dataclasses import replace
from itertools import pairwise
from typing import Any

from reclra_graph.errors import ModelError, Problem
from reclra_graph.ir.operators import Argument, Ref, TensorType
from reclra_graph.ir.regions import LOCAL, Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.passes.batch import learn_batch, learns, work_of
from reclra_graph.passes.group import grouped
from reclra_graph.passes.local import FRESH, local_derivatives
from reclra_graph.passes.lower_state import Lowering, operator_flops
from reclra_graph.passes.outer_calls import learned_from_state
from reclra_graph.passes.send_back import learn_back
from reclra_graph.passes.straight import factored
from reclra_graph.passes.synapse_calls import learned, matrix_learned
from reclra_graph.rules.forms import stored, what_learns, work
from reclra_graph.rules.operators import short
from reclra_graph.rules.table import ERROR, carry, update

Deltas = list[tuple[str, str]]
"""(what learns, name of its delta): ``("P[0.weight]", "dW1")``, ``("E[9->5]", "dE_9_5")``."""


def learn_from_sums(plan: WiringPlan) -> set[str]:
    """Parameters (``P[key]``) and synapses (``E[name]``) to whose change several tasks contribute."""
    uses: dict[str, int] = {}
    for region in plan.regions.regions:
        # Closed forms give one contribution per use, a local derivative one per region.
        local = plan.update_of.get(region.id) == LOCAL
        for key in region.parameters if local else [item.parameter for item in region.updates]:
            uses[key] = uses.get(key, 0) + 1
    # What implicit synapses learn counts their runs already.
    synapses = {what_learns(plan, edge) for edge in plan.edges if edge.shared and edge.form != "implicit"}
    return {f"P[{key}]" for key, count in uses.items() if count > 1} | {f"E[{name}]" for name in synapses}


# -- parameters -------------------------------------------------------------------------------------------------------


def region_update(state: Lowering, region: Region) -> None:
    """ΔW and Δb of a region from its error (Eq. 5), and the optimiser's step for the parameters that are its alone.

    Raises ModelError RG303 where the region learns by local derivatives and one of them is zero everywhere."""
    number = region.id
    if not region.learns:
        return
    members = next((found for found in state.groups.values() if any(item.region == number for item in found)), ())
    if members and number not in state.groups:
        return  # with the last of its group
    by_derivatives = state.plan.update_of[number] == LOCAL
    if members:
        calls, deltas = grouped(state, members)
    else:
        calls, deltas = _local_derivatives(state, region) if by_derivatives else _closed_forms(state, region)
    read = {item.weight.operator for item in members} or {item.operator for item in region.updates}
    flops = sum(operator_flops(state.graph, state.graph.by_name[name]) for name in read)
    state.add(f"update:{number}", "update", number, f"update:{number}", calls, 1, flops)
    optimise(state, f"optimise:{number}", region, f"update:{number}", deltas)


def _closed_forms(state: Lowering, region: Region) -> tuple[list[Call], Deltas]:
    """Eq. 5 for every use of a parameter, the error carried back to the operator that uses it."""
    calls: list[Call] = []
    deltas: Deltas = []
    at = {region.pre: state.errors[region.id]} if region.id in state.errors else {}
    types = {item.key: item.type for item in state.graph.parameters}
    for item in region.updates:
        if region.id in state.shifts:
            delta = _delta(state, item.parameter, region)
            made = factored(state, region, item, delta, types[item.parameter])
            if made is not None:
                calls += made
                deltas.append((f"P[{item.parameter}]", delta))
                continue
        for over, value in pairwise((*item.path, item.operator)):
            if value not in at:
                at[value] = _carried(state, region, over, value, at[over], calls)
        call = update(state.graph.by_name[item.operator], state.graph, item.position)
        assert call is not None, item
        delta = _delta(state, item.parameter, region)
        args = _with_error(state, call.args, at[item.operator])
        calls.append(Call(call.function, args, call.kwargs, (delta,), (types[item.parameter],)))
        deltas.append((f"P[{item.parameter}]", delta))
    return _once(calls, deltas)


def _once(calls: list[Call], deltas: Deltas) -> tuple[list[Call], Deltas]:
    """The same without calls that an earlier one equals: two normalisations that are added learn the same shift, as do
    a bias and the normalisation behind it."""
    known: dict[tuple[object, ...], str] = {}
    equal: dict[str, str] = {}

    def put(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return Ref(equal.get(argument.name, argument.name))
        return tuple(put(item) for item in argument) if isinstance(argument, tuple) else argument

    kept = []
    for call in calls:
        (result,) = call.results
        args = put(call.args)
        first = known.setdefault((call.function, args), result)
        if first == result:
            kept.append(replace(call, args=args))
        else:
            equal[result] = first
    return kept, [(store, equal.get(delta, delta)) for store, delta in deltas]


def _carried(state: Lowering, region: Region, over: str, value: str, error: str, calls: list[Call]) -> str:
    """The error at ``value``, carried back over the operator ``over`` by a call that is appended; returns its name."""
    operator = state.graph.by_name[over]
    call = carry(operator, state.graph, value)
    assert call is not None
    if call.function == "rules.carry.same":
        return error
    result = state.namer.new(f"e{region.id}_{short(operator.target).strip('_')}")
    kind = state.raised(state.graph.types.get(value))
    calls.append(Call(call.function, _with_error(state, call.args, error), call.kwargs, (result,), (kind,)))
    return result


def _with_error(state: Lowering, args: tuple[Argument, ...], error: str) -> tuple[Argument, ...]:
    """Arguments of a rule under their emitted names, the error's name in its place."""
    # The error has its emitted name already: an input of the model may have the same one.
    return tuple(Ref(error) if argument == ERROR else state.renamed(argument) for argument in args)


def _local_derivatives(state: Lowering, region: Region) -> tuple[list[Call], Deltas]:
    """Derivatives inside the region alone, means over the batch. Raises ModelError RG303 where one is 0 everywhere."""

    def emitted(argument: Any) -> Any:
        """Names made here as they are, values of the operator graph under their emitted names."""
        if isinstance(argument, tuple):
            return tuple(emitted(item) for item in argument)
        fresh = isinstance(argument, Ref) and argument.name.startswith(FRESH)
        return Ref(argument.name.removeprefix(FRESH)) if fresh else state.renamed(argument)

    error, unit = state.errors[region.id], ""
    calls: list[Call] = []
    if state.graph.is_low(region.post):
        error, unit = _lowered(state, region, calls)
    made, found = local_derivatives(state.graph, region, error, state.namer.new)
    calls += [
        Call(call.function, emitted(call.args), emitted(call.kwargs),
             tuple(name.removeprefix(FRESH) for name in call.results), call.types, call.unpack)
        for call in made
    ]  # fmt: skip
    deltas: Deltas = []
    types = {item.key: item.type for item in state.graph.parameters}
    for key, result in found.items():
        delta = _delta(state, key, region)
        total = emitted(Ref(result))
        if unit:
            calls.append(Call("rules.carry.divided", (total, Ref(unit)), (), (f"{delta}_sum",), (types[key],)))
            total = Ref(f"{delta}_sum")
        calls.append(Call("rules.carry.divided", (total, Ref("B")), (), (delta,), (types[key],)))
        deltas.append((f"P[{key}]", delta))
    zero = [key for key in region.parameters if key not in found]
    if zero:
        cause = f"the derivative by {zero[0]} is zero everywhere, as behind a step function"
        raise ModelError(Problem("RG303", cause, region.line or region.name))
    return calls, deltas


def _lowered(state: Lowering, region: Region, calls: list[Call]) -> tuple[str, str]:
    """e_i in the precision of z_i, by calls that are appended; returns its name, and that of the power of two by which
    it was multiplied, or ""."""
    kind, error, unit = state.graph.types[region.post], state.errors[region.id], ""
    if kind.dtype == "float16":
        unit, scaled = state.namer.new(f"unit{region.id}"), state.namer.new(f"e{region.id}_scaled")
        args = (Ref(error), Ref("B"), region.units // region.features)
        calls.append(Call("rules.precision.local_unit", args, (), (unit,), (TensorType((), "float32"),)))
        calls.append(Call("rules.carry.scaled", (Ref(error), Ref(unit)), (), (scaled,), (state.type_of(region),)))
        error = scaled
    low = state.namer.new(f"e{region.id}_{kind.short}")
    calls.append(Call("rules.layout.cast", (Ref(error), kind.dtype), (), (low,), (kind,)))
    return low, unit


def _delta(state: Lowering, key: str, region: Region) -> str:
    """A name for the change of a parameter."""
    label = {"weight": "dW", "bias": "db"}.get(key.rpartition(".")[2], "dP")
    return state.namer.new(f"{label}{region.id}")


# -- synapses ---------------------------------------------------------------------------------------------------------


def synapse_update(state: Lowering, region: Region) -> None:
    """Eq. 6 for the synapses that arrive at a region and for the matrices of those that leave it, and what others learn
    from the region's state."""
    plan, number, e = state.plan, region.id, state.sampled
    calls: list[Call] = []
    deltas: Deltas = []
    flops = 0
    batches = [batch for batch in itertools.chain(*state.batches.values()) if learns(state, batch)]
    together = {edge.name for batch in batches for edge in batch.edges}
    for edge in plan.incoming.get(number, ()):
        own = edge.form != "adjoint" and edge.name not in state.matrices and edge.name not in together
        if edge.rule == "eq6" and own:
            delta, d = state.namer.new(f"dE_{edge.source}_{edge.target}"), state.moved.get(edge.name, "")
            calls.append(learned(plan, edge, e[edge.source], d, delta, state.type_of(region).dtype))
            deltas.append((f"E[{what_learns(plan, edge)}]", delta))
            flops += work(plan.regions, edge)
    arriving = [edge for edge in plan.incoming.get(number, ()) if edge.form != "adjoint"]
    stateful = [edge for edge in arriving if edge.rule in ("dkp", "readout")]
    made, found = learned_from_state(state, region, stateful)
    calls += made
    deltas += found
    flops += sum(work(plan.regions, edge) for edge in stateful)
    for batch in batches:
        if batch.edges[0].source == number:
            made, found = learn_batch(state, batch)
            calls += made
            deltas += found
            flops += work_of(batch)
    for item in state.matrices_from(number):
        delta, sent = state.namer.new(f"dM{number}"), state.sent[item.name]
        calls.append(matrix_learned(plan, item, e[number], sent, delta, state.synapse_dtype))
        deltas.append((f"E[{item.name}]", delta))
        flops += 2 * item.units**2
    learned_back, more = learn_back(state, region, calls)
    deltas += learned_back
    flops += more
    if calls:
        # A group of its own: it runs on the lane that owns the synapses, wherever the weights are updated.
        state.add(f"synapses:{number}", "synapse", number, f"synapses:{number}", calls, 0, flops)
        optimise(state, f"optimise:synapses:{number}", region, f"synapses:{number}", deltas)


# -- the optimiser's steps --------------------------------------------------------------------------------------------


def optimise(state: Lowering, name: str, region: Region, group: str, deltas: Deltas) -> None:
    """The optimiser's step for what learns from these deltas alone; the others are noted for their sums."""
    steps = []
    for store, delta in deltas:
        state.deltas.setdefault(store, []).append((delta, region.id))
        if store in state.shared:
            state.shared[store].append(delta)
        else:
            steps.append(Call("optimise", (Ref(store), Ref(delta), Ref("lr"))))
    if steps:
        state.add(name, "optimise", region.id, group, steps + behind_the_loss(state))


def behind_the_loss(state: Lowering) -> list[Call]:
    """What lets an optimiser's step wait until the loss was found finite, where not all that is learned comes of it."""
    apart = any(edge.rule in ("mirror", "readout") for edge in state.plan.edges)
    return [Call("after", (Ref("loss"),))] if apart else []


def shared_updates(state: Lowering) -> None:
    """What has several contributions learns from their sum, once all regions that use it are done; a synapse on the
    lane that owns it."""
    types = {f"P[{held.key}]": held.type for held in state.graph.parameters}
    owners = {}
    for item in stored(state.plan):
        types[f"E[{item.name}]"] = TensorType(item.shape, state.type_of(state.regions[item.region]).dtype)
        owners[f"E[{item.name}]"] = item.region
    sums = [(store, deltas) for store, deltas in sorted(state.shared.items()) if deltas]
    for number, (store, deltas) in enumerate(sums, start=1):
        total = state.namer.new(f"dS{number}")
        calls = [
            Call("rules.target.total", tuple(Ref(delta) for delta in deltas), (), (total,), (types[store],)),
            Call("optimise", (Ref(store), Ref(total), Ref("lr"))),
            *behind_the_loss(state),
        ]
        if store in owners:
            name, region = f"synapses:{store[2:-1]}", owners[store]
            group = f"synapses:{region}:shared"
        else:
            name, region = store[2:-1], state.plan.regions.output
            group = f"optimise:{name}"
        state.add(f"optimise:{name}", "optimise", region, group, calls)
