"""Run a schedule on the CPU with one thread per lane: each in its order, a Wait until its Record is reached.

The code that runs is the emitted file's own, statement by statement; only what orders it is different. So the numbers
are those of the step, and the times are those of lanes that really work side by side.
"""

from __future__ import annotations

import ast
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import Tensor

from reclra_graph.errors import CODES, Problem, StepError
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.schedule import Free, Record, Run, Wait
from reclra_graph.ir.tasks import Task
from reclra_graph.runtime.compiled import CompiledStep

_GLUE = ("record", "wait", "check_inputs")


@dataclass(frozen=True)
class ThreadedRun:
    """The losses of the steps, and when each task ran: (step, task, lane, start, end), in seconds from the start."""

    losses: tuple[Tensor, ...]
    runs: tuple[tuple[int, str, int, float, float], ...]

    @property
    def seconds(self) -> float:
        """From the start of the first task to the end of the last."""
        return max(run[4] for run in self.runs) - min(run[3] for run in self.runs)


def run_on_threads(
    step: CompiledStep, batches: Sequence[tuple[Any, Any]], lasting: Callable[[Task], float] = lambda task: 0.0
) -> ThreadedRun:
    """Train on (inputs, target) pairs, one step each; every task lasts at least ``lasting(task)`` seconds.

    Steps that overlap do so here too; others begin when all lanes have ended the one before. Random numbers are drawn
    in whatever order threads come to them. Raises StepError as the step itself does, with lanes stopped where they are,
    and ValueError for a step that was loaded from files, whose lines are not known.
    """
    if not step.program.lines:
        raise ValueError("the lines of the tasks are not known: compile the step")
    return _Threads(step, batches, lasting).result()


def task_code(program: StepProgram) -> dict[str, CodeType]:
    """The statements of each task in the emitted file, without what orders lanes and frees values; ``""`` holds those
    that stand before all tasks."""
    step = next(
        node for node in ast.parse(program.source).body if isinstance(node, ast.FunctionDef) and node.name == "step"
    )
    places = sorted((line, index, name) for index, (name, line) in enumerate(program.lines))
    lines = [line for line, _, _ in places]
    found: dict[str, list[ast.stmt]] = {name: [] for name in ("", *(name for name, _ in program.lines))}
    for statement in _flat(step.body[1:]):
        if not _orders(statement):
            place = bisect_right(lines, statement.lineno) - 1
            found[places[place][2] if place >= 0 else ""].append(statement)
    label = f"<step {program.digest}>"
    return {name: compile(ast.Module(body, []), label, "exec") for name, body in found.items()}


def _flat(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Statements, with those of ``with lane(...)`` blocks in their places."""
    return [inner for item in body for inner in (_flat(item.body) if isinstance(item, ast.With) else [item])]


def _orders(statement: ast.stmt) -> bool:
    """Whether a statement deals with lanes or memory alone."""
    if isinstance(statement, (ast.Delete, ast.Return)):
        return True
    value = statement.value if isinstance(statement, (ast.Expr, ast.Assign)) else None
    named = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} if value is not None else set()
    called = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _GLUE
    return called or bool(named & {"lanes", "Lanes"})


class _Threads:
    def __init__(
        self, step: CompiledStep, batches: Sequence[tuple[Any, Any]], lasting: Callable[[Task], float]
    ) -> None:
        self.step, self.lasting = step, lasting
        self.tasks = step.schedule.tasks.by_name
        self.code = task_code(step.program)
        self.spaces = [self._space(*batch) for batch in batches]
        self.events = {
            (number, action.event): threading.Event()
            for number in range(len(batches))
            for action in step.schedule.actions
            if isinstance(action, Record)
        }
        self.barrier = threading.Barrier(len(step.schedule.lanes))
        self.runs: list[tuple[int, str, int, float, float]] = []
        self.failed: list[Exception] = []

    def _space(self, inputs: Any, target: Any) -> dict[str, Any]:
        """The names that a step's statements see: the file's, the step's arguments, and values as they are made."""
        module = self.step.module
        given, goal = self.step.arguments(inputs, target)
        names = self.step.schedule.tasks.inputs
        space = {**module.__dict__, "P": self.step.storage(), "E": self.step.store.all(), "M": None, "target": goal}
        space |= {"optimise": self.step.optimiser, "here": lambda value: value, **self.step.settings()}
        space |= dict(zip(names, given, strict=True))
        try:
            first = next(item for item in given if item.dim())
            module.check_inputs(dict(zip(names, given, strict=True)), goal, *first.shape[:1])
        except ValueError as error:
            raise _coded(error) from None
        exec(self.code[""], space)
        return space

    def result(self) -> ThreadedRun:
        begin = time.perf_counter()
        threads = [
            threading.Thread(target=self._lane, args=(lane.id, begin), name=f"lane {lane.id}", daemon=True)
            for lane in self.step.schedule.lanes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise _coded(self.failed[0])
        losses = tuple(space["loss"] for space in self.spaces)
        return ThreadedRun(losses, tuple(sorted(self.runs, key=lambda run: (run[3], run[2], run[4]))))

    def _lane(self, lane: int, begin: float) -> None:
        actions = [action for action in self.step.schedule.actions if action.lane == lane]
        try:
            for number, space in enumerate(self.spaces):
                if number and not self.step.schedule.overlap:
                    self.barrier.wait()
                for action in actions:
                    if self.failed:
                        return
                    if isinstance(action, Run):
                        self._run(number, action, space, begin)
                    elif isinstance(action, Record):
                        self.events[number, action.event].set()
                    elif isinstance(action, Wait) and number - action.earlier >= 0:
                        self.events[number - action.earlier, action.event].wait()
                    elif isinstance(action, Free):
                        for name in action.values:
                            space.pop(name, None)
        except Exception as error:  # of whatever kind: the other lanes must not wait for this one for ever
            if not isinstance(error, threading.BrokenBarrierError):
                self.failed.append(error)
            self.barrier.abort()
            for event in self.events.values():
                event.set()

    def _run(self, number: int, action: Run, space: dict[str, Any], begin: float) -> None:
        start = time.perf_counter()
        exec(self.code[action.task], space)
        left = self.lasting(self.tasks[action.task]) - (time.perf_counter() - start)
        if left > 0:
            time.sleep(left)
        self.runs.append((number, action.task, action.lane, start - begin, time.perf_counter() - begin))


def _coded(error: Exception) -> Exception:
    code, _, cause = str(error).partition(" ")
    return StepError(Problem(code, cause, "step()")) if code in CODES else error
