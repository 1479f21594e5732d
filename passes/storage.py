"""What tasks share: the storage that a call writes in place, and the order that tasks keep because of it."""

from __future__ import annotations

from collections.abc import Sequence

from reclra_graph.ir.operators import Ref
from reclra_graph.ir.tasks import Call, Task


def stored_by(call: Call) -> str:
    """Storage that a call writes in place, or nothing."""
    if call.function in ("aten.copy_.default", "optimise"):
        written = call.args[0]
        assert isinstance(written, Ref)
        return written.name
    return ""


def storage_order(tasks: Sequence[Task]) -> tuple[tuple[str, str], ...]:
    """Order between tasks that touch the same storage, one of them writing: from the order in which they stand."""
    writer: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    found: dict[tuple[str, str], None] = {}
    for task in tasks:
        for name in task.reads:
            if name in writer and writer[name] != task.name:
                found[writer[name], task.name] = None
            readers.setdefault(name, []).append(task.name)
        for name in task.writes:
            before = [*readers.get(name, ()), *([writer[name]] if name in writer else [])]
            for other in before:
                if other != task.name:
                    found[other, task.name] = None
            writer[name], readers[name] = task.name, []
    return tuple(found)
