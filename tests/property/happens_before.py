"""What a schedule allows, worked out apart from the compiler: a networkx graph over its actions.

Nothing here uses the verifier's code: reads and writes come from the tasks' calls, order from lanes and events.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import networkx as nx

from reclra_graph.ir.operators import references
from reclra_graph.ir.schedule import Action, Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.ir.tasks import Task

SCALARS = {"_", "B", "lr", "beta", "gamma"}


def touched(task: Task) -> tuple[set[str], set[str]]:
    """(storage that a task reads and does not make itself, storage that it writes), from its calls."""
    reads: set[str] = set()
    writes: set[str] = set()
    made: set[str] = set()
    for call in task.calls:
        reads |= {name for name in references((call.args, call.kwargs)) if name not in made} - SCALARS  # type: ignore[arg-type]
        if call.function in ("optimise", "aten.copy_.default"):
            writes |= set(references(call.args[0]))
        made |= {name for name in call.results if name}
    return reads, writes | made


def persistent(storage: str) -> bool:
    """Whether storage outlives the step: parameters, buffers and synapses."""
    return storage[1:2] == "["


def graph_of(schedule: Schedule) -> nx.DiGraph:
    """Actions by number; an edge means: is done before. Lanes run in order; a Wait follows the Record of its event, if
    the host came to that Record first (else CUDA waits for nothing)."""
    order = nx.DiGraph()
    order.add_nodes_from(range(len(schedule.actions)))
    lanes: dict[int, list[int]] = {}
    recorded: dict[str, int] = {}
    for number, action in enumerate(schedule.actions):
        lanes.setdefault(action.lane, []).append(number)
        if isinstance(action, Record):
            recorded[action.event] = number
        elif isinstance(action, Wait) and action.event in recorded:
            order.add_edge(recorded[action.event], number)
    for numbers in lanes.values():
        order.add_edges_from(pairwise(numbers))
    return order


def faults(schedule: Schedule) -> set[str]:
    """Everything that makes a schedule wrong, as words; empty where every order it allows gives the same result."""
    found: set[str] = set()
    tasks = {task.name: task for task in schedule.tasks.tasks}
    runs = [(number, action.task) for number, action in enumerate(schedule.actions) if isinstance(action, Run)]
    at = {name: number for number, name in runs}
    if sorted(name for _, name in runs) != sorted(tasks):
        found.add("a task runs never or twice")
    if not {action.lane for action in schedule.actions} <= {lane.id for lane in schedule.lanes}:
        found.add("no such lane")
    events = [action.event for action in schedule.actions if isinstance(action, Record)]
    if len(set(events)) < len(events):
        found.add("an event is recorded twice")
    if any(isinstance(a, Wait) and Record(a.event, b) not in schedule.actions[:n] for n, a, b in _with_lanes(schedule)):
        found.add("a wait comes before its record")
    if found:
        return found
    closure = nx.transitive_closure_dag(graph_of(schedule))
    done = closure.has_edge
    touching = {name: touched(task) for name, task in tasks.items()}
    for before, after in schedule.tasks.edges:
        if not done(at[before], at[after]):
            found.add("a task overtakes one that it depends on")
    writers = {storage: name for name, (_, writes) in touching.items() for storage in writes}
    for name, (reads, _) in touching.items():
        for storage in reads:
            writer = writers.get(storage, name)
            if writer == name:
                continue
            first, second = (name, writer) if persistent(storage) else (writer, name)
            if not done(at[first], at[second]):
                found.add("a value is read too early or too late")
    end = max((n for n, action in enumerate(schedule.actions) if action.lane == 0), default=-1)
    if any(number != end and not done(number, end) for number in at.values()):
        found.add("lane 0 does not wait for all")
    freed: set[str] = set()
    for number, action in enumerate(schedule.actions):
        for value in action.values if isinstance(action, Free) else ():
            users = [at[name] for name, (reads, writes) in touching.items() if value in reads | writes]
            if value in freed or not all(done(user, number) for user in users):
                found.add("a value is freed too early or twice")
            home = writers.get(value)
            if home is None or persistent(value) or value == "loss":
                found.add("what is not the step's is freed")
            elif schedule.actions[at[home]].lane != action.lane:
                found.add("a lane frees what another made")
            freed.add(value)
    return found | _copy_faults(schedule, at, touching, writers, done)


def _with_lanes(schedule: Schedule) -> Iterator[tuple[int, Action, int]]:
    """(number, action, lane) for every action and every lane on which an event of its name may be recorded."""
    lane_of = {action.event: action.lane for action in schedule.actions if isinstance(action, Record)}
    for number, action in enumerate(schedule.actions):
        yield number, action, lane_of.get(action.event, -1) if isinstance(action, Wait) else -1


def _copy_faults(
    schedule: Schedule,
    at: dict[str, int],
    touching: dict[str, tuple[set[str], set[str]]],
    writers: dict[str, str],
    done: Callable[[int, int], bool],
) -> set[str]:
    """A value of another lane (inputs and parameters are lane 0's) is brought before it is used there. Synapses live on
    the lane of their target, and an optimiser moves deltas itself."""
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    brought: set[tuple[str, int]] = set()
    for number, action in enumerate(schedule.actions):
        if isinstance(action, Copy):
            made = writers.get(action.value)
            if made is not None and not persistent(action.value) and not done(at[made], number):
                return {"a value is brought over before it is made"}
            if not action.value.startswith("E["):
                home = 0 if made is None or persistent(action.value) else lane_of[made]
                if action.source != home:
                    return {"a value is brought from a lane that does not have it"}
            brought.add((action.value, action.lane))
        elif isinstance(action, Run) and schedule.tasks.by_name[action.task].kind != "optimise":
            for value in touching[action.task][0]:
                if value.startswith("E["):
                    continue
                home = 0 if persistent(value) or value not in writers else lane_of[writers[value]]
                if home != action.lane and (value, action.lane) not in brought:
                    return {"a value of another lane is not brought over"}
    return set()


def without(schedule: Schedule, number: int) -> Schedule:
    """The schedule with one action left out."""
    return replace(schedule, actions=schedule.actions[:number] + schedule.actions[number + 1 :])


def swapped(schedule: Schedule, first: int, second: int) -> Schedule:
    """The schedule with two actions in each other's place."""
    actions = list(schedule.actions)
    actions[first], actions[second] = actions[second], actions[first]
    return replace(schedule, actions=tuple(actions))


def doubled(schedule: Schedule, number: int, place: int) -> Schedule:
    """The schedule with one action there twice, the second time at ``place``."""
    actions = list(schedule.actions)
    actions.insert(place, schedule.actions[number])
    return replace(schedule, actions=tuple(actions))


def random_order(schedule: Schedule, seed: int) -> list[Action]:
    """The actions in an order that lanes and events allow, any of them, not the host's."""
    chance = random.Random(seed)
    order = graph_of(schedule)
    waiting = {node: order.in_degree(node) for node in order}
    ready = sorted(node for node, count in waiting.items() if not count)
    # Half of the time one lane runs as far as it can, which a fair choice would almost never show.
    found: list[Action] = []
    lane = 0
    while ready:
        mine = [node for node in ready if schedule.actions[node].lane == lane]
        if not mine or chance.random() < 0.3:
            mine = ready
        node = chance.choice(mine)
        lane = schedule.actions[node].lane
        ready.remove(node)
        found.append(schedule.actions[node])
        for follower in sorted(order.successors(node)):
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    return found
