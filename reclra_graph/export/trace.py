"""schedule.json: a schedule in Chrome's trace event format, for Perfetto and chrome://tracing.

A process is a device, a thread is a lane. What was predicted in the unit-cost model shows one unit (a target, or an
update) as 1000 µs; other times are what they are. Categories are forward, target, update, copy and wait; arrows are
error edges whose two ends run on different lanes. The spans of one longest path carry ``"critical": true`` and the
viewers' colour of what is bad. A measured trace has the same form, with a span for every task.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from reclra_graph.export.plan_json import Json
from reclra_graph.export.spans import category, critical_path, spans
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.schedule import Schedule

__all__ = ["UNIT", "Measured", "critical_path", "measured_trace", "trace_json", "trace_text", "trace_value"]

UNIT = 1000
"""Microseconds shown for one unit of cost."""

_CRITICAL = "terrible"
"""One of the colour names that viewers of Chrome's traces know."""


@dataclass(frozen=True)
class Measured:
    """A task that ran: from when to when, in nanoseconds since the step began, on the device's own clock."""

    task: str
    lane: int
    start: int
    end: int


def trace_value(program: StepProgram) -> dict[str, Json]:
    """The object that schedule.json holds: the JSON object form of the trace event format."""
    schedule = program.schedule
    units = schedule.clock == "unit"
    return _value(
        program,
        [*_slots(schedule), *_arrows(schedule)],
        {
            "kind": "predicted",
            "unit": "1 ms stands for one unit of the unit-cost model: a target and an update cost 1 each"
            if units
            else f"times as predicted for the device {schedule.tasks.plan.device.name}",
            "makespan": schedule.makespan,
            "peak_bytes": list(schedule.peak),
        },
    )


def measured_trace(program: StepProgram, device: str, found: Sequence[Measured]) -> dict[str, Json]:
    """The same form for the tasks of one step as they ran on ``device``."""
    by_name = program.schedule.tasks.by_name
    place = {lane.id: lane.device for lane in program.schedule.lanes}
    events: list[Json] = []
    for item in found:
        task = by_name[item.task]
        args: dict[str, Json] = {"group": task.group, "kind": task.kind, "critical": False}
        events.append(
            _event(item.task, category(task.kind), item.start / 1000, (item.end - item.start) / 1000,
                   place[item.lane], item.lane, args)
        )  # fmt: skip
    unit = f"times as measured on {device}, one step"
    return _value(program, events, {"kind": "measured", "unit": unit, "makespan": max(item.end for item in found)})


def trace_json(program: StepProgram) -> str:
    """Text of schedule.json, one event per line."""
    return trace_text(trace_value(program))


def trace_text(value: dict[str, Json]) -> str:
    """Text of a trace, one event per line."""
    events = value["traceEvents"]
    rows = ",\n".join(f"  {json.dumps(event, allow_nan=False)}" for event in events) if isinstance(events, list) else ""
    rest = ",\n".join(
        f'"{key}": {json.dumps(item, allow_nan=False)}' for key, item in value.items() if key != "traceEvents"
    )
    return f'{{"traceEvents": [\n{rows}\n],\n{rest}}}\n'


def _value(program: StepProgram, events: Iterable[Json], other: dict[str, Json]) -> dict[str, Json]:
    schedule = program.schedule
    model = schedule.tasks.plan.regions.graph.model
    return {
        "traceEvents": [*_names(schedule), *events],
        "displayTimeUnit": "ms" if schedule.clock == "unit" else "ns",
        "otherData": {"model": model, "digest": program.digest, **other},
    }


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


def _event(
    name: str, kind: str, start: float, duration: float, process: int, thread: int, args: dict[str, Json]
) -> dict[str, Json]:
    """A complete event; ``start`` and ``duration`` in microseconds."""
    event: dict[str, Json] = {
        "name": name, "cat": kind, "ph": "X", "ts": start, "dur": duration, "pid": process, "tid": thread, "args": args,
    }  # fmt: skip
    if args.get("critical"):
        event["cname"] = _CRITICAL
    return event


def _shown(schedule: Schedule, time: int) -> float:
    """A time of the schedule's clock in microseconds."""
    return time * UNIT if schedule.clock == "unit" else time / 1000


def _slots(schedule: Schedule) -> list[Json]:
    device = {lane.id: lane.device for lane in schedule.lanes}
    regions = {region.id: region for region in schedule.tasks.plan.regions.regions}
    events: list[Json] = []
    for span in spans(schedule):
        if span.category == "copy":
            args: dict[str, Json] = {"values": list(span.tasks), "critical": False}
        elif span.category == "wait":
            args = {"for": list(span.tasks), "critical": False}
        else:
            tasks = [schedule.tasks.by_name[name] for name in span.tasks]
            numbers = dict.fromkeys(task.region for task in tasks)
            args = {
                "regions": [regions[number].name for number in numbers if number in regions],
                "tasks": [task.name for task in tasks],
                "flops": sum(task.flops for task in tasks),
                "bytes": sum(task.bytes for task in tasks),
                "critical": span.critical,
            }
        start, end = _shown(schedule, span.start), _shown(schedule, span.end)
        place = device.get(span.lane, 0)
        events.append(_event(span.name, span.category, start, round(end - start, 3), place, span.lane, args))
    return events


def _arrows(schedule: Schedule) -> list[Json]:
    """A flow from the slot that makes e_j to the slot that makes the target of i, for every error edge over lanes."""
    device = {lane.id: lane.device for lane in schedule.lanes}
    slots = {slot.group: slot for slot in schedule.slots}
    parts = dict.fromkeys(task.name.partition("@")[2] for task in schedule.tasks.tasks)  # micro-batches
    makes = {
        (task.kind, task.region, task.name.partition("@")[2]): slots.get(task.group) for task in schedule.tasks.tasks
    }
    events: list[Json] = []
    for edge, part in product(schedule.tasks.plan.edges, parts):
        source = makes.get(("error", edge.source, part)) or makes.get(("loss", edge.source, part))
        target = makes.get(("target", edge.target, part)) or makes.get(("error", edge.target, part))
        if source is None or target is None or source.lane == target.lane:
            continue
        number = len(events) // 2 + 1
        # A flow binds to the slice that encloses its time: the middle of a slot is inside it on every reader.
        for phase, slot in (("s", source), ("f", target)):
            event: dict[str, Json] = {
                "name": edge.name,
                "cat": "error",
                "ph": phase,
                "id": number,
                "ts": _middle(schedule, slot.start + slot.end),
                "pid": device[slot.lane],
                "tid": slot.lane,
            }
            if phase == "f":
                event["bp"] = "e"
            events.append(event)
    return events


def _middle(schedule: Schedule, total: int) -> float:
    return total * UNIT // 2 if schedule.clock == "unit" else total / 2000
