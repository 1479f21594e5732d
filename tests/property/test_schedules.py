"""The schedule's verifier and an independent check (networkx, from the tasks' calls) agree about every mutation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from reclra_graph.errors import VerificationError
from reclra_graph.ir.homes import homes
from reclra_graph.ir.schedule import Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.verify import verify
from tests.models import STEPS
from tests.property.happens_before import doubled, faults, swapped, touched, without
from tests.property.nets import SCHEDULES, random_schedule


def refused(schedule: Schedule) -> str:
    """What the verifier says, or nothing."""
    try:
        verify(schedule)
    except VerificationError as error:
        return str(error)
    return ""


def actions_of(schedule: Schedule, kind: type) -> Iterator[int]:
    return (number for number, action in enumerate(schedule.actions) if isinstance(action, kind))


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_compiled_schedules_are_sound(make: Callable[[], CompiledStep]) -> None:
    assert faults(make().schedule) == set()


@pytest.mark.parametrize("number", SCHEDULES)
def test_random_schedules_are_sound(number: int) -> None:
    assert faults(random_schedule(number)) == set()


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_tasks_declare_what_their_calls_touch(make: Callable[[], CompiledStep]) -> None:
    for task in make().schedule.tasks.tasks:
        assert (set(task.reads), set(task.writes)) == touched(task), task.name


@pytest.mark.parametrize("number", SCHEDULES)
def test_every_dropped_wait_is_caught_or_provably_redundant(number: int) -> None:
    schedule = random_schedule(number)
    waits = list(actions_of(schedule, Wait))
    redundant = []
    for place in waits:
        broken = without(schedule, place)
        wrong, said = faults(broken), refused(broken)
        assert bool(said) == bool(wrong), (place, schedule.actions[place], wrong, said)
        if not wrong:
            redundant.append(schedule.actions[place])
    assert len(schedule.lanes) == 1 or waits
    # One wait per producer and lane, and none that follows from another: each costs a synchronisation on the device.
    assert redundant == []


@pytest.mark.parametrize("kind", [Run, Record, Copy, Free], ids=lambda kind: kind.__name__)
def test_dropped_actions(kind: type) -> None:
    for number in (1, 3, 6):
        schedule = random_schedule(number)
        for place in actions_of(schedule, kind):
            broken = without(schedule, place)
            said = refused(broken)
            assert bool(said) == bool(faults(broken)), (number, place, schedule.actions[place], said)
            # A Free more or less costs memory, not results; everything else is needed.
            assert bool(said) == (kind is not Free), (number, place, schedule.actions[place])


@pytest.mark.parametrize("number", [1, 2, 4, 6, 9])
def test_swapped_and_doubled_actions(number: int) -> None:
    schedule = random_schedule(number)
    chance = random.Random(number)
    size = len(schedule.actions)
    pairs = [(place, place + 1) for place in range(size - 1)]
    pairs += [tuple(sorted(chance.sample(range(size), 2))) for _ in range(40)]  # type: ignore[misc]
    verdicts = set()
    for first, second in pairs:
        broken = swapped(schedule, first, second)
        wrong, said = faults(broken), refused(broken)
        assert bool(said) == bool(wrong), (
            first,
            second,
            schedule.actions[first],
            schedule.actions[second],
            wrong,
            said,
        )
        verdicts.add(bool(said))
    assert verdicts == {False, True}
    for _ in range(30):
        broken = doubled(schedule, chance.randrange(size), chance.randrange(size + 1))
        wrong, said = faults(broken), refused(broken)
        assert bool(said) == bool(wrong), (wrong, said)


@pytest.mark.parametrize("number", [0, 3, 5, 7])
def test_changed_actions(number: int) -> None:
    """One field of one action is another: its lane, its task, its event, its value, its source."""
    schedule = random_schedule(number)
    chance = random.Random(number)
    lanes = [lane.id for lane in schedule.lanes]
    names = [task.name for task in schedule.tasks.tasks]
    values = sorted({name for task in schedule.tasks.tasks for name in (*task.reads, *task.writes)})
    verdicts: dict[str, set[bool]] = {}
    for place, action in enumerate(schedule.actions):
        changes: list[dict[str, object]] = [{"lane": chance.choice(lanes)}]
        if isinstance(action, (Record, Wait)):
            changes.append({"event": chance.choice(names)})
        elif isinstance(action, Run):
            changes.append({"task": chance.choice(names)})
        elif isinstance(action, Copy):
            changes += [{"value": chance.choice(values)}, {"source": chance.choice(lanes)}]
        else:
            changes.append({"values": (*action.values, chance.choice(values))})
        for change in changes:
            other = replace(action, **change)  # type: ignore[arg-type]
            if other == action:
                continue
            broken = replace(schedule, actions=(*schedule.actions[:place], other, *schedule.actions[place + 1 :]))
            wrong, said = faults(broken), refused(broken)
            # The verifier also compares the timetable and the waves with the lanes on which tasks run.
            assert bool(said) or not wrong, (place, action, other, wrong)
            if said and not wrong:
                assert "slot" in said or "region" in said or "a copy" in said, (place, action, other, said)
            verdicts.setdefault(f"{type(action).__name__}.{next(iter(change))}", set()).add(bool(said))
    assert all(True in found for found in verdicts.values()), verdicts


@pytest.mark.parametrize("number", SCHEDULES)
def test_changed_timetables_and_waves(number: int) -> None:
    schedule = random_schedule(number)
    lanes = [lane.id for lane in schedule.lanes]
    edges = {
        (schedule.tasks.by_name[first].group, schedule.tasks.by_name[second].group)
        for first, second in schedule.tasks.edges
    }
    for place, slot in enumerate(schedule.slots):
        broken = [replace(slot, lane=lane) for lane in lanes if lane != slot.lane]
        if slot.end > slot.start:
            broken += [replace(slot, start=slot.start - 9), replace(slot, start=slot.end, end=slot.start)]
        if slot.start and any(after == slot.group for _, after in edges):
            broken.append(replace(slot, start=0, end=slot.end - slot.start))
        for other in broken:
            slots = (*schedule.slots[:place], other, *schedule.slots[place + 1 :])
            assert refused(replace(schedule, slots=slots)), (slot, other)
    for place, wave in enumerate(schedule.waves):
        rest = (*schedule.waves[:place], wave[1:], *schedule.waves[place + 1 :])
        assert refused(replace(schedule, waves=rest))
        assert refused(replace(schedule, waves=(*schedule.waves, wave[:1])))
        for lane in set(lanes) - {wave[0][1]}:
            moved = (((wave[0][0], lane), *wave[1:]),)
            assert refused(replace(schedule, waves=(*schedule.waves[:place], *moved, *schedule.waves[place + 1 :])))
    assert refused(replace(schedule, peak=(1,) * (len(lanes) + 1)))


@pytest.mark.parametrize("number", SCHEDULES)
def test_a_copy_follows_what_made_its_value(number: int) -> None:
    schedule = random_schedule(number)
    made = {name: task.name for task in schedule.tasks.tasks for name in task.writes}
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    for action in schedule.actions:
        if isinstance(action, Copy):
            home = lane_of[made[action.value]] if action.value in made and action.value[1:2] != "[" else 0
            assert (action.source, action.source != action.lane) == (home, True), action


@pytest.mark.parametrize("number", SCHEDULES)
def test_synapses_are_read_on_the_lane_that_owns_them(number: int) -> None:
    # Else, with a GPU per lane, a task would meet a synapse of another device; no Copy ever moves one.
    schedule = random_schedule(number)
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    owner = {edge.name: lane_of[f"target:{edge.target}"] for edge in schedule.tasks.plan.edges}
    home = homes(schedule.tasks, lane_of)  # of the matrices through which synapses learn
    owner |= {matrix.name: home[f"E[{matrix.name}]"] for matrix in schedule.tasks.matrices.values()}
    copied = {(action.value, action.lane) for action in schedule.actions if isinstance(action, Copy)}
    for task in schedule.tasks.tasks:
        for storage in task.reads:
            if storage.startswith("E[") and task.kind != "optimise":
                assert lane_of[task.name] == owner[storage[2:-1]] or (storage, lane_of[task.name]) in copied, (
                    task.name,
                    storage,
                )
