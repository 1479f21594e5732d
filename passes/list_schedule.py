"""List scheduling of jobs with integer costs on identical lanes; the planner and the scheduler share it.

Two lists are tried. The first is greedy in time: urgent jobs before the rest, longest chain first. The second is HEFT
(Topcuoglu, Hariri, Wu 2002): by upward rank, each job where it ends earliest, hand-overs between lanes and gaps that
were left open included. The first is right where hand-overs are free and reaches the best makespan in most cases, and
then nothing else is tried; where a hand-over costs something it does not know of it, and HEFT alone is asked. A
schedule is never longer than all jobs on one lane.

A lane fetches what its next job reads from other devices itself, one value after the other, and once: this is what the
emitted step does, and what ``timetable`` says of it.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NEVER = 1 << 62
"""Later than anything."""


@dataclass(frozen=True)
class Job:
    """A job: what it must wait for, what it costs, and the job whose lane it would like to share."""

    name: str
    cost: int
    after: tuple[str, ...] = ()
    urgent: bool = True
    """Urgent jobs (targets: others wait for them) go before the rest (updates: nobody waits for them)."""
    near: str = ""
    reads: tuple[tuple[str, str, int], ...] = ()
    """(value, the job in ``after`` that makes it, what it costs to fetch it from another device), each value once."""
    lane: int | None = None
    """The lane that it must run on, if any."""
    beside: str = ""
    """The job in ``after`` whose lane it must run on, if any; heeded where hand-overs cost something."""

    @property
    def pinned(self) -> bool:
        """Whether it cannot run on any lane."""
        return self.lane is not None or bool(self.beside)


@dataclass(frozen=True)
class Placed:
    """Where and when a job runs, what it fetches first included."""

    lane: int
    start: int
    end: int


def list_schedule(jobs: Sequence[Job], lanes: int, devices: Sequence[int] = ()) -> dict[str, Placed]:
    """Place every job on one of ``lanes`` lanes, such that no job starts before those it waits for have ended.

    Jobs must be given in an order in which they can run. ``devices`` holds the device of every lane (one for each, if
    left out): nothing is handed over inside a device. The placed jobs come back by the time at which they start.
    """
    if anywhere(jobs):
        placed = _greedy(jobs, lanes)
        return placed if makespan(placed) <= lower_bound(jobs, lanes) else min(placed, _heft(jobs, lanes), key=makespan)
    spread = _heft(jobs, lanes, devices)
    if not any(job.lane for job in jobs) and sum(job.cost for job in jobs) < makespan(spread):
        return _heft(jobs, 1)  # nothing is handed over on lane 0
    return spread


def anywhere(jobs: Sequence[Job]) -> bool:
    """Whether every job may run on any lane, and hand-overs are free."""
    return not any(job.pinned or any(cost for *_, cost in job.reads) for job in jobs)


def makespan(placed: Mapping[str, Placed]) -> int:
    """When the last job ends."""
    return max((item.end for item in placed.values()), default=0)


def lower_bound(jobs: Sequence[Job], lanes: int) -> int:
    """What no schedule on this many lanes is shorter than: the longest chain, and all the work shared out evenly."""
    done: dict[str, int] = {}
    for job in jobs:
        done[job.name] = job.cost + max((done[name] for name in job.after if name in done), default=0)
    return max(max(done.values(), default=0), -(-sum(job.cost for job in jobs) // max(1, lanes)))


# -- greedy in time --------------------------------------------------------------------------------------------------


def _greedy(jobs: Sequence[Job], lanes: int) -> dict[str, Placed]:
    """Place every job as soon as a lane is free, by (urgent, longest chain of jobs that wait for it, order given); on
    one lane in the order given, but for jobs that are not urgent, which come right behind what they are near.

    A job whose ``near`` ran on a free lane goes there, which saves a hand-over; the others take the lowest free lanes.
    """
    by_name = {job.name: job for job in jobs}
    waits = {job.name: sum(1 for name in job.after if name in by_name) for job in jobs}
    followers = _followers(jobs)
    chain = _chains(jobs, followers)
    place = {job.name: index for index, job in enumerate(jobs)}
    order = {job.name: (int(not job.urgent), -chain[job.name], place[job.name]) for job in jobs}
    if lanes == 1:  # no order takes longer than another: whoever lets go of memory, an update, follows its target
        order = {job.name: (place.get(job.near, NEVER), 1, place[job.name]) for job in jobs if not job.urgent}
        order |= {job.name: (place[job.name], 0, 0) for job in jobs if job.urgent}
    ready = [(order[job.name], job.name) for job in jobs if waits[job.name] == 0]
    heapq.heapify(ready)
    running: list[tuple[int, str]] = []
    free = list(range(min(lanes, len(jobs))))
    placed: dict[str, Placed] = {}
    now = 0
    while ready or running:
        chosen = [heapq.heappop(ready)[1] for _ in range(min(len(ready), len(free)))]
        for name, lane in _assign(chosen, free, by_name, placed):
            free.remove(lane)
            placed[name] = Placed(lane, now, now + by_name[name].cost)
            heapq.heappush(running, (now + by_name[name].cost, name))
        now = running[0][0]
        while running and running[0][0] == now:
            _, name = heapq.heappop(running)
            heapq.heappush(free, placed[name].lane)
            for follower in followers[name]:
                waits[follower] -= 1
                if waits[follower] == 0:
                    heapq.heappush(ready, (order[follower], follower))
        free.sort()
    return placed


def _followers(jobs: Sequence[Job]) -> dict[str, list[str]]:
    followers: dict[str, list[str]] = {job.name: [] for job in jobs}
    for job in jobs:
        for name in job.after:
            if name in followers:
                followers[name].append(job.name)
    return followers


def _chains(jobs: Sequence[Job], followers: Mapping[str, list[str]]) -> dict[str, int]:
    """Cost of the longest chain of urgent jobs that starts with each job."""
    cost = {job.name: job.cost if job.urgent else 0 for job in jobs}
    longest: dict[str, int] = {}
    for job in reversed(jobs):
        longest[job.name] = cost[job.name] + max((longest[name] for name in followers[job.name]), default=0)
    return longest


def _assign(
    chosen: Sequence[str], free: Sequence[int], by_name: Mapping[str, Job], placed: Mapping[str, Placed]
) -> list[tuple[str, int]]:
    """Lanes for the jobs that start now, such that as many as possible follow a job they wait for on its own lane.

    That is a maximum matching of jobs and free lanes. It grows from the pairs of jobs and the lanes of their ``near``
    by augmenting paths, in which no job that has found its kin loses it; the rest take the lowest lanes in order.
    """
    holder: dict[int, str] = {}
    for name in chosen:
        near = placed.get(by_name[name].near)
        if near is not None and near.lane in free and near.lane not in holder:
            holder[near.lane] = name
    kin = {
        name: [lane for lane in free if any(o in placed and placed[o].lane == lane for o in by_name[name].after)]
        for name in chosen
    }

    def settle(name: str, tried: set[int]) -> bool:
        for lane in kin[name]:
            if lane not in tried:
                tried.add(lane)
                if lane not in holder or settle(holder[lane], tried):
                    holder[lane] = name
                    return True
        return False

    for name in chosen:
        if name not in holder.values():
            settle(name, set())
    lane_of = {name: lane for lane, name in holder.items()}
    left = [lane for lane in free if lane not in holder]
    return [(name, lane_of[name]) for name in chosen if name in lane_of] + [
        (name, left.pop(0)) for name in chosen if name not in lane_of
    ]


# -- HEFT ------------------------------------------------------------------------------------------------------------


def _heft(jobs: Sequence[Job], lanes: int, devices: Sequence[int] = ()) -> dict[str, Placed]:
    """Place every job by upward rank, where it ends earliest; of lanes that are equal, its ``near``'s, or the lowest.

    The upward rank is the cost of the costliest chain that starts with a job; a hand-over counts with its mean over
    all pairs of lanes. A job may fill a gap in front of one that fetches the same value; the times are then worked out
    again, with every value fetched where it is read first.
    """
    device = devices or range(lanes)
    apart = sum(one != other for one in device for other in device)
    followers = _followers(jobs)
    by_name = {job.name: job for job in jobs}
    costs: dict[tuple[str, str], int] = {}
    for job in jobs:
        for _, name, cost in job.reads:
            costs[name, job.name] = costs.get((name, job.name), 0) + cost
    rank: dict[str, int] = {}
    for job in reversed(jobs):
        behind = (
            costs.get((job.name, name), 0) * apart // (lanes * lanes) + rank[name] for name in followers[job.name]
        )
        rank[job.name] = job.cost + max(behind, default=0)
    place = {job.name: index for index, job in enumerate(jobs)}
    placed: dict[str, Placed] = {}
    busy: list[list[tuple[int, int]]] = [[] for _ in range(lanes)]
    held: list[dict[str, int]] = [{} for _ in range(lanes)]
    for job in sorted(jobs, key=lambda item: (-rank[item.name], place[item.name])):
        near = placed[job.near].lane if job.near in placed else -1
        best: tuple[int, bool, int, int] | None = None
        ready = max((placed[name].end for name in job.after if name in by_name), default=0)
        origin = [(value, device[placed[name].lane], cost) for value, name, cost in job.reads]
        for lane in _lanes(job, lanes, placed):
            at, here = device[lane], held[lane]
            # (cost, time from which the lane holds it) of what comes from elsewhere
            fetched = [(cost, here.get(value, NEVER)) for value, home, cost in origin if home != at]
            start, end = _gap(busy[lane], ready, job.cost, fetched)
            found = (end, lane != near, lane, start)
            best = found if best is None else min(best, found)
        assert best is not None
        end, _, lane, start = best
        placed[job.name] = Placed(lane, start, end)
        here = held[lane]
        for value, _, _ in origin:
            here[value] = min(end, here.get(value, end))
        if end > start:
            insort(busy[lane], (start, end))
    order = sorted(placed, key=lambda name: (placed[name].start, placed[name].end, -rank[name], place[name]))
    return _timed({name: by_name[name] for name in order}, placed, device) if costs else {n: placed[n] for n in order}


def _lanes(job: Job, lanes: int, placed: Mapping[str, Placed]) -> Sequence[int]:
    """Where a job may run."""
    if job.beside:
        return (placed[job.beside].lane,)
    return range(lanes) if job.lane is None else (job.lane,)


def _gap(busy: Sequence[tuple[int, int]], ready: int, cost: int, fetched: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(start, end) of a job where a lane first has room for it, from ``ready`` on. ``fetched``: what each value from
    elsewhere costs, and the time from which the lane holds it."""
    start, end = ready, _end(ready, cost, fetched)
    for begin, until in busy:
        if end <= begin:
            break
        if until > start:
            start, end = until, _end(until, cost, fetched)
    return start, end


def _end(start: int, cost: int, fetched: Sequence[tuple[int, int]]) -> int:
    """When a job ends that starts with what its lane does not hold by then."""
    for over, since in fetched:
        if since > start:
            cost += over
    return start + cost


def _timed(jobs: Mapping[str, Job], placed: Mapping[str, Placed], device: Sequence[int]) -> dict[str, Placed]:
    """The same jobs on the same lanes in the same order, each as early as it can be."""
    found: dict[str, Placed] = {}
    free: dict[int, int] = {}
    held: dict[int, set[str]] = {}
    for name, job in jobs.items():
        lane = placed[name].lane
        here = held.setdefault(lane, set())
        start = max([free.get(lane, 0), *(found[other].end for other in job.after if other in found)])
        end = start + job.cost
        for value, maker, cost in job.reads:
            if device[found[maker].lane] != device[lane] and value not in here:
                here.add(value)
                end += cost
        found[name] = Placed(lane, start, end)
        free[lane] = end
    return dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))
