"""RegionGraph → Costs: what every region takes in the unit-cost model."""

from __future__ import annotations

from math import prod

from reclra_graph.ir.costs import Costs
from reclra_graph.ir.regions import RegionGraph


def unit_costs(regions: RegionGraph) -> Costs:
    """A target and an update take 1 each, all else nothing."""
    types = regions.graph.types
    sizes = {item.key: prod(item.type.shape) for item in regions.graph.parameters}  # type: ignore[type-var]
    batch = next((item.type.shape[0] for item in regions.graph.inputs if item.type.shape), 1)
    count = batch if isinstance(batch, int) else 1
    n = len(regions.regions)
    return Costs(
        "unit", count, (0,) * n, (1,) * n, (1,) * n,
        tuple(2 * count * region.units * (8 if types[region.pre].dtype == "float64" else 4) if region.pre in types else 0
              for region in regions.regions),
        tuple(sum(4 * int(sizes[key]) for key in region.parameters if key in sizes) for region in regions.regions),
    )  # fmt: skip
