"""The calls of one error synapse: what it sends (Eq. 3) and how it learns (Eq. 6), form by form."""

from __future__ import annotations

from math import prod

from reclra_graph.ir.operators import Argument, Ref, TensorType
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge, Matrix, WiringPlan
from reclra_graph.options import rank_of
from reclra_graph.rules.forms import Convolution, convolution

FEW = 32
"""Up to this many units of the source, E (e eᵀ) is less work than d eᵀ for any usual batch."""


def displaced(plan: WiringPlan, edge: Edge, e: str, result: str, kind: TensorType | None) -> Call:
    """d over one edge. ``e`` names the source's error, or what the edge's matrix M_j makes of it, if it has one."""
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    synapse = Ref(f"E[{edge.synapse}]")
    name, args = f"rules.synapse.{edge.form}_displace", _arguments(Ref(e), synapse, source.shape, target.shape)
    if edge.form == "implicit":
        name, args = "rules.implicit.displace", (Ref(e), synapse, target.shape)
    elif rank_of(edge.form):
        factors = (Ref(f"E[{edge.synapse}.A]"), Ref(f"E[{edge.synapse}.B]"))
        name, args = "rules.synapse.lowrank_displace", (Ref(e), *factors, source.shape, target.shape)
    elif edge.form == "conv":
        form = convolution_of(plan, edge)
        args = (Ref(e), synapse, form.stride, form.padding, form.output_padding, form.dilation, form.groups)
    elif edge.form == "token":
        args = (*args, source.axis, target.axis)
    elif edge.form == "dense" and plan.rows_by_position(target):
        args = (*args, True)
    return Call(name, args, () if edge.form == "implicit" else low(plan), (result,), (kind,))


def learned(plan: WiringPlan, edge: Edge, e: str, d: str, delta: str, dtype: str) -> Call:
    """γ d eᵀ of Eq. 6 for one edge, in the direction that is subtracted. ``d`` names the edge's own displacement; an
    implicit edge has no change of its own."""
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    synapse, shape = Ref(f"E[{edge.synapse}]"), edge.shape
    numbers = rate(plan)
    name, args = f"rules.synapse.{edge.form}_eq6", _arguments(synapse, Ref(e), *numbers, source.shape, target.shape)
    if edge.form == "dense" and source.units <= FEW:
        name, args = "rules.synapse.dense_eq6_few", (synapse, Ref(e), *numbers, source.shape)
    elif edge.form == "dense":
        args = (Ref(d), *args[1:], *((True,) if plan.rows_by_position(target) else ()))
    elif rank_of(edge.form):
        shape = (rank_of(edge.form), source.units)
        name, args = "rules.synapse.lowrank_eq6", (Ref(f"E[{edge.synapse}.B]"), Ref(e), *numbers, source.shape)
    elif edge.form == "conv":
        form = convolution_of(plan, edge)
        rest = (prod(source.shape[1:]), form.stride, form.padding, form.dilation, form.groups)
        args = (Ref(d), Ref(e), synapse, *numbers, *rest)
    elif edge.form == "token":
        args = (*args, source.axis, target.axis)
    return Call(name, args, low(plan), (delta,), (TensorType(shape, dtype),))


def sent_on(plan: WiringPlan, matrix: Matrix, e: str, result: str, kind: TensorType | None) -> Call:
    """M_j e_j, which all edges of one matrix send on."""
    args = (Ref(e), Ref(f"E[{matrix.name}]"), plan.regions.regions[matrix.source].shape, (matrix.units,))
    return Call("rules.synapse.dense_displace", args, low(plan), (result,), (kind,))


def matrix_learned(plan: WiringPlan, matrix: Matrix, e: str, sent: str, delta: str, dtype: str) -> Call:
    """γ M_j e eᵀ, Eq. 6 for all edges of one matrix."""
    args = (Ref(sent), Ref(e), *rate(plan), plan.regions.regions[matrix.source].shape, matrix.runs)
    kind = TensorType((matrix.units, matrix.units), dtype)
    return Call("rules.synapse.matrix_eq6", args, low(plan), (delta,), (kind,))


def _arguments(*items: Argument) -> tuple[Argument, ...]:
    return items


def rate(plan: WiringPlan) -> tuple[Argument, ...]:
    """γ, the batch size and the sign of Eq. 6, as rules take them."""
    return Ref("gamma"), Ref("B"), plan.rates.sign == "descend"


def low(plan: WiringPlan) -> tuple[tuple[str, Argument], ...]:
    """The precision of products, as a keyword argument of rules."""
    low = plan.regions.low
    return (("low", low),) if low else ()


def convolution_of(plan: WiringPlan, edge: Edge) -> Convolution:
    """The convolution whose transpose a synapse of the form "conv" is."""
    found = convolution(plan.regions, edge.source, edge.target)
    assert found is not None, edge
    return found
