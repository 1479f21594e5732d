"""TaskGraph → Schedule: place the tasks on lanes and synchronise them.

Before:  tasks and the order they must keep.
After:   for every lane a queue, by list scheduling in the unit-cost model (the forward pass runs on lane 0 before
         it); Record and Wait wherever a value crosses lanes and the wait does not follow from an earlier one; Copy for
         values that cross devices; Free for values that one lane made and alone read, after their last use; and one
         order for the host in which no Wait comes before its Record. Lane 0 waits for every other lane at the end.
"""

from __future__ import annotations

from collections.abc import Iterable

from reclra_graph.ir.schedule import Action, Copy, Free, Lane, Record, Run, Schedule, Slot, Wait
from reclra_graph.ir.tasks import Task, TaskGraph
from reclra_graph.passes.list_schedule import Job, list_schedule, makespan


def schedule(tasks: TaskGraph) -> Schedule:
    """The schedule for as many lanes as the plan has GPUs; lanes that stay empty are left out."""
    groups = _groups(tasks)
    placed = list_schedule(_jobs(tasks, groups), tasks.plan.gpus)
    slots = [Slot(name, item.lane, item.start, item.end) for name, item in placed.items()]
    slots.sort(key=lambda slot: (slot.start, slot.lane))
    queues: dict[int, list[Task]] = {0: list(groups["forward"])}
    for slot in slots:
        queues.setdefault(slot.lane, []).extend(groups[slot.group])
        kind, _, region = slot.group.partition(":")
        # Synapses learn on the lane that owns them: with their region's update where it runs there, else at the end.
        if kind == "update" and placed[_target(tasks, region)].lane == slot.lane:
            queues[slot.lane].extend(groups.pop(f"synapses:{region}", ()))
    for name, members in groups.items():
        kind, _, rest = name.partition(":")
        if kind == "synapses":
            queues[placed[_target(tasks, rest.partition(":")[0])].lane].extend(members)
    queues[0].extend(groups.get("buffers", ()))
    numbers = {lane: index for index, lane in enumerate(sorted(queues))}
    queues = {numbers[lane]: queue for lane, queue in queues.items()}
    slots = [Slot(slot.group, numbers[slot.lane], slot.start, slot.end) for slot in slots]
    lane_of = {task.name: lane for lane, queue in queues.items() for task in queue}
    actions = _host_order(_synchronised(tasks, queues, lane_of))
    return Schedule(
        tasks,
        tuple(Lane(number, number) for number in sorted(queues)),
        tuple(_with_frees(tasks, actions, lane_of)),
        tuple(slots),
        makespan(placed),
        _waves(tasks, lane_of),
    )


def _groups(tasks: TaskGraph) -> dict[str, list[Task]]:
    groups: dict[str, list[Task]] = {"forward": []}
    for task in tasks.tasks:
        groups.setdefault(task.group, []).append(task)
    return groups


def _jobs(tasks: TaskGraph, groups: dict[str, list[Task]]) -> list[Job]:
    """One job per group of tasks; the output's comes first, so that it runs on lane 0 behind the forward pass."""
    group_of = {task.name: task.group for task in tasks.tasks}
    after: dict[str, dict[str, None]] = {name: {} for name in groups}
    for before, behind in tasks.edges:
        first, second = group_of[before], group_of[behind]
        if first != second and not _apart(first):
            after[second][first] = None
    jobs = []
    for name, members in groups.items():
        if _apart(name):
            continue
        kind, _, region = name.partition(":")
        near = _target(tasks, region)
        if kind == "target":
            near = next((item for item in after[name] if item.startswith("target:")), "")
        elif kind == "optimise":
            near = next(reversed(after[name]), "")
        cost = sum(task.cost for task in members)
        jobs.append(Job(name, cost, tuple(after[name]), kind == "target", near))
    return jobs


def _target(tasks: TaskGraph, region: str) -> str:
    """The group that computes a region's error: of every output it is the loss's."""
    outputs = tasks.plan.regions.outputs
    return f"target:{outputs[0]}" if region.isdigit() and int(region) in outputs else f"target:{region}"


def _apart(group: str) -> bool:
    """Groups that the unit-cost model does not count: they are queued on the lane where they belong."""
    return group in ("forward", "buffers") or group.startswith("synapses:")


def _waves(tasks: TaskGraph, lane_of: dict[str, int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(region, lane) of the targets at each level of the wiring, highest region first."""
    waves: dict[int, list[tuple[int, int]]] = {}
    for number, level in tasks.plan.level.items():
        if level:
            waves.setdefault(level, []).append((number, lane_of[f"target:{number}"]))
    return tuple(tuple(sorted(waves[level], reverse=True)) for level in sorted(waves))


def _synchronised(tasks: TaskGraph, queues: dict[int, list[Task]], lane_of: dict[str, int]) -> dict[int, list[Action]]:
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
    home.update({f"E[{edge.name}]": lane_of[f"target:{edge.target}"] for edge in tasks.plan.edges})
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


def _host_order(lanes: dict[int, list[Action]]) -> list[Action]:
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


def _with_frees(tasks: TaskGraph, actions: list[Action], lane_of: dict[str, int]) -> list[Action]:
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
