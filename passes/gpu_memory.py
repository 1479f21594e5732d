"""Error edges → the memory that each GPU would need, and which region lives where.

Before:  regions, edges with their forms, and how many GPUs.
After:   where one GPU has room for everything, nothing is placed (the forward pass runs on lane 0). Else the regions in
         their order are cut into as many stretches as there are GPUs, so that the largest is as small as can be.
         A placement that is given is measured as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reclra_graph.ir.costs import Costs
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.wiring import Edge


@dataclass(frozen=True)
class Shares:
    """``largest``: bytes of the GPU that holds most; ``placement``: (region, GPU), empty where one holds all."""

    fits: bool = True
    largest: int = 0
    placement: tuple[tuple[int, int], ...] = ()


def region_bytes(regions: RegionGraph, edges: Sequence[Edge], costs: Costs) -> list[int]:
    """What every region needs where it lives: its parameters and activations, the synapses that arrive there, and a
    second time the parameters and the synapses, for their updates. An estimate from above: not all live at once."""
    found = [
        2 * parameters + activations
        for parameters, activations in zip(costs.parameter_bytes, costs.activation_bytes, strict=True)
    ]
    for edge in edges:
        if not edge.shared:
            found[edge.home] += 2 * edge.bytes
    return found


def room(regions: RegionGraph, costs: Costs, gpus: int, limit: int) -> int:
    """Bytes that are left for synapses on all GPUs together."""
    return max(0, gpus * limit - sum(region_bytes(regions, (), costs))) // 2


def shares(
    regions: RegionGraph,
    edges: Sequence[Edge],
    costs: Costs,
    gpus: int,
    limit: int,
    placement: Sequence[tuple[int, int]] = (),
) -> Shares:
    """How a step would share out its memory among ``gpus``, each with ``limit`` bytes."""
    needed = region_bytes(regions, edges, costs)
    if placement:
        held = [0] * gpus
        for number, gpu in placement:
            held[gpu] += needed[number]
        return Shares(max(held) <= limit, max(held), tuple(placement))
    if sum(needed) <= limit:
        return Shares(True, sum(needed))
    low, high = max(needed), sum(needed)
    while low < high:
        middle = (low + high) // 2
        if len(_cut(needed, middle)) <= gpus:
            high = middle
        else:
            low = middle + 1
    stretches = _cut(needed, low)
    placement = tuple((number, gpu) for gpu, stretch in enumerate(stretches) for number in stretch)
    return Shares(low <= limit, low, placement)


def _cut(needed: Sequence[int], most: int) -> list[list[int]]:
    """Stretches of regions with ``most`` bytes each, as long as each can be."""
    stretches: list[list[int]] = [[]]
    held = 0
    for number, count in enumerate(needed):
        if held + count > most and stretches[-1]:
            stretches.append([])
            held = 0
        stretches[-1].append(number)
        held += count
    return stretches
