"""How long each task of a step takes, measured, beside what was predicted.

On the CPU the emitted step runs as it stands, task by task, and the clock is read between tasks. On CUDA each task is
marked for ``torch.profiler``, which says when its kernels ran on the device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_map

from reclra_graph.errors import Problem, UsageError
from reclra_graph.export.trace import Measured, measured_trace, trace_json, trace_text
from reclra_graph.ir.device import DEVICES, UNIT, find_device
from reclra_graph.ir.schedule import Run, Schedule
from reclra_graph.ir.tasks import KINDS
from reclra_graph.model_file import LoadedModel
from reclra_graph.passes.timetable import timetable
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.probe import probed

PREDICTED, MEASURED = "schedule.json", "schedule.measured.json"


def usual_device() -> str:
    """The device whose costs suit this machine: a GPU of the table by its name, ``h200`` for others, else ``cpu``."""
    if not torch.cuda.is_available():
        return "cpu"
    name = torch.cuda.get_device_name().lower()
    return next((known for known in DEVICES if known not in ("unit", "cpu") and known in name), "h200")


def placed(loaded: LoadedModel) -> LoadedModel:
    """The model and its example on the device where the step will run: the GPU where there is one."""
    if not torch.cuda.is_available():
        return loaded

    def moved(value: Any) -> Any:
        return value.cuda() if isinstance(value, Tensor) else value

    given = tree_map(moved, (loaded.example_inputs, loaded.example_kwargs))
    return replace(loaded, model=loaded.model.cuda(), example_inputs=given[0], example_kwargs=given[1])


def usage_problems(device: str, rounds: int, warm_up: int) -> tuple[Problem, ...]:
    """What is wrong with the options of ``reclra bench schedule``."""
    found, wrong = find_device(device)
    problems = list(wrong)
    if not problems and found == UNIT:
        cause = "unit costs are no times, which nothing measured could be compared with"
        problems.append(Problem("RG405", cause, "device", "Name the device that the step runs on, such as cpu."))
    for name, value, least in (("rounds", rounds, 1), ("warm_up", warm_up, 0)):
        if value < least:
            problems.append(Problem("RG405", f"{name} is {value}, not at least {least}", name))
    return tuple(problems)


def random_target(step: CompiledStep, batch: int, seed: int = 0) -> Any:
    """A target that the step accepts: classes and values drawn at random; by label where there are several."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for label, (sizes, dtype, classes, _) in step.module.TARGETS.items():
        shape = [size if isinstance(size, int) else batch * int(size.strip("B*") or 1) for size in sizes]
        if classes > 0:
            found[label] = torch.randint(classes, shape, generator=generator)
        else:
            found[label] = torch.rand(shape, generator=generator, dtype=getattr(torch, dtype))
    where = step.device
    return found[""].to(where) if "" in found else {label: value.to(where) for label, value in found.items()}


def measured(
    step: CompiledStep, inputs: Any, target: Any, kwargs: Mapping[str, Any] | None, rounds: int, warm_up: int
) -> list[tuple[Measured, ...]]:
    """When each task ran, in each of ``rounds`` steps that follow ``warm_up`` others. The model stays as it was: the
    rates are 0, and buffers such as running statistics come back. Raises UsageError for fewer than one round."""
    if rounds < 1:
        raise UsageError(Problem("RG405", f"rounds is {rounds}, not at least 1", "rounds"))
    held = step.module, step.lr
    buffers = [(buffer, buffer.clone()) for buffer in step.model.buffers()]
    timer: _Timer = _DeviceTimer(step) if step.device.type == "cuda" else _Timer(step)
    step.module, step.lr = probed(step.program, timer.at), 0.0
    try:
        for _ in range(warm_up):
            step(inputs, target, kwargs)
        return [timer.round(lambda: step(inputs, target, kwargs)) for _ in range(rounds)]
    finally:
        step.module, step.lr = held
        for buffer, before in buffers:
            buffer.copy_(before)


class _Timer:
    """Reads the clock whenever a task begins."""

    def __init__(self, step: CompiledStep) -> None:
        self.lane_of = {action.task: action.lane for action in step.schedule.actions if isinstance(action, Run)}
        self.times: list[tuple[str, int]] = []

    def at(self, task: str) -> None:
        """A task begins; ``""``: the step ends."""
        self.times.append((task, time.perf_counter_ns()))

    def round(self, work: Any) -> tuple[Measured, ...]:
        """One step; a task ends where the next one begins, so that it owns what is freed behind it."""
        self.times = []
        work()
        begin = self.times[0][1]
        pairs = zip(self.times, self.times[1:], strict=False)
        return tuple(
            Measured(task, self.lane_of[task], start - begin, end - begin) for (task, start), (_, end) in pairs
        )


class _DeviceTimer(_Timer):
    """Marks each task for the profiler, and reads from its trace when the device worked on it."""

    def __init__(self, step: CompiledStep) -> None:
        super().__init__(step)
        self.mark: Any = None

    def at(self, task: str) -> None:
        if self.mark is not None:
            self.mark.__exit__(None, None, None)
            self.mark = None
        if task:
            self.mark = record_function(task)
            self.mark.__enter__()

    def round(self, work: Any) -> tuple[Measured, ...]:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            work()
            torch.cuda.synchronize()
        assert found.profiler is not None
        assert found.profiler.kineto_results is not None
        events = [
            event
            for event in found.profiler.kineto_results.events()
            if event.device_type().name == "CUDA" and event.name() in self.lane_of
        ]
        begin = min((event.start_ns() for event in events), default=0)
        spans: dict[str, tuple[int, int]] = {}
        for event in events:
            start = event.start_ns() - begin
            before = spans.get(event.name(), (start, start))
            spans[event.name()] = min(before[0], start), max(before[1], start + event.duration_ns())
        return tuple(
            Measured(name, self.lane_of[name], *span) for name, span in sorted(spans.items(), key=lambda item: item[1])
        )


def compared(step: CompiledStep, rounds: Sequence[Sequence[Measured]]) -> dict[str, Any]:
    """Predicted and measured nanoseconds by kind of task (medians over the rounds), and how the tasks' ranks agree."""
    tasks = {task.name: task for task in step.schedule.tasks.tasks}
    times: dict[str, list[int]] = {}
    for found in rounds:
        for item in found:
            times.setdefault(item.task, []).append(item.end - item.start)
    middle = {name: int(statistics.median(values)) for name, values in times.items()}
    rows = []
    for kind in KINDS:
        names = [name for name, task in tasks.items() if task.kind == kind and name in middle]
        if names:
            predicted = sum(tasks[name].cost for name in names)
            rows.append(_row(kind, len(names), predicted, sum(middle[name] for name in names)))
    total = _row("all", len(middle), sum(tasks[name].cost for name in middle), sum(middle.values()))
    ranks = rank_correlation([tasks[name].cost for name in middle], list(middle.values()))
    ends = [max(item.end for item in found) - min(item.start for item in found) for found in rounds]
    return {
        "kinds": rows,
        "total": total,
        "rank_correlation": None if ranks is None else round(ranks, 4),
        "makespan": {
            "predicted": step.schedule.makespan,
            "measured": int(statistics.median(ends)),
            "of_measured_tasks": _makespan(step.schedule, middle),
        },
    }


def _makespan(schedule: Schedule, times: Mapping[str, int]) -> int:
    """What the schedule would take if each task took so long, and each copy what was predicted."""
    tasks = replace(
        schedule.tasks,
        tasks=tuple(replace(task, cost=times.get(task.name, task.cost)) for task in schedule.tasks.tasks),
    )
    devices = {lane.id: lane.device for lane in schedule.lanes}
    return max(slot.end for slot in timetable(tasks, schedule.actions, devices))


def _row(kind: str, count: int, predicted: int, found: int) -> dict[str, Any]:
    ratio = round(found / predicted, 3) if predicted else None
    return {"kind": kind, "tasks": count, "predicted": predicted, "measured": found, "measured_over_predicted": ratio}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two sequences of the same length; None where one of them is constant."""
    one, other = _ranks(first), _ranks(second)
    return statistics.correlation(one, other) if len(set(one)) > 1 and len(set(other)) > 1 else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for at in range(start, end + 1):
            ranks[order[at]] = (start + end) / 2 + 1
        start = end + 1
    return ranks


def write_traces(step: CompiledStep, rounds: Sequence[Sequence[Measured]], folder: Path) -> tuple[Path, Path]:
    """Write the predicted trace and that of the round that took the median time, and return their paths.

    Raises ModelError RG701 where the folder cannot be written."""
    from reclra_graph.export.artifacts import write_files

    ordered = sorted(rounds, key=lambda found: max(item.end for item in found))
    where = torch.cuda.get_device_name(step.device) if step.device.type == "cuda" else "the CPU"
    texts = {
        PREDICTED: trace_json(step.program),
        MEASURED: trace_text(measured_trace(step.program, where, ordered[len(ordered) // 2])),
    }
    write_files({name: text.encode() for name, text in texts.items()}, folder)
    return folder / PREDICTED, folder / MEASURED
