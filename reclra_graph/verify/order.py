"""What must be ordered, and what a schedule orders: the happens-before relation."""

from __future__ import annotations

from collections.abc import Iterator

from reclra_graph.ir.schedule import Record, Run, Schedule, Wait
from reclra_graph.ir.tasks import TaskGraph


def conflicts(tasks: TaskGraph) -> Iterator[tuple[str, str, str]]:
    """(task, task, storage) for every two tasks that touch the same storage, one of them writing."""
    writers: dict[str, list[str]] = {}
    touching: dict[str, list[str]] = {}
    for task in tasks.tasks:
        for name in task.writes:
            writers.setdefault(name, []).append(task.name)
        for name in dict.fromkeys((*task.reads, *task.writes)):
            touching.setdefault(name, []).append(task.name)
    for name, written in writers.items():
        for writer in written:
            for other in touching[name]:
                if other != writer and (other not in written or writer < other):
                    yield writer, other, name


class HappensBefore:
    """For a schedule whose Waits follow their Records: which tasks are certainly done when a task starts.

    The sets are integers used as bit sets, so thousands of tasks are compared in milliseconds.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.bit = {task.name: 1 << index for index, task in enumerate(schedule.tasks.tasks)}
        self.before: dict[str, int] = {}
        self.done: dict[int, int] = {lane.id: 0 for lane in schedule.lanes}
        self.at: list[int] = []
        """For every action, the tasks certainly done on its lane when it is reached."""
        marks: dict[str, int] = {}
        for action in schedule.actions:
            lane = action.lane
            done = self.done.get(lane, 0)
            if isinstance(action, Wait) and not action.earlier:
                done |= marks.get(action.event, 0)
            self.at.append(done)
            if isinstance(action, Run):
                self.before[action.task] = done
                done |= self.bit.get(action.task, 0)
            elif isinstance(action, Record):
                marks[action.event] = done
            self.done[lane] = done

    def __call__(self, first: str, second: str) -> bool:
        """Whether ``first`` is certainly done when ``second`` starts."""
        return bool(self.before.get(second, 0) & self.bit.get(first, 0))
