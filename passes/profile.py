"""TaskGraph → TaskGraph: what every task takes on this machine, measured.

Before:  Task("update:3", …, cost=18250)     from the table of devices
After:   Task("update:3", …, cost=24310)     nanoseconds that its calls took here, on tensors of the same shapes

Alone among the passes this one gives other numbers on another machine, or on a busy one. So that the same plan comes
out again, every measurement is kept in a file, under the digest of the task's calls, the shapes of what they read, and
the machine. Tasks that differ in names alone, as those of a model's repeated blocks do, share one measurement. A file
that is damaged counts as none.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclra_graph.errors import Problem
from reclra_graph.ir.device import DEVICES, UNIT, Device
from reclra_graph.ir.operators import Argument, Ref
from reclra_graph.ir.tasks import Call, TaskGraph
from reclra_graph.ir.text import digest
from reclra_graph.passes.calls import Values
from reclra_graph.passes.price import Counted, counted
from reclra_graph.user_cache import cache_folder

LEAST, MOST, ENOUGH = 3, 30, 0.01
"""How often a task is run at least and at most, and after how many seconds it is enough."""


def measured_on(device: Device, where: torch.device) -> tuple[Device, tuple[Problem, ...]]:
    """The device of a plan whose costs are measured on ``where``, and what is wrong with it. Where none was named, the
    table's, which says what transfers cost: by the name that CUDA gives a GPU."""
    if device == UNIT:
        name = torch.cuda.get_device_name(where).lower() if where.type == "cuda" else "cpu"
        known = [item for key, item in DEVICES.items() if key in name and item != UNIT]
        if not known:
            cause = f"no device of the table is a {name}, so what its transfers cost is unknown"
            return device, (Problem("RG430", cause, "device"),)
        device = known[0]
    return replace(device, name=f"{device.name}, measured"), ()


def profile(tasks: TaskGraph, device: Device, where: torch.device, folder: Path | None = None) -> TaskGraph:
    """The tasks with the time that each takes on ``where``, and their operations and bytes.

    ``device`` prices what cannot be run alone: a sub-module that is kept whole. Measurements are read from and written
    to ``folder``, by default in the user's cache folder; one that cannot be written is made again next time.
    """
    home = folder if folder is not None else cache_folder("profile")
    found = list(counted(tasks))
    machine = _machine(where)
    keys = [digest((machine, *_plain(item))) for item in found]
    known = {key: _read(home / f"{key}.json") for key in keys}
    missing = {key for key, value in known.items() if value is None}
    if missing:
        for key, value in _measured(tasks, keys, missing, where).items():
            known[key] = value
            if value is not None:
                _write(home / f"{key}.json", value)
    costs = [known[key] or item.priced(device).cost for key, item in zip(keys, found, strict=True)]
    priced = [replace(item.priced(device), cost=cost) for item, cost in zip(found, costs, strict=True)]
    return replace(tasks, tasks=tuple(priced))


def _machine(where: torch.device) -> tuple[str, ...]:
    """What a measurement depends on beside the task."""
    if where.type == "cuda":
        return torch.__version__, torch.cuda.get_device_name(where)
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
        return torch.__version__, platform.node(), *sorted(names), str(torch.get_num_threads())
    return torch.__version__, platform.node(), platform.processor(), str(torch.get_num_threads())


def _plain(item: Counted) -> tuple[Any, ...]:
    """A task without its names: its calls, with values numbered in the order in which they occur, and the types of
    those that it reads."""
    numbers: dict[str, str] = {}

    def number(name: str) -> str:
        return name if name in ("_", "B", "beta", "gamma", "lr") else numbers.setdefault(name, f"v{len(numbers)}")

    def put(argument: Argument) -> Argument:
        if isinstance(argument, tuple):
            return tuple(put(part) for part in argument)
        return Ref(number(argument.name)) if isinstance(argument, Ref) else argument

    calls = [
        Call(
            call.function,
            tuple(put(part) for part in call.args),
            tuple((key, put(part)) for key, part in call.kwargs),
            tuple(number(name) if name else "" for name in call.results),
            (),
            call.unpack,
        )
        for call in item.task.calls
    ]
    return tuple(calls), tuple((number(name), kind) for name, kind in item.given)


def _measured(tasks: TaskGraph, keys: list[str], missing: set[str], where: torch.device) -> dict[str, int | None]:
    """Nanoseconds of one task for each key that is missing; None where it cannot be run alone."""
    generator = torch.Generator(where).manual_seed(tasks.plan.seed)

    def make(shape: tuple[int, ...], dtype: torch.dtype, below: int) -> Tensor:
        if dtype.is_floating_point:
            return torch.rand(shape, dtype=dtype, device=where, generator=generator)
        return torch.randint(below, shape, device=where, generator=generator).to(dtype)

    found: dict[str, int | None] = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        values = Values(tasks, tasks.plan.batch, make)
        values.held["lr"] = 0.0  # parameters stay as they are, however often a task is run
        for task, key in zip(tasks.tasks, keys, strict=True):
            runs = _run(task.calls, values)
            if key in missing and key not in found:
                found[key] = _fastest(task.calls, values, where) if runs else None
    return found


def _run(calls: tuple[Call, ...], values: Values) -> bool:
    """Run all calls; whether all of them could be. What cannot be run leaves tensors of the declared types."""
    done = True
    for call in calls:
        try:
            values.run(call)
        except Exception:  # whatever a sub-module that is not here, or an operator on random numbers, raises
            values.declare(call)
            done = False
    return done


def _fastest(calls: tuple[Call, ...], values: Values, where: torch.device) -> int:
    """Nanoseconds of the fastest of several runs: what else the machine does can only add. On a CPU by the time that
    this thread has computed, which has a share in everything: while others have the processor it stands still."""
    clock = time.perf_counter if where.type == "cuda" else time.thread_time
    best, spent, runs = float("inf"), 0.0, 0
    while runs < LEAST or (runs < MOST and spent < ENOUGH):
        _settle(where)
        start = clock()
        for call in calls:
            values.run(call)
        _settle(where)
        taken = clock() - start
        best, spent, runs = min(best, taken), spent + taken, runs + 1
    return max(1, round(best * 1e9))


def _settle(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def _read(path: Path) -> int | None:
    """A measurement that was kept, or None."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["nanoseconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _write(path: Path, nanoseconds: int) -> None:
    """Keep a measurement: beside, then renamed, so that no reader sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps({"nanoseconds": nanoseconds}) + "\n", encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
