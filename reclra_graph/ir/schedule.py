"""Schedule: which lane runs what, and where lanes wait for each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.ir.text import digest, register


@register
@dataclass(frozen=True)
class Lane:
    """A queue of work in order: a CUDA stream, on GPU number ``device`` of those asked for."""

    id: int
    device: int
    stream: int = 0


@register
@dataclass(frozen=True)
class Run:
    """Queue a task on a lane."""

    task: str
    lane: int


@register
@dataclass(frozen=True)
class Record:
    """Mark, on a lane, that everything queued there so far is done; named after the task it follows."""

    event: str
    lane: int


@register
@dataclass(frozen=True)
class Wait:
    """Make a lane wait for an event of another lane."""

    event: str
    lane: int


@register
@dataclass(frozen=True)
class Copy:
    """Bring a value that lane ``source`` made to the device of ``lane``; nothing to do where they share one."""

    value: str
    source: int
    lane: int


@register
@dataclass(frozen=True)
class Free:
    """Forget values; every reader is known to be done."""

    values: tuple[str, ...]
    lane: int


Action: TypeAlias = Run | Record | Wait | Copy | Free


@register
@dataclass(frozen=True)
class Slot:
    """When a group of tasks runs, as predicted; in the schedule's ``clock``."""

    group: str
    lane: int
    start: int
    end: int


@register
@dataclass(frozen=True)
class Schedule:
    """Actions in host order, and the predicted times. Lane 0 runs the forward pass and joins all others."""

    tasks: TaskGraph
    lanes: tuple[Lane, ...]
    actions: tuple[Action, ...]
    slots: tuple[Slot, ...]
    makespan: int
    waves: tuple[tuple[tuple[int, int], ...], ...] = ()
    """For each level of the wiring below the output: (region, lane) of the targets computed there."""
    clock: str = "unit"
    """What times count: ``"unit"`` (a target and an update cost 1 each) or ``"ns"``."""
    peak: tuple[int, ...] = ()
    """Predicted peak memory in bytes, at the example batch, of every device in order; empty where not predicted."""

    @property
    def digest(self) -> str:
        """Of the plan and the schedule; the predicted memory, which another PyTorch may see otherwise, is no part."""
        return digest(replace(self, peak=()))
