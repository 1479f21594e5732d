"""Schedule: each task once, no race, no Wait before its Record, every lane joins, nothing is read after its Free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from reclra_graph.errors import Problem
from reclra_graph.ir.schedule import Action, Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.rules.forms import stored
from reclra_graph.verify.order import HappensBefore, conflicts


def schedule_problems(schedule: Schedule) -> Iterator[Problem]:
    """Broken invariants of a schedule; the place is the action's number in host order."""
    yield from _once(schedule)
    yield from _events(schedule)
    order = HappensBefore(schedule)
    yield from _races(schedule, order)
    yield from _joins(schedule, order)
    yield from _frees(schedule, order)
    yield from _copies(schedule, order)
    yield from _times(schedule)
    yield from _waves(schedule)
    if schedule.peak and len(schedule.peak) != len({lane.device for lane in schedule.lanes}):
        yield Problem("RG501", f"{len(schedule.peak)} peaks of memory for other devices than there are", "peak")


def _place(schedule: Schedule, index: int) -> str:
    action: Action = schedule.actions[index]
    return f"action {index}, lane {action.lane}: {type(action).__name__}"


def _once(schedule: Schedule) -> Iterator[Problem]:
    lanes = {lane.id for lane in schedule.lanes}
    if len(lanes) < len(schedule.lanes):
        yield Problem("RG501", f"lane {_repeated(schedule)} is there twice", f"lane {_repeated(schedule)}")
    runs: Counter[str] = Counter()
    for index, action in enumerate(schedule.actions):
        if action.lane not in lanes:
            yield Problem("RG501", f"there is no lane {action.lane}", _place(schedule, index))
        if isinstance(action, Run):
            runs[action.task] += 1
            if action.task not in schedule.tasks.by_name:
                yield Problem("RG501", f"{action.task} is no task", _place(schedule, index))
            elif runs[action.task] > 1:
                yield Problem("RG501", f"task {action.task} runs twice", _place(schedule, index))
    for task in schedule.tasks.tasks:
        if not runs[task.name]:
            yield Problem("RG501", f"task {task.name} never runs", f"task {task.name}")


def _repeated(schedule: Schedule) -> int:
    ids = [lane.id for lane in schedule.lanes]
    return next(number for number in ids if ids.count(number) > 1)


def _events(schedule: Schedule) -> Iterator[Problem]:
    recorded: dict[str, int] = {}
    for index, action in enumerate(schedule.actions):
        if isinstance(action, Record):
            if action.event in recorded:
                yield Problem("RG501", f"event {action.event} is recorded twice", _place(schedule, index))
            recorded[action.event] = action.lane
        elif isinstance(action, Wait) and action.event not in recorded:
            yield Problem(
                "RG501",
                f"waits for {action.event} before it is recorded, which waits for nothing",
                _place(schedule, index),
            )


def _races(schedule: Schedule, order: HappensBefore) -> Iterator[Problem]:
    at = {action.task: index for index, action in enumerate(schedule.actions) if isinstance(action, Run)}
    for first, second in schedule.tasks.edges:
        if first in at and second in at and not order(first, second):
            yield Problem("RG501", f"{second} does not wait for {first}", _place(schedule, at[second]))
    for first, second, storage in conflicts(schedule.tasks):
        if first in at and second in at and not (order(first, second) or order(second, first)):
            yield Problem(
                "RG501", f"race: {first} and {second} touch {storage} in no order", _place(schedule, at[second])
            )


def _joins(schedule: Schedule, order: HappensBefore) -> Iterator[Problem]:
    final = order.done.get(0, 0)
    late = [task.name for task in schedule.tasks.tasks if not final & order.bit[task.name]]
    if late:
        yield Problem("RG501", f"lane 0 ends without waiting for {', '.join(late[:5])}", "end of lane 0")


def _frees(schedule: Schedule, order: HappensBefore) -> Iterator[Problem]:
    freed: dict[str, int] = {}
    touching: dict[str, list[str]] = {}
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    made = {name: lane_of.get(task.name) for task in schedule.tasks.tasks for name in task.writes if "[" not in name}
    for task in schedule.tasks.tasks:
        for name in (*task.reads, *task.writes):
            touching.setdefault(name, []).append(task.name)
    for index, action in enumerate(schedule.actions):
        if isinstance(action, Free):
            for value in action.values:
                if value in freed:
                    yield Problem("RG501", f"{value} is freed twice", _place(schedule, index))
                freed[value] = index
                if value not in made or value == "loss":
                    yield Problem("RG501", f"{value} is not the step's to free", _place(schedule, index))
                elif made[value] != action.lane:
                    # The memory goes to the next work of the lane that made it, which knows nothing of this lane.
                    cause = f"{value} is freed by lane {action.lane}, but lane {made[value]} made it"
                    yield Problem("RG501", cause, _place(schedule, index))
                for name in touching.get(value, ()):
                    # The allocator gives the memory to the lane's next work at once: readers elsewhere must be done.
                    if not order.at[index] & order.bit[name]:
                        yield Problem(
                            "RG501", f"{value} is freed, but {name} may still use it", _place(schedule, index)
                        )
        elif isinstance(action, Run) and action.task in schedule.tasks.by_name:
            for value in schedule.tasks.by_name[action.task].reads:
                if value in freed:
                    yield Problem("RG501", f"{action.task} reads {value} after it was freed", _place(schedule, index))


def _copies(schedule: Schedule, order: HappensBefore) -> Iterator[Problem]:
    """A value made on one lane and read on another is copied there first: the lanes may be on different GPUs."""
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    loss = lane_of.get("loss", 0)  # an output's error is the loss's
    made = {name: lane_of.get(task.name, 0) for task in schedule.tasks.tasks for name in task.writes if "[" not in name}
    made.update({f"E[{item.name}]": lane_of.get(f"target:{item.region}", loss) for item in stored(schedule.tasks.plan)})
    brought: set[tuple[str, int]] = set()
    writers = {name: task.name for task in schedule.tasks.tasks for name in task.writes if "[" not in name}
    for index, action in enumerate(schedule.actions):
        if isinstance(action, Copy):
            brought.add((action.value, action.lane))
            if action.source != made.get(action.value, 0):
                cause = f"{action.value} is copied from lane {action.source}; it is lane {made.get(action.value, 0)}'s"
                yield Problem("RG501", cause, _place(schedule, index))
            writer = writers.get(action.value)
            if writer is not None and not order.at[index] & order.bit[writer]:
                yield Problem(
                    "RG501", f"{action.value} is copied before {writer} is sure to be done", _place(schedule, index)
                )
        elif isinstance(action, Run) and action.task in schedule.tasks.by_name:
            task = schedule.tasks.by_name[action.task]
            for value in task.writes:
                if value.startswith("E[") and made.get(value, action.lane) != action.lane:
                    cause = f"{action.task} changes {value}, which lane {made[value]} owns"
                    yield Problem("RG501", cause, _place(schedule, index))
            for value in task.reads if task.kind != "optimise" else ():
                home = made.get(value, 0)
                if home != action.lane and (value, action.lane) not in brought:
                    yield Problem(
                        "RG501", f"{action.task} reads {value} of lane {home} without a copy", _place(schedule, index)
                    )


def _times(schedule: Schedule) -> Iterator[Problem]:
    """No lane runs two groups at once, none starts before what it needs, and the makespan is when the last one ends."""
    busy: dict[int, int] = {}
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    members: dict[str, list[str]] = {}
    for task in schedule.tasks.tasks:
        members.setdefault(task.group, []).append(task.name)
    for slot in schedule.slots:
        if slot.group not in members:
            yield Problem("RG501", f"{slot.group} is no group of tasks", f"slot {slot.group}")
        if not 0 <= slot.start <= slot.end:
            yield Problem("RG501", f"{slot.group} lasts from {slot.start} to {slot.end}", f"slot {slot.group}")
        for name in members.get(slot.group, ()):
            if lane_of.get(name, slot.lane) != slot.lane:
                cause = f"{name} runs on lane {lane_of[name]}, not on lane {slot.lane}"
                yield Problem("RG501", cause, f"slot {slot.group}")
    slots = {slot.group: slot for slot in schedule.slots}
    for first, second in schedule.tasks.edges:
        before, after = (slots.get(schedule.tasks.by_name[name].group) for name in (first, second))
        if before is not None and after is not None and before != after and before.end > after.start:
            yield Problem("RG501", f"{second} starts at {after.start}, before {first} ends", f"slot {after.group}")
    # The forward pass, the buffers and the synapses are queued where they belong; only the rest is placed by its cost.
    apart = ("forward", "buffers", "synapses")
    counted = {task.group for task in schedule.tasks.tasks if task.cost and task.group.split(":")[0] not in apart}
    for group in sorted(counted - {slot.group for slot in schedule.slots}):
        yield Problem("RG501", f"{group} has no slot", f"slot {group}")
    for slot in sorted(schedule.slots, key=lambda item: (item.lane, item.start, item.end)):
        if slot.start < busy.get(slot.lane, 0):
            yield Problem(
                "RG501", f"{slot.group} starts at {slot.start}, while lane {slot.lane} is busy", f"slot {slot.group}"
            )
        busy[slot.lane] = max(busy.get(slot.lane, 0), slot.end)
    if max(busy.values(), default=0) != schedule.makespan:
        yield Problem("RG501", f"the slots end at {max(busy.values(), default=0)}, not {schedule.makespan}", "makespan")


def _waves(schedule: Schedule) -> Iterator[Problem]:
    """Every target stands in one wave, with the lane that computes it: the emitted file keeps the synapses there."""
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    found = Counter(region for wave in schedule.waves for region, _ in wave)
    wanted = {task.region for task in schedule.tasks.tasks if task.kind == "target"}
    for region in sorted(wanted | set(found)):
        if found[region] != 1 or region not in wanted:
            yield Problem("RG501", f"region {region} stands in {found[region]} waves", f"region {region}")
    for wave in schedule.waves:
        for region, lane in wave:
            if lane_of.get(f"target:{region}", lane) != lane:
                cause = f"the target of region {region} is lane {lane_of[f'target:{region}']}'s, not lane {lane}'s"
                yield Problem("RG501", cause, f"region {region}")
