"""Synapses that learn by an outer product which knows nothing of E (``rules.outer``): the calls, form by form, and what
the rules put at both ends.

Before:  z5, e9 and an edge 9->5 with the rule "dkp"
After:   dE_9_5 = gamma / B * (z5.T @ e9)
"""

from __future__ import annotations

from math import prod

from reclra_graph.ir.operators import Argument, Ref, TensorType
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge, WiringPlan
from reclra_graph.passes.lower_state import Lowering
from reclra_graph.passes.synapse_calls import convolution_of, low


def outer(plan: WiringPlan, edge: Edge, a: str, b: str, delta: str, dtype: str) -> Call:
    """γ a bᵀ for one edge. ``a`` and ``b`` name what stands at its target and at its source, as synapses take it."""
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    args: tuple[Argument, ...] = (Ref(a), Ref(b), Ref("gamma"), Ref("B"), source.shape, target.shape)
    if edge.form == "conv":
        form = convolution_of(plan, edge)
        rest = (prod(source.shape[1:]), form.stride, form.padding, form.dilation, form.groups)
        args = (Ref(a), Ref(b), Ref(f"E[{edge.synapse}]"), Ref("gamma"), Ref("B"), *rest)
    elif edge.form == "token":
        args = (*args, source.axis, target.axis)
    elif edge.form == "dense" and plan.rows_by_position(target):
        args = (*args, True)
    return Call(f"rules.outer.{edge.form}", args, low(plan), (delta,), (TensorType(edge.shape, dtype),))


def sampled(state: Lowering, region: Region, value: str, label: str, calls: list[Call], dtype: str = "") -> str:
    """A value of a region's, in its layout and of this dtype (that of z_i), as synapses take it: the batch in front, in
    their dtype. Appends the calls; returns its name."""
    dtype = dtype or state.graph.types[region.post].dtype
    if not region.layout.plain:
        place = (region.layout.dim, region.layout.before, region.layout.after)
        name = state.namer.new(f"{label}{region.id}_samples")
        calls.append(Call("rules.layout.to_samples", (Ref(value), *place), (), (name,), (None,)))
        value = name
    if dtype != state.synapse_dtype:
        name = state.namer.new(f"{label}{region.id}_{state.synapse_dtype}")
        calls.append(Call("rules.layout.cast", (Ref(value), state.synapse_dtype), (), (name,), (None,)))
        value = name
    return value


def learned_from_state(state: Lowering, region: Region, edges: list[Edge]) -> tuple[list[Call], list[tuple[str, str]]]:
    """The changes of synapses that end at a region and learn from its z_i, by "dkp" or "readout", as calls; and (what
    learns, name of its delta)."""
    calls: list[Call] = []
    deltas = []
    z = sampled(state, region, state.names[region.post], "z", calls) if edges else ""
    for edge in edges:
        delta = state.namer.new(f"dE_{edge.source}_{edge.target}")
        e = state.readouts.get(edge.name) or state.sampled[edge.source]
        calls.append(outer(state.plan, edge, z, e, delta, state.type_of(region).dtype))
        deltas.append((f"E[{edge.synapse}]", delta))
    return calls, deltas
