"""Errors of regions whose activation is the identity, and updates that need no such error (``rules.factors``).

Before:  y13 = z13 - beta * d13;  e13 = z13 - y13;  dW13 = e13.flatten(0, -2).T @ z12.flatten(0, -2) / B
After:   s13 = beta * e15;  dW13 = E.T.reshape(…).flatten(0, -2).T @ (s13.T @ z12.flatten(1)).reshape(…) / B

The target is not made, since e_i = κ_i β d_i. Where what arrives has few units, the error is not made either: updates
sum over these units instead of over the batch or over positions. Neither changes the step but for rounding. Off with
``without=("straight",)`` and ``without=("factors",)``.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

from reclra_graph.ir.operators import Argument, Ref, TensorType
from reclra_graph.ir.regions import LOCAL, Region, Update
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge
from reclra_graph.passes.lower_state import Lowering
from reclra_graph.passes.synapse_calls import FEW
from reclra_graph.rules.synapse import features, grid, places
from reclra_graph.rules.table import COUNT, carry, update

_INPUTS = ("linear_weight", "matmul_weight", "conv_weight")
_SUMS = ("linear_bias", "channel_bias", "layer_norm_shift", "added", "subtracted")
"""Rules that look at the error alone."""
_LAST = ("linear_weight", "matmul_weight", "linear_bias", "layer_norm_scale", "layer_norm_shift")
"""Rules that treat all positions alike, with features in the last dimension."""

SAMPLES, POSITIONS, EVERYWHERE = "samples", "positions", "everywhere"
"""What a synapse works on: whole samples, single positions, or the mean over all positions, which it sends to all."""


def is_straight(state: Lowering, region: Region) -> bool:
    """Whether e_i = κ_i β d_i."""
    rates = state.plan.rates
    return not region.activation and rates.norm == 2 and not rates.gain and "straight" not in state.without


def direct(state: Lowering, region: Region) -> Edge | None:
    """The one synapse through which a straight region's error comes at once, as E s; None where d_i must be written
    down, for other synapses or for what E learns from it."""
    edges = state.plan.incoming[region.id]
    if len(edges) != 1 or not region.layout.plain or state.type_of(region).dtype != state.synapse_dtype:
        return None
    (edge,) = edges
    few = edge.form == "dense" and state.regions[edge.source].units <= FEW
    return edge if few or edge.form in ("token", "channel") else None


def needs_error(state: Lowering, region: Region) -> bool:
    """Whether e_i of a straight region must be made: to be sent on, or for an update that has no other way."""
    if state.plan.outgoing.get(region.id) or (region.learns and state.plan.update_of[region.id] == LOCAL):
        return True
    return any(_way(state, region, item) is None for item in region.updates)


def factored(state: Lowering, region: Region, item: Update, delta: str, kind: TensorType) -> list[Call] | None:
    """The calls that compute ΔW of one parameter without e_i; None where it takes e_i."""
    edge, way = direct(state, region), _way(state, region, item)
    if edge is None or way is None:
        return None
    rule = update(state.graph.by_name[item.operator], state.graph, item.position)
    assert rule is not None
    source, name = state.regions[edge.source], rule.function.rpartition(".")[2]
    s, synapse = Ref(state.shifts[region.id]), Ref(f"E[{edge.synapse}]")
    rest = tuple(state.renamed(argument) for argument in rule.args[1:])
    calls: list[Call] = []

    def made(label: str, function: str, *args: Argument, low: tuple[tuple[str, Argument], ...] = ()) -> Ref:
        result = state.namer.new(f"{label}{region.id}")
        calls.append(Call(f"rules.factors.{function}", args, low, (result,), (None,)))
        return Ref(result)

    wide = way == SAMPLES
    last = (True,) if wide and state.plan.rows_by_position(region) else ()
    if name in _SUMS:
        if wide:
            error = made("e_sum", "sent", s, synapse, source.shape, region.shape, *last)
        elif way == POSITIONS:
            error = made("e_sum", "sent_by_position", s, synapse)
        else:
            count = prod(places(region.shape, region.axis))
            error = made("e_sum", "sent_over_positions", s, synapse, source.shape, source.axis, count)
        args = rest if wide else _at_one_position(name, rest)
        calls.append(Call(rule.function, (error, *args), (), (delta,), (kind,)))
        return calls
    x, rank = rest[0], len(region.shape) + 1
    if name == "layer_norm_scale":
        shape, eps = rest[3], rest[4]
        x = made("x_hat", "normalised", x, shape, eps, low=rule.kwargs)
        rest = (x, COUNT, rest[2], shape)
    if wide:
        x = made("x_mixed", "mixed", s, x, source.shape, _sizes(state, rule), low=rule.kwargs)
    elif way == POSITIONS:
        x = made("x_mixed", "mixed_by_position", s, x, low=rule.kwargs)
    else:
        x = made("x_mixed", "mixed_over_positions", s, x, source.shape, source.axis, rank, low=rule.kwargs)
    error = made("columns", "basis", synapse, region.shape if wide else (region.features,), *last)
    scale = name == "layer_norm_scale"
    function, low = ("rules.updates.norm_scale", ()) if scale else (rule.function, rule.kwargs)
    args = (x, *rest[1:]) if wide else (x, *_at_one_position(name, rest)[1:])
    calls.append(Call(function, (error, *args), low, (delta,), (kind,)))
    return calls


def without_error(state: Lowering, region: Region, item: Update) -> bool:
    """Whether an update does without e_i."""
    return region.id in state.shifts and _way(state, region, item) is not None


def _sizes(state: Lowering, rule: Call) -> tuple[int, ...]:
    """Sizes of the operator's input behind the batch; none where they are not known, or the batch is not in front."""
    source = rule.args[1]
    kind = state.graph.types.get(source.name) if isinstance(source, Ref) else None
    if kind is None or kind.shape[:1] != (state.graph.batch,):
        return ()
    sizes = tuple(size for size in kind.shape[1:] if isinstance(size, int))
    return sizes if len(sizes) == len(kind.shape) - 1 else ()


def _at_one_position(name: str, rest: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """Arguments behind the error of a rule over positions, for errors and inputs without any: of rank 2."""
    if name in ("linear_weight", "matmul_weight"):
        return (rest[0], rest[1], 2)
    if name == "linear_bias":
        return (rest[0], 2)
    if name == "layer_norm_shift":
        return (rest[0], 2, rest[2])
    return (rest[0], rest[1], 2, rest[3])  # of x̂, the number of samples, and the shape that is normalised


def _way(state: Lowering, region: Region, item: Update) -> str | None:
    """On what the synapse works where an update can do without e_i, and does less so; None elsewhere."""
    edge = direct(state, region)
    if edge is None or "factors" in state.without or not as_it_is(state, item):
        return None
    rule = update(state.graph.by_name[item.operator], state.graph, item.position)
    if rule is None:
        return None
    name = rule.function.rpartition(".")[2]
    if name not in (*_INPUTS, *_SUMS, *_LAST):
        return None
    if name not in _SUMS and not _sizes(state, rule):
        return None
    if edge.form == "dense":
        return SAMPLES
    source = state.regions[edge.source]
    if name not in _LAST or region.axis != -1 or len(region.shape) < 2:
        return None
    if "layer_norm" in name and len(_normalised(rule)) != 1:
        return None
    there, here = places(source.shape, source.axis), places(region.shape, region.axis)
    if not grid(there, here):
        return EVERYWHERE
    alike = source.axis == -1 and there == here and features(source.shape, -1) <= region.features
    return POSITIONS if alike else None


def _normalised(rule: Call) -> tuple[Argument, ...]:
    """The dimensions that a layer norm's rule normalises."""
    return next((item for item in rule.args if isinstance(item, tuple)), ())


def as_it_is(state: Lowering, item: Update) -> bool:
    """Whether the error reaches the operator as it is."""
    route = (*item.path, item.operator)
    carried = [carry(state.graph.by_name[over], state.graph, value) for over, value in pairwise(route)]
    return all(call is not None and call.function == "rules.carry.same" for call in carried)
