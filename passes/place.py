"""TaskGraph → TaskGraph: where each region lives, for a step whose forward pass runs on several GPUs.

Before:  a plan without a placement
After:   contiguous stretches of regions, one per GPU: the busiest GPU has as little to do as possible; of such
         divisions the most even one; then the one over which the forward pass hands on the fewest numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod

from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.tasks import TaskGraph


def place(tasks: TaskGraph) -> TaskGraph:
    """The same tasks with a placement in their plan; one that is there already stays."""
    plan = tasks.plan
    if plan.placement:
        return tasks
    work = [0] * len(plan.regions.regions)
    for task in tasks.tasks:
        work[task.region] += task.cost
    stages = divided(work[1:], handed_over(plan.regions)[1:], plan.gpus)
    placement = [(0, 0), *((number, stage) for number, stage in enumerate(stages, start=1))]
    return replace(tasks, plan=replace(plan, placement=tuple(placement)))


def handed_over(regions: RegionGraph) -> list[int]:
    """For every region, how many numbers per sample cross to later GPUs when it is the last one on its GPU."""
    owner, graph = regions.region_of, regions.graph
    crossing = [0] * len(regions.regions)
    for name, users in graph.users.items():
        kind, first = graph.types.get(name), owner.get(name)
        readers = [owner[user] for user in users if user in owner]
        if kind is None or first is None or name in graph.without_data or not readers:
            continue
        size = prod(item for item in kind.shape if isinstance(item, int))
        for number in range(first, max(readers)):
            crossing[number] += size
    return crossing


def divided(work: Sequence[int], crossing: Sequence[int], parts: int) -> list[int]:
    """The part of each item: at most ``parts`` contiguous stretches, the largest sum of work as small as can be, then
    the least sum of their squares, then the least ``crossing`` (of every stretch's last item but the very last)."""
    sums = [0, *accumulate(work)]
    count = len(work)
    # Smallest possible largest stretch: best[k] over the first k items, one more stretch per round.
    best = sums[:]
    for _ in range(parts - 1):
        best = [min((max(best[cut], sums[k] - sums[cut]) for cut in range(k)), default=0) for k in range(count + 1)]
    limit = best[count]
    # least[stretches][k] = (squares, crossing, first item of the last stretch) over the first k items, in the limit.
    least: list[list[tuple[int, int, int] | None]] = [[(0, 0, 0), *([None] * count)]]
    for _ in range(min(parts, count)):
        row: list[tuple[int, int, int] | None] = [None]
        for k in range(1, count + 1):
            over = crossing[k - 1] if k < count else 0
            found = [
                (so_far[0] + (sums[k] - sums[cut]) ** 2, so_far[1] + over, cut)
                for cut, so_far in enumerate(least[-1][:k])
                if so_far is not None and sums[k] - sums[cut] <= limit
            ]
            row.append(min(found, default=None))
        least.append(row)
    ends = [(row[count], number) for number, row in enumerate(least)]
    rounds = min(((item[:2], number) for item, number in ends if item is not None), default=((0, 0), 0))[1]
    stage = [0] * count
    end = count
    for number in range(rounds, 0, -1):
        last = least[number][end]
        assert last is not None
        stage[last[2] : end] = [number - 1] * (end - last[2])
        end = last[2]
    return stage
