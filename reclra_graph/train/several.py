"""The same run with several seeds, and what comes of them together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from reclra_graph.circumstances import circumstances, write_json
from reclra_graph.train.job import Job, trained
from reclra_graph.train.trainer import DIVERGED, PAUSED, SUMMARY, Result

Runner: TypeAlias = Callable[[Job, Sequence[int]], Iterable[Result]]
"""What trains a job with each of some seeds, and gives their results in the same order."""


@dataclass(frozen=True)
class Several:
    """The results of all seeds that were trained, in order, and what they come to."""

    results: tuple[Result, ...]
    summary: dict[str, Any]

    @property
    def whole(self) -> bool:
        """Whether every run came to its end, and none diverged."""
        return all(item.ended not in (DIVERGED, PAUSED) for item in self.results)


def one_by_one(job: Job, seeds: Sequence[int]) -> Iterable[Result]:
    """Each seed in its turn, in a folder of its own. A run that pauses is the last."""
    for seed in seeds:
        result = trained(job.of_seed(seed, several=True))
        yield result
        if result.ended == PAUSED:
            return


def with_seeds(job: Job, count: int, runner: Runner = one_by_one) -> Several:
    """Train with ``count`` seeds from the job's own on, and write what they come to into the job's folder.

    Raises as ``trained`` does; what was finished before is kept, and not trained again.
    """
    first = job.settings.seed
    seeds = list(range(first, first + count))
    results = tuple(runner(job, seeds))
    summary = {
        **circumstances(job.command),
        "seeds": seeds,
        "runs": [{"seed": seed, **_told(result)} for seed, result in zip(seeds, results, strict=False)],
        **{name: spread([getattr(item, name) for item in results]) for name in ("error", "test_error", "train_error")},
    }
    write_json(job.folder / SUMMARY, summary)
    return Several(results, summary)


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample) of those that are numbers, and how many these are."""
    known = [value for value in values if value is not None]
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {
        "mean": None if not known else round(statistics.fmean(known), 6),
        "sd": None if deviation is None else round(deviation, 6),
        "count": len(known),
    }


def _told(result: Result) -> dict[str, Any]:
    return {
        "folder": str(result.folder), "ended": result.ended, "steps": result.steps, "error": result.error,
        "best_step": result.best_step, "test_error": result.test_error, "train_error": result.train_error,
        "weights": result.summary["settings"].get("weights"),
    }  # fmt: skip
