"""Forms of error synapses: which fit an edge, how many numbers each stores, and what is stored under which name.

| form | stored | shape |
|---|---|---|
| ``dense`` | E | [units of target, units of source] |
| ``implicit`` | a key of two integers; one matrix M_j for all edges that leave j and learn | that of dense |
| ``lowrank(r)`` | A [units of target, r], B [r, units of source]; E = A B | that of dense |
| ``conv`` | E | of the weight of the convolution from the target to the source |
| ``channel``, ``token`` | E, shared over positions | [features of target, features of source] |
| ``adjoint`` | E; nothing under the rule ``sign``, or without a weight | of the forward weight that it mirrors |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod, sqrt

from reclra_graph.ir.operators import Ref
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Edge, Matrix, WiringPlan
from reclra_graph.options import Options, rank_of
from reclra_graph.rules.fit import default_rule, form_fits
from reclra_graph.rules.operators import short
from reclra_graph.rules.table import bound, padding_of, repeated
from reclra_graph.rules.way_back import fan_in as weight_fan_in
from reclra_graph.rules.way_back import ways

KEY = 2
"""Integers in the key of an implicit synapse."""
KEY_BYTES = 8
RANK = 16
"""Rank of the low-rank form where none is asked for."""

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}


@dataclass(frozen=True)
class Convolution:
    """A convolution that reads z_i on the way to h_j, by which an edge j → i can be a transposed convolution."""

    weight: tuple[int, ...]
    """[channels of the source, channels of the target / groups, *kernel]."""
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    """What the transposed convolution adds on one side, so that d_i has the size of h_i."""
    groups: int


@dataclass(frozen=True)
class Stored:
    """A tensor in the step's E. ``start``: the standard deviation of its first values, ``"identity"`` for a matrix
    M_j, ``"key"`` for the integers of an implicit synapse. ``region``: its lane is the one of this region's target."""

    name: str
    shape: tuple[int, ...]
    start: float | str
    region: int


def fitting(
    regions: RegionGraph,
    source: int,
    target: int,
    *,
    rule: str = "eq6",
    largest: int = Options.synapse_entries,
    ranks: Iterable[int] = (RANK,),
) -> tuple[str, ...]:
    """Forms that fit an edge between two regions, richest first: those with more freedom, then those that store more.

    ``largest`` bounds the entries of a dense synapse where another form can share over positions, and of a matrix
    M_j. ``ranks`` are those to offer; ``lowrank(r)`` fits where it stores less than a dense synapse does."""
    first, second = regions.regions[source], regions.regions[target]
    units = (second.units, first.units)
    positions = len(second.shape) > 1
    found = ["dense"] if prod(units) <= largest or not positions else []
    if rule == "fixed" or first.units**2 <= largest:
        found.append("implicit")
    found += [f"lowrank({r})" for r in sorted(set(ranks), reverse=True) if r * sum(units) < prod(units)]
    if convolution(regions, source, target) is not None:
        found.append("conv")
    if positions:
        found.append("token" if -1 in (first.axis, second.axis) else "channel")
    return tuple(form for form in found if form_fits(form, rule))


def pick(regions: RegionGraph, source: int, target: int, options: Options) -> str:
    """The form of an edge: the one asked for where it fits. Else over sequences position by position; dense; shared
    over positions where dense would be too large."""
    asked = options.synapse
    if asked == "adjoint" and ways(regions).branches(source, target):
        return asked
    ranks = (rank_of(asked),) if rank_of(asked) else ()
    rule = default_rule(regions, source, options)
    fit = fitting(regions, source, target, rule=rule, largest=options.synapse_entries, ranks=ranks)
    if asked in fit:
        return asked
    first, second = regions.regions[source], regions.regions[target]
    sequences = first.axis == second.axis == -1 and first.shape[:-1] == second.shape[:-1] and len(second.shape) > 1
    return fit[-1] if sequences or fit[0] != "dense" else "dense"


def asked_for(options: Options, edges: Iterable[Edge]) -> str:
    """What became of the form that was asked for, in a few words; nothing where none was."""
    if options.synapse == "auto":
        return ""
    held = [edge.form for edge in edges]
    others = sorted(set(held) - {options.synapse})
    said = f"{options.synapse} synapses: asked for"
    if others:
        said += f", and fit {held.count(options.synapse)} of {len(held)} edges; "
        said += ", ".join(f"{form} on {held.count(form)}" for form in others)
    return said


def shape(regions: RegionGraph, source: int, target: int, form: str) -> tuple[int, ...]:
    """Shape of a synapse of this form, of the dense one that it stands for where it is low-rank or implicit. Raises
    ValueError for an unknown form, and for one that does not fit."""
    first, second = regions.regions[source], regions.regions[target]
    if form in ("dense", "implicit") or rank_of(form):
        return second.units, first.units
    if form in ("channel", "token") and second.shape:
        return second.features, first.features
    found = convolution(regions, source, target) if form == "conv" else None
    if found is None:
        raise ValueError(form)
    return found.weight


def entries(regions: RegionGraph, source: int, target: int, form: str) -> int:
    """Numbers that an edge of this form stores for itself; implicit edges under Eq. 6 share units² of the source
    besides (``ir.wiring.matrices``). Raises ValueError as ``shape`` does."""
    return _entries(form, shape(regions, source, target, form))


def _entries(form: str, size: tuple[int, ...]) -> int:
    if form == "implicit":
        return KEY
    return rank_of(form) * sum(size) if rank_of(form) else prod(size)


def own_bytes(form: str, size: tuple[int, ...], item: int) -> int:
    """Bytes that a synapse of this form and shape stores for itself, its numbers being of ``item`` bytes each."""
    return KEY_BYTES if form == "implicit" else _entries(form, size) * item


def new_edge(regions: RegionGraph, source: int, target: int, form: str, rule: str) -> Edge:
    """An edge with its shape and bytes. Raises ValueError as ``shape`` does."""
    size = shape(regions, source, target, form)
    return Edge(source, target, form, rule, size, own_bytes(form, size, item_bytes(regions, target)))


def item_bytes(regions: RegionGraph, target: int) -> int:
    """Bytes of one number of a synapse that ends at ``target``."""
    return 8 if regions.graph.types[regions.regions[target].pre].dtype == "float64" else 4


def work(regions: RegionGraph, edge: Edge) -> int:
    """Floating-point operations per sample of sending an error over an edge; its learning takes as many."""
    if edge.form == "adjoint":
        return 0  # counted with the operators that its error goes back over
    if rank_of(edge.form):
        return 2 * rank_of(edge.form) * sum(edge.shape)
    positions = regions.regions[edge.source].shape[1:] if edge.form == "conv" else ()
    return 2 * prod(edge.shape) * prod(positions)


def what_learns(plan: WiringPlan, edge: Edge) -> str:
    """Name of the tensor that learns for an edge: E itself, B of a low-rank E = A B, or M_j of an implicit one."""
    if edge.form == "implicit":
        return plan.matrix_of[edge.name].name
    return f"{edge.synapse}.B" if rank_of(edge.form) else edge.synapse


def stored(plan: WiringPlan, shared: Iterable[Matrix] = ()) -> tuple[Stored, ...]:
    """All tensors of E in the order in which they are drawn: by source, then target, highest first. Entries of a
    low-rank E = A B have the same deviation as those of a dense one. ``shared``: matrices of dense synapses; they come
    last."""
    found: dict[str, Stored] = {}
    for edge in sorted(plan.edges, key=lambda item: (-item.source, -item.target)):
        name, region = edge.synapse, edge.home
        matrix = plan.matrix_of.get(edge.name)
        if matrix is not None and matrix.name not in found:
            found[matrix.name] = Stored(matrix.name, (matrix.units, matrix.units), "identity", edge.source)
        if not edge.stored:
            continue
        rank = rank_of(edge.form)
        if edge.form == "implicit":
            found[name] = Stored(name, (KEY,), "key", region)
        elif rank:
            units, heard = edge.shape
            found[f"{name}.A"] = Stored(f"{name}.A", (units, rank), _deviation(rank), region)
            found[f"{name}.B"] = Stored(f"{name}.B", (rank, heard), _deviation(heard), region)
        else:
            found[name] = Stored(name, edge.shape, _deviation(_fan_in(plan, edge)), region)
    found.update({item.name: Stored(item.name, (item.units, item.units), "identity", item.source) for item in shared})
    return tuple(found.values())


def _fan_in(plan: WiringPlan, edge: Edge) -> float:
    """How many errors add up in one displacement; on average over the positions, for a transposed convolution."""
    if edge.form == "adjoint":
        branches = ways(plan.regions).branches(edge.source, edge.target)
        operator = next(item.operator for item in branches if item.weight == edge.weight)
        return weight_fan_in(plan.regions.graph.by_name[operator], plan.regions.graph)
    if edge.form != "conv":
        return edge.shape[1]
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    groups = target.features // edge.shape[1]
    return edge.shape[0] / groups * prod(edge.shape[2:]) * prod(source.shape[1:]) / prod(target.shape[1:])


def _deviation(fan_in: float) -> float:
    return round(1 / sqrt(fan_in), 6)


def convolution(regions: RegionGraph, source: int, target: int) -> Convolution | None:
    """The convolution of the source that reads what the target puts out, position for position; None for none."""
    first, second = regions.regions[source], regions.regions[target]
    graph, owner = regions.graph, regions.region_of
    if not (first.layout.plain and second.layout.plain) or first.axis or second.axis:
        return None
    for name in first.operators:
        operator = graph.by_name[name]
        if operator.target.split(".")[0] != "aten" or short(operator.target) not in _CONVOLUTIONS:
            continue
        args = bound(operator)
        read, weight = args["input"], args["weight"]
        if not isinstance(read, Ref) or not isinstance(weight, Ref) or args.get("transposed") is True:
            continue
        size = graph.types[weight.name].shape
        spatial = len(size) - 2
        alike = graph.sample_shape(read.name) == second.shape and graph.sample_shape(name) == first.shape
        padding = padding_of(args, graph, spatial)
        if owner.get(read.name) != target or not alike or len(second.shape) != spatial + 1 or padding is None:
            continue
        numbers = [_numbers(repeated(args[key], spatial)) for key in ("stride", "dilation")]
        stride, dilation, pad = *numbers, _numbers(padding)
        kernel = _numbers(size)[2:]
        more = tuple(
            there - ((here - 1) * s - 2 * p + d * (k - 1) + 1)
            for there, here, s, p, d, k in zip(
                second.shape[1:], first.shape[1:], stride, pad, dilation, kernel, strict=True
            )
        )
        groups = args["groups"]
        assert isinstance(groups, int)
        return Convolution(_numbers(size), stride, pad, dilation, more, groups)
    return None


def _numbers(items: Iterable[object]) -> tuple[int, ...]:
    return tuple(int(item) for item in items)  # type: ignore[call-overload]
