"""Queues of tasks → actions in host order: what lanes record and wait for, and what is copied between them.

Before:  for every lane its tasks in order, and the order that tasks must keep.
After:   Record and Wait wherever a value crosses lanes and the wait does not follow from an earlier one; Copy for what
         crosses devices; one order for the host in which no Wait comes before its Record. Lane 0 waits for every
         other lane at the end.

These are the fewest records and waits that order what must be ordered and nothing else. Take the tasks with an edge
from each to the next on its lane, and from each to those that depend on it: the order that the schedule keeps is this
graph's closure. An edge (u, v) of its minimum equivalent graph that crosses lanes has nothing between u and v, so no
way from u to v is left but an event recorded right behind u and waited for right before v. One wait for each such
edge, and one record for each of their sources, are therefore needed, and they are enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reclra_graph.ir.homes import brought, homes
from reclra_graph.ir.schedule import Action, Copy, Record, Run, Wait
from reclra_graph.ir.tasks import Task, TaskGraph

Clock = dict[int, int]
"""For every other lane, how far it has certainly come: the place of its last task that is known to be done."""


def synchronised(tasks: TaskGraph, queues: dict[int, list[Task]], lane_of: dict[str, int]) -> dict[int, list[Action]]:
    """Each lane's actions."""
    names = {lane: [task.name for task in queue] for lane, queue in queues.items()}
    waits, joined = fewest_waits(names, tasks.edges)
    recorded = {name for found in (*waits.values(), joined) for name in found}
    home = homes(tasks, lane_of)
    result: dict[int, list[Action]] = {}
    for lane, queue in queues.items():
        actions = result.setdefault(lane, [])
        here: set[str] = set()
        for task in queue:
            actions.extend(Wait(name, lane) for name in waits.get(task.name, ()))
            for name in brought(tasks, task):
                source = home.get(name, 0)
                if source != lane and name not in here:
                    here.add(name)
                    actions.append(Copy(name, source, lane))
            actions.append(Run(task.name, lane))
            if task.name in recorded:
                actions.append(Record(task.name, lane))
    result[0].extend(Wait(name, 0) for name in joined)
    return result


def fewest_waits(
    queues: Mapping[int, Sequence[str]], edges: Iterable[tuple[str, str]]
) -> tuple[dict[str, list[str]], list[str]]:
    """(for every task, the tasks of other lanes that its lane waits for; those that lane 0 waits for at the end).

    ``edges`` are the (before, after) pairs that must be kept. Every lane keeps a clock; it waits only to learn more.
    """
    before: dict[str, list[str]] = {}
    for first, second in edges:
        before.setdefault(second, []).append(first)
    place = {name: index for queue in queues.values() for index, name in enumerate(queue)}
    lane_of = {name: lane for lane, queue in queues.items() for name in queue}
    known: dict[int, Clock] = {lane: {} for lane in queues}
    known_at: dict[str, Clock] = {}
    waits: dict[str, list[str]] = {}
    for name in _merged_order(queues, before):
        lane = lane_of[name]
        last: dict[int, str] = {}
        for other in before.get(name, ()):
            home = lane_of[other]
            if home != lane and (home not in last or place[other] > place[last[home]]):
                last[home] = other
        needed = _unimplied(last, known[lane], known_at, place)
        if needed:
            waits[name] = needed
        for other in needed:
            _learn(known[lane], known_at[other], lane_of[other], place[other])
        known_at[name] = dict(known[lane])
    ends = {lane: queue[-1] for lane, queue in sorted(queues.items()) if lane != 0 and queue}
    joined = _unimplied(ends, known.get(0, {}), known_at, place)
    return waits, sorted(joined, key=lane_of.__getitem__)


def _unimplied(
    last: Mapping[int, str], known: Clock, known_at: Mapping[str, Clock], place: Mapping[str, int]
) -> list[str]:
    """Of one task per lane, those that neither the waiting lane nor another of these tasks knows to be done."""
    return [
        name
        for lane, name in sorted(last.items(), key=lambda item: -place[item[1]])
        if known.get(lane, -1) < place[name]
        and not any(known_at[other].get(lane, -1) >= place[name] for other in last.values() if other != name)
    ]


def _learn(clock: Clock, other: Clock, lane: int, place: int) -> None:
    """What another lane knew when it had come to ``place``."""
    for third, reached in {**other, lane: place}.items():
        clock[third] = max(clock.get(third, -1), reached)


def _merged_order(queues: Mapping[int, Sequence[str]], before: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """All tasks in one order that respects both the lanes and the dependencies."""
    heads = dict.fromkeys(sorted(queues), 0)
    done: set[str] = set()
    while any(heads[lane] < len(queues[lane]) for lane in heads):
        moved = False
        for lane, queue in queues.items():
            while heads[lane] < len(queue) and all(name in done for name in before.get(queue[heads[lane]], ())):
                name = queue[heads[lane]]
                done.add(name)
                heads[lane] += 1
                moved = True
                yield name
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
