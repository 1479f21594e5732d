"""schedule.json has the form that Chrome and Perfetto read, and shows the schedule."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

import reclra_graph as rg
from reclra_graph.export.spans import CATEGORIES, spans
from reclra_graph.export.trace import UNIT, Measured, critical_path, measured_trace, trace_json, trace_text, trace_value
from reclra_graph.ir.device import DEVICES
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.schedule import Run
from reclra_graph.passes.emit import emit
from reclra_graph.passes.lower import lower
from reclra_graph.passes.price import price
from reclra_graph.passes.schedule import schedule
from reclra_graph.passes.wire import wire
from reclra_graph.verify import verify
from tests.models import figure1_regions
from tests.unit.programs import MAKERS, figure1


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def program(request: pytest.FixtureRequest) -> StepProgram:
    made: StepProgram = request.param().program
    return made


@pytest.fixture(scope="module")
def paper() -> StepProgram:
    return figure1().program


COMMON = {"name": str, "ph": str, "pid": int, "tid": int}
FIELDS: dict[str, dict[str, type]] = {
    "M": {**COMMON, "args": dict},
    "X": {**COMMON, "cat": str, "ts": int, "dur": int, "args": dict},
    "s": {**COMMON, "cat": str, "ts": int, "id": int},
    "f": {**COMMON, "cat": str, "ts": int, "id": int, "bp": str},
}


def events(program: StepProgram, phase: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(trace_json(program))["traceEvents"] if event["ph"] == phase]


def test_the_trace_has_the_form_that_chrome_and_perfetto_read(program: StepProgram) -> None:
    trace = json.loads(trace_json(program))
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        fields = FIELDS[event["ph"]]
        if event.get("args", {}).get("critical"):
            fields = {**fields, "cname": str}
        assert {name: type(value) for name, value in event.items()} == fields
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0


def test_every_lane_and_device_has_a_name(program: StepProgram) -> None:
    schedule = program.schedule
    named = {(event["name"], event["pid"], event["tid"]) for event in events(program, "M")}
    for lane in schedule.lanes:
        assert ("thread_name", lane.device, lane.id) in named
        assert ("process_name", lane.device, 0) in named
    used = {(event["pid"], event["tid"]) for event in events(program, "X")}
    assert used <= {(lane.device, lane.id) for lane in schedule.lanes}


def test_every_slot_is_one_complete_event(program: StepProgram) -> None:
    slots = program.schedule.slots
    work = [event for event in events(program, "X") if event["cat"] not in ("copy", "wait")]
    found = {(event["name"], event["tid"], event["ts"], event["dur"]) for event in work}
    assert found == {(slot.group, slot.lane, slot.start * UNIT, (slot.end - slot.start) * UNIT) for slot in slots}
    assert len(work) == len(slots)
    assert {event["cat"] for event in events(program, "X")} <= set(CATEGORIES)


def test_waits_fill_the_time_between(program: StepProgram) -> None:
    """Every lane is at work, copying or waiting from the beginning until its last slot ends; lane 0 until the end."""
    schedule = program.schedule
    for lane in schedule.lanes:
        mine = sorted((e["ts"], e["dur"]) for e in events(program, "X") if e["tid"] == lane.id)
        ends = [start + length for start, length in mine]
        assert mine[0][0] == 0
        assert all(end == start for end, (start, _) in zip(ends, mine[1:], strict=False))
        assert lane.id != 0 or len(schedule.lanes) == 1 or ends[-1] == schedule.makespan * UNIT


def test_copies_and_waits_name_what_they_are_about(paper: StepProgram) -> None:
    found = {event["name"]: event for event in events(paper, "X") if event["tid"] == 1}
    assert found["copy for target:5"]["args"]["values"] == ["e9", "h5", "z5"]
    assert found["wait"]["args"]["for"] == ["target:9"]
    assert (found["wait"]["ts"], found["wait"]["dur"]) == (0, UNIT)


def test_events_of_a_lane_do_not_overlap(program: StepProgram) -> None:
    lanes: dict[int, list[tuple[int, int]]] = {}
    for event in events(program, "X"):
        lanes.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for held in lanes.values():
        held.sort()
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(held))


def test_arrows_are_the_error_edges_between_lanes(program: StepProgram) -> None:
    starts, ends = events(program, "s"), events(program, "f")
    assert [event["id"] for event in starts] == [event["id"] for event in ends]
    assert len({event["id"] for event in starts}) == len(starts)
    slices = events(program, "X")
    for start, end in zip(starts, ends, strict=True):
        assert start["name"] == end["name"]
        assert start["cat"] == end["cat"] == "error"
        assert start["ts"] <= end["ts"]
        assert (start["pid"], start["tid"]) != (end["pid"], end["tid"])
        for arrow in (start, end):
            inside = [
                event
                for event in slices
                if event["tid"] == arrow["tid"] and event["ts"] <= arrow["ts"] <= event["ts"] + event["dur"]
            ]
            assert inside, arrow
    names = {edge.name for edge in program.schedule.tasks.plan.edges}
    assert {event["name"] for event in starts} <= names


def test_arrows_of_figure_1(paper: StepProgram) -> None:
    # Three relays on three lanes: at least two of them are not the output's own lane.
    crossing = {event["name"] for event in events(paper, "s")}
    assert len(crossing & {"9->8", "9->5", "9->2"}) >= 2


def test_the_critical_path_is_gapless_and_marked(program: StepProgram) -> None:
    path = critical_path(program.schedule)
    assert path[0].start == 0
    assert path[-1].end == program.schedule.makespan
    assert all(first.end == second.start for first, second in itertools.pairwise(path))
    marked = {event["name"] for event in events(program, "X") if event["args"]["critical"]}
    assert marked == {event["name"] for event in events(program, "X") if event.get("cname")}
    assert marked == {slot.group for slot in path}


def test_the_critical_path_follows_dependencies_where_it_can(program: StepProgram) -> None:
    schedule = program.schedule
    group = {task.name: task.group for task in schedule.tasks.tasks}
    needs = {(group[before], group[after]) for before, after in schedule.tasks.edges}
    for first, second in itertools.pairwise(critical_path(schedule)):
        ending = {slot.group for slot in schedule.slots if slot.end == second.start}
        waited_for = {name for name in ending if (name, second.group) in needs}
        assert first.group in waited_for or (not waited_for and first.lane == second.lane)


@cache
def timed() -> StepProgram:
    """A step planned for a device whose costs are times."""
    model, regions = figure1_regions()
    del model
    options = rg.Options(gpus=3, wiring="flat", device="v100")
    plan = replace(wire(regions, options), device=DEVICES["v100"], batch=64)
    return emit(verify(schedule(price(lower(plan), plan.device))))


def test_a_timed_schedule_shows_forward_copies_and_waits() -> None:
    program = timed()
    held = program.schedule
    assert held.clock == "ns"
    found = spans(held)
    assert {span.category for span in found} == set(CATEGORIES)
    assert next(span for span in found if span.category == "forward").lane == 0
    for lane in held.lanes:
        mine = [span for span in found if span.lane == lane.id]
        assert all(first.end == second.start for first, second in itertools.pairwise(mine))
    transfer = DEVICES["v100"].transfer
    copies = [span for span in found if span.category == "copy"]
    # Every value is copied on its own: none takes less than the latency.
    assert all(span.end - span.start >= len(span.tasks) * transfer(0) for span in copies)
    cost = {task.name: task.cost for task in held.tasks.tasks}
    for span in found:
        if span.category not in ("copy", "wait"):
            assert span.end - span.start == sum(cost[name] for name in span.tasks)
    path = critical_path(held)
    assert path[0].start == 0
    assert path[-1].end == held.makespan
    value = trace_value(program)
    assert value["displayTimeUnit"] == "ns"
    last = max(event["ts"] + event["dur"] for event in value["traceEvents"] if event["ph"] == "X")  # type: ignore[index, union-attr]
    assert last == pytest.approx(held.makespan / 1000)


def test_a_measured_trace_has_the_same_form(paper: StepProgram) -> None:
    lane_of = {action.task: action.lane for action in paper.schedule.actions if isinstance(action, Run)}
    names = list(lane_of)
    found = [Measured(name, lane_of[name], 1000 * at, 1000 * at + 500) for at, name in enumerate(names)]
    trace = json.loads(trace_text(measured_trace(paper, "a test", found)))
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in complete] == names
    assert {event["cat"] for event in complete} == {"forward", "target", "update"}
    assert complete[3]["ts"] == 3.0
    assert complete[3]["dur"] == 0.5
    assert trace["otherData"]["kind"] == "measured"
