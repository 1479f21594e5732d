"""Run a list of models, each in a process of its own with a limit on time and memory, and pick up where a run ended."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reclra_graph.bench import jobs
from reclra_graph.bench.jobs import Job, Limits, Progress, Row, row_path
from reclra_graph.bench.lists import Entry
from reclra_graph.errors import Problem

WORKER = ("-m", "reclra_graph.bench.worker")
_WATCH = 0.1  # seconds between two looks at the running processes


@dataclass(frozen=True)
class Settings:
    """``jobs``: models at a time; ``timeout``: seconds for each; ``memory``: GiB for each; ``seed`` of the weights, the
    inputs and the steps; ``work``: folder of the finished rows."""

    jobs: int = 1
    timeout: float = 900.0
    memory: float = 12.0
    seed: int = 0
    work: Path = Path("build/zoo")
    fresh: bool = False

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the numbers."""
        return tuple(
            Problem("RG405", f"{name} is {value}", f"--{name}", "Give a number above 0.")
            for name, value in (("jobs", self.jobs), ("timeout", self.timeout), ("memory", self.memory))
            if value <= 0
        )

    @property
    def threads(self) -> int:
        """Threads of each process."""
        return max(1, (os.cpu_count() or 1) // self.jobs)


def run(entries: Sequence[Entry], settings: Settings, progress: Progress = lambda *_: None) -> list[Row]:
    """The rows of all entries, in their order. Finished rows are kept in ``settings.work`` and not made again, unless
    the package, a library, or the seed has changed since, or a limit ended them; ``settings.fresh`` makes all again.

    An interruption stops the processes that run and is passed on; what was finished is kept.
    """
    folder = settings.work / version(settings)
    limits = Limits(settings.jobs, settings.timeout, settings.memory * 2**30, settings.threads)
    work = [_job(entry, folder, settings) for entry in entries]
    return jobs.run(work, limits, lambda row: settings.fresh or _by_the_machine(row), progress, _WATCH)


def _job(entry: Entry, folder: Path, settings: Settings) -> Job:
    path = row_path(folder, entry.source, entry.name)
    numbers = (str(settings.seed), str(settings.threads), str(settings.memory))
    command = (*WORKER, entry.source, entry.name, str(jobs.partial(path)), *numbers)
    return Job(entry.name, {"source": entry.source, "name": entry.name}, path, command)


def _by_the_machine(row: Row) -> bool:
    """Whether time, memory or a lost process ended a row: with other limits it may come out otherwise."""
    return any(item.get("code") in Limits().codes for item in row.get("failures", ()))


def version(settings: Settings) -> str:
    """What a row depends on, as a short digest: the package's own files, the libraries' versions, the seed."""
    return jobs.stamp(settings.seed)
