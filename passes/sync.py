"""Queues of tasks → actions in host order: what lanes record and wait for, and what is copied between them.

Before:  for every lane its tasks in order, and the order that tasks must keep.
After:   Record and Wait wherever a value crosses lanes and the wait does not follow from an earlier one; Copy for what
         crosses devices; one order for the host in which no Wait comes before its Record. Lane 0 waits for every
         other lane at the end.
"""

from __future__ import annotations

from collections.abc import Iterable

from reclra_graph.ir.schedule import Action, Copy, Record, Run, Wait
from reclra_graph.ir.tasks import Task, TaskGraph


def synchronised(tasks: TaskGraph, queues: dict[int, list[Task]], lane_of: dict[str, int]) -> dict[int, list[Action]]:
    """Each lane's actions. A lane knows, per other lane, how far that one has come; it waits only to learn more."""
    before: dict[str, list[str]] = {}
    for first, second in tasks.edges:
        before.setdefault(second, []).append(first)
    place = {task.name: index for queue in queues.values() for index, task in enumerate(queue)}
    known: dict[int, dict[int, int]] = {lane: {} for lane in queues}
    known_at: dict[str, dict[int, int]] = {}
    waits: dict[str, list[str]] = {}
    for task in _merged_order(tasks, queues, before):
        lane = lane_of[task.name]
        needed: dict[int, str] = {}
        for name in before.get(task.name, ()):
            other = lane_of[name]
            if other != lane and place[name] > place.get(needed.get(other, ""), -1):
                needed[other] = name
        for other in sorted(needed, key=lambda item: -place[needed[item]]):
            name = needed[other]
            if known[lane].get(other, -1) >= place[name]:
                continue
            waits.setdefault(task.name, []).append(name)
            for third, reached in {**known_at[name], other: place[name]}.items():
                known[lane][third] = max(known[lane].get(third, -1), reached)
        known_at[task.name] = dict(known[lane])
    recorded = {name for names in waits.values() for name in names}
    home = {name: lane_of[task.name] for task in tasks.tasks for name in task.writes if "[" not in name}
    # An output's error is the loss's.
    home.update(
        {f"E[{name}]": lane_of.get(f"target:{region}", lane_of["loss"]) for name, region in tasks.plan.owners.items()}
    )
    joined: dict[int, str] = {}
    for lane, queue in queues.items():
        if lane != 0 and known[0].get(lane, -1) < len(queue) - 1:
            joined[lane] = queue[-1].name
            recorded.add(queue[-1].name)
    result: dict[int, list[Action]] = {}
    for lane, queue in queues.items():
        actions = result.setdefault(lane, [])
        here: set[str] = set()
        for task in queue:
            actions.extend(Wait(name, lane) for name in waits.get(task.name, ()))
            for name in task.reads if task.kind != "optimise" else ():
                source = home.get(name, 0)
                if source != lane and name not in here:
                    here.add(name)
                    actions.append(Copy(name, source, lane))
            actions.append(Run(task.name, lane))
            if task.name in recorded:
                actions.append(Record(task.name, lane))
    result[0].extend(Wait(name, 0) for _, name in sorted(joined.items()))
    return result


def _merged_order(tasks: TaskGraph, queues: dict[int, list[Task]], before: dict[str, list[str]]) -> Iterable[Task]:
    """All tasks in one order that respects both the lanes and the dependencies."""
    heads = dict.fromkeys(sorted(queues), 0)
    done: set[str] = set()
    while len(done) < len(tasks.tasks):
        moved = False
        for lane, queue in queues.items():
            while heads[lane] < len(queue) and all(name in done for name in before.get(queue[heads[lane]].name, ())):
                task = queue[heads[lane]]
                done.add(task.name)
                heads[lane] += 1
                moved = True
                yield task
        assert moved, "the queues contradict the dependencies"


def host_order(lanes: dict[int, list[Action]]) -> list[Action]:
    """One order for all lanes: stay on a lane until it waits for something that is not recorded yet."""
    heads = dict.fromkeys(sorted(lanes), 0)
    recorded: set[str] = set()
    order: list[Action] = []
    while any(heads[lane] < len(lanes[lane]) for lane in heads):
        moved = False
        for lane, actions in sorted(lanes.items()):
            while heads[lane] < len(actions):
                action = actions[heads[lane]]
                if isinstance(action, Wait) and action.event not in recorded:
                    break
                if isinstance(action, Record):
                    recorded.add(action.event)
                order.append(action)
                heads[lane] += 1
                moved = True
        assert moved, "lanes wait for each other"
    return order
