"""The angle between an error synapse and the weights that it stands for (``routes``), by a function for each form.

- ``conv``: the synapse has the weight's shape, and is compared with it entry by entry.
- ``dense``, ``lowrank(r)``, ``implicit``: E [units of i, units of j] with the product of the operators on the route,
  transposed: Wᵀ of a linear layer, and of a convolution the matrix with its kernel at every position.
- ``channel``, ``token``: E [features of i, features of j] with the product of the weights, transposed; a kernel is
  summed over its positions first, and so is a linear layer that reads a whole map over the map's.

An angle knows no scale, so that averages over positions are the same as sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import Tensor

from reclra_graph.diagnostics.inside import send
from reclra_graph.diagnostics.measures import Figure, Sums
from reclra_graph.diagnostics.routes import Hop, route
from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.ir.wiring import Edge
from reclra_graph.options import rank_of
from reclra_graph.rules.synapse import conv_displace
from reclra_graph.runtime.compiled import CompiledStep

LARGEST = 1 << 24
"""Entries of the largest matrix that is compared as a whole."""
_CHUNK = 1 << 22
"""Entries of the part of it that is held at once."""

Held = Mapping[str, Tensor]


def angle(step: CompiledStep, edge: Edge, synapses: Held, parameters: Held) -> tuple[Figure, tuple[str, ...]]:
    """(angle in degrees, or why there is none; keys of the weights, the one next to the source first)."""
    if edge.form == "adjoint" and edge.synapse in synapses:  # in the weight's own shape
        found = entries(synapses[edge.synapse], parameters[edge.weight])
        return found.angle("the synapse", "the weight"), (edge.weight,)
    compare = _COMPARE.get("lowrank" if rank_of(edge.form) else edge.form)
    if compare is None:
        return (None, f"{edge.form} synapses are not compared with weights"), ()
    hops = route(step.plan.regions, edge.source, edge.target)
    if isinstance(hops, str):
        return (None, hops), ()
    product = compare(step, edge, hops, synapses, parameters)
    weights = tuple(hop.weight for hop in hops)
    if isinstance(product, str):
        return (None, product), weights
    return product.angle("the synapse", "the weights' product"), weights


def entries(synapse: Tensor, weight: Tensor) -> Sums:
    """Of a synapse in the shape of the weight that it mirrors: number by number."""
    sums = Sums()
    sums.add(synapse, weight)
    return sums


def _kernel(step: CompiledStep, edge: Edge, hops: tuple[Hop, ...], synapses: Held, parameters: Held) -> Sums | str:
    """Of a transposed convolution with the kernel of the one between the regions."""
    if len(hops) != 1 or parameters[hops[0].weight].shape != synapses[edge.synapse].shape:
        return "no weight of its shape stands between the regions"
    return entries(synapses[edge.synapse], parameters[hops[0].weight])


def _units(step: CompiledStep, edge: Edge, hops: tuple[Hop, ...], synapses: Held, parameters: Held) -> Sums | str:
    """Of a synapse that tells units apart: column by column, which is what it sends of an error of one unit alone."""
    regions = step.plan.regions.regions
    source, target = regions[edge.source], regions[edge.target]
    if any(hop.reads == "pooled" for hop in hops):
        return "pooling stands between the regions"
    if source.units * target.units > LARGEST:
        return f"its matrix has {source.units * target.units:,} entries, more than are compared"
    device, dtype = next(iter(parameters.values())).device, getattr(torch, step.plan.regions.synapse_dtype)
    sums, count = Sums(), max(1, _CHUNK // target.units)
    for start in range(0, source.units, count):
        size = min(count, source.units - start)
        units = torch.zeros(size, source.units, dtype=dtype, device=device)
        units[torch.arange(size), torch.arange(start, start + size)] = 1
        units = units.reshape(size, *source.shape)
        sums.add(send(step, edge, units, synapses), _back(units, hops, regions, parameters))
    return sums


def _back(e: Tensor, hops: tuple[Hop, ...], regions: tuple[Region, ...], parameters: Held) -> Tensor:
    """Errors of a route's source, sent by the transposed operators. e: [n, *shape of j]; returns [n, *shape of i]."""
    for hop in hops:
        weight = parameters[hop.weight].to(e.dtype)
        if hop.form is not None:
            form = hop.form
            e = conv_displace(e, weight, form.stride, form.padding, form.output_padding, form.dilation, form.groups)
        else:
            e = e @ (weight.T if hop.across else weight)
        below = regions[hop.target]
        if hop.reads == "mean":
            ones = (1,) * (len(below.shape) - 1)
            e = e.reshape(-1, *((below.features, *ones) if below.axis == 0 else (*ones, below.features)))
            e = e.expand(-1, *below.shape)
        e = e.reshape(-1, *below.shape)
    return e


def _features(step: CompiledStep, edge: Edge, hops: tuple[Hop, ...], synapses: Held, parameters: Held) -> Sums | str:
    """Of a synapse that positions share."""
    product = reduce(torch.matmul, (_mixing(hop, step.plan.regions, parameters) for hop in hops))
    return entries(synapses[edge.synapse], product.T)


def _mixing(hop: Hop, regions: RegionGraph, parameters: Held) -> Tensor:
    """[features of the source, features of the target], what an operator makes of features, over all positions."""
    weight, below = parameters[hop.weight].detach().double(), regions.regions[hop.target]
    if hop.kernel:
        summed = weight.flatten(2).sum(2)
        if hop.groups == 1:
            return summed
        found: Tensor = torch.block_diag(*summed.chunk(hop.groups))  # type: ignore[no-untyped-call]
        return found
    weight = weight.T if hop.across else weight
    if hop.reads == "flat" and len(below.shape) > 1:
        parts = weight.reshape(len(weight), *below.shape)
        return parts.flatten(2).sum(2) if below.axis == 0 else parts.flatten(1, -2).sum(1)
    return weight


_COMPARE: dict[str, Callable[[CompiledStep, Edge, tuple[Hop, ...], Held, Held], Sums | str]] = {
    "conv": _kernel,
    "dense": _units,
    "lowrank": _units,
    "implicit": _units,
    "channel": _features,
    "token": _features,
}
"""How a synapse of each form is compared with the weights on its route."""
