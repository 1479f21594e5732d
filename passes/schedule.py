"""TaskGraph → Schedule: place the tasks on lanes and synchronise them.

Before:  tasks and the order they must keep.
After:   for every lane a queue, by list scheduling (in the unit-cost model the forward pass runs on lane 0 before it;
         where costs are times, it is a job of lane 0, as buffers are, synapses learn by jobs of their own on the lanes
         that own them, and hand-overs between lanes count); Record and Wait wherever a
         value crosses lanes and the wait does not follow from an earlier one; Copy for values that cross devices; Free
         for values whose last use the lane that made them knows of; and one order for the host in which no Wait comes
         before its Record. Lane 0 waits for every other lane at the end.
"""

from __future__ import annotations

from dataclasses import replace

from reclra_graph.ir.device import UNIT
from reclra_graph.ir.homes import brought
from reclra_graph.ir.schedule import Lane, Schedule, Slot
from reclra_graph.ir.tasks import Task, TaskGraph
from reclra_graph.passes.best_schedule import best_schedule
from reclra_graph.passes.frees import with_frees
from reclra_graph.passes.list_schedule import Job, Placed
from reclra_graph.passes.pipelined import pipelined
from reclra_graph.passes.sync import host_order, synchronised
from reclra_graph.passes.timetable import timetable, value_bytes


def schedule(tasks: TaskGraph, overlap: bool = False) -> Schedule:
    """The schedule for as many lanes as the plan has GPUs; lanes that stay empty are left out.

    Where the plan places regions, their forward tasks run there too (``pipelined``), and steps may overlap."""
    if tasks.plan.placement:
        return pipelined(tasks, overlap)
    groups = _groups(tasks)
    placed = best_schedule(_jobs(tasks, groups), tasks.plan.gpus)
    if not _timed(tasks):
        placed = _with_the_loss_first(placed, _target(tasks, str(tasks.plan.regions.output)))
    slots = [Slot(name, item.lane, item.start, item.end) for name, item in placed.items()]
    slots.sort(key=lambda slot: (slot.start, slot.lane))
    learning = [slot.group.partition(":") for slot in slots]
    last = {region: f"{kind}:{region}" for kind, _, region in learning if kind in ("update", "mirror")}
    queues: dict[int, list[Task]] = {0: list(groups["forward"])}
    for slot in slots:
        if slot.group == "forward":
            continue
        queues.setdefault(slot.lane, []).extend(groups[slot.group])
        region = slot.group.partition(":")[2]
        # Synapses learn on the lane that owns them: with their region's update, and behind its mirror, where these run
        # there, else at the end.
        own = f"synapses:{region}"
        here = slot.group == last.get(region) and placed[_target(tasks, region)].lane == slot.lane
        if here and own not in placed:
            queues[slot.lane].extend(groups.pop(own, ()))
    for name, members in groups.items():
        if name.startswith("synapses:") and name not in placed:
            queues[placed[_target(tasks, name.split(":")[1])].lane].extend(members)
    if "buffers" not in placed:
        queues[0].extend(groups.get("buffers", ()))
    numbers = {lane: index for index, lane in enumerate(sorted(queues))}
    queues = {numbers[lane]: queue for lane, queue in queues.items()}
    slots = [Slot(slot.group, numbers[slot.lane], slot.start, slot.end) for slot in slots]
    lane_of = {task.name: lane for lane, queue in queues.items() for task in queue}
    actions = host_order(synchronised(tasks, queues, lane_of))
    timed = timetable(tasks, actions, {lane: lane for lane in queues}) if _timed(tasks) else tuple(slots)
    return Schedule(
        tasks,
        tuple(Lane(number, number) for number in sorted(queues)),
        tuple(with_frees(tasks, actions, lane_of)),
        timed,
        max((slot.end for slot in timed), default=0),
        _waves(tasks, lane_of),
        clock=tasks.plan.device.clock,
    )


def _groups(tasks: TaskGraph) -> dict[str, list[Task]]:
    groups: dict[str, list[Task]] = {"forward": []}
    for task in tasks.tasks:
        groups.setdefault(task.group, []).append(task)
    return groups


def _jobs(tasks: TaskGraph, groups: dict[str, list[Task]]) -> list[Job]:
    """One job per group of tasks; the output's comes first, so that it runs on lane 0 behind the forward pass."""
    group_of = {task.name: task.group for task in tasks.tasks}
    after: dict[str, dict[str, None]] = {name: {} for name in groups}
    for before, behind in tasks.edges:
        first, second = group_of[before], group_of[behind]
        if first != second and not _apart(tasks, first):
            after[second][first] = None
    jobs = []
    sizes = value_bytes(tasks) if _timed(tasks) else {}
    made = {name: task.group for task in tasks.tasks for name in task.writes if "[" not in name}
    for name, members in groups.items():
        if _apart(tasks, name):
            continue
        kind, _, region = name.partition(":")
        near = _target(tasks, region.partition(":")[0])
        if kind == "target":
            near = next((item for item in after[name] if item.startswith("target:")), "")
        elif kind == "optimise":
            near = next(reversed(after[name]), "")
        cost = sum(task.cost for task in members)
        reads: tuple[tuple[str, str, int], ...] = ()
        lane, beside = None, ""
        if _timed(tasks):
            if name != "forward":
                after[name]["forward"] = None  # parameters and inputs are where it runs
            values = dict.fromkeys(value for task in members for value in brought(tasks, task))
            makers = {value: made.get(value, "forward") for value in values if not value.startswith("E[")}
            reads = tuple(
                (value, maker, tasks.plan.device.transfer(sizes.get(value, 0)))
                for value, maker in makers.items()
                if maker in after[name]
            )
            lane = 0 if name in ("forward", f"target:{tasks.plan.regions.output}", "buffers") else None
            if kind in ("synapses", "mirror"):
                beside = near
                after[name][near] = None
        jobs.append(Job(name, cost, tuple(after[name]), kind == "target", near, reads, lane, beside))
    return jobs


def _with_the_loss_first(placed: dict[str, Placed], loss: str) -> dict[str, Placed]:
    """The same on lanes by other numbers: the loss is on lane 0, as the forward pass is. (Readouts that others wait for
    may have been placed before it.)"""
    lane = placed[loss].lane
    number = {lane: 0, 0: lane}
    return {name: replace(item, lane=number.get(item.lane, item.lane)) for name, item in placed.items()}


def _timed(tasks: TaskGraph) -> bool:
    """Whether costs are times; then the forward pass is a job too, and hand-overs count."""
    return tasks.plan.device != UNIT


def _target(tasks: TaskGraph, region: str) -> str:
    """The group that computes a region's error: of every output it is the loss's."""
    outputs = tasks.plan.regions.outputs
    return f"target:{outputs[0]}" if region.isdigit() and int(region) in outputs else f"target:{region}"


def _apart(tasks: TaskGraph, group: str) -> bool:
    """Groups that the unit-cost model does not count: they are no jobs, but queued on the lane where they belong."""
    return not _timed(tasks) and (group in ("forward", "buffers") or group.startswith("synapses:"))


def _waves(tasks: TaskGraph, lane_of: dict[str, int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(region, lane) of the targets at each level of the wiring, highest region first."""
    waves: dict[int, list[tuple[int, int]]] = {}
    for number, level in tasks.plan.level.items():
        if level:
            waves.setdefault(level, []).append((number, lane_of[f"target:{number}"]))
    return tuple(tuple(sorted(waves[level], reverse=True)) for level in sorted(waves))
