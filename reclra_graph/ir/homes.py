"""Where storage lives: the lane that owns each value, parameter and synapse, and what a task needs on its own lane."""

from __future__ import annotations

from collections.abc import Mapping

from reclra_graph.ir.operators import references
from reclra_graph.ir.tasks import Task, TaskGraph


def homes(tasks: TaskGraph, lane_of: Mapping[str, int]) -> dict[str, int]:
    """The lane of every storage that lane 0 does not own.

    A value lives where it is made, a synapse where its target is computed, or where it learns if none is. Without a
    placement the model's parameters, its inputs and the target are on lane 0; with one, parameters and buffers live
    where they are written, or else where they are read first.
    """
    found = {name: lane_of.get(task.name, 0) for task in tasks.tasks for name in task.writes if "[" not in name}
    made: dict[int, int] = {}
    kinds = ("target", "forward") if tasks.plan.placement else ("target",)  # all of a placed region is on its lane
    for task in tasks.tasks:
        if task.kind in kinds:
            made.setdefault(task.region, lane_of.get(task.name, 0))
    loss = lane_of.get("loss", 0)  # elsewhere an output's error is the loss's
    learned = {name: lane_of.get(task.name, 0) for task in tasks.tasks for name in task.writes if name[:2] == "E["}
    for name, region in tasks.plan.owners.items():
        found[f"E[{name}]"] = made.get(region, learned.get(f"E[{name}]", loss))
    found.update({f"E[{item.name}]": made.get(item.source, loss) for item in tasks.matrices.values()})
    if tasks.plan.placement:
        for task in tasks.tasks:
            for name in task.reads:
                if name.startswith("P["):
                    found.setdefault(name, lane_of.get(task.name, 0))
        for task in tasks.tasks:
            found.update({name: lane_of.get(task.name, 0) for name in task.writes if name.startswith("P[")})
    return found


def brought(tasks: TaskGraph, task: Task) -> tuple[str, ...]:
    """What a task reads that has to be on its own lane's device, in order.

    An optimiser brings what it is given to the parameter's own device, wherever that is; what it adds up first has to
    be on its lane. With a placement it runs where the parameter is, and what it only has to wait for stays where it is;
    so does the run of an opaque sub-module, always.
    """
    apart = bool(tasks.plan.placement)
    runs = {name for call in task.calls if call.function == "opaque_vjp" for name in references(call.args[1:2])}
    if not apart and task.kind != "optimise":
        return tuple(name for name in task.reads if name not in runs)
    named = {
        name
        for call in task.calls
        if call.function != "after" and (apart or call.function != "optimise")
        for name in references((*call.args, *(item for _, item in call.kwargs)))
    }
    return tuple(name for name in task.reads if name in named - runs and name not in task.writes)
