"""TaskGraph → the same with activations computed again where they are read late, instead of held from the forward pass.

Before:  z3 = tanh(h3)  …  e3 = z3 - y3  …  dW4 = e4.T @ z3 / B
After:   z3 = tanh(h3)  …  z3_2 = tanh(h3);  e3 = z3_2 - y3  …  z3_3 = tanh(h3);  dW4 = e4.T @ z3_3 / B

A target y = φ(h − β d) reads h, so h is held until then; z = φ(h) need not be. The same function of the same numbers
gives the same bits, whatever φ: it need not be invertible. To hold z and make h from it would do as well for memory,
but loses what z has rounded away: where tanh(h) is 1 in float32, no formula knows how far above 9 h was
(docs/decisions/0006-recompute.md). Asked for by ``recompute=True``: in a step that runs operator by operator it takes
time, an activation for every reader.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from reclra_graph.ir.operators import Ref, references
from reclra_graph.ir.tasks import Call, Task, TaskGraph
from reclra_graph.passes.names import Namer
from reclra_graph.passes.storage import storage_order
from reclra_graph.rules.operators import is_pointwise, short

_VIEWS = ("view", "_unsafe_view", "reshape", "flatten", "permute", "transpose", "unsqueeze", "squeeze")

Chain = tuple[Call, ...]
"""Calls, one after another, that make a value from one that is held."""


def recompute(tasks: TaskGraph) -> TaskGraph:
    """The task graph of a step that holds less."""
    chains = _chains(tasks)
    namer = Namer()
    namer.taken.update(name for task in tasks.tasks for name in (*task.writes, *task.reads))
    changed = tuple(_rewritten(task, chains, namer) if _late(task) else task for task in tasks.tasks)
    return replace(tasks, tasks=changed, edges=storage_order(changed))


def _late(task: Task) -> bool:
    """Whether a task comes behind the loss."""
    return task.kind not in ("forward", "loss")


def _chains(tasks: TaskGraph) -> dict[str, Chain]:
    """How to make each value again that need not be held."""
    held = {name for task in tasks.tasks if _late(task) for name in task.reads}
    found: dict[str, Chain] = {}
    for task in tasks.tasks:
        for call in task.calls if task.kind == "forward" else ():
            source = _source(call)
            if source in found:
                found[call.results[0]] = (*found[source], call)
            elif source in held and short(call.function) not in _VIEWS:
                found[call.results[0]] = (call,)
    return found


def _source(call: Call) -> str:
    """The only value that a call reads, number by number or as a view; "" where it does more."""
    if call.unpack or len(call.results) != 1 or not call.function.startswith("aten."):
        return ""
    if short(call.function) not in _VIEWS and not is_pointwise(call.function):
        return ""
    read = [name for name in references(call.args) + references(call.kwargs) if name != "B"]
    alone = len(read) == 1 and call.args[:1] == (Ref(read[0]),) and "[" not in read[0]
    return read[0] if alone else ""


def _rewritten(task: Task, chains: dict[str, Chain], namer: Namer) -> Task:
    """The task with what it reads made again first."""
    names: dict[str, str] = {}
    calls: list[Call] = []
    for value in task.reads:
        for call in chains.get(value, ()):
            (result,) = call.results
            if result not in names:
                calls.append(replace(_renamed(call, names), results=(namer.new(result),)))
                names[result] = calls[-1].results[0]
    if not calls:
        return task
    calls += [_renamed(call, names) for call in task.calls]
    reads = dict.fromkeys(_source(chains[value][0]) if value in chains else value for value in task.reads)
    return replace(task, calls=tuple(calls), reads=tuple(reads), writes=(*names.values(), *task.writes))


def _renamed(call: Call, names: dict[str, str]) -> Call:
    """A call that reads values under other names."""

    def put(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return Ref(names.get(argument.name, argument.name))
        return tuple(put(item) for item in argument) if isinstance(argument, tuple) else argument

    return replace(call, args=put(call.args), kwargs=put(call.kwargs))
