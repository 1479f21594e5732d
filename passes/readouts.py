"""The errors of readouts: a region whose edge leaves an output need not wait for that output's error.

Before:  e9 = softmax(z9) - one_hot(target);  d5 = e9 @ E["9->5"].T
After:   o5 = z5 @ E["9->5"];  e9_5 = softmax(o5) - one_hot(target);  d5 = e9_5 @ E["9->5"].T

Its tasks read z_i, E and the target, and nothing that the loss's task makes: they can run as soon as the region's
forward pass is done. What they lead to is stored only after the loss was found finite (``lower_updates``).
"""

from __future__ import annotations

from reclra_graph.ir.operators import Argument, Ref, TensorType
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge
from reclra_graph.passes.lower_errors import LOSSES, loss_arguments
from reclra_graph.passes.lower_state import Lowering
from reclra_graph.passes.outer_calls import sampled
from reclra_graph.passes.synapse_calls import convolution_of, low
from reclra_graph.rules.forms import work


def readouts(state: Lowering, region: Region) -> None:
    """A task for every readout of a region."""
    for edge in state.plan.incoming.get(region.id, ()):
        if edge.rule == "readout":
            _readout(state, edge)


def _readout(state: Lowering, edge: Edge) -> None:
    """e' = κ_j · the error of the loss of j for Eᵀ z_i, in the place of e_j."""
    plan, number = state.plan, edge.target
    output, region = state.regions[edge.source], state.regions[number]
    loss = plan.losses[plan.regions.outputs.index(output.id)]
    several, kind = len(plan.losses) > 1, state.type_of(output)
    made = TensorType((kind.shape[output.layout.dim], *output.shape), state.synapse_dtype)
    calls: list[Call] = []
    z = sampled(state, region, state.names[region.post], "z", calls)
    o = state.namer.new(f"o{number}_{output.id}" if several else f"o{number}")
    calls.append(_read(state, edge, z, o, made if output.layout.plain else None))
    y = Ref(f"T[{loss.label}]" if several else "target")
    if not output.layout.plain and (not loss.classes or len(output.shape) > 1):
        place = (output.layout.dim, output.layout.before, output.layout.after)
        name = state.namer.new(f"target{output.id}_samples")
        calls.append(Call("rules.layout.to_samples", (y, *place), (), (name,), (None,)))
        y = Ref(name)
    kappa = plan.rates.kappa_of(output.id)
    error = state.readouts[edge.name] = state.namer.new(f"e{output.id}_{number}")
    first = error if kappa == 1.0 else state.namer.new(f"m{output.id}_{number}")
    _, rest = loss_arguments(output, loss)
    kinds = (made if output.layout.plain else None,)
    calls.append(Call(f"rules.loss.{LOSSES[loss.kind]}_error", (Ref(o), y, *rest), (), (first,), kinds))
    if kappa != 1.0:
        calls.append(Call("rules.discrepancy.scaled", (Ref(first), kappa), (), (error,), kinds))
    flops = work(plan.regions, edge) + 2 * output.units
    state.add(f"readout:{edge.name}", "displace", number, f"target:{number}", calls, 0, flops)


def _read(state: Lowering, edge: Edge, z: str, result: str, kind: TensorType | None) -> Call:
    """Eᵀ z_i, which has the output's shape."""
    plan = state.plan
    source, target = state.regions[edge.source], state.regions[edge.target]
    args: tuple[Argument, ...] = (Ref(z), Ref(f"E[{edge.synapse}]"), source.shape, target.shape)
    if edge.form == "conv":
        form = convolution_of(plan, edge)
        args = (*args[:2], form.stride, form.padding, form.dilation, form.groups)
    elif edge.form == "token":
        args = (*args, source.axis, target.axis)
    elif edge.form == "dense" and plan.rows_by_position(target):
        args = (*args, True)
    return Call(f"rules.readout.{edge.form}", args, low(plan), (result,), (kind,))
