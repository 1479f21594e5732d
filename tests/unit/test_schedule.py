"""TaskGraph → Schedule: lanes, synchronisation, frees; and the list scheduling under it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclra_graph.ir.schedule import Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.passes.list_schedule import Job, list_schedule, makespan
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import STEPS, build, figure1, figure1_regions, residual_cnn, tied
from tests.property.happens_before import graph_of


def schedule_for(gpus: int, **options: object) -> Schedule:
    model, regions = figure1_regions()
    return build(model, regions, gpus=gpus, **options).schedule


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_what_every_schedule_keeps(make: Callable[[], CompiledStep]) -> None:
    schedule = make().schedule
    actions = schedule.actions
    runs = [action.task for action in actions if isinstance(action, Run)]
    assert sorted(runs) == sorted(task.name for task in schedule.tasks.tasks)
    assert {action.lane for action in actions} == {lane.id for lane in schedule.lanes}
    assert len(schedule.lanes) <= schedule.tasks.plan.gpus
    assert [lane.id for lane in schedule.lanes] == list(range(len(schedule.lanes)))
    # One record per producer, one wait per producer and lane; what nobody waits for is not recorded.
    records = Counter(action.event for action in actions if isinstance(action, Record))
    waits = Counter((action.event, action.lane) for action in actions if isinstance(action, Wait))
    assert set(records.values()) <= {1}
    assert set(waits.values()) <= {1}
    assert {event for event, _ in waits} == set(records)
    lane_of = {action.task: action.lane for action in actions if isinstance(action, Run)}
    for action in actions:
        if isinstance(action, Record):
            assert lane_of[action.event] == action.lane
        elif isinstance(action, Wait):
            assert lane_of[action.event] != action.lane
    assert all(lane_of[task.name] == 0 for task in schedule.tasks.tasks if task.kind in ("forward", "loss"))
    assert nx.is_directed_acyclic_graph(graph_of(schedule))


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_frees_come_right_after_the_last_use(make: Callable[[], CompiledStep]) -> None:
    schedule = make().schedule
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    made = {name: task.name for task in schedule.tasks.tasks for name in task.writes if name[1:2] != "["}
    readers: dict[str, set[str]] = {name: {made[name]} for name in made}
    for task in schedule.tasks.tasks:
        for name in task.reads:
            if name in made:
                readers[name].add(task.name)
    freed = Counter(value for action in schedule.actions if isinstance(action, Free) for value in action.values)
    private = {name for name, users in readers.items() if len({lane_of[user] for user in users}) == 1} - {"loss"}
    assert set(freed) == private
    assert set(freed.values()) <= {1}
    group = {task.name: task.group for task in schedule.tasks.tasks}
    for number, action in enumerate(schedule.actions):
        if isinstance(action, Free):
            before = [item.task for item in schedule.actions[:number] if isinstance(item, Run)]
            for value in action.values:
                # At the latest where the group of the last user ends.
                last = max(before.index(user) for user in readers[value])
                assert len({group[name] for name in before[last:]}) == 1


def test_lanes_without_work_are_left_out() -> None:
    assert len(schedule_for(1).lanes) == 1
    assert len(schedule_for(100).lanes) == 9
    assert len(schedule_for(100, wiring="chain").lanes) == 2
    assert not any(isinstance(action, (Wait, Record, Copy)) for action in schedule_for(1).actions)


def test_waves_of_deeper_wirings() -> None:
    schedule = schedule_for(3, wiring="chain")
    assert [[region for region, _ in wave] for wave in schedule.waves] == [[8], [7], [6], [5], [4], [3], [2], [1]]
    deep = schedule_for(4, depth=3)
    assert len(deep.waves) == 3
    assert sorted(region for wave in deep.waves for region, _ in wave) == list(range(1, 9))


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_slots_are_a_valid_timetable(make: Callable[[], CompiledStep]) -> None:
    schedule = make().schedule
    slots = {slot.group: slot for slot in schedule.slots}
    group = {task.name: task.group for task in schedule.tasks.tasks}
    cost: Counter[str] = Counter()
    for task in schedule.tasks.tasks:
        cost[task.group] += task.cost
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    queued = {name for name in group.values() if name.startswith("synapses:")}  # on the lane that owns the synapse
    assert set(slots) == set(group.values()) - {"forward", "buffers"} - queued
    for name, slot in slots.items():
        assert slot.end - slot.start == cost[name]
        assert {lane_of[task.name] for task in schedule.tasks.tasks if task.group == name} == {slot.lane}
    for before, after in schedule.tasks.edges:
        first, second = slots.get(group[before]), slots.get(group[after])
        if first and second and first != second:
            assert first.end <= second.start
    for lane in schedule.lanes:
        times = sorted((slot.start, slot.end) for slot in schedule.slots if slot.lane == lane.id)
        assert all(first[1] <= second[0] for first, second in pairwise(times))
    assert schedule.makespan == max(slot.end for slot in schedule.slots)


def test_the_host_never_blocks_the_first_wave() -> None:
    # Host order stays on a lane until it waits for something not recorded yet: lane 0's own target comes first.
    runs = [action.task for action in figure1().schedule.actions if isinstance(action, Run)]
    assert runs[:10] == [*(f"forward:{number}" for number in range(1, 10)), "loss"]
    assert runs[10:13] == ["displace:8", "target:8", "error:8"]


def test_values_that_cross_lanes_are_copied_once() -> None:
    for make in (residual_cnn, tied, figure1):
        copies = Counter((a.value, a.lane) for a in make().schedule.actions if isinstance(a, Copy))
        assert copies
        assert set(copies.values()) == {1}


@st.composite
def job_lists(draw: st.DrawFn) -> list[Job]:
    count = draw(st.integers(1, 14))
    jobs = []
    for number in range(count):
        after = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        near = f"j{draw(st.integers(0, count - 1))}" if draw(st.booleans()) else ""
        jobs.append(
            Job(
                f"j{number}",
                draw(st.integers(0, 3)),
                tuple(f"j{item}" for item in sorted(after)),
                draw(st.booleans()),
                near,
            )
        )
    return jobs


@settings(max_examples=150, deadline=None, derandomize=True)
@given(job_lists(), st.integers(1, 5))
def test_list_schedule(jobs: list[Job], lanes: int) -> None:
    placed = list_schedule(jobs, lanes)
    by_name = {job.name: job for job in jobs}
    assert placed.keys() == by_name.keys()
    for name, item in placed.items():
        assert 0 <= item.lane < lanes
        assert item.end - item.start == by_name[name].cost
        assert all(placed[other].end <= item.start for other in by_name[name].after)
    for lane in range(lanes):
        times = sorted((item.start, item.end) for item in placed.values() if item.lane == lane)
        assert all(first[1] <= second[0] for first, second in pairwise(times))
    order = nx.DiGraph()
    order.add_nodes_from(by_name)
    order.add_edges_from((other, job.name) for job in jobs for other in job.after)
    longest: dict[str, int] = {}
    for name in nx.topological_sort(order):
        longest[name] = by_name[name].cost + max((longest[other] for other in order.predecessors(name)), default=0)
    total, chain = sum(job.cost for job in jobs), max(longest.values())
    # Graham's bound: list scheduling is at most 2 − 1/m times the best, which is at least both of these.
    best = max(chain, -(-total // lanes))
    assert best <= makespan(placed) <= total / lanes + (1 - 1 / lanes) * chain
    assert list_schedule(jobs, lanes) == placed


def test_list_schedule_prefers_the_lane_of_its_kin() -> None:
    jobs = [Job("a", 1), Job("b", 1), Job("c", 1, ("b",), near="b"), Job("d", 1, ("a",), near="a")]
    placed = list_schedule(jobs, 2)
    assert (placed["c"].lane, placed["d"].lane) == (placed["b"].lane, placed["a"].lane)
    late = [Job("u", 1, urgent=False), Job("t", 1), Job("v", 1, ("t",))]
    assert list_schedule(late, 1)["t"].start == 0
    assert list_schedule(late, 1)["u"].start == 2


def test_list_schedule_starts_the_longest_chain_first() -> None:
    jobs = [Job("x", 1), Job("y", 1), Job("a", 1), Job("b", 1, ("a",)), Job("c", 1, ("b",))]
    placed = list_schedule(jobs, 2)
    assert placed["a"].start == 0
    assert makespan(placed) == 3
