"""The emitted step's own statements, task by task, for those who run them in another order or on other lanes."""

from __future__ import annotations

import ast
from bisect import bisect_right
from collections.abc import Sequence
from types import CodeType
from typing import Any

from torch import Tensor

from reclra_graph.ir.program import StepProgram
from reclra_graph.runtime.compiled import CompiledStep

_GLUE = ("record", "wait", "check_inputs")


def task_code(program: StepProgram) -> dict[str, CodeType]:
    """The statements of each task in the emitted file, without what orders lanes and frees values; ``""`` holds those
    that stand before all tasks."""
    return {name: _compiled(program, body) for name, body in _statements(program).items()}


def part_statements(program: StepProgram) -> dict[tuple[str, str], list[ast.stmt]]:
    """The same by (task, half): ``""`` is all of a task; ``"first"`` ends with the loss's check, or before what the
    optimiser does; ``"second"`` is the rest."""
    found: dict[tuple[str, str], list[ast.stmt]] = {}
    for name, body in _statements(program).items():
        called = [_called(item) for item in body]
        cut = called.index("check") + 1 if "check" in called else len(body)
        if "optimise" in called:
            cut = called.index("optimise")
        found |= {(name, ""): body, (name, "first"): body[:cut], (name, "second"): body[cut:]}
    return found


def part_code(program: StepProgram) -> dict[tuple[str, str], CodeType]:
    """``part_statements``, to be executed."""
    return {part: _compiled(program, body) for part, body in part_statements(program).items()}


def read_and_made(body: Sequence[ast.stmt]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names that statements read and have not made themselves, names that they make), in order. What is stored goes by
    ``P[0.weight]``, ``E[9->5]`` and ``T[label]``, as in the plan; an optimiser reads what it changes."""
    read: dict[str, None] = {}
    made: dict[str, None] = {}
    for statement in body:
        parts, inner = [], set()
        for node in ast.walk(statement):
            stored = _stored(node)
            if stored is not None:
                parts.append(stored[0])
                inner.add(id(stored[1]))
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name) and id(node) not in inner]
        parts += [node.id for node in names if isinstance(node.ctx, ast.Load)]
        read |= dict.fromkeys(name for name in parts if name not in made)
        made |= dict.fromkeys(node.id for node in names if isinstance(node.ctx, ast.Store))
    return tuple(read), tuple(made)


def _stored(node: ast.AST) -> tuple[str, ast.Name] | None:
    """(plan's name, where its table is named) of a parameter, synapse or labelled target that is named here."""
    if isinstance(node, ast.Subscript):
        table, key = node.value, node.slice
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "optimise":
        table, key = node.args[0], node.args[1]
    else:
        return None
    if not (isinstance(table, ast.Name) and isinstance(key, ast.Constant) and isinstance(key.value, str)):
        return None
    return f"{'T' if table.id == 'target' else table.id}[{key.value}]", table


def name_space(step: CompiledStep, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor]) -> dict[str, Any]:
    """The names that a step's statements see: the file's, the step's arguments, and what stands before all tasks.
    Inputs and targets are not checked."""
    space = {**step.module.__dict__, "P": step.storage(), "E": step.store.all(), "M": None, "target": goal}
    space |= {"optimise": step.optimiser, "here": lambda value: value, **step.settings()}
    space |= dict(zip(step.schedule.tasks.inputs, given, strict=True))
    exec(task_code(step.program)[""], space)
    return space


def _statements(program: StepProgram) -> dict[str, list[ast.stmt]]:
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
    return found


def _compiled(program: StepProgram, body: list[ast.stmt]) -> CodeType:
    return compile(ast.Module(body, []), f"<step {program.digest}>", "exec")


def _flat(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Statements, with those of ``with lane(...)`` blocks in their places."""
    return [inner for item in body for inner in (_flat(item.body) if isinstance(item, ast.With) else [item])]


def _called(statement: ast.stmt) -> str:
    """The name of the function that a statement does nothing but call, or ""."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""


def _orders(statement: ast.stmt) -> bool:
    """Whether a statement deals with lanes or memory alone."""
    if isinstance(statement, (ast.Delete, ast.Return)):
        return True
    value = statement.value if isinstance(statement, (ast.Expr, ast.Assign)) else None
    named = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} if value is not None else set()
    called = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _GLUE
    return called or bool(named & {"lanes", "Lanes"})
