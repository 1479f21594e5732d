"""The verifiers of schedules and of emitted files, and that the pipeline calls every verifier.

Exhaustive mutations of schedules, against an independent check, stand in tests/property/test_schedules.py.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import reclra_graph as rg
from reclra_graph.ir.operators import Output
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.schedule import Copy, Free, Lane, Record, Run, Schedule, Slot, Wait
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.passes import pipeline
from reclra_graph.verify import verify
from tests.models import figure1, mlp
from tests.unit.broken import assert_named, plan, problems, schedule, tasks, with_one

# -- Schedule --------------------------------------------------------------------------------------------------------


def at(kind: type, **wanted: Any) -> int:
    """Number of the first action of a kind with these fields."""
    return next(
        number
        for number, action in enumerate(schedule().actions)
        if isinstance(action, kind) and all(getattr(action, key) == value for key, value in wanted.items())
    )


def actions(*items: Any) -> Schedule:
    return replace(schedule(), actions=tuple(items))


def dropped(number: int) -> Schedule:
    return actions(*schedule().actions[:number], *schedule().actions[number + 1 :])


def exchanged(first: int, second: int) -> Schedule:
    held = list(schedule().actions)
    held[first], held[second] = held[second], held[first]
    return actions(*held)


def inserted(number: int, action: Any) -> Schedule:
    return actions(*schedule().actions[:number], action, *schedule().actions[number:])


def place_of(number: int, kind: str = "") -> str:
    return rf"^action {number}, lane \d+: {kind}"


def test_drop_a_wait() -> None:
    number = at(Wait, event="loss", lane=1)
    run = at(Run, task="displace:5") - 1
    assert_named(dropped(number), place_of(run, "Run"), "displace:5 does not wait for loss")


def test_a_race_is_found_from_reads_and_writes_alone() -> None:
    # Were an edge between tasks forgotten, the schedule's verifier would still see that both touch e9.
    number = at(Wait, event="loss", lane=1)
    run = at(Run, task="displace:5") - 1
    forgotten = replace(dropped(number), tasks=replace(tasks(), edges=()))
    assert_named(forgotten, place_of(run, "Run"), "race: loss and displace:5 touch e9 in no order")


def test_drop_the_last_join() -> None:
    number = max(i for i, action in enumerate(schedule().actions) if isinstance(action, Wait))
    action = schedule().actions[number]
    assert action.lane == 0
    assert_named(dropped(number), r"^end of lane 0$", "without waiting for .*" + action.event.split(":")[-1])


def test_drop_a_record() -> None:
    number = at(Record, event="error:5")
    wait = at(Wait, event="error:5") - 1
    assert_named(dropped(number), place_of(wait, "Wait"), "waits for error:5 before it is recorded")


def test_wait_before_record() -> None:
    record, wait = at(Record, event="loss"), at(Wait, event="loss")
    assert_named(exchanged(record, wait), place_of(record, "Wait"), "before it is recorded, which waits for nothing")


def test_swap_two_actions() -> None:
    first, second = at(Run, task="target:5"), at(Run, task="error:5")
    assert_named(exchanged(first, second), place_of(first, "Run"), "error:5 does not wait for target:5")


def test_run_a_task_twice_or_never() -> None:
    number = at(Run, task="update:5")
    assert_named(inserted(number, schedule().actions[number]), place_of(number + 1, "Run"), "update:5 runs twice")
    assert_named(dropped(number), r"^task update:5$", "never runs")


def test_run_what_is_no_task_or_no_lane() -> None:
    assert_named(inserted(5, Run("ghost", 0)), place_of(5, "Run"), "ghost is no task")
    number = at(Run, task="update:5")
    moved = actions(*schedule().actions[:number], Run("update:5", 9), *schedule().actions[number + 1 :])
    assert_named(moved, place_of(number, "Run"), "no lane 9")


def test_record_twice() -> None:
    number = at(Record, event="loss")
    assert_named(inserted(number, Record("loss", 0)), place_of(number + 1, "Record"), "recorded twice")


def test_read_after_free() -> None:
    number = at(Free, lane=1)
    value = schedule().actions[number].values[0]  # type: ignore[union-attr]
    users = [task.name for task in tasks().tasks if value in (*task.reads, *task.writes)]
    first = at(Run, task=users[-1])
    early = inserted(first, Free((value,), 1))
    assert_named(early, place_of(first + 1, "Run"), f"{users[-1]} reads {value} after it was freed")
    assert_named(early, place_of(number + 1, "Free"), f"{value} is freed twice")


def test_free_what_another_lane_still_reads() -> None:
    # e9 is lane 0's; lanes 1 and 2 read it at a time that lane 0 does not know.
    number = at(Run, task="update:8")
    assert_named(inserted(number, Free(("e9",), 0)), place_of(number, "Free"), "e9 is freed, but .* may still use it")


def test_drop_a_copy() -> None:
    number = at(Copy, value="e9", lane=1)
    run = at(Run, task="displace:5") - 1
    assert_named(dropped(number), place_of(run, "Run"), "displace:5 reads e9 of lane 0 without a copy")


def test_a_copy_before_its_value_is_made() -> None:
    wait, copy = at(Wait, event="loss", lane=1), at(Copy, value="e9", lane=1)
    assert wait < copy
    assert_named(exchanged(wait, copy), place_of(wait, "Copy"), "e9")


def test_overlapping_slots() -> None:
    slots = schedule().slots
    index = next(i for i, slot in enumerate(slots) if slot.group == "update:9")
    broken = replace(schedule(), slots=with_one(slots, index, lane=0, start=0, end=1))
    assert_named(broken, r"^slot (target|update):9$", "while lane 0 is busy")


def test_wrong_makespan() -> None:
    assert_named(replace(schedule(), makespan=4), r"^makespan$", "5, not 4")


def test_a_slot_that_is_missing_or_on_a_strange_lane() -> None:
    assert_named(replace(schedule(), slots=schedule().slots[:-1]), r"^slot |^makespan$", ".")
    assert_named(replace(schedule(), slots=(*schedule().slots, Slot("ghost", 0, 5, 5))), r"^slot ghost$", "ghost")


def test_lanes_named_twice() -> None:
    assert_named(replace(schedule(), lanes=(*schedule().lanes, Lane(1, 3))), r"lane 1", ".")


# -- StepProgram -----------------------------------------------------------------------------------------------------


def edited(old: str, new: str) -> StepProgram:
    source = figure1().source
    assert old in source
    return replace(figure1().program, source=source.replace(old, new, 1))


def line_of(text: str, source: str = "") -> int:
    return next(i for i, line in enumerate((source or figure1().source).splitlines(), start=1) if text in line)


SOURCES: dict[str, tuple[str, str, str]] = {
    "no Python": ("e5 = here(z5) - y5", "e5 = = y5", "does not parse"),
    "an unbound name": ("e5 = here(z5) - y5", "e5 = here(z5) - yy5", "yy5 is not bound"),
    "a name bound later": ("h1 = F.linear(input, ", "h1 = F.linear(z1, ", "z1 is not bound"),
    "read after del": ("e8 = z8 - y8", "del y8; e8 = z8 - y8", "y8 is not bound"),
    "deleted twice": ("e8 = z8 - y8", "e8 = z8 - y8; del y8; del y8", "y8 is deleted and was not bound"),
    "autograd": ("e8 = z8 - y8", "e8 = torch.autograd.grad(z8, y8)", "mentions (autograd|grad)"),
    "a gradient": ("e8 = z8 - y8", "e8 = z8.requires_grad_() - y8", "mentions requires_grad_"),
    "backward": ("return loss", "loss.backward()", "mentions backward"),
    "no_grad": ("e8 = z8 - y8", "e8 = z8 - y8 if torch.no_grad() else 0", "mentions no_grad"),
    "another import": ("import math", "import os", "imports os"),
    "an import from": ("import math", "from os import path", "imports os"),
    "a star import": ("import math", "from torch import *", "imports"),
    "an import inside": ("e8 = z8 - y8", "import socket; e8 = z8 - y8", "imports socket"),
    "an import by function": ("e8 = z8 - y8", "e8 = __import__('os')", "__import__|not bound"),
    "eval": ("e8 = z8 - y8", "e8 = eval('z8 - y8')", "eval"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_broken_sources(name: str) -> None:
    old, new, cause = SOURCES[name]
    assert_named(edited(old, new), rf"^step\.py:{line_of(old)}$", cause)


def test_no_step_function() -> None:
    assert_named(edited("def step(", "def stop("), r"^step\.py$", "no step function")


def test_a_task_without_a_line() -> None:
    program = figure1().program
    lines = dict(program.lines)
    assert_named(
        replace(program, lines=tuple(item for item in program.lines if item[0] != "update:5")),
        r"^task update:5$",
        "no line",
    )
    lines["update:5"] = 3
    assert_named(replace(program, lines=tuple(lines.items())), r"^task update:5$", "no line")


# -- the pipeline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["partition", "wire", "lower", "schedule", "emit"])
def test_every_pass_is_followed_by_its_verifier(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = getattr(pipeline, name)

    def breaks(value: Any) -> Any:
        match value:
            case RegionGraph():
                return replace(value, outputs=(1,))
            case WiringPlan():
                return replace(value, depth=9)
            case TaskGraph():
                return replace(value, tasks=(*value.tasks, value.tasks[0]))
            case Schedule():
                return replace(value, makespan=99)
        return replace(value, source=value.source + "\nimport os\n")

    monkeypatch.setattr(pipeline, name, lambda *args: breaks(good(*args)))
    with pytest.raises(rg.VerificationError) as error:
        rg.compile(mlp(3, 4, 2), torch.zeros(2, 3))
    assert set(error.value.codes) == {"RG501"}


def test_a_broken_capture_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    good = pipeline.capture

    def broken(*args: Any) -> Any:
        held, constants = good(*args)
        return replace(held, outputs=(Output("output", "ghost"),)), constants

    monkeypatch.setattr(pipeline, "capture", broken)
    with pytest.raises(rg.VerificationError):
        rg.compile(mlp(3, 4, 2), torch.zeros(2, 3))


def test_verify_is_no_assertion() -> None:
    # Verifiers stay on under `python -O`.
    import reclra_graph.verify as package

    for name in ("operators", "regions", "wiring", "tasks", "schedule", "program", "order"):
        module = __import__(f"reclra_graph.verify.{name}", fromlist=[name])
        assert not re.search(r"^\s*assert ", inspect.getsource(module), re.MULTILINE), name
    assert package.verify is verify


def test_all_problems_at_once() -> None:
    broken = replace(plan(), depth=7, relays=(), edges=plan().edges[1:])
    assert len(problems(broken)) >= 3
