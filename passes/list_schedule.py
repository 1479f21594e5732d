"""List scheduling of jobs with integer costs on identical lanes; the planner and the scheduler share it."""

from __future__ import annotations

import heapq
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


@dataclass(frozen=True)
class Placed:
    """Where and when a job runs."""

    lane: int
    start: int
    end: int


def list_schedule(jobs: Sequence[Job], lanes: int) -> dict[str, Placed]:
    """Place every job, greedily by (urgent, longest chain of jobs that wait for it, order given).

    A job whose ``near`` ran on a free lane goes there, which saves a hand-over; the others take the lowest free lanes.
    Jobs must be given in an order in which they can run.
    """
    by_name = {job.name: job for job in jobs}
    waits = {job.name: sum(1 for name in job.after if name in by_name) for job in jobs}
    followers: dict[str, list[str]] = {job.name: [] for job in jobs}
    for job in jobs:
        for name in job.after:
            if name in followers:
                followers[name].append(job.name)
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


def makespan(placed: Mapping[str, Placed]) -> int:
    """When the last job ends."""
    return max((item.end for item in placed.values()), default=0)


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
    """Lanes for the jobs that start now: first those whose near job's lane is free, then the rest in order."""
    left = list(free)
    pairs: list[tuple[str, int]] = []
    for name in chosen:
        near = placed.get(by_name[name].near)
        if near is not None and near.lane in left:
            left.remove(near.lane)
            pairs.append((name, near.lane))
    taken = {name for name, _ in pairs}
    pairs.extend((name, left.pop(0)) for name in chosen if name not in taken)
    return pairs
