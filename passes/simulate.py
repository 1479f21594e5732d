"""How long a schedule takes, by its actions alone: every lane in order, a Wait until its Record is reached.

Nothing here knows how the schedule was made, so it checks the predicted times; and it can run several steps, one behind
the other, which overlap where the schedule lets them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from reclra_graph.ir.schedule import Record, Run, Schedule, Wait
from reclra_graph.ir.tasks import Task, TaskGraph


@dataclass(frozen=True)
class Timeline:
    """When each task of each step runs: (step, task, lane, start, end), in host order."""

    runs: tuple[tuple[int, str, int, int, int], ...]

    @property
    def makespan(self) -> int:
        """When the last task ends."""
        return max((run[4] for run in self.runs), default=0)


def simulate(schedule: Schedule, steps: int = 1, cost: Callable[[Task], int] = lambda task: task.cost) -> Timeline:
    """Run the actions of ``steps`` steps; copies and frees take no time.

    Between steps that do not overlap all lanes meet; else each goes on where it is.
    """
    now = {lane.id: 0 for lane in schedule.lanes}
    before: dict[str, int] = {}
    runs = []
    for step in range(steps):
        events: dict[str, int] = {}
        if not schedule.overlap:
            now = dict.fromkeys(now, max(now.values()))
        for action in schedule.actions:
            lane = action.lane
            if isinstance(action, Run):
                start = now[lane]
                now[lane] += cost(schedule.tasks.by_name[action.task])
                runs.append((step, action.task, lane, start, now[lane]))
            elif isinstance(action, Record):
                events[action.event] = now[lane]
            elif isinstance(action, Wait):
                now[lane] = max(now[lane], (before if action.earlier else events).get(action.event, 0))
        before = events
    return Timeline(tuple(runs))


def pipeline_units(tasks: TaskGraph) -> TaskGraph:
    """The unit costs of pipelines: 1 for a region's forward pass over a micro-batch, 1 for its target, its error and
    its update together; losses, synapses and optimisers cost nothing. What backpropagation spends on an input gradient
    beside its weight gradient is here the target."""
    units = {"forward": 1, "update": 1}
    learning = {region.id for region in tasks.plan.regions.regions if region.learns}

    def unit(task: Task) -> int:
        counts = task.region in learning and task.group != "inputs"
        return units.get(task.kind, 0) if counts else 0

    return replace(tasks, tasks=tuple(replace(task, cost=unit(task)) for task in tasks.tasks))
