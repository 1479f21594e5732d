"""What every lane does when, as spans of time: the schedule's slots, and between them its copies and waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reclra_graph.ir.schedule import Action, Copy, Run, Schedule, Slot, Wait

CATEGORIES = ("forward", "target", "update", "copy", "wait")
"""What a span is, in the order in which they are told."""

_OF_KIND = {
    "forward": "forward",
    "loss": "target",
    "displace": "target",
    "target": "target",
    "error": "target",
    "update": "update",
    "synapse": "update",
    "optimise": "update",
    "buffer": "update",
}
_PRECEDENCE = ("forward", "target", "update")


def category(kind: str) -> str:
    """The category of a task's kind (``reclra_graph.ir.tasks.KINDS``)."""
    return _OF_KIND.get(kind, "update")


@dataclass(frozen=True)
class Span:
    """A stretch of a lane's time, in the schedule's clock. ``tasks`` are those that run in it; a copy names in their
    place the values that it brings, and a wait the groups that it waits for."""

    name: str
    category: str
    lane: int
    start: int
    end: int
    tasks: tuple[str, ...] = ()
    critical: bool = False


def spans(schedule: Schedule) -> tuple[Span, ...]:
    """All spans, by lane and time; no two of a lane overlap. A copy that takes no time is a span of length 0."""
    members: dict[str, list[str]] = {}
    group_of = {task.name: task.group for task in schedule.tasks.tasks}
    for name, group in group_of.items():
        members.setdefault(group, []).append(name)
    critical = {(slot.group, slot.lane) for slot in critical_path(schedule)}
    brought, awaited = _before(schedule, group_of)
    slots = {slot.group: slot for slot in schedule.slots}
    needs: dict[str, set[str]] = {}
    for first, second in schedule.tasks.edges:
        needs.setdefault(group_of[second], set()).add(group_of[first])
    free: dict[int, int] = {}
    found: list[Span] = []
    for slot in sorted(schedule.slots, key=lambda item: (item.lane, item.start, item.end)):
        begin = free.get(slot.lane, 0)
        copies = brought.get(slot.group, ())
        # What the group needs has come when the last of it has ended; the rest of the gap went into copies.
        come = [slots[name].end for name in needs.get(slot.group, ()) if name in slots and slots[name] != slot]
        arrived = min(slot.start, max([begin, *come])) if copies else slot.start
        if arrived > begin:
            groups = awaited.get(slot.group, ())
            found.append(Span("wait", "wait", slot.lane, begin, arrived, groups))
        if copies:
            found.append(Span(f"copy for {slot.group}", "copy", slot.lane, arrived, slot.start, copies))
        tasks = tuple(members.get(slot.group, ()))
        kind = _category(schedule, slot, tasks)
        is_critical = (slot.group, slot.lane) in critical
        found.append(Span(slot.group, kind, slot.lane, slot.start, slot.end, tasks, is_critical))
        free[slot.lane] = slot.end
    for lane in schedule.lanes:
        if lane.id == 0 and awaited.get("") and free.get(0, 0) < schedule.makespan:
            found.append(Span("wait", "wait", 0, free.get(0, 0), schedule.makespan, awaited[""]))
    return tuple(sorted(found, key=lambda span: (span.lane, span.start, span.end)))


def critical_path(schedule: Schedule) -> tuple[Slot, ...]:
    """Slots, from first to last, each starting when the one before it has ended and, where that was on another lane,
    been copied; the last ends with the schedule.

    Where several slots qualify, one that the later slot's tasks depend on comes before one that merely shares its lane.
    """
    timed = [slot for slot in schedule.slots if slot.end > slot.start]
    last = [slot for slot in timed if slot.end == schedule.makespan]
    if not last:
        return ()
    groups = {task.name: task.group for task in schedule.tasks.tasks}
    needs = {(groups[before], groups[after]) for before, after in schedule.tasks.edges}
    path = [last[0]]
    while path[-1].start > 0:
        current = path[-1]
        before = [
            slot
            for slot in timed
            if slot.end <= current.start and ((slot.group, current.group) in needs or slot.lane == current.lane)
        ]
        if not before:
            break
        path.append(max(before, key=lambda slot: (slot.end, (slot.group, current.group) in needs)))
    return tuple(reversed(path))


def _category(schedule: Schedule, slot: Slot, tasks: tuple[str, ...]) -> str:
    kinds = {category(schedule.tasks.by_name[name].kind) for name in tasks}
    usual = slot.group.partition(":")[0]
    return next((kind for kind in _PRECEDENCE if kind in kinds), usual if usual in _PRECEDENCE else "update")


def _before(
    schedule: Schedule, group_of: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """For every group of tasks: the values of other lanes that are copied for it, and the groups that its lane waits
    for; under ``""`` those that lane 0 waits for at the end."""
    device = {lane.id: lane.device for lane in schedule.lanes}
    copies: dict[str, dict[str, None]] = {}
    waits: dict[str, dict[str, None]] = {}
    pending: dict[int, list[Action]] = {}
    for action in schedule.actions:
        if isinstance(action, Run):
            _note(pending.pop(action.lane, []), group_of.get(action.task, ""), group_of, device, copies, waits)
        elif isinstance(action, (Copy, Wait)):
            pending.setdefault(action.lane, []).append(action)
    _note(pending.get(0, []), "", group_of, device, copies, waits)
    return ({name: tuple(held) for name, held in copies.items()}, {name: tuple(held) for name, held in waits.items()})


def _note(
    actions: list[Action],
    group: str,
    group_of: Mapping[str, str],
    device: Mapping[int, int],
    copies: dict[str, dict[str, None]],
    waits: dict[str, dict[str, None]],
) -> None:
    for action in actions:
        if isinstance(action, Wait):
            waits.setdefault(group, {})[group_of.get(action.event, action.event)] = None
        elif isinstance(action, Copy) and device[action.source] != device[action.lane]:
            copies.setdefault(group, {})[action.value] = None
