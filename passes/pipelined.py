"""TaskGraph → Schedule where regions live on GPUs of their own: forward tasks are jobs too, each on its region's lane.

Before:  tasks, and the placement of regions in the plan
After:   for every lane a queue: of the orders of work compared (the micro-batch that came first; what others wait for;
         the longest chain) the one that ends first. Errors go straight to their targets' lanes, and updates fill the
         gaps that the forward pass leaves. With overlapping steps no lane is joined at the end but for the loss; a
         lane waits for what the step before has still to do with the same parameters on other lanes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reclra_graph.ir.device import UNIT
from reclra_graph.ir.schedule import Action, Lane, Record, Run, Schedule, Slot, Wait
from reclra_graph.ir.tasks import Task, TaskGraph
from reclra_graph.passes.frees import with_frees
from reclra_graph.passes.simulate import simulate
from reclra_graph.passes.sync import synchronised
from reclra_graph.passes.timetable import timetable
from reclra_graph.rules.operators import draws

Key = tuple[int, ...]


@dataclass(frozen=True)
class Stint:
    """A group of tasks, as work for one lane: ``part`` is its micro-batch, ``chain`` the cost of the longest chain of
    work that starts with it, ``urgent`` whether others wait for it."""

    name: str
    lane: int
    cost: int
    after: tuple[str, ...]
    part: int
    urgent: bool
    chain: int
    index: int


ORDERS: tuple[Callable[[Stint], Key], ...] = (
    lambda item: (item.part, not item.urgent, -item.chain, item.index),
    lambda item: (not item.urgent, item.part, -item.chain, item.index),
    lambda item: (-item.chain, item.part, item.index),
)
"""What goes first on a lane; of equally good ones the first, which lets go of a micro-batch's values the soonest."""


def pipelined(tasks: TaskGraph, overlap: bool = False) -> Schedule:
    """The schedule of a placed task graph."""
    lane_of, lanes = _lanes(tasks)
    groups: dict[str, list[Task]] = {}
    for task in tasks.tasks:
        groups.setdefault(task.group, []).append(task)
    stints = _stints(tasks, groups, lane_of)
    best: Schedule | None = None
    for order in ORDERS:
        placed = dispatched(stints, order)
        schedule = _schedule(tasks, groups, placed, lane_of, lanes, overlap)
        if best is None or _period(schedule) < _period(best):
            best = schedule
    assert best is not None
    return best


def _period(schedule: Schedule) -> tuple[int, int]:
    """What a step takes: with overlapping ones, what a third adds to two."""
    if not schedule.overlap:
        return schedule.makespan, 0
    return simulate(schedule, 3).makespan - simulate(schedule, 2).makespan, schedule.makespan


def _lanes(tasks: TaskGraph) -> tuple[dict[str, int], tuple[Lane, ...]]:
    """The lane of every task, and the lanes: one per GPU that has a region, and the first for the inputs."""
    placement = dict(tasks.plan.placement)
    gpus = sorted({0, *placement.values()})
    number = {gpu: index for index, gpu in enumerate(gpus)}
    lane_of = {task.name: number[placement.get(task.region, 0)] for task in tasks.tasks}
    first: dict[str, int] = {}
    for task in tasks.tasks:
        for name in task.reads:
            first.setdefault(name, lane_of[task.name])
    for task in tasks.tasks:
        if task.kind == "optimise" and any(call.function == "rules.target.total" for call in task.calls):
            stores = [name for name in task.writes if name.startswith("P[")]
            # A parameter that several regions share lives where it is used first.
            lane_of[task.name] = first.get(stores[0], 0) if stores else lane_of[task.name]
    return lane_of, tuple(Lane(index, gpu) for gpu, index in number.items())


def _stints(tasks: TaskGraph, groups: Mapping[str, Sequence[Task]], lane_of: Mapping[str, int]) -> list[Stint]:
    """The groups as work, each after those that it waits for."""
    group_of = {task.name: task.group for task in tasks.tasks}
    after: dict[str, dict[str, None]] = {name: {} for name in groups}
    for before, behind in tasks.edges:
        if group_of[before] != group_of[behind]:
            after[group_of[behind]][group_of[before]] = None
    if drawing(tasks):
        # Random numbers are drawn micro-batch by micro-batch: lanes take these in order, and no error overtakes them.
        last: dict[int, str] = {}
        for name, members in groups.items():
            if members[0].kind == "forward":
                lane = lane_of[members[0].name]
                if lane in last:
                    after[name][last[lane]] = None
                last[lane] = name
            elif any(task.kind == "loss" for task in members) and name != "targets":
                part = _part(name)
                after[name].update(
                    (other, None)
                    for other, given in groups.items()
                    if given[0].kind == "forward" and _part(other) <= part
                )
    cost = {name: sum(task.cost for task in members) for name, members in groups.items()}
    order = _sorted(after)
    followers: dict[str, list[str]] = {name: [] for name in groups}
    for name, earlier in after.items():
        for other in earlier:
            followers[other].append(name)
    chain: dict[str, int] = {}
    for name in reversed(order):
        chain[name] = cost[name] + max((chain[other] for other in followers[name]), default=0)
    urgent = {"forward", "loss", "target", "displace", "error"}
    return [
        Stint(name, lane_of[groups[name][0].name], cost[name], tuple(after[name]), _part(name),
              groups[name][0].kind in urgent, chain[name], index)
        for index, name in enumerate(order)
    ]  # fmt: skip


def _part(group: str) -> int:
    """The micro-batch of a group; what comes after all of them counts as another."""
    tail = group.rpartition("@")[2]
    return int(tail) if tail.isdigit() and "@" in group else 0 if group in ("inputs", "targets") else 1 << 30


def _sorted(after: Mapping[str, Mapping[str, None]]) -> list[str]:
    """Names in an order in which each comes behind those it waits for; else as given."""
    index = {name: number for number, name in enumerate(after)}
    waits = {name: len(earlier) for name, earlier in after.items()}
    followers: dict[str, list[str]] = {name: [] for name in after}
    for name, earlier in after.items():
        for other in earlier:
            followers[other].append(name)
    ready = [(index[name], name) for name, count in waits.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        _, name = heapq.heappop(ready)
        order.append(name)
        for other in followers[name]:
            waits[other] -= 1
            if waits[other] == 0:
                heapq.heappush(ready, (index[other], other))
    assert len(order) == len(after), "groups wait for each other"
    return order


def dispatched(stints: Sequence[Stint], order: Callable[[Stint], Key]) -> list[tuple[Stint, int]]:
    """(work, start) in the order in which it starts: whenever a lane is free, it takes what is first by ``order``."""
    by_name = {item.name: item for item in stints}
    waits = {item.name: len(item.after) for item in stints}
    followers: dict[str, list[str]] = {item.name: [] for item in stints}
    for item in stints:
        for name in item.after:
            followers[name].append(item.name)
    ready: dict[int, list[tuple[Key, str]]] = {item.lane: [] for item in stints}
    for item in stints:
        if waits[item.name] == 0:
            heapq.heappush(ready[item.lane], (order(item), item.name))
    free = dict.fromkeys(ready, True)
    running: list[tuple[int, int, str]] = []
    started: list[tuple[Stint, int]] = []
    now = 0
    while True:
        moved = False
        for lane in sorted(ready):
            if free[lane] and ready[lane]:
                item = by_name[heapq.heappop(ready[lane])[1]]
                free[lane] = False
                heapq.heappush(running, (now + item.cost, len(started), item.name))
                started.append((item, now))
                moved = True
        if moved and running[0][0] > now:
            continue
        if not running:
            return started
        now = running[0][0]
        while running and running[0][0] == now:
            item = by_name[heapq.heappop(running)[2]]
            free[item.lane] = True
            for name in followers[item.name]:
                waits[name] -= 1
                if waits[name] == 0:
                    heapq.heappush(ready[by_name[name].lane], (order(by_name[name]), name))


def _schedule(
    tasks: TaskGraph,
    groups: Mapping[str, Sequence[Task]],
    placed: Sequence[tuple[Stint, int]],
    lane_of: Mapping[str, int],
    lanes: tuple[Lane, ...],
    overlap: bool,
) -> Schedule:
    """Queues, actions and slots from what was dispatched when."""
    queues: dict[int, list[Task]] = {lane.id: [] for lane in lanes}
    for item, _ in placed:
        queues[item.lane].extend(groups[item.name])
    timed = sorted(placed, key=lambda pair: (pair[1], pair[0].lane))  # stable: what a lane does stays in order
    started = [task.name for item, _ in timed for task in groups[item.name]]
    actions = in_order(synchronised(tasks, queues, dict(lane_of)), started, drawing(tasks))
    if overlap:
        actions = _unjoined(tasks, actions, lane_of)
    hosted = with_frees(tasks, actions, dict(lane_of))
    slots = tuple(Slot(item.name, item.lane, start, start + item.cost) for item, start in placed if item.cost)
    if tasks.plan.device != UNIT:  # with the copies between GPUs
        slots = timetable(tasks, hosted, {lane.id: lane.device for lane in lanes})
    return Schedule(
        tasks, lanes, tuple(hosted), slots, max((slot.end for slot in slots), default=0), _waves(tasks, lane_of),
        overlap=overlap, clock=tasks.plan.device.clock,
    )  # fmt: skip


def drawing(tasks: TaskGraph) -> list[str]:
    """The tasks that draw random numbers, in the order in which they must."""
    return [task.name for task in tasks.tasks if any(_draws(call.function) for call in task.calls)]


def _draws(function: str) -> bool:
    return function in ("opaque", "rules.mirror.noise") or draws(function)


def in_order(lanes: Mapping[int, Sequence[Action]], started: Sequence[str], drawn: Sequence[str]) -> list[Action]:
    """One order for the host: as the work starts, no Wait before its Record, and random numbers in their order."""
    when = {name: index for index, name in enumerate(started)}
    # The next task of a lane behind each of its actions; a Record goes with the task before it.
    key: dict[int, list[int]] = {}
    for lane, actions in lanes.items():
        keys, coming = [], len(started)
        for action in reversed(actions):
            coming = when[action.task] if isinstance(action, Run) else coming
            keys.append(-1 if isinstance(action, Record) else coming)
        key[lane] = keys[::-1]
    heads = dict.fromkeys(sorted(lanes), 0)
    recorded: set[str] = set()
    left = list(reversed(drawn))
    held = set(drawn)
    order: list[Action] = []

    def may(lane: int) -> bool:
        action = lanes[lane][heads[lane]]
        if isinstance(action, Wait):
            return action.earlier or action.event in recorded
        return not (isinstance(action, Run) and action.task in held) or action.task == left[-1]

    while True:
        able = [lane for lane in heads if heads[lane] < len(lanes[lane]) and may(lane)]
        if not able:
            assert all(heads[lane] == len(lanes[lane]) for lane in heads), "lanes wait for each other"
            return order
        lane = min(able, key=lambda item: (key[item][heads[item]], item))
        action = lanes[lane][heads[lane]]
        heads[lane] += 1
        order.append(action)
        if isinstance(action, Record):
            recorded.add(action.event)
        elif isinstance(action, Run) and action.task in held:
            left.pop()


def _unjoined(tasks: TaskGraph, actions: Sequence[Action], lane_of: Mapping[str, int]) -> list[Action]:
    """Without the joins at the end of lane 0, the loss's apart; with waits for the step before where a parameter, a
    buffer or a synapse is touched on several lanes, and with the records that these need.

    A lane that has waited in this step for anything of another lane needs no wait for that one's step before.
    """
    runs = [action for action in actions if isinstance(action, Run)]
    place = {action.task: index for index, action in enumerate(runs)}
    touching: dict[str, list[tuple[str, bool]]] = {}
    for task in tasks.tasks:
        for name in dict.fromkeys((*task.reads, *task.writes)):
            if name[:2] in ("P[", "E["):
                touching.setdefault(name, []).append((task.name, name in task.writes))
    loss = next(task.name for task in tasks.tasks if "loss" in task.writes)
    wanted = {loss} if lane_of[loss] else set()
    marked = {action.event for action in actions if isinstance(action, Record)}
    last = max(
        (index for index, action in enumerate(actions) if isinstance(action, Run) and action.lane == 0), default=0
    )
    met: dict[int, set[int]] = {}
    marks: dict[str, set[int]] = {}
    known: dict[tuple[int, int], int] = {}
    made: list[Action] = []
    for index, action in enumerate(actions):
        lane = action.lane
        if isinstance(action, Wait):
            if lane == 0 and index > last:
                continue
            met.setdefault(lane, set()).update(marks[action.event])
        elif isinstance(action, Record):
            marks[action.event] = met.get(lane, set()) | {lane}
        elif isinstance(action, Run):
            task = tasks.by_name[action.task]
            needed: dict[int, str] = {}
            for name in dict.fromkeys((*task.reads, *task.writes)):
                for other, writes in touching.get(name, ()):
                    far = lane_of[other]
                    if far == lane or far in met.get(lane, ()) or not (writes or name in task.writes):
                        continue
                    if place[other] > max(known.get((lane, far), -1), place.get(needed.get(far, ""), -1)):
                        needed[far] = other
            for far, other in sorted(needed.items()):
                known[lane, far] = place[other]
                wanted.add(other)
                made.append(Wait(other, lane, True))
        made.append(action)
    result: list[Action] = []
    for action in made:
        result.append(action)
        if isinstance(action, Run) and action.task in wanted - marked:
            result.append(Record(action.task, action.lane))
    return [*result, Wait(loss, 0)] if lane_of[loss] else result


def _waves(tasks: TaskGraph, lane_of: Mapping[str, int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(region, lane) of the targets at each level of the wiring, highest region first."""
    lanes = {task.region: lane_of[task.name] for task in tasks.tasks if task.kind == "target"}
    waves: dict[int, list[tuple[int, int]]] = {}
    for number, level in tasks.plan.level.items():
        if level:
            waves.setdefault(level, []).append((number, lanes[number]))
    return tuple(tuple(sorted(waves[level], reverse=True)) for level in sorted(waves))
