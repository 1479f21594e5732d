"""List scheduling of jobs with integer costs on identical lanes; the planner and the scheduler share it.

Two lists are tried. The first is greedy in time: urgent jobs before the rest, longest chain first. The second is HEFT
(Topcuoglu, Hariri, Wu 2002): by upward rank, each job where it ends earliest, hand-overs between lanes and gaps that
were left open included. The first is right where hand-overs are free and reaches the best makespan in most cases, and
then nothing else is tried; where a hand-over costs something it does not know of it, and HEFT alone is asked. A
schedule is never longer than all jobs on one lane.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A job: what it must wait for, what it costs, and the job whose lane it would like to share."""

    name: str
    cost: int
    after: tuple[str, ...] = ()
    urgent: bool = True
    """Urgent jobs (targets: others wait for them) go before the rest (updates: nobody waits for them)."""
    near: str = ""
    transfer: tuple[int, ...] = ()
    """For every name in ``after``, what it costs to bring its result to another device; nothing where left out."""
    lane: int | None = None
    """The lane that it must run on, if any."""


@dataclass(frozen=True)
class Placed:
    """Where and when a job runs."""

    lane: int
    start: int
    end: int


def list_schedule(jobs: Sequence[Job], lanes: int, devices: Sequence[int] = ()) -> dict[str, Placed]:
    """Place every job on one of ``lanes`` lanes, such that no job starts before those it waits for have ended.

    Jobs must be given in an order in which they can run. ``devices`` holds the device of every lane (one for each, if
    left out): nothing is handed over inside a device. The placed jobs come back by the time at which they start.
    """
    if all(job.lane is None for job in jobs) and not any(any(job.transfer) for job in jobs):
        placed = _greedy(jobs, lanes)
        return placed if makespan(placed) <= lower_bound(jobs, lanes) else min(placed, _heft(jobs, lanes), key=makespan)
    spread = _heft(jobs, lanes, devices)
    if all(job.lane is None for job in jobs):
        spread = min(spread, _heft(jobs, 1), key=makespan)
    return spread


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
    """Place every job as soon as a lane is free, by (urgent, longest chain of jobs that wait for it, order given).

    A job whose ``near`` ran on a free lane goes there, which saves a hand-over; the others take the lowest free lanes.
    """
    by_name = {job.name: job for job in jobs}
    waits = {job.name: sum(1 for name in job.after if name in by_name) for job in jobs}
    followers = _followers(jobs)
    chain = _chains(jobs, followers)
    order = {job.name: (not job.urgent, -chain[job.name], index) for index, job in enumerate(jobs)}
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
    all pairs of lanes.
    """
    device = devices or range(lanes)
    apart = sum(one != other for one in device for other in device)
    followers = _followers(jobs)
    by_name = {job.name: job for job in jobs}
    costs = {
        (name, job.name): cost
        for job in jobs
        for name, cost in zip(job.after, job.transfer or (0,) * len(job.after), strict=True)
    }
    rank: dict[str, int] = {}
    for job in reversed(jobs):
        behind = (costs[job.name, name] * apart // (lanes * lanes) + rank[name] for name in followers[job.name])
        rank[job.name] = job.cost + max(behind, default=0)
    place = {job.name: index for index, job in enumerate(jobs)}
    placed: dict[str, Placed] = {}
    busy: list[list[tuple[int, int]]] = [[] for _ in range(lanes)]
    for job in sorted(jobs, key=lambda item: (-rank[item.name], place[item.name])):
        near = placed[job.near].lane if job.near in placed else -1
        best: tuple[int, bool, int, int] | None = None
        for lane in range(lanes) if job.lane is None else (job.lane,):
            ready = 0
            for name in job.after:
                if name in by_name:
                    other = placed[name]
                    over = costs[name, job.name] if device[other.lane] != device[lane] else 0
                    ready = max(ready, other.end + over)
            start = _gap(busy[lane], ready, job.cost)
            found = (start + job.cost, lane != near, lane, start)
            best = found if best is None else min(best, found)
        assert best is not None
        end, _, lane, start = best
        placed[job.name] = Placed(lane, start, end)
        if job.cost:
            insort(busy[lane], (start, end))
    order = sorted(placed, key=lambda name: (placed[name].start, placed[name].end, -rank[name], place[name]))
    return {name: placed[name] for name in order}


def _gap(busy: Sequence[tuple[int, int]], ready: int, cost: int) -> int:
    """The earliest time, from ``ready`` on, at which a lane is free for ``cost``."""
    start = ready
    for begin, end in busy:
        if start + cost <= begin:
            break
        start = max(start, end)
    return start
