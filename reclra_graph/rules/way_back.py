"""The way back from a region's h_j to every z_i that it is computed from: where adjoint edges lead, and over what.

Errors go back over each operator of the connection, from h_j on:

| link | over | how |
|---|---|---|
| ``weighted`` | a product or a convolution with a forward weight | its adjoint, E in the weight's place |
| ``carried`` | an operator with a closed form | ``rules.carry``: over a normalisation the error passes as it is |
| ``traced`` | any other operator without a weight (attention's product, a mean) | its own adjoint or derivative |
| ``part`` | the taking of one part out of a tuple | to that part's place |

All paths between h_j and z_i over one weight are one branch, and those over none another; displacements add. No way
leads over two weights, an operator that is kept whole, or a step function: ``Way.blocked`` says so.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod, sqrt

from reclra_graph.ir.operators import CAST, OPAQUE, Argument, Operator, OperatorGraph, Ref
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.tasks import Call
from reclra_graph.rules.operators import STEPS, draws, short
from reclra_graph.rules.table import ERROR, bound, carry, data_read, padding_of, repeated, update

SYNAPSE = Ref("E")
"""E, in a call that ``adjoint`` returns."""

WEIGHTED, CARRIED, TRACED, PART = "weighted", "carried", "traced", "part"

_FACTORS = {
    "linear": ("input", "weight"), "addmm": ("mat1", "mat2"), "mm": ("self", "mat2"), "matmul": ("self", "other"),
    **{f"conv{rank}d": ("input", "weight") for rank in (1, 2, 3)}, "convolution": ("input", "weight"),
    **{f"conv_transpose{rank}d": ("input", "weight") for rank in (1, 2, 3)},
}  # fmt: skip
"""Operators with a closed adjoint: the names of their data and of their weight."""
_PRODUCTS = {*_FACTORS, "bmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "einsum", "bilinear", "_trilinear"}
_LINEAR = {
    "mean", "sum", "select", "slice", "split", "split_with_sizes", "unbind", "chunk", "expand", "repeat", "flip",
    "roll", "constant_pad_nd", "pad", "index_select", "gather", "unfold", "narrow", "cumsum", "diagonal", "tril",
    "triu", "add", "sub", "avg_pool1d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool3d", "max_pool1d",
    "max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "copy", "as_strided", "t",
    "swapaxes", "movedim", "squeeze", "index_put", "select_scatter", "slice_scatter", "to", "_to_copy", "stack", "cat",
    "pixel_shuffle", "masked_fill",
}  # fmt: skip
"""Operators that are linear in their data, given what they select: their traced adjoint takes no φ′."""


@dataclass(frozen=True)
class Link:
    """One step on the way back: from an operator's output to ``value``, which it reads. ``weight``: the label of the
    weight whose place E takes."""

    operator: str
    value: str
    how: str
    weight: str = ""


@dataclass(frozen=True)
class Branch:
    """All that leads from h_j to one z_i over one weight. ``weight``: the parameter's key, or a name for what is
    computed from parameters; "" for none. ``value``: the weight's value. ``operator``: the first that reads it."""

    target: int
    weight: str = ""
    value: str = ""
    operator: str = ""


@dataclass(frozen=True)
class Way:
    """The way back from one region. ``links``: those of an operator stand together, the operators last first.
    ``branches``: by region, those without a weight first. ``blocked``: why nothing, or not all, goes back to a region
    that h_j is computed from: (cause, place)."""

    source: int
    links: tuple[Link, ...]
    branches: Mapping[int, tuple[Branch, ...]]
    blocked: Mapping[int, tuple[str, str]]

    def towards(self, values: Collection[str]) -> tuple[Link, ...]:
        """The links that lead to one of these values."""
        leads, found = set(values), list[Link]()
        for link in reversed(self.links):
            if link.value in leads:
                leads.add(link.operator)
                found.append(link)
        return tuple(reversed(found))


class Ways:
    """The ways back of all regions, each found once."""

    def __init__(self, regions: RegionGraph) -> None:
        self.regions, self.graph = regions, regions.graph
        self.place = {operator.name: index for index, operator in enumerate(self.graph.operators)}
        self.ends = {region.post: region.id for region in regions.regions[1:]}
        self._found: dict[int, Way] = {}

    def of(self, source: int) -> Way:
        """The way back from a region."""
        if source not in self._found:
            self._found[source] = self._way(source)
        return self._found[source]

    def branches(self, source: int, target: int) -> tuple[Branch, ...]:
        """What leads back from one region to another."""
        return self.of(source).branches.get(target, ())

    def _way(self, source: int) -> Way:
        graph, start = self.graph, self.regions.regions[source].pre
        labels: dict[str, dict[Branch, None]] = {start: {Branch(0): None}}
        parts: dict[str, set[object]] = {}
        links: list[Link] = []
        blocked: list[tuple[str, tuple[str, str]]] = []
        waiting = [(-self.place[start], start)]
        while waiting:
            operator = graph.by_name[heapq.heappop(waiting)[1]]
            for value in data_read(operator, graph):
                made = graph.by_name.get(value)
                end = self.ends.get(value, source)
                if made is None or not made.differentiable:
                    continue
                if end == source and self.regions.core.get(value, source) != source:
                    why = f"{operator.target} reads inside region {self.regions.core[value]}"
                    blocked.append((value, (why, operator.line)))
                    continue
                how, weight, why = self._link(operator, value, labels[operator.name], parts.get(operator.name, set()))
                if why:
                    blocked.append((value, (why, operator.line or operator.module or operator.name)))
                    continue
                if how == PART:
                    parts.setdefault(value, set()).add(operator.args[1])
                links.append(Link(operator.name, value, how, weight))
                if value not in labels and end == source:
                    heapq.heappush(waiting, (-self.place[value], value))
                over = labels[operator.name]
                if weight:
                    over = {Branch(0, weight, weight_value(graph, operator, value), operator.name): None}
                labels.setdefault(value, {}).update(over)
        return self._pruned(source, links, labels, blocked)

    def _link(
        self, operator: Operator, value: str, labels: Collection[Branch], parts: Collection[object]
    ) -> tuple[str, str, str]:
        """(how, weight, why not) for one value that an operator on the way reads."""
        graph = self.graph
        if operator.target == "operator.getitem" and graph.by_name[value].types:
            return PART, "", ""
        if operator.target == OPAQUE:
            return "", "", f"{operator.args[0]} is kept whole"
        if not operator.target.startswith("aten."):
            return "", "", f"{operator.target} has no adjoint"
        name = short(operator.target)
        weight = weight_of(operator, graph, value)
        if weight:
            stacked = next((item.weight for item in labels if item.weight), "")
            return WEIGHTED, label(graph, weight), f"{stacked} stands behind it in the same region" if stacked else ""
        if name in _PRODUCTS and any(item in graph.derived for item in operator.reads if item != value):
            return "", "", f"{operator.target} multiplies with a weight in a way that has no closed adjoint"
        if carried(operator, graph, value) is not None and not set(parts) - {0}:
            return CARRIED, "", ""
        if draws(operator.target) and bound(operator).get("dropout_p") != 0.0:
            return "", "", f"{operator.target} draws random numbers"
        if name in STEPS:
            return "", "", f"{operator.target} is a step function"
        return TRACED, "", ""

    def _pruned(
        self,
        source: int,
        links: list[Link],
        labels: Mapping[str, Mapping[Branch, None]],
        blocked: list[tuple[str, tuple[str, str]]],
    ) -> Way:
        """The way with the links that lead to a region."""
        ends = {value: number for value, number in self.ends.items() if value in labels and number != source}
        branches: dict[int, tuple[Branch, ...]] = {}
        for value, number in ends.items():
            order = sorted(labels[value], key=lambda item: self.place.get(item.operator, -1))
            unlike = {item.weight: item for item in reversed(order)}
            branches[number] = tuple(replace(item, target=number) for item in order if unlike[item.weight] is item)
        causes: dict[int, tuple[str, str]] = {}
        for value, cause in blocked:
            for number in self._before(value):
                causes.setdefault(number, cause)
        way = Way(source, tuple(links), branches, causes)
        return replace(way, links=way.towards(ends))

    def _before(self, value: str) -> list[int]:
        """The regions whose representations a value is computed from."""
        found, seen, waiting = [], set[str](), [value]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.graph.by_name:
                continue
            seen.add(name)
            if name in self.ends:
                found.append(self.ends[name])
            else:
                waiting.extend(data_read(self.graph.by_name[name], self.graph))
        return sorted(found)


def ways(regions: RegionGraph) -> Ways:
    """The ways back of a region graph, kept with it as its own derived values are."""
    found: Ways = vars(regions).setdefault("_ways", None) or Ways(regions)
    vars(regions)["_ways"] = found
    return found


# -- operators on the way ---------------------------------------------------------------------------------------------


def carried(operator: Operator, graph: OperatorGraph, value: str) -> Call | None:
    """The closed form by which an error passes back over an operator; errors stay float32 over autocast's casts."""
    if graph.autocast and operator.target == CAST:
        return Call("rules.carry.same", (ERROR,))
    return carry(operator, graph, value)


def is_linear(operator: Operator) -> bool:
    """Whether what is traced for an operator is an exact adjoint, whatever its data."""
    return short(operator.target) in _LINEAR


def label(graph: OperatorGraph, weight: str) -> str:
    """What a weight is called: a parameter by its key, what is computed from parameters by its value and their keys."""
    keys = {item.name: item.key for item in graph.parameters}
    found = next((keys[name] for name in graph.cast_from(weight) if name in keys), None)
    return found or f"{weight} of {', '.join(sorted(keys[name] for name in graph.derived[weight]))}"


def weight_value(graph: OperatorGraph, operator: Operator, value: str) -> str:
    """The value of an operator's weight, the parameter itself where autocast casts it."""
    weight = weight_of(operator, graph, value)
    chain = graph.cast_from(weight)
    return chain[-1] if chain[-1] in graph.parameter_names else weight


def weight_of(operator: Operator, graph: OperatorGraph, value: str) -> str:
    """The value that an operator multiplies ``value`` with, where that comes from parameters and the adjoint has a
    closed form; else ""."""
    names = _FACTORS.get(short(operator.target)) if operator.target.startswith("aten.") else None
    if names is None:
        return ""
    args = bound(operator)
    data, weight = args[names[0]], args[names[1]]
    if data != Ref(value) or not isinstance(weight, Ref) or weight.name not in graph.derived:
        return ""
    return weight.name if args.get("alpha", 1) == 1 and adjoint(operator, graph) is not None else ""


def adjoint(operator: Operator, graph: OperatorGraph) -> Call | None:
    """The adjoint of an operator in its data: a call on ``ERROR``, the error at its output, and ``SYNAPSE``. None where
    there is no closed form."""
    name, args = short(operator.target), bound(operator)
    data, weight = (args[item] for item in _FACTORS[name])
    if not isinstance(data, Ref) or not isinstance(weight, Ref) or operator.type is None:
        return None
    given, size, made = graph.types[data.name].shape, graph.types[weight.name].shape, operator.type.shape
    if not name.startswith("conv"):
        plain = len(size) == 2 and len(given) == len(made) >= 2
        return Call(f"rules.adjoint.{'linear' if name == 'linear' else 'product'}", (ERROR, SYNAPSE)) if plain else None
    spatial = len(size) - 2
    padding = padding_of(args, graph, spatial)
    sizes = [item for item in (*given[1:], *made[1:], *size) if not isinstance(item, int)]
    if padding is None or len(given) != len(made) or len(given) != len(size) or sizes:
        return None
    stride, dilation = repeated(args["stride"], spatial), repeated(args["dilation"], spatial)
    windows = list(zip(_numbers(stride), _numbers(padding), _numbers(dilation), _numbers(size[2:]), strict=True))
    there, here = _numbers(given[2:]), _numbers(made[2:])
    if is_transposed(operator):
        back = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, (s, p, d, k) in zip(here, windows, strict=True)]
        rest = (stride, padding, dilation, args["groups"])
        return Call("rules.adjoint.transposed_convolution", (ERROR, SYNAPSE, *rest)) if tuple(back) == there else None
    more = [
        n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, (s, p, d, k) in zip(there, here, windows, strict=True)
    ]
    return Call("rules.synapse.conv_displace", (ERROR, SYNAPSE, stride, padding, tuple(more), dilation, args["groups"]))


def outer(operator: Operator, graph: OperatorGraph, value: str, given: Argument) -> Call | None:
    """The outer product of ``given``, which stands in the place of the operator's data, and the error at its output, in
    the layout of its weight, as a mean over the batch: with the data itself, the weight's own Δ. None for none."""
    weight = weight_of(operator, graph, value)
    position = operator.args.index(Ref(weight)) if weight and Ref(weight) in operator.args else -1
    call = update(operator, graph, position) if position >= 0 else None
    return None if call is None else replace(call, args=(call.args[0], given, *call.args[2:]))


def is_transposed(operator: Operator) -> bool:
    """Whether an operator is a transposed convolution."""
    name = short(operator.target)
    return name.startswith("conv_transpose") or (name == "convolution" and bound(operator)["transposed"] is True)


def feeds(operator: Operator, graph: OperatorGraph) -> int:
    """How many outputs a weight connects with each input, borders and strides apart: k² C_out / groups, or the units
    of a dense layer."""
    args = bound(operator)
    weight = args[_FACTORS[short(operator.target)][1]]
    assert isinstance(weight, Ref)
    size = _numbers(graph.types[weight.name].shape)
    if short(operator.target) == "linear":
        return size[0]
    if len(size) == 2:
        return size[1]
    groups = args["groups"]
    assert isinstance(groups, int)
    return prod(size[2:]) * (size[1] if is_transposed(operator) else size[0] // groups)


def sign_scale(operator: Operator, graph: OperatorGraph) -> float:
    """s of E = s sign(W): √(2 / (k² C_out)), or √(2 / out) for a dense layer."""
    return sqrt(2 / feeds(operator, graph))


def fan_in(operator: Operator, graph: OperatorGraph) -> float:
    """How many errors add up in a displacement at the operator's data; on average over the positions."""
    found = feeds(operator, graph)
    if not short(operator.target).startswith("conv") or is_transposed(operator):
        return found
    data = bound(operator)["input"]
    assert isinstance(data, Ref)
    assert operator.type is not None
    return found * prod(_numbers(operator.type.shape[2:])) / prod(_numbers(graph.types[data.name].shape[2:]))


def positions(operator: Operator, graph: OperatorGraph) -> int:
    """At how many positions per sample a weight works: those of the operator's output; 1 where the batch cannot be told
    apart in it."""
    assert operator.type is not None
    features = operator.type.shape[1 if short(operator.target).startswith("conv") else -1]
    sizes = graph.sample_shape(operator.name)
    return prod(sizes) // int(features) if sizes else 1


def _numbers(items: Collection[object]) -> tuple[int, ...]:
    return tuple(int(item) for item in items)  # type: ignore[call-overload]
