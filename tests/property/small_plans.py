"""Random small region graphs, and the shortest step that any tree of parents and any schedule gives: an exhaustive
search that shares no code with the planner or the scheduler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from random import Random

from reclra_graph.ir.costs import Costs
from reclra_graph.ir.device import DEVICES
from reclra_graph.ir.operators import Input, Operator, OperatorGraph, Output, Parameter, Ref, TensorType
from reclra_graph.ir.regions import Region, RegionGraph, Update
from reclra_graph.options import Options
from reclra_graph.passes.wire import wire

NODES = 6_000
"""Branches of the exact scheduler for one tree, after which it gives up."""


@dataclass(frozen=True)
class RandomCosts(Costs):
    """A synapse costs in proportion to its entries, and something for each kernel."""

    per_entry: float = 0.0
    kernel: int = 0

    def displace(
        self, source: tuple[int, ...], source_axis: int, target: tuple[int, ...], target_axis: int, form: str
    ) -> int:
        return self.kernel + round(self.per_entry * prod(source) * prod(target))

    def learn(
        self, source: tuple[int, ...], source_axis: int, target: tuple[int, ...], target_axis: int, form: str
    ) -> int:
        return self.kernel + round(2 * self.per_entry * prod(source) * prod(target))

    def transfer(self, size: int) -> int:
        return 0


def random_graph(random: Random, most: int = 8) -> RegionGraph:
    """A region graph of 3 to ``most`` regions with error neurons: a chain, or with skips and branches."""
    count = random.randint(3, most)
    skips = random.choice((0.0, 0.0, 0.3))
    reads: dict[int, set[int]] = {1: set()}
    for number in range(2, count + 1):
        reads[number] = {number - 1}
        reads[number] |= {other for other in range(1, number - 1) if random.random() < skips}
        if skips and number < count and random.random() < 0.3:
            reads[number] = {random.randint(1, number - 1)}
    used = {other for sources in reads.values() for other in sources}
    reads[count] |= {number for number in range(1, count) if number not in used}
    return graph_of([random.choice((2, 4, 8, 16, 32, 64)) for _ in range(count)], reads)


def graph_of(shapes: Sequence[int | tuple[int, ...]], reads: Mapping[int, set[int]]) -> RegionGraph:
    """A region graph by hand: units or shapes of the regions from 1 on, and which regions each reads; the last is the
    output. Sizes but the first count positions."""
    sizes = [(item,) if isinstance(item, int) else item for item in shapes]
    given = Input("x", TensorType(("B", 8), "float32"))
    parameters = tuple(
        Parameter(f"w{number}", f"{number}.weight", TensorType((size, 2), "float32"))
        for number, (size, *_) in enumerate(sizes, start=1)
    )
    operators = tuple(
        Operator(
            f"z{number}",
            "made.up",
            (*(Ref(f"z{other}") for other in sorted(reads[number])), *(() if reads[number] else (Ref("x"),))),
            type=TensorType(("B", *size), "float32"),
        )
        for number, size in enumerate(sizes, start=1)
    )
    graph = OperatorGraph(
        "made up", "none", "B", (given,), parameters, (), operators, (Output("output", f"z{len(sizes)}"),)
    )
    regions = [Region(0, "", "input", (), "x", (), "x", (8,))]
    for number, size in enumerate(sizes, start=1):
        update = Update(f"{number}.weight", f"z{number}", 1, "linear_weight")
        name = f"z{number}"
        regions.append(Region(number, str(number), "layer", (name,), name, (), name, size, (update,)))
    return RegionGraph(graph, tuple(regions), (len(sizes),))


def random_costs(random: Random, regions: RegionGraph) -> RandomCosts:
    """Costs in nanoseconds, of one to fifty, with synapses from almost nothing to more than all the rest."""
    count = len(regions.regions)
    target, update = (tuple(random.randint(1, 50) for _ in range(count)) for _ in range(2))
    nothing = (0,) * count
    scale = random.choice((0.002, 0.01, 0.05))
    device = DEVICES["cpu"]
    return RandomCosts(
        device,
        "ns",
        1,
        nothing,
        target,
        update,
        nothing,
        nothing,
        nothing,
        per_entry=scale,
        kernel=random.randint(0, 3),
    )


# -- the exhaustive search --------------------------------------------------------------------------------------------


def trees(regions: RegionGraph) -> Iterator[dict[int, int]]:
    """Every tree of parents: each region hangs on a region that it flows into, or on the output."""
    last = regions.outputs[0]
    flows: dict[int, set[int]] = {number: set() for number in range(1, last + 1)}
    for source, target in sorted(regions.flow, key=lambda pair: -pair[0]):
        flows[source] |= {target} | flows[target]
    numbers = range(1, last)
    for parents in itertools.product(*(sorted(flows[number] | {last}) for number in numbers)):
        yield dict(zip(numbers, parents, strict=True))


@dataclass
class Jobs:
    """An out-tree of jobs: cost of each, the job it waits for (-1: none), and the longest chain from its start."""

    cost: list[int]
    after: list[int]
    tail: list[int]

    @property
    def work(self) -> int:
        return sum(self.cost)

    def bound(self, lanes: int) -> int:
        """No schedule is shorter."""
        return max(max(self.tail), -(-self.work // lanes))


def jobs_of(regions: RegionGraph, costs: Costs, parents: dict[int, int]) -> Jobs:
    """Target, update and learning synapse of every region."""
    last = regions.outputs[0]
    cost, after, place = [costs.target[last]], [-1], {last: 0}
    for number in range(last - 1, 0, -1):
        source, target = regions.regions[parents[number]], regions.regions[number]
        place[number] = len(cost)
        cost.append(costs.target[number] + costs.displace(source.shape, 0, target.shape, 0, "dense"))
        after.append(place[parents[number]])
    for number in range(1, last + 1):
        cost.append(costs.update[number])
        after.append(place[number])
        if number != last:
            source, target = regions.regions[parents[number]], regions.regions[number]
            cost.append(costs.learn(source.shape, 0, target.shape, 0, "dense"))
            after.append(place[number])
    tail = list(cost)
    for number in sorted(range(len(cost)), key=lambda item: -item):
        if after[number] >= 0:
            tail[after[number]] = max(tail[after[number]], cost[after[number]] + tail[number])
    for number in range(last - 1, -1, -1):  # targets stand in front, each before those that wait for it
        below = [tail[item] for item in range(len(cost)) if after[item] == number]
        tail[number] = cost[number] + max(below, default=0)
    return Jobs(cost, after, tail)


def shorter(jobs: Jobs, lanes: int, limit: int, most: int = NODES) -> int | None | bool:
    """The makespan of a schedule that ends by ``limit``, None where there is none, False where the search gave up
    after ``most`` branches.

    Jobs are appended in the order of their starts, each as early as it can be: one of these schedules is the best.
    """
    count = len(jobs.cost)
    children: list[list[int]] = [[] for _ in range(count)]
    for number, before in enumerate(jobs.after):
        if before >= 0:
            children[before].append(number)
    failed: set[tuple[int, tuple[int, ...], tuple[tuple[int, int], ...]]] = set()
    nodes = 0

    def visit(now: int, free: tuple[int, ...], ready: tuple[tuple[int, int], ...], left: int, done: int) -> bool | None:
        nonlocal nodes
        if not ready:
            return True
        nodes += 1
        if nodes > most:
            return None
        free = tuple(sorted(max(item, now) for item in free))
        if sum(limit - item for item in free) < left:
            return False
        if any(max(release, free[0]) + jobs.tail[number] > limit for number, release in ready):
            return False
        ready = tuple(sorted((number, max(release, free[0])) for number, release in ready))
        key = (done, free, ready)
        if key in failed:
            return False
        seen: set[tuple[int, int, bool]] = set()
        for number, start in sorted(ready, key=lambda item: (item[1], -jobs.tail[item[0]], item[0])):
            alike = (jobs.cost[number], start, bool(children[number]))
            if not alike[2] and alike in seen:
                continue
            seen.add(alike)
            end = start + jobs.cost[number]
            rest = tuple(item for item in ready if item[0] != number) + tuple((item, end) for item in children[number])
            lane = max(index for index, item in enumerate(free) if item <= start)
            found = visit(
                start,
                (*free[:lane], end, *free[lane + 1 :]),
                rest,
                left - jobs.cost[number],
                done | 1 << number,
            )
            if found is None or found:
                return found
        failed.add(key)
        return False

    first = tuple((number, 0) for number, before in enumerate(jobs.after) if before < 0)
    found = visit(0, (0,) * lanes, first, jobs.work, 0)
    return False if found is None else (limit if found else None)


@dataclass(frozen=True)
class Shortest:
    """The shortest makespan found, and whether it is proven that none is shorter."""

    makespan: int
    proven: bool
    bound: int


def shortest(regions: RegionGraph, costs: Costs, lanes: int, known: int) -> Shortest:
    """The shortest step, starting from a makespan that is known to be possible."""
    candidates = sorted(
        (
            (jobs.bound(lanes), index, jobs)
            for index, jobs in enumerate(jobs_of(regions, costs, p) for p in trees(regions))
        ),
        key=lambda item: item[:2],
    )
    best, proven = known, True
    for bound, _, jobs in candidates:
        while bound < best:
            found = shorter(jobs, lanes, best - 1)
            if found is False:
                proven = False
            if not found:
                break
            best = int(found)
    return Shortest(best, proven, candidates[0][0])


def none_ends_by(regions: RegionGraph, costs: Costs, lanes: int, limit: int, most: int) -> bool:
    """Whether it is proven that no tree and no schedule ends by ``limit``."""
    every = (jobs_of(regions, costs, parents) for parents in trees(regions))
    return all(shorter(jobs, lanes, limit, most) is None for jobs in every if jobs.bound(lanes) <= limit)


@dataclass(frozen=True)
class Compared:
    """What the planner found for a random graph, and the shortest step there is."""

    regions: int
    gpus: int
    planned: int
    shortest: Shortest
    near: bool
    """Whether it is proven that no step is shorter by more than 5 %."""


def compared(random: Random, most: int = NODES) -> Compared:
    """Plan one random graph with random costs on one to four GPUs; ``most`` bounds the proof that it is near the best,
    where that it is the best is not proven."""
    regions = random_graph(random)
    costs, gpus = random_costs(random, regions), random.randint(1, 4)
    plan = wire(regions, Options(gpus=gpus), costs)
    (planned,) = (item.makespan for item in plan.candidates if item.chosen)
    best = shortest(regions, costs, gpus, planned)
    near = planned <= 1.05 * best.makespan
    if near and not best.proven:
        near = none_ends_by(regions, costs, gpus, ceil(planned / 1.05) - 1, most)
    return Compared(len(regions.sites), gpus, planned, best, near)
