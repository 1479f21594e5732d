"""Measured costs: what is measured once is read again, and whatever is wrong with the cache is measured anew."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import reclra_graph as rg
from reclra_graph.ir.device import DEVICES, UNIT
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.passes import profile as module
from reclra_graph.passes.profile import measured_on, profile
from reclra_graph.user_cache import cache_folder
from tests import models

CPU = torch.device("cpu")
DEVICE = DEVICES["cpu"]


def tasks_of(batch: int = 4, make: Callable[[], Any] = models.figure1) -> TaskGraph:
    tasks: TaskGraph = make().schedule.tasks
    return replace(tasks, plan=replace(tasks.plan, device=DEVICE, batch=batch))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock in place of the real one: the first task that is measured takes 1001 ns, the next 1002, …"""
    given: list[int] = []

    def fastest(*_: object) -> int:
        given.append(1001 + len(given))
        return given[-1]

    monkeypatch.setattr(module, "_fastest", fastest)
    return given


def test_every_task_is_timed(tmp_path: Path) -> None:
    done = profile(tasks_of(), DEVICE, CPU, tmp_path)
    assert all(task.cost > 0 and task.flops >= 0 and task.bytes > 0 for task in done.tasks)
    assert done.edges == tasks_of().edges
    assert len(list(tmp_path.iterdir())) <= len(done.tasks)


@pytest.mark.parametrize("make", models.STEPS, ids=lambda make: make.__name__)
def test_a_second_time_nothing_is_measured(make: Callable[[], Any], tmp_path: Path, measured: list[int]) -> None:
    first = profile(tasks_of(4, make), DEVICE, CPU, tmp_path)
    count = len(measured)
    assert count == len(list(tmp_path.iterdir())) > 0
    assert profile(tasks_of(4, make), DEVICE, CPU, tmp_path) == first
    assert len(measured) == count
    assert {task.cost for task in first.tasks} == set(measured)


def test_tasks_that_differ_in_names_alone_are_measured_once(tmp_path: Path, measured: list[int]) -> None:
    done = profile(tasks_of(), DEVICE, CPU, tmp_path).by_name
    # Figure 1: layers 4 and 7 are 16 → 16 … behind others of the same shapes.
    assert done["update:4"].cost == done["update:7"].cost
    assert done["update:4"].cost != done["update:9"].cost
    assert len(measured) < len(done)


def test_another_batch_is_another_measurement(tmp_path: Path, measured: list[int]) -> None:
    profile(tasks_of(4), DEVICE, CPU, tmp_path)
    count = len(measured)
    profile(tasks_of(8), DEVICE, CPU, tmp_path)
    assert len(measured) > count


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"nanoseconds": -4}', '{"nanoseconds": "5"}', "\0", "{}"])
def test_a_damaged_entry_is_measured_again(text: str, tmp_path: Path, measured: list[int]) -> None:
    profile(tasks_of(), DEVICE, CPU, tmp_path)
    count, (broken, *_) = len(measured), sorted(tmp_path.iterdir())
    broken.write_text(text, encoding="utf-8")
    profile(tasks_of(), DEVICE, CPU, tmp_path)
    assert len(measured) == count + 1
    assert json.loads(broken.read_text(encoding="utf-8")) == {"nanoseconds": measured[-1]}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, measured: list[int]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    first = profile(tasks_of(), DEVICE, CPU, blocked / "cache")
    assert {task.cost for task in first.tasks} == set(measured)


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("profile") == tmp_path / "reclra-graph" / "profile"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_folder("profile") == Path.home() / ".cache" / "reclra-graph" / "profile"


def test_which_device_is_measured() -> None:
    device, problems = measured_on(UNIT, CPU)
    assert (device.name, device.clock, problems) == ("cpu, measured", "ns", ())
    device, _ = measured_on(DEVICES["h200"], CPU)
    assert device == replace(DEVICES["h200"], name="h200, measured")


def test_through_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: list[int]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = models.mlp(6, 5, 4)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    step = rg.compile(model, torch.zeros(3, 6), profile=True)
    assert step.plan.device.name == "cpu, measured"
    assert {task.cost for task in step.schedule.tasks.tasks} <= set(measured)
    assert all(models.same(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    count = len(measured)
    again = rg.compile(model, torch.zeros(3, 6), profile=True)
    assert (again.program.digest, len(measured)) == (step.program.digest, count)
