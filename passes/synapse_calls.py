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


def displaced(plan: WiringPlan, edge: Edge, e: str, sent: str, result: str, kind: TensorType | None) -> Call:
    """d over one edge. ``e`` names the source's error, ``sent`` what the edge's matrix M_j makes of it, if there is."""
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    synapse = Ref(f"E[{edge.synapse}]")
    name, args = f"rules.synapse.{edge.form}_displace", _arguments(Ref(e), synapse, source.shape, target.shape)
    if edge.form == "implicit":
        name, args = "rules.implicit.displace", (Ref(sent or e), synapse, target.shape)
    elif rank_of(edge.form):
        factors = (Ref(f"E[{edge.synapse}.A]"), Ref(f"E[{edge.synapse}.B]"))
        name, args = "rules.synapse.lowrank_displace", (Ref(e), *factors, source.shape, target.shape)
    elif edge.form == "conv":
        form = _convolution(plan, edge)
        args = (Ref(e), synapse, form.stride, form.padding, form.output_padding, form.dilation, form.groups)
    elif edge.form == "token":
        args = (*args, source.axis, target.axis)
    elif edge.form == "dense" and plan.rows_by_position(target):
        args = (*args, True)
    return Call(name, args, () if edge.form == "implicit" else _low(plan), (result,), (kind,))


def learned(plan: WiringPlan, edge: Edge, e: str, d: str, delta: str, dtype: str) -> Call:
    """γ d eᵀ of Eq. 6 for one edge, in the direction that is subtracted. ``d`` names the edge's own displacement; an
    implicit edge has no change of its own."""
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    synapse, shape = Ref(f"E[{edge.synapse}]"), edge.shape
    rate = _rate(plan)
    name, args = f"rules.synapse.{edge.form}_eq6", _arguments(synapse, Ref(e), *rate, source.shape, target.shape)
    if edge.form == "dense" and source.units <= FEW:
        name, args = "rules.synapse.dense_eq6_few", (synapse, Ref(e), *rate, source.shape)
    elif edge.form == "dense":
        args = (Ref(d), *args[1:], *((True,) if plan.rows_by_position(target) else ()))
    elif rank_of(edge.form):
        shape = (rank_of(edge.form), source.units)
        name, args = "rules.synapse.lowrank_eq6", (Ref(f"E[{edge.synapse}.B]"), Ref(e), *rate, source.shape)
    elif edge.form == "conv":
        form = _convolution(plan, edge)
        rest = (prod(source.shape[1:]), form.stride, form.padding, form.dilation, form.groups)
        args = (Ref(d), Ref(e), synapse, *rate, *rest)
    elif edge.form == "token":
        args = (*args, source.axis, target.axis)
    return Call(name, args, _low(plan), (delta,), (TensorType(shape, dtype),))


def matrices_from(plan: WiringPlan, source: int) -> list[Matrix]:
    """The matrices that learn in place of the implicit synapses that leave a region."""
    edges = plan.outgoing.get(source, ())
    return list(dict.fromkeys(plan.matrix_of[edge.name] for edge in edges if edge.name in plan.matrix_of))


def sent_on(plan: WiringPlan, matrix: Matrix, e: str, result: str, kind: TensorType | None) -> Call:
    """M_j e_j, which all implicit edges of one matrix send on."""
    args = (Ref(e), Ref(f"E[{matrix.name}]"), plan.regions.regions[matrix.source].shape, (matrix.units,))
    return Call("rules.synapse.dense_displace", args, _low(plan), (result,), (kind,))


def matrix_learned(plan: WiringPlan, matrix: Matrix, e: str, sent: str, delta: str, dtype: str) -> Call:
    """γ M_j e eᵀ, Eq. 6 for all implicit edges of one matrix."""
    args = (Ref(sent), Ref(e), *_rate(plan), plan.regions.regions[matrix.source].shape, matrix.runs)
    kind = TensorType((matrix.units, matrix.units), dtype)
    return Call("rules.synapse.matrix_eq6", args, _low(plan), (delta,), (kind,))


def _arguments(*items: Argument) -> tuple[Argument, ...]:
    return items


def _rate(plan: WiringPlan) -> tuple[Argument, ...]:
    return Ref("gamma"), Ref("B"), plan.rates.sign == "descend"


def _low(plan: WiringPlan) -> tuple[tuple[str, Argument], ...]:
    """The precision of products, as a keyword argument of rules."""
    low = plan.regions.low
    return (("low", low),) if low else ()


def _convolution(plan: WiringPlan, edge: Edge) -> Convolution:
    found = convolution(plan.regions, edge.source, edge.target)
    assert found is not None, edge
    return found
