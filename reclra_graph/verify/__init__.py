"""Verifiers: what must hold of each value between two passes. ``verify`` picks the one for the value it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from reclra_graph.errors import VerificationError
from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.schedule import Schedule
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.verify.operators import operator_problems
from reclra_graph.verify.program import program_problems
from reclra_graph.verify.regions import region_problems
from reclra_graph.verify.schedule import schedule_problems
from reclra_graph.verify.tasks import task_problems
from reclra_graph.verify.wiring import wiring_problems

T = TypeVar("T")

_VERIFIERS: dict[type, Callable[[Any], Any]] = {
    OperatorGraph: operator_problems,
    RegionGraph: region_problems,
    WiringPlan: wiring_problems,
    TaskGraph: task_problems,
    Schedule: schedule_problems,
    StepProgram: program_problems,
}


def verify(value: T) -> T:
    """The value itself. Raises VerificationError with every broken invariant and its place."""
    problems = tuple(_VERIFIERS[type(value)](value))
    if problems:
        raise VerificationError(problems)
    return value
