"""The weights that an error edge stands for: those on the way from z_i to h_j, for an edge j → i.

Next to each other two regions are joined by one linear operator: a linear layer or a convolution with a parameter as
its weight, which reads z_i, and whose result is what h_j is made of. Further apart they are joined by a row of such
operators where only one way leads from i to j; activations and normalisations between them are left out, since an error
passes over them as it is. Anything else (several ways, products with something that is no parameter, recurrent layers)
is no route, and the reason is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from reclra_graph.ir.operators import Operator, Ref
from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.rules.forms import Convolution, convolution
from reclra_graph.rules.operators import short
from reclra_graph.rules.table import bound, data_read

_LINEAR = {
    "linear": ("input", "weight"),
    "addmm": ("mat1", "mat2"),
    "mm": ("self", "mat2"),
    "matmul": ("self", "other"),
}
"""Operators of a matrix: what they read, and the weight, [out, in] of ``linear`` and [in, out] of the others."""
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}
_KEEPS = {
    "view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze", "clone", "contiguous", "alias", "detach",
    "_to_copy", "native_dropout", "dropout", "getitem",
}  # fmt: skip
"""Operators that leave the order of the numbers of a sample as it is."""
_AVERAGES = {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean"}
_POOLS = {
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool2d",
    "max_pool2d_with_indices",
    "constant_pad_nd",
}
"""Operators that keep features apart, and gather or add positions; the first ones with equal weights."""


@dataclass(frozen=True)
class Hop:
    """One linear operator between region ``target``, whose z it reads, and region ``source``.

    ``weight``: key of its parameter. ``across``: whether that is stored as [in, out]. ``kernel``: of a convolution.
    ``reads``: "same" where it reads z_i position for position; "flat" all of z_i as one vector; "mean" its mean over
    the positions; "pooled" features of z_i at other positions. ``form``: the convolution's numbers, where it reads
    "same".
    """

    source: int
    target: int
    weight: str
    across: bool = False
    kernel: bool = False
    groups: int = 1
    reads: str = "same"
    form: Convolution | None = None


def route(regions: RegionGraph, source: int, target: int) -> tuple[Hop, ...] | str:
    """The operators between the two regions of an edge, that of the source first; or why there are none."""
    if (target, source) in regions.flow:
        ways: list[int] | str = [target, source]
    else:
        ways = _only_way(regions, target, source)
    if isinstance(ways, str):
        return ways
    hops = []
    for below, above in pairwise(ways):
        found = _between(regions, above, below)
        if len(found) != 1:
            several = "no single weight leads" if not found else f"{len(found)} weights lead"
            return f"{several} from region {below} to region {above}"
        hops.append(found[0])
    return tuple(reversed(hops))


def _only_way(regions: RegionGraph, begin: int, end: int) -> list[int] | str:
    """The regions from one to another in the flow of the forward pass, both included, where there is one way only."""
    above: dict[int, list[int]] = {}
    for low, high in regions.flow:
        above.setdefault(low, []).append(high)
    reaching = {end}
    for region in range(end - 1, begin - 1, -1):  # ids follow an order in which regions can run
        if any(item in reaching for item in above.get(region, ())):
            reaching.add(region)
    if begin not in reaching:
        return f"region {begin} does not lead to region {end}"
    way = [begin]
    while way[-1] != end:
        following = [item for item in above[way[-1]] if item in reaching]
        if len(following) > 1:
            return f"several ways lead from region {begin} to region {end}"
        way.append(following[0])
    return way


def _between(regions: RegionGraph, source: int, target: int) -> list[Hop]:
    """Every linear operator of the source that reads z of the target."""
    found = []
    for name in regions.regions[source].operators:
        operator = regions.graph.by_name[name]
        if operator.target.startswith("aten."):
            kind = short(operator.target)
            if kind in _LINEAR:
                hop = _matrix(regions, operator, source, target, *_LINEAR[kind])
            else:
                hop = _convolved(regions, operator, source, target) if kind in _CONVOLUTIONS else None
            found += [hop] if hop is not None else []
    return found


def _weight(regions: RegionGraph, argument: object, rank: int | None = None) -> str | None:
    """Key of a parameter that is an argument, also as autocast lowers it; None for anything else."""
    graph = regions.graph
    if not isinstance(argument, Ref):
        return None
    name = graph.cast_from(argument.name)[-1]
    key = next((item.key for item in graph.parameters if item.name == name), None)
    return key if key is not None and (rank is None or len(graph.types[name].shape) == rank) else None


def _matrix(regions: RegionGraph, operator: Operator, source: int, target: int, reads: str, weight: str) -> Hop | None:
    args, graph = bound(operator), regions.graph
    key, read, above, below = _weight(regions, args[weight], 2), args[reads], *_pair(regions, source, target)
    if key is None or not isinstance(read, Ref) or graph.sample_shape(operator.name) != above.shape:
        return None
    way, shape = _way(regions, read.name, target), graph.sample_shape(read.name)
    across = weight != "weight"
    if way == "keeps" and shape == below.shape and below.axis == (-1 if len(below.shape) > 1 else below.axis):
        return Hop(source, target, key, across)
    if way == "keeps" and shape == (below.units,):
        return Hop(source, target, key, across, reads="flat")
    if way is None or shape is None or shape[-1:] != (below.features,):
        return None
    return Hop(source, target, key, across, reads="mean" if way == "averages" and len(shape) == 1 else "pooled")


def _convolved(regions: RegionGraph, operator: Operator, source: int, target: int) -> Hop | None:
    args, graph = bound(operator), regions.graph
    key, read, above, below = _weight(regions, args["weight"]), args["input"], *_pair(regions, source, target)
    if key is None or not isinstance(read, Ref) or args.get("transposed") is True or above.axis or below.axis:
        return None
    shape, groups = graph.sample_shape(read.name), args["groups"]
    way = _way(regions, read.name, target)
    if way is None or shape is None or shape[0] != below.features or graph.sample_shape(operator.name) != above.shape:
        return None
    assert isinstance(groups, int)
    form = convolution(regions, source, target) if way == "keeps" and shape == below.shape else None
    reads = "same" if form is not None else "pooled"
    return Hop(source, target, key, kernel=True, groups=groups, reads=reads, form=form)


def _pair(regions: RegionGraph, source: int, target: int) -> tuple[Region, Region]:
    return regions.regions[source], regions.regions[target]


def _way(regions: RegionGraph, name: str, target: int) -> str | None:
    """How a value comes from z of a region: "keeps" where its numbers stand in the same order, "averages" and "pools"
    where features are kept apart; None where something else stands between."""
    graph, found = regions.graph, "keeps"
    while name != regions.regions[target].post:
        operator = graph.by_name.get(name)
        before = data_read(operator, graph) if operator is not None else ()
        if operator is None or len(before) != 1:
            return None
        kind = operator.target.split(".")[1]
        if kind in _AVERAGES and found != "pools":
            found = "averages"
        elif kind in _POOLS | _AVERAGES:
            found = "pools"
        elif kind not in _KEEPS:
            return None
        name = before[0]
    return found
