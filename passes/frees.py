"""Actions in host order → the same with Frees: when a value's memory can be had again.

After:  a Free, at the end of a task group, for every value that only the lane that made it reads; and for a value that
        other lanes read too, as soon as the lane that made it has waited for something that follows all its readers,
        and work is left. Only the lane that made a value frees it: its memory goes to that lane's next work at once.
"""

from __future__ import annotations

from reclra_graph.ir.schedule import Action, Free, Record, Run, Wait
from reclra_graph.ir.tasks import TaskGraph


def with_frees(tasks: TaskGraph, actions: list[Action], lane_of: dict[str, int]) -> list[Action]:
    """The actions, with Frees among them."""
    made = {name: task.name for task in tasks.tasks for name in task.writes if "[" not in name}
    users: dict[str, list[str]] = {name: [task] for name, task in made.items()}
    for task in tasks.tasks:
        for name in task.reads:
            if name in made:
                users[name].append(task.name)
    users.pop("loss", None)  # which is returned
    private = {name for name, found in users.items() if len({lane_of[user] for user in found}) == 1}
    runs = [action.task for action in actions if isinstance(action, Run)]
    when = {name: index for index, name in enumerate(runs)}
    ending: dict[str, list[str]] = {}
    last = {name: max(users[name], key=when.__getitem__) for name in private}
    for name in sorted(private, key=lambda item: (when[last[item]], item)):
        ending.setdefault(last[name], []).append(name)
    known = _Known(tasks)
    shared: dict[int, dict[str, int]] = {}
    for name in sorted(users.keys() - private):
        shared.setdefault(lane_of[made[name]], {})[name] = known.mask(users[name])
    result: list[Action] = []
    pending: list[str] = []
    left = len(runs)
    for index, action in enumerate(actions):
        result.append(action)
        known.after(action)
        following = next((item for item in actions[index + 1 :] if not isinstance(item, Record)), None)
        if isinstance(action, Run):
            left -= 1
            pending.extend(ending.get(action.task, ()))
            group = tasks.by_name[action.task].group
            if isinstance(following, Run) and tasks.by_name[following.task].group == group and group != "forward":
                continue
        elif not isinstance(action, Wait) or isinstance(following, Wait):
            continue
        held = shared.get(action.lane, {})
        free = [name for name, mask in held.items() if known.done(action.lane, mask)] if left else []
        for name in free:
            del held[name]
        if pending or free:
            result.append(Free((*pending, *free), action.lane))
            pending = []
    return result


class _Known:
    """Which tasks every lane knows to be done, as bit sets."""

    def __init__(self, tasks: TaskGraph) -> None:
        self.bit = {task.name: 1 << index for index, task in enumerate(tasks.tasks)}
        self.lanes: dict[int, int] = {}
        self.events: dict[str, int] = {}

    def mask(self, names: list[str]) -> int:
        found = 0
        for name in names:
            found |= self.bit[name]
        return found

    def after(self, action: Action) -> None:
        """Follow an action."""
        done = self.lanes.get(action.lane, 0)
        if isinstance(action, Run):
            done |= self.bit[action.task]
        elif isinstance(action, Wait):
            done |= 0 if action.earlier else self.events.get(action.event, 0)
        elif isinstance(action, Record):
            self.events[action.event] = done
        self.lanes[action.lane] = done

    def done(self, lane: int, mask: int) -> bool:
        return self.lanes.get(lane, 0) & mask == mask
