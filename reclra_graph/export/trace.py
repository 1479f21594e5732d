"""schedule.json: the predicted schedule in Chrome's trace event format, for Perfetto and chrome://tracing.

A process is a device, a thread is a lane; times are in µs. One unit of the unit-cost model (a target, or an update) is
shown as 1000 µs. Arrows are error edges whose two ends run on different lanes. The slots of one longest path carry
``"critical": true``.
"""

from __future__ import annotations

import json

from reclra_graph.export.plan_json import Json
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.schedule import Schedule, Slot
from reclra_graph.ir.tasks import Task

UNIT = 1000
"""Microseconds shown for one unit of cost."""

_UNIT_NOTE = "1 ms stands for one unit of the unit-cost model: a target and an update cost 1 each"

# A group of tasks is coloured by the first of these kinds that it holds.
_PRECEDENCE = ("target", "loss", "update", "forward", "error", "displace", "optimise", "buffer")


def trace_value(program: StepProgram) -> dict[str, Json]:
    """The object that schedule.json holds: the JSON object form of the trace event format."""
    schedule = program.schedule
    plan = schedule.tasks.plan
    return {
        "traceEvents": [*_names(schedule), *_slots(schedule), *_arrows(schedule)],
        "displayTimeUnit": "ms",
        "otherData": {
            "model": plan.regions.graph.model,
            "digest": program.digest,
            "unit": _UNIT_NOTE
            if plan.device.clock == "unit"
            else f"predicted for {plan.device.name}, batch {plan.batch}",
            "makespan": schedule.makespan,
        },
    }


def trace_json(program: StepProgram) -> str:
    """Text of schedule.json, one event per line."""
    value = trace_value(program)
    events = value.pop("traceEvents")
    rows = ",\n".join(f"  {json.dumps(event, allow_nan=False)}" for event in events) if isinstance(events, list) else ""
    rest = ",\n".join(f'"{key}": {json.dumps(item, allow_nan=False)}' for key, item in value.items())
    return f'{{"traceEvents": [\n{rows}\n],\n{rest}}}\n'


def critical_path(schedule: Schedule) -> tuple[Slot, ...]:
    """Slots, from first to last, each starting when the one before it ends, the last ending with the schedule.

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
        before = [slot for slot in timed if slot.end == current.start]
        before = [slot for slot in before if (slot.group, current.group) in needs or slot.lane == current.lane]
        if not before:
            break
        path.append(min(before, key=lambda slot: (slot.group, current.group) not in needs))
    return tuple(reversed(path))


def _names(schedule: Schedule) -> list[Json]:
    devices = sorted({lane.device for lane in schedule.lanes})
    events: list[Json] = []
    for device in devices:
        events.append(_metadata("process_name", device, 0, {"name": f"GPU {device}"}))
        events.append(_metadata("process_sort_index", device, 0, {"sort_index": device}))
    for lane in schedule.lanes:
        events.append(_metadata("thread_name", lane.device, lane.id, {"name": f"lane {lane.id}"}))
        events.append(_metadata("thread_sort_index", lane.device, lane.id, {"sort_index": lane.id}))
    return events


def _metadata(name: str, process: int, thread: int, args: dict[str, Json]) -> Json:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": args}


def _micro(schedule: Schedule, cost: int) -> int | float:
    """A cost in microseconds."""
    return cost * UNIT if schedule.tasks.plan.device.clock == "unit" else cost / 1000


def _middle(schedule: Schedule, slot: Slot) -> int | float:
    """When half of a slot is over, in microseconds."""
    both = _micro(schedule, slot.start + slot.end)
    return both // 2 if isinstance(both, int) else both / 2


def _slots(schedule: Schedule) -> list[Json]:
    device = {lane.id: lane.device for lane in schedule.lanes}
    critical = {(slot.group, slot.lane) for slot in critical_path(schedule)}
    regions = {region.id: region for region in schedule.tasks.plan.regions.regions}
    members: dict[str, list[Task]] = {}
    for task in schedule.tasks.tasks:
        members.setdefault(task.group, []).append(task)
    events: list[Json] = []
    for slot in schedule.slots:
        tasks = members.get(slot.group, [])
        kinds = {task.kind for task in tasks}
        numbers = dict.fromkeys(task.region for task in tasks)
        args: dict[str, Json] = {
            "regions": [regions[number].name for number in numbers if number in regions],
            "tasks": [task.name for task in tasks],
            "flops": sum(task.flops for task in tasks),
            "bytes": sum(task.bytes for task in tasks),
            "critical": (slot.group, slot.lane) in critical,
        }
        events.append(
            {
                "name": slot.group,
                "cat": next((kind for kind in _PRECEDENCE if kind in kinds), "task"),
                "ph": "X",
                "ts": _micro(schedule, slot.start),
                "dur": _micro(schedule, slot.end - slot.start),
                "pid": device[slot.lane],
                "tid": slot.lane,
                "args": args,
            }
        )
    return events


def _arrows(schedule: Schedule) -> list[Json]:
    """A flow from the slot that makes e_j to the slot that makes the target of i, for every error edge over lanes."""
    device = {lane.id: lane.device for lane in schedule.lanes}
    slots = {slot.group: slot for slot in schedule.slots}
    makes = {(task.kind, task.region): slots.get(task.group) for task in schedule.tasks.tasks}
    events: list[Json] = []
    for edge in schedule.tasks.plan.edges:
        source = makes.get(("error", edge.source)) or makes.get(("loss", edge.source))
        target = makes.get(("target", edge.target)) or makes.get(("error", edge.target))
        if source is None or target is None or source.lane == target.lane:
            continue
        number = len(events) // 2 + 1
        # A flow binds to the slice that encloses its time: the middle of a slot is inside it on every reader.
        for phase, slot, when in (
            ("s", source, _middle(schedule, source)),
            ("f", target, _middle(schedule, target)),
        ):
            event: dict[str, Json] = {
                "name": edge.name,
                "cat": "error",
                "ph": phase,
                "id": number,
                "ts": when,
                "pid": device[slot.lane],
                "tid": slot.lane,
            }
            if phase == "f":
                event["bp"] = "e"
            events.append(event)
    return events
