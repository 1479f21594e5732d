"""When every group of tasks runs on a device whose costs are times, and what is handed over between lanes.

Before:  actions in host order
After:   a Slot for every group of tasks, in nanoseconds: it starts when its lane is free, all that it waits for has
         ended, and the values it reads have been copied from other devices, one after the other
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from reclra_graph.ir.operators import TensorType
from reclra_graph.ir.schedule import Action, Copy, Record, Run, Slot, Wait
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.passes.calls import sized
from reclra_graph.passes.names import value_names


def value_bytes(tasks: TaskGraph) -> dict[str, int]:
    """Bytes of every value of a step at the plan's batch size; values of no declared type count nothing."""
    plan = tasks.plan
    names, _ = value_names(plan.regions)
    found = {names[item.name]: _bytes(item.type, plan.batch) for item in plan.regions.graph.given}
    for task in tasks.tasks:
        for call in task.calls:
            for name, kind in zip(call.results, call.types, strict=False):
                if name and kind is not None:
                    found[name] = _bytes(kind, plan.batch)
    return found


def _bytes(kind: TensorType, batch: int) -> int:
    entries = 1
    for size in kind.shape:
        entries *= sized(size, batch)
    return entries * torch.empty((), dtype=getattr(torch, kind.dtype), device="meta").element_size()


@dataclass
class _Stay:
    """A group of tasks on a lane, with what stands before any of them: the group runs as a whole."""

    group: str
    lane: int
    tasks: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)


def timetable(tasks: TaskGraph, actions: Sequence[Action], devices: Mapping[int, int]) -> tuple[Slot, ...]:
    """Slots by the time at which they start; ``devices`` holds the device of every lane."""
    sizes = value_bytes(tasks)
    stays = _stays(tasks, actions, devices)
    ends: dict[str, int] = {}
    free: dict[int, int] = {}
    heads = dict.fromkeys(stays, 0)
    slots: list[Slot] = []
    while any(heads[lane] < len(stays[lane]) for lane in heads):
        moved = False
        for lane, queue in sorted(stays.items()):
            while heads[lane] < len(queue) and all(name in ends for name in queue[heads[lane]].waits):
                stay = queue[heads[lane]]
                start = max([free.get(lane, 0), *(ends[name] for name in stay.waits)])
                start += sum(tasks.plan.device.transfer(sizes.get(name, 0)) for name in stay.copies)
                end = start + sum(tasks.by_name[name].cost for name in stay.tasks)
                ends.update(dict.fromkeys(stay.tasks, end))
                free[lane] = end
                if end > start:
                    slots.append(Slot(stay.group, lane, start, end))
                heads[lane] += 1
                moved = True
        assert moved, "groups of tasks wait for each other"
    return tuple(sorted(slots, key=lambda slot: (slot.start, slot.lane)))


def _stays(tasks: TaskGraph, actions: Sequence[Action], devices: Mapping[int, int]) -> dict[int, list[_Stay]]:
    stays: dict[int, list[_Stay]] = {lane: [] for lane in devices}
    waits: dict[int, list[str]] = {lane: [] for lane in devices}
    copies: dict[int, list[str]] = {lane: [] for lane in devices}
    events: dict[str, str] = {}
    last: dict[int, str] = {}
    for action in actions:
        lane = action.lane
        if isinstance(action, Run):
            group = tasks.by_name[action.task].group
            if not stays[lane] or stays[lane][-1].group != group:
                stays[lane].append(_Stay(group, lane))
            stay = stays[lane][-1]
            stay.tasks.append(action.task)
            stay.waits += waits[lane]
            stay.copies += copies[lane]
            waits[lane], copies[lane] = [], []
            last[lane] = action.task
        elif isinstance(action, Record):
            events[action.event] = last[lane]
        elif isinstance(action, Wait) and not action.earlier:
            waits[lane].append(events[action.event])
        elif isinstance(action, Copy) and devices[action.source] != devices[lane]:
            copies[lane].append(action.value)
    return stays
