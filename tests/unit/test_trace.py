"""schedule.json has the form that Chrome and Perfetto read, and shows the schedule."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from reclra_graph.export.trace import UNIT, critical_path, trace_json
from reclra_graph.ir.program import StepProgram
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
    found = [(event["name"], event["tid"], event["ts"], event["dur"]) for event in events(program, "X")]
    slots = program.schedule.slots
    assert found == [(slot.group, slot.lane, slot.start * UNIT, (slot.end - slot.start) * UNIT) for slot in slots]
    kinds = {"forward", "loss", "target", "update", "optimise", "buffer"}
    assert {event["cat"] for event in events(program, "X")} <= kinds


def test_events_of_a_lane_do_not_overlap(program: StepProgram) -> None:
    lanes: dict[int, list[tuple[int, int]]] = {}
    for event in events(program, "X"):
        lanes.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in lanes.values():
        spans.sort()
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


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
    assert marked == {slot.group for slot in path}


def test_the_critical_path_follows_dependencies_where_it_can(program: StepProgram) -> None:
    schedule = program.schedule
    group = {task.name: task.group for task in schedule.tasks.tasks}
    needs = {(group[before], group[after]) for before, after in schedule.tasks.edges}
    for first, second in itertools.pairwise(critical_path(schedule)):
        ending = {slot.group for slot in schedule.slots if slot.end == second.start}
        waited_for = {name for name in ending if (name, second.group) in needs}
        assert first.group in waited_for or (not waited_for and first.lane == second.lane)
