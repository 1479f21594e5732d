"""An emitted step with a call before each task, so that memory and time can be told apart by task."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from reclra_graph.ir.program import StepProgram
from reclra_graph.runtime.loader import load_source

PROBE = "_at_task"


def probed_source(program: StepProgram) -> str:
    """The source with a line ``_at_task('name')`` above the first line of every task, and ``_at_task('')`` above the
    return; everything else stays as it is."""
    lines = program.source.splitlines()
    first: dict[int, list[str]] = {}
    for task, number in program.lines:
        first.setdefault(number, []).append(task)
    ending = max(number for number, line in enumerate(lines, start=1) if line.startswith("    return "))
    first.setdefault(ending, []).append("")
    written: list[str] = []
    for number, line in enumerate(lines, start=1):
        indent = line[: len(line) - len(line.lstrip())]
        written += [f"{indent}{PROBE}({task!r})" for task in first.get(number, ())]
        written.append(line)
    return "\n".join(written) + "\n"


def probed(program: StepProgram, at: Callable[[str], None]) -> ModuleType:
    """The emitted module; its step calls ``at`` with the name of each task as it begins, and with ``""`` at the end.

    Raises ModelError RG702 as ``load_source`` does.
    """
    module = load_source(probed_source(program), f"<probed step {program.digest}>")
    setattr(module, PROBE, at)
    return module
