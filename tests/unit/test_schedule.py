"""TaskGraph → Schedule: lanes, synchronisation, frees; and the list scheduling under it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclra_graph.ir.schedule import Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.passes.list_schedule import Job, Placed, list_schedule, lower_bound, makespan
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
    # Of the rest, those whose readers the lane that made them has waited for, before the last work of the step.
    assert private <= set(freed) <= set(readers) - {"loss"}
    assert set(freed.values()) <= {1}
    group = {task.name: task.group for task in schedule.tasks.tasks}
    for number, action in enumerate(schedule.actions):
        if isinstance(action, Free):
            before = [item.task for item in schedule.actions[:number] if isinstance(item, Run)]
            for value in set(action.values) & private:
                # At the latest where the group of the last user ends.
                last = max(before.index(user) for user in readers[value])
                assert len({group[name] for name in before[last:]}) == 1


def test_lanes_without_work_are_left_out() -> None:
    assert len(schedule_for(1).lanes) == 1
    assert len(schedule_for(100).lanes) == 9
    assert len(schedule_for(100, wiring="chain").lanes) == 2
    assert not any(isinstance(action, (Wait, Record, Copy)) for action in schedule_for(1).actions)


def test_on_one_lane_every_update_follows_its_target() -> None:
    slots = [slot.group for slot in schedule_for(1).slots]
    for place, group in enumerate(slots):
        if group.startswith("update:") and group.replace("update", "target") in slots:
            assert slots[place - 1] == group.replace("update", "target")


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


def assert_possible(jobs: list[Job], placed: dict[str, Placed], lanes: int, devices: tuple[int, ...] = ()) -> None:
    """Every job once, on a lane that there is, after what it waits for, with time for what it fetches, none beside
    another."""
    device = devices or tuple(range(lanes))
    by_name = {job.name: job for job in jobs}
    held: set[tuple[str, int]] = set()
    assert placed.keys() == by_name.keys()
    for name, item in placed.items():
        job = by_name[name]
        assert 0 <= item.lane < lanes
        assert job.lane in (None, item.lane)
        assert not job.beside or placed[job.beside].lane == item.lane
        assert all(placed[other].end <= item.start for other in job.after)
        fetched = [read for read in job.reads if device[placed[read[1]].lane] != device[item.lane]]
        over = sum(cost for value, _, cost in fetched if (value, item.lane) not in held)
        held |= {(value, item.lane) for value, _, _ in fetched}
        assert item.end - item.start == job.cost + over
    for lane in range(lanes):
        times = sorted((item.start, item.end) for item in placed.values() if item.lane == lane)
        assert all(first[1] <= second[0] for first, second in pairwise(times))
    # A lane's queue, in the order in which jobs come back, keeps its times.
    assert list(placed.values()) == sorted(placed.values(), key=lambda item: item.start)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(job_lists(), st.integers(1, 5))
def test_list_schedule(jobs: list[Job], lanes: int) -> None:
    placed = list_schedule(jobs, lanes)
    assert_possible(jobs, placed, lanes)
    order = nx.DiGraph()
    cost = {job.name: job.cost for job in jobs}
    order.add_nodes_from(cost)
    order.add_edges_from((other, job.name) for job in jobs for other in job.after)
    longest: dict[str, int] = {}
    for name in nx.topological_sort(order):
        longest[name] = cost[name] + max((longest[other] for other in order.predecessors(name)), default=0)
    total, chain = sum(job.cost for job in jobs), max(longest.values())
    # Graham's bound: list scheduling is at most 2 − 1/m times the best, which is at least both of these.
    best = max(chain, -(-total // lanes))
    assert best == lower_bound(jobs, lanes)
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


@settings(max_examples=150, deadline=None, derandomize=True)
@given(job_lists(), st.integers(1, 4), st.data())
def test_list_schedule_with_hand_overs(jobs: list[Job], lanes: int, data: st.DataObject) -> None:
    costs = st.integers(0, 4)
    price: dict[str, int] = {}
    for job in jobs:
        price |= {job.name: data.draw(costs)}
    jobs = [replace(job, reads=tuple((f"v{name}", name, price[name]) for name in job.after)) for job in jobs]
    devices = tuple(data.draw(st.integers(0, 1)) for _ in range(lanes)) if data.draw(st.booleans()) else ()
    placed = list_schedule(jobs, lanes, devices)
    assert_possible(jobs, placed, lanes, devices)
    # Never longer than everything on one lane, where nothing is handed over.
    assert lower_bound(jobs, lanes) <= makespan(placed) <= sum(job.cost for job in jobs)
    pinned = [replace(job, lane=data.draw(st.integers(0, lanes - 1))) for job in jobs]
    assert_possible(pinned, list_schedule(pinned, lanes, devices), lanes, devices)
    beside = [replace(job, beside=data.draw(st.sampled_from(("", *job.after)))) for job in jobs]
    assert_possible(beside, list_schedule(beside, lanes, devices), lanes, devices)


def test_a_dear_hand_over_keeps_jobs_together() -> None:
    jobs = [Job("a", 4), *(Job(name, 4, ("a",), reads=(("v", "a", 3),)) for name in "bc")]
    placed = list_schedule(jobs, 2)
    assert makespan(placed) == 11  # b at once, c over there: 4 + 3 + 4
    dear = [replace(job, reads=tuple((value, name, 9) for value, name, _ in job.reads)) for job in jobs]
    assert {item.lane for item in list_schedule(dear, 2).values()} == {0}
    assert makespan(list_schedule(dear, 2, (0, 0))) == 8  # two lanes of one device hand over for nothing


def test_heft_fills_the_gap_that_a_hand_over_leaves() -> None:
    jobs = [Job("a", 4), Job("b", 6, ("a",), lane=1, reads=(("v", "a", 1),)), Job("d", 3, urgent=False, lane=1)]
    placed = list_schedule(jobs, 2)
    assert (placed["d"].start, placed["d"].end) == (0, 3)
    assert makespan(placed) == 11


def test_a_lane_fetches_one_value_after_the_other_and_each_once() -> None:
    jobs = [Job("a", 1), Job("b", 1), Job("c", 2, ("a", "b"), reads=(("v", "a", 3), ("w", "b", 4)), lane=1)]
    assert makespan(list_schedule([replace(job, lane=job.lane or 0) for job in jobs], 2)) == 2 + 3 + 4 + 2
    again = Job("d", 2, ("a", "c"), reads=(("v", "a", 3),), lane=1)
    assert makespan(list_schedule([*(replace(job, lane=job.lane or 0) for job in jobs), again], 2)) == 13


def test_long_updates_do_not_wait_for_all_targets() -> None:
    # Greedy in time puts every target before the first update; the long update then ends last.
    jobs = [Job("t1", 1), Job("t2", 3), Job("t3", 3), Job("w1", 9, ("t1",), urgent=False), Job("t4", 3)]
    placed = list_schedule(jobs, 2)
    assert makespan(placed) == lower_bound(jobs, 2) == 10


def test_as_many_jobs_as_possible_follow_their_kin() -> None:
    # c could follow a or b, d only a: the matching gives c the lane of b, though a's comes first.
    jobs = [Job("a", 1), Job("b", 1), Job("c", 2, ("a", "b")), Job("d", 1, ("a",))]
    placed = list_schedule(jobs, 2)
    assert (placed["c"].lane, placed["d"].lane) == (placed["b"].lane, placed["a"].lane)
