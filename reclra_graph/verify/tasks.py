"""TaskGraph: acyclic, one writer per storage, every read has a writer, tasks that could race are ordered."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx

from reclra_graph.errors import Problem
from reclra_graph.ir.operators import Ref, references
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.rules.forms import what_learns
from reclra_graph.verify.order import conflicts


def task_problems(tasks: TaskGraph) -> Iterator[Problem]:
    """Broken invariants of a task graph."""
    names = [task.name for task in tasks.tasks]
    for name in {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ():
        yield Problem("RG501", f"task {name} is there twice", f"task {name}")
    known = set(names)
    order = nx.DiGraph()
    order.add_nodes_from(names)
    for before, after in tasks.edges:
        if before not in known or after not in known:
            yield Problem("RG501", f"an edge names {before} and {after}, one of which is no task", f"task {after}")
        order.add_edge(before, after)
    if not nx.is_directed_acyclic_graph(order):
        cycle = " -> ".join(str(step[0]) for step in nx.find_cycle(order))
        yield Problem("RG501", f"tasks wait for each other: {cycle}", f"task {cycle.split(' ')[0]}")
        return
    yield from _storage(tasks)
    yield from _declared(tasks)
    yield from _parameters(tasks)
    yield from _ordered(tasks, order)


def _storage(tasks: TaskGraph) -> Iterator[Problem]:
    writers: dict[str, list[str]] = {}
    for task in tasks.tasks:
        for name in task.writes:
            writers.setdefault(name, []).append(task.name)
    for name, found in writers.items():
        if len(found) > 1:
            yield Problem("RG501", f"{name} is written by {' and '.join(found)}", f"task {found[1]}")
    outside = {"target", *tasks.inputs}
    for task in tasks.tasks:
        for name in task.reads:
            if name not in writers and "[" not in name and name not in outside:
                yield Problem("RG501", f"{task.name} reads {name}, which no task writes", f"task {task.name}")


def _declared(tasks: TaskGraph) -> Iterator[Problem]:
    """What a task says it reads and writes is what its calls read and write."""
    numbers = {"_", "B", "beta", "gamma", "lr"}
    for task in tasks.tasks:
        made = {name for call in task.calls for name in call.results if name}
        named = {name for call in task.calls for name in references((*call.args, *(item for _, item in call.kwargs)))}
        placed = {
            call.args[0].name
            for call in task.calls
            if call.function in ("optimise", "aten.copy_.default") and isinstance(call.args[0], Ref)
        }
        for name in sorted(named - made - numbers - set(task.reads)):
            yield Problem("RG501", f"{task.name} reads {name} without saying so", f"task {task.name}")
        for name in sorted((made | placed) ^ set(task.writes)):
            said = "says that it writes" if name in task.writes else "writes without saying so"
            yield Problem("RG501", f"{task.name} {said} {name}", f"task {task.name}")


def _parameters(tasks: TaskGraph) -> Iterator[Problem]:
    learning = {key for region in tasks.plan.regions.regions for key in region.parameters}
    written = {name for task in tasks.tasks if task.kind == "optimise" for name in task.writes}
    for key in sorted(learning):
        if f"P[{key}]" not in written:
            yield Problem("RG501", f"{key} learns, but no task updates it", key)
    for edge in tasks.plan.edges:
        if edge.rule in ("fixed", "sign"):
            continue
        matrix = tasks.matrices.get(edge.name)
        if f"E[{matrix.name if matrix else what_learns(tasks.plan, edge)}]" not in written:
            yield Problem(
                "RG501", f"synapse {edge.name} learns by {edge.rule}, but no task updates it", f"edge {edge.name}"
            )


def _ordered(tasks: TaskGraph, order: nx.DiGraph) -> Iterator[Problem]:
    """Every pair of tasks that touch the same storage, one of them writing, has a path between them."""
    bit = {name: 1 << index for index, name in enumerate(order)}
    before: dict[str, int] = {}
    for name in nx.topological_sort(order):
        before[name] = 0
        for earlier in order.predecessors(name):
            before[name] |= before[earlier] | bit[earlier]
    writer = {name: task.name for task in tasks.tasks for name in task.writes if "[" not in name}
    for task in tasks.tasks:
        for name in task.reads:
            if name in writer and before[writer[name]] & bit[task.name]:
                yield Problem("RG501", f"{task.name} reads {name} before {writer[name]} writes it", f"task {task.name}")
    for first, second, storage in conflicts(tasks):
        if not (before[second] & bit[first] or before[first] & bit[second]):
            yield Problem("RG501", f"{first} and {second} both touch {storage} in no order", f"task {second}")
