"""Schedule → the part of it that only mirrors: what ``mirror`` of an emitted file does, beside ``step``.

Before:  forward, loss, targets, updates, mirrors, buffers, on their lanes
After:   forward, mirrors, and what the optimiser does with these alone, on the same lanes; in the place of the loss the
         mean square of all responses, which is looked at before anything is learned

Akrout et al. (2019) let a network go back and forth between a mode in which weights learn and one in which synapses
mirror the weights. Parameters and buffers stay as they are, and no target is needed.
"""

from __future__ import annotations

from dataclasses import replace

from reclra_graph.ir.operators import Ref, TensorType, references
from reclra_graph.ir.schedule import Run, Schedule
from reclra_graph.ir.tasks import Call, Task
from reclra_graph.passes.frees import with_frees
from reclra_graph.passes.storage import storage_order
from reclra_graph.passes.sync import host_order, synchronised


def mirrors_alone(schedule: Schedule) -> Schedule | None:
    """The schedule of mirror mode, in which what stands for the loss goes by its name; None for a plan in which no
    synapse is a mirror."""
    tasks = schedule.tasks
    stores = {f"E[{edge.synapse}]" for edge in tasks.plan.edges if edge.rule == "mirror"}
    if not stores:
        return None
    forward = [task for task in tasks.tasks if task.kind == "forward"]
    mirrors = [task for task in tasks.tasks if task.name.startswith("mirror:")]
    learned = [task for task in tasks.tasks if task.kind == "optimise" and stores & set(task.writes)]
    checked = _checked(tasks.by_name["loss"], mirrors, tasks.plan.regions.synapse_dtype)
    parts = (forward, mirrors, [checked], learned)
    kept = [replace(task, cost=0) for part in parts for task in part]  # no times are told of it
    alone = replace(tasks, tasks=tuple(kept), edges=storage_order(kept))
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    when = {name: index for index, name in enumerate(lane_of)}
    queues: dict[int, list[Task]] = {lane.id: [] for lane in schedule.lanes}
    for part in parts:
        for task in sorted(part, key=lambda item: when[item.name]):
            queues[lane_of[task.name]].append(alone.by_name[task.name])
    lanes = {task.name: lane_of[task.name] for task in kept}
    actions = host_order(synchronised(alone, queues, lanes))
    hosted = tuple(with_frees(alone, actions, lanes))
    return replace(schedule, tasks=alone, actions=hosted, slots=(), makespan=0, waves=(), peak=(), overlap=False)


def _checked(loss: Task, mirrors: list[Task], dtype: str) -> Task:
    """What stands in the loss's place, its check included."""
    made = [call.results[0] for task in mirrors for call in task.calls if call.function == "rules.mirror.response"]
    seen = next(call.args[1:] for call in loss.calls if call.function == "check")
    size = Call("rules.mirror.size", tuple(Ref(name) for name in made), (), ("loss",), (TensorType((), dtype),))
    reads = tuple(dict.fromkeys((*made, *references(seen))))
    return replace(
        loss, kind="synapse", calls=(size, Call("check", (Ref("loss"), *seen))), reads=reads, writes=("loss",)
    )
