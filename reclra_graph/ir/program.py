"""StepProgram: the training step as Python source."""

from __future__ import annotations

from dataclasses import dataclass

from reclra_graph.ir.schedule import Schedule
from reclra_graph.ir.text import register


@register
@dataclass(frozen=True)
class StepProgram:
    """The emitted file. ``lines`` maps every task to the number of its first line (1-based) in ``source``;
    ``digest`` is of the plan and the schedule, and is printed in the file itself."""

    schedule: Schedule
    source: str
    lines: tuple[tuple[str, int], ...]
    digest: str
