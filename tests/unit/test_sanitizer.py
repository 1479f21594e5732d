"""PyTorch's own stream sanitizer as a second witness, without a GPU: a schedule's actions are replayed into it.

``torch.cuda._sanitizer.EventHandler`` is pure Python: kernels on streams, events recorded and waited for, and a verdict
on every access. A task is a kernel, a storage a data pointer, a lane a stream.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from torch.cuda._sanitizer import EventHandler

from reclra_graph.ir.schedule import Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.runtime.compiled import CompiledStep
from tests.models import STEPS, build, figure1_regions
from tests.property.happens_before import faults, touched, without
from tests.property.nets import random_schedule


def replay(schedule: Schedule, steps: int = 1) -> list[str]:
    """The kernels for which the sanitizer reports an unsynchronised access, in host order; of several steps, one behind
    the other, each has values and events of its own."""
    handler = EventHandler()
    pointers: dict[str, int] = defaultdict(lambda: len(pointers) + 1)
    events: dict[str, int] = defaultdict(lambda: len(events) + 1)
    found = []

    def launch(name: str, lane: int, reads: set[str], writes: set[str]) -> None:
        aliases = {pointers[storage]: [storage] for storage in reads | writes}
        errors = handler._handle_kernel_launch(
            lane, {pointers[s] for s in reads - writes}, {pointers[s] for s in writes}, set(), name, aliases
        )
        found.extend(name for _ in errors[:1])

    for lane in schedule.lanes:
        if lane.id:
            handler._handle_stream_creation(lane.id)

    def own(names: set[str], step: int) -> set[str]:
        return {name if name[:2] in ("P[", "E[") else f"{name} of step {step}" for name in names}

    for step, action in itertools.product(range(steps), schedule.actions):
        if isinstance(action, Run):
            reads, writes = touched(schedule.tasks.by_name[action.task])
            launch(action.task, action.lane, own(reads, step), own(writes, step))
        elif isinstance(action, Record):
            handler._handle_event_creation(events[f"{action.event} of step {step}"])
            handler._handle_event_record(events[f"{action.event} of step {step}"], action.lane)
        elif isinstance(action, Wait) and step - action.earlier >= 0:
            handler._handle_event_wait(events[f"{action.event} of step {step - action.earlier}"], action.lane)
        elif isinstance(action, Free):
            # The allocator hands the memory to the lane's next work: that is a write.
            launch(f"free of {action.values}", action.lane, set(), own(set(action.values), step))
        else:
            assert isinstance(action, (Copy, Wait))
    everything = set().union(*(reads | writes for reads, writes in map(touched, schedule.tasks.tasks)))
    if schedule.overlap:
        launch("who looks at the loss", 0, own({"loss"}, steps - 1), set())
    else:
        launch("what follows the step", 0, set(), own(everything, steps - 1))
    return found


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_compiled_schedules_have_no_race(make: Callable[[], CompiledStep]) -> None:
    assert replay(make().schedule) == []


@pytest.mark.parametrize(
    "options",
    [{"micro_batches": 2}, {"overlap_steps": True}, {"micro_batches": 2, "overlap_steps": True, "wiring": "flat"}],
    ids=str,
)
def test_placed_schedules_have_no_race_over_two_steps(options: dict[str, Any]) -> None:
    schedule = build(*figure1_regions(), gpus=4, **options).schedule
    assert replay(schedule, 2) == []
    place = max(i for i, action in enumerate(schedule.actions) if isinstance(action, Wait) and action.lane)
    assert replay(without(schedule, place), 2)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 6, 7])
def test_random_schedules_have_no_race_and_every_wait_is_missed(number: int) -> None:
    schedule = random_schedule(number)
    assert replay(schedule) == []
    for place, action in enumerate(schedule.actions):
        if isinstance(action, Wait):
            broken = without(schedule, place)
            assert bool(replay(broken)) == bool(faults(broken)), (place, action)
            assert replay(broken), (place, action)


def test_a_missing_record_is_a_race_too() -> None:
    # An event that was never recorded makes nobody wait.
    schedule = random_schedule(3)
    for place, action in enumerate(schedule.actions):
        if isinstance(action, Record):
            assert replay(without(schedule, place)), (place, action)


def test_the_sanitizer_names_the_kernel() -> None:
    schedule = STEPS[0]().schedule
    place = next(i for i, action in enumerate(schedule.actions) if isinstance(action, Wait) and action.event == "loss")
    following = next(
        a.task for a in schedule.actions[place:] if isinstance(a, Run) and a.lane == schedule.actions[place].lane
    )
    assert replay(without(schedule, place))[0] == following
