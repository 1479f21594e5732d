"""Jobs → the best schedule that is known for them: list scheduling, and for few jobs a search among all schedules.

Before:  jobs with integer costs, on identical lanes.
After:   the list schedule; where it is longer than the lower bound and there are few jobs, a shorter one if a search
         finds it. The search places jobs in the order of their starts, each as early as it can be (one of these
         schedules is the best), leaves out what cannot end in time, and is bounded by a count of steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from reclra_graph.passes.list_schedule import Job, Placed, anywhere, list_schedule, lower_bound, makespan

_JOBS = 24
_STEPS = 4000

Free = tuple[tuple[int, int], ...]
"""(free from, lane) of every lane."""
Waiting = tuple[tuple[int, int], ...]
"""(job, earliest start) of jobs that may start, or that wait for some of those before them."""


def best_schedule(jobs: Sequence[Job], lanes: int, devices: Sequence[int] = ()) -> dict[str, Placed]:
    """``list_schedule``, made shorter where there are few jobs, any lane will do, and hand-overs are free."""
    placed = list_schedule(jobs, lanes, devices)
    bound = lower_bound(jobs, lanes)
    if len(jobs) > _JOBS or not anywhere(jobs):
        return placed
    search = _Search(jobs, min(lanes, len(jobs)))
    while makespan(placed) > bound:
        found = search.within(makespan(placed) - 1)
        if found is None:
            break
        placed = found
    return placed


class _Search:
    def __init__(self, jobs: Sequence[Job], lanes: int) -> None:
        self.jobs, self.lanes, self.steps = jobs, lanes, 0
        place = {job.name: index for index, job in enumerate(jobs)}
        self.before = [[place[name] for name in job.after if name in place] for job in jobs]
        self.behind: list[list[int]] = [[] for _ in jobs]
        for index, before in enumerate(self.before):
            for other in before:
                self.behind[other].append(index)
        self.near = [place.get(job.near, -1) for job in jobs]
        self.tail = [job.cost for job in jobs]
        for index in range(len(jobs) - 1, -1, -1):
            self.tail[index] += max((self.tail[other] for other in self.behind[index]), default=0)

    def within(self, limit: int) -> dict[str, Placed] | None:
        """A schedule that ends by ``limit``; None where there is none, or the steps are used up."""
        self.limit = limit
        self.failed: set[tuple[int, tuple[int, ...], Waiting, Waiting]] = set()
        self.placed: dict[int, Placed] = {}
        first = tuple((index, 0) for index, before in enumerate(self.before) if not before)
        free = tuple((0, lane) for lane in range(self.lanes))
        if not self._visit(0, free, first, (), sum(job.cost for job in self.jobs), 0):
            return None
        order = sorted(self.placed, key=lambda index: (self.placed[index].start, self.placed[index].end, index))
        return {self.jobs[index].name: self.placed[index] for index in order}

    def _visit(self, now: int, free: Free, ready: Waiting, soon: Waiting, left: int, done: int) -> bool:
        """Place the jobs that are left, none of which starts before ``now``."""
        if not ready:
            return True
        self.steps += 1
        times = tuple(sorted(max(time, now) for time, _ in free))
        if self.steps > _STEPS or sum(max(0, self.limit - time) for time in times) < left:
            return False
        starts = tuple(sorted((index, max(release, times[0])) for index, release in ready))
        if any(start + self.tail[index] > self.limit for index, start in starts):
            return False
        key = (done, times, starts, soon)
        if key in self.failed:
            return False
        tried: set[tuple[int, int]] = set()
        for index, start in sorted(starts, key=lambda item: (item[1], -self.tail[item[0]], item[0])):
            job = self.jobs[index]
            if not self.behind[index]:
                if (job.cost, start) in tried:
                    continue  # as good as the one before: nothing waits for either
                tried.add((job.cost, start))
            end = start + job.cost
            released, waiting = self._released(index, end, soon, done | 1 << index)
            lane = self._lane(index, start, free)
            self.placed[index] = Placed(lane, start, end)
            rest = (*(item for item in ready if item[0] != index), *released)
            after = tuple((end, lane) if item[1] == lane else item for item in free)
            if self._visit(start, after, rest, waiting, left - job.cost, done | 1 << index):
                return True
            del self.placed[index]
        self.failed.add(key)
        return False

    def _released(self, index: int, end: int, soon: Waiting, done: int) -> tuple[Waiting, Waiting]:
        """(jobs that may start now, jobs that still wait) once a job is placed."""
        earliest = dict(soon)
        for other in self.behind[index]:
            earliest[other] = max(earliest.get(other, 0), end)
        free = {other for other in self.behind[index] if all(done >> item & 1 for item in self.before[other])}
        released = tuple((other, earliest[other]) for other in sorted(free))
        return released, tuple(sorted(item for item in earliest.items() if item[0] not in free))

    def _lane(self, index: int, start: int, free: Free) -> int:
        """A lane that is free by then: that of the job it would like to be near, else the lowest."""
        open_lanes = [lane for time, lane in free if time <= start]
        near = self.placed.get(self.near[index])
        return near.lane if near is not None and near.lane in open_lanes else min(open_lanes)
