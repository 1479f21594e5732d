"""Schedules cut into segments, one device each: what is launched so is sound by an independent happens-before, and
PyTorch's own stream sanitizer finds nothing in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from reclra_graph.ir.schedule import Action, Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.ir.tasks import Task, TaskGraph
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.pieces import Piece, pieces
from reclra_graph.runtime.segments import Item, Part, Segment, segments
from tests.models import STEPS, build, figure1_regions
from tests.property.happens_before import faults, touched
from tests.property.nets import SCHEDULES, random_schedule
from tests.unit.test_sanitizer import replay

PLACED: list[dict[str, Any]] = [
    {"gpus": 3, "placement": "pipeline"}, {"gpus": 3, "micro_batches": 2}, {"gpus": 5, "micro_batches": 3},
    {"gpus": 4, "micro_batches": 2, "wiring": "flat"},
]  # fmt: skip


NOT_BROUGHT = "a value of another lane is not brought over"


def spreads(schedule: Schedule) -> Iterator[dict[int, int]]:
    """Lanes on devices: all together, two in turn, halves, one each."""
    lanes = [lane.id for lane in schedule.lanes]
    yield dict.fromkeys(lanes, 0)
    yield {lane: lane % 2 for lane in lanes}
    yield {lane: int(2 * lane >= len(lanes)) for lane in lanes}
    yield {lane: lane for lane in lanes}


def halved(tasks: TaskGraph, parts: Sequence[Part]) -> TaskGraph:
    """The tasks with their halves as tasks of their own, where they are cut: the one behind the other."""
    halves = {(part.task, part.half) for part in parts if part.half}
    cut = {name for name, _ in halves}
    found: list[Task] = []
    for task in tasks.tasks:
        if task.name not in cut:
            found.append(task)
            continue
        functions = [call.function for call in task.calls]
        place = functions.index("check") + 1 if "check" in functions else functions.index("optimise")
        for half, calls in (("first", task.calls[:place]), ("second", task.calls[place:])):
            # Not as an optimiser's, which would move what it is given by itself.
            kind = "update" if task.kind == "optimise" else task.kind
            found.append(replace(task, name=f"{task.name} {half}", kind=kind, calls=calls))
    kept = [task for task in found if not task.name.endswith(" first") or (task.name[:-6], "first") in halves]
    first = {name: f"{name} first" if (name, "first") in halves else f"{name} second" for name in cut}
    edges = [(f"{one} second" if one in cut else one, first.get(other, other)) for one, other in tasks.edges]
    edges += [(f"{name} first", f"{name} second") for name, half in halves if half == "first"]
    return replace(tasks, tasks=tuple(kept), edges=tuple(edges))


def together(items: Sequence[Item]) -> list[Item]:
    """The items of a segment in the order of its pieces."""
    return [part for item in pieces(items) for part in (item.parts if isinstance(item, Piece) else (item,))]


def launched(
    schedule: Schedule,
    devices: Mapping[int, int],
    cut: Sequence[Segment],
    order: Callable[[Sequence[Item]], Sequence[Item]] = list,
) -> Schedule:
    """What the host launches, as a schedule: all lanes of a device meet where a segment begins and where it ends."""
    actions: list[Action] = []
    last: dict[int, int] = {}
    for number, segment in enumerate(cut):
        lanes = _lanes(devices, segment)
        before = [*segment.after, *([last[segment.device]] if segment.device in last else [])]
        for lane in lanes:
            actions += [Wait(f"{other} {old}", lane) for other in before for old in _lanes(devices, cut[other])]
        actions += segment.copies
        for item in order(segment.items):
            if isinstance(item, Part):
                actions.append(Run(f"{item.task} {item.half}".strip(), item.lane))
            else:
                actions.append(item)
        actions += [Record(f"{number} {lane}", lane) for lane in lanes]
        last[segment.device] = number
    actions += [Wait(f"{number} {lane}", 0) for number in last.values() for lane in _lanes(devices, cut[number])]
    tasks = halved(schedule.tasks, [item for segment in cut for item in segment.items if isinstance(item, Part)])
    # Inside a device nothing is brought; the independent check asks for a mark of it all the same.
    inside = {
        (item.value, item.lane): item
        for item in schedule.actions
        if isinstance(item, Copy) and devices[item.source] == devices[item.lane]
    }
    found: list[Action] = []
    for item in actions:
        if isinstance(item, Run):
            reads = touched(tasks.by_name[item.task])[0]
            found += [inside.pop(key) for key in list(inside) if key[1] == item.lane and key[0] in reads]
        found.append(item)
    return replace(schedule, tasks=tasks, actions=tuple(found))


def _lanes(devices: Mapping[int, int], segment: Segment) -> list[int]:
    return [lane for lane, device in devices.items() if device == segment.device]


def _late(tasks: Mapping[str, Task], part: Part) -> bool:
    """Whether a part is an optimiser's step for what another device computed."""
    calls = tasks[f"{part.task} second"].calls if part.half == "second" else ()
    return any(call.function == "optimise" for call in calls)


def agree(schedule: Schedule) -> None:
    """All that must hold of the segments of a schedule."""
    for devices in spreads(schedule):
        cut = segments(schedule, devices)
        parts = [item for segment in cut for item in segment.items if isinstance(item, Part)]
        tasks = halved(schedule.tasks, parts).by_name
        names = [f"{part.task} {part.half}".strip() for part in parts]
        assert sorted(names) == sorted(tasks), "each once"
        order = [action.task for action in schedule.actions if isinstance(action, Run)]
        for lane in devices:
            mine = [part.task for part in parts if part.lane == lane and not _late(tasks, part)]
            assert mine == sorted(mine, key=order.index), "each lane keeps its order"
        if schedule.tasks.plan.placement or len(set(devices.values())) == 1:
            assert not any(_late(tasks, part) for part in parts)
        seen = False
        for number, segment in enumerate(cut):
            assert {devices[item.lane] for item in (*segment.items, *segment.copies)} == {segment.device}
            assert all(devices[item.source] != segment.device for item in segment.copies)
            assert all(other < number and cut[other].device != segment.device for other in segment.after)
            work = [item for item in segment.items if isinstance(item, Part)]
            assert work, "an empty graph"
            for item in work:
                stored = {name for name in touched(tasks[f"{item.task} {item.half}".strip()])[1] if name[1:2] == "["}
                assert seen or not stored, "something is changed before the host has looked"
            assert not seen or not segment.check
            seen = seen or segment.check
        assert seen
        if len(set(devices.values())) == 1:
            assert len(cut) == 2, "one device is cut at the check alone"
        for segment in cut:
            assert sorted(map(str, together(segment.items))) == sorted(map(str, segment.items))
        assert faults(launched(schedule, devices, cut, together)) == faults(launched(schedule, devices, cut))
        made = launched(schedule, devices, cut, together)
        # The independent check takes parameters for lane 0's, and so misses copies of them where regions are placed.
        assert faults(made) <= ({NOT_BROUGHT} if schedule.tasks.plan.placement else set())
        assert replay(made) == []


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_compiled_schedules(make: Callable[[], CompiledStep]) -> None:
    agree(make().schedule)


@pytest.mark.parametrize("options", PLACED, ids=str)
def test_placed_schedules(options: dict[str, Any]) -> None:
    agree(build(*figure1_regions(), **options).schedule)


@pytest.mark.parametrize("number", SCHEDULES)
def test_random_schedules(number: int) -> None:
    agree(random_schedule(number))


def test_a_segment_that_forgets_what_it_waits_for_is_found() -> None:
    """The checks above see it where an order is lost."""
    schedule = build(*figure1_regions(), gpus=3, micro_batches=2).schedule
    devices = {lane.id: lane.id for lane in schedule.lanes}
    cut = segments(schedule, devices)
    for number, segment in enumerate(cut):
        for left_out in segment.after:
            after = tuple(other for other in segment.after if other != left_out)
            broken = launched(schedule, devices, (*cut[:number], replace(segment, after=after), *cut[number + 1 :]))
            assert faults(broken) - {NOT_BROUGHT} or _implied(cut, number, left_out)


def _implied(cut: Sequence[Segment], number: int, other: int) -> bool:
    """Whether one segment comes behind another by what is left, in some other way."""
    seen, left = set(), [item for item in cut[number].after if item != other]
    left += [index for index in range(number) if cut[index].device == cut[number].device][-1:]
    while left:
        at = left.pop()
        if at not in seen:
            seen.add(at)
            left += [*cut[at].after, *[i for i in range(at) if cut[i].device == cut[at].device][-1:]]
    return other in seen


def test_cuts_stand_where_something_is_handed_over_and_nowhere_else() -> None:
    schedule = build(*figure1_regions(), gpus=3, placement="pipeline").schedule
    devices = {lane.id: lane.id for lane in schedule.lanes}
    source = {a.event: a.lane for a in schedule.actions if isinstance(a, Record)}
    across = [a for a in schedule.actions if isinstance(a, Wait) and source[a.event] != a.lane]
    given = {action.event for action in across}
    assert len(segments(schedule, devices)) <= len(devices) + len(across) + len(given) + 1


def test_frees_of_what_the_last_segment_reads_are_left_out() -> None:
    schedule = build(*figure1_regions(), gpus=2).schedule
    cut = segments(schedule, {0: 0, 1: 1})
    brought = {copy.value for copy in cut[-1].copies}
    assert brought
    assert all(copy.lane == 0 and copy.source == 1 for copy in cut[-1].copies)
    freed = {name for segment in cut for item in segment.items if isinstance(item, Free) for name in item.values}
    assert not freed & brought


def test_overlapping_steps_cannot_be_cut() -> None:
    schedule = build(*figure1_regions(), gpus=3, overlap_steps=True).schedule
    with pytest.raises(ValueError, match="overlap"):
        segments(schedule, {lane.id: lane.id for lane in schedule.lanes})
