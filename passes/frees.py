"""Actions in host order → the same with Frees: when a value's memory can be had again.

After:  a Free, at the end of a task group, for every value that only the lane that made it reads.
"""

from __future__ import annotations

from reclra_graph.ir.schedule import Action, Free, Record, Run
from reclra_graph.ir.tasks import TaskGraph


def with_frees(tasks: TaskGraph, actions: list[Action], lane_of: dict[str, int]) -> list[Action]:
    """Frees, at the end of a task group, for values that only the lane that made them reads."""
    made = {name: task for task in tasks.tasks for name in task.writes if "[" not in name}
    readers: dict[str, list[str]] = {}
    for task in tasks.tasks:
        for name in task.reads:
            readers.setdefault(name, []).append(task.name)
    # The loss is returned; a value that another lane reads lives until all lanes have joined.
    private = {
        name
        for name, task in made.items()
        if name != "loss" and all(lane_of[reader] == lane_of[task.name] for reader in readers.get(name, ()))
    }
    runs = [action.task for action in actions if isinstance(action, Run)]
    when = {name: index for index, name in enumerate(runs)}
    last = {name: runs[max(when[user] for user in (made[name].name, *readers.get(name, ())))] for name in private}
    ending: dict[str, list[str]] = {}
    for name in sorted(private, key=lambda item: (when[last[item]], item)):
        ending.setdefault(last[name], []).append(name)
    result: list[Action] = []
    pending: list[str] = []
    for index, action in enumerate(actions):
        result.append(action)
        if not isinstance(action, Run):
            continue
        pending.extend(ending.get(action.task, ()))
        task = tasks.by_name[action.task]
        following = next((item for item in actions[index + 1 :] if not isinstance(item, Record)), None)
        same = (
            isinstance(following, Run) and tasks.by_name[following.task].group == task.group and task.group != "forward"
        )
        if pending and not same:
            result.append(Free(tuple(pending), lane_of[action.task]))
            pending = []
    return result
