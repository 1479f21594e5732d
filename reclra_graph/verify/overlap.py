"""Steps that overlap: over two of them, one behind the other, nothing that lasts is touched in no order."""

from __future__ import annotations

from collections.abc import Iterator

from reclra_graph.errors import Problem
from reclra_graph.ir.schedule import Record, Run, Schedule, Wait
from reclra_graph.verify.order import conflicts


def overlap_problems(schedule: Schedule) -> Iterator[Problem]:
    """Races between a step and the next over parameters, buffers and synapses.

    Values are each step's own. Two steps are enough: whatever a step touches the next one touches again, so what is in
    order between neighbours is in order between any two.
    """
    if not schedule.overlap:
        return
    names = [task.name for task in schedule.tasks.tasks]
    bit = {name: 1 << index for index, name in enumerate(names)}
    done = {lane.id: 0 for lane in schedule.lanes}  # of the first step's tasks
    at: dict[str, int] = {}
    before: dict[str, int] = {}
    for step in (0, 1):
        marks: dict[str, int] = {}
        for action in schedule.actions:
            lane = action.lane
            known = done.get(lane, 0)
            if isinstance(action, Wait):
                known |= (before if action.earlier else marks).get(action.event, 0)
            elif isinstance(action, Run) and step == 0:
                known |= bit.get(action.task, 0)
            elif isinstance(action, Run):
                at[action.task] = known
            elif isinstance(action, Record):
                marks[action.event] = known
            done[lane] = known
        before = marks
    pairs = [pair for pair in conflicts(schedule.tasks) if pair[2].startswith(("P[", "E["))]
    pairs += [(task.name, task.name, name) for task in schedule.tasks.tasks for name in task.writes if "[" in name]
    for first, second, storage in pairs:
        for one, next_ in dict.fromkeys(((first, second), (second, first))):
            if not at.get(next_, 0) & bit[one]:
                cause = f"race: {next_} of the next step and {one} of the one before touch {storage} in no order"
                yield Problem("RG501", cause, f"task {next_}")
