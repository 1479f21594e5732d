"""What each region's part of a step costs, whatever the wiring.

Before:  the tasks of the flat wiring, priced; nothing in the unit-cost model
After:   their costs added up by region, so that the planner and the schedule speak of the same numbers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch

from reclra_graph.ir.costs import Costs
from reclra_graph.ir.device import UNIT
from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.passes.calls import sized
from reclra_graph.structure import at


def batch_size(graph: OperatorGraph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Samples in the example inputs."""
    if isinstance(graph.batch, int):
        return graph.batch
    leading = next(item for item in graph.inputs if item.type.shape[:1] == (graph.batch,))
    return int(at(args, kwargs, leading.path).shape[0])


def unit_costs(regions: RegionGraph, batch: int = 1) -> Costs:
    """The paper's unit-cost model: a target and an update cost 1 each, everything else nothing."""
    ones, none = (1,) * len(regions.regions), (0,) * len(regions.regions)
    return Costs(UNIT, UNIT.clock, batch, none, ones, ones, *_bytes(regions, batch))


def device_costs(tasks: TaskGraph) -> Costs:
    """Costs by region from the priced tasks of a flat wiring."""
    plan = tasks.plan
    regions, device, batch = plan.regions, plan.device, plan.batch
    found = Costs(device, device.clock, batch, (), (), (), *_bytes(regions, batch))
    forward, target, update = ([0] * len(regions.regions) for _ in range(3))
    first_use: dict[str, int] = {}
    for region in reversed(regions.regions):
        first_use.update({f"optimise:{key}": region.id for key in region.parameters})
    for task in tasks.tasks:
        if task.kind == "forward":
            forward[task.region] += task.cost
        elif task.kind in ("loss", "displace", "target", "error"):
            target[task.region] += task.cost
        elif task.group == f"update:{task.region}":
            update[task.region] += task.cost
        elif task.group in first_use:  # shared parameters learn once, when the first region that uses them has learned
            update[first_use[task.group]] += task.cost
    buffers = sum(task.cost for task in tasks.tasks if task.kind == "buffer")
    for edge in plan.edges:
        # A target may hold its displacement in the same kernel: what is left is never less than a launch.
        source, hears = regions.regions[edge.source], regions.regions[edge.target]
        sent = found.displace(source.shape, source.axis, hears.shape, hears.axis, edge.form)
        target[edge.target] = max(target[edge.target] - sent, device.nanoseconds(0, 0))
    return replace(found, forward=tuple(forward), target=tuple(target), update=tuple(update), buffers=buffers)


def _bytes(regions: RegionGraph, batch: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Bytes of z_i, of everything that the region's operators make, and of its parameters, by region."""
    graph = regions.graph

    def size(name: str) -> int:
        kind = graph.types[name]
        item = getattr(torch, kind.dtype).itemsize
        return int(item * prod(sized(number, batch) for number in kind.shape))

    held = {item.name: item.key for item in graph.parameters}
    output, activation, parameter = [], [], []
    for region in regions.regions:
        made = [name for name in region.operators if name in graph.types]
        made += [item.name for item in graph.inputs if regions.region_of[item.name] == region.id]
        read = {name for item in region.operators for name in graph.by_name[item].reads if name in held}
        read |= {name for name, key in held.items() if key in region.parameters}
        output.append(size(region.post) if region.post in graph.types else sum(map(size, made)))
        activation.append(sum(map(size, made)))
        parameter.append(sum(map(size, read)))
    return tuple(output), tuple(activation), tuple(parameter)
