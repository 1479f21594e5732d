"""How the tests of the verifiers break a good value and look at what is said about it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

import reclra_graph as rg
from reclra_graph.ir.operators import OperatorGraph
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.schedule import Schedule
from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.ir.wiring import WiringPlan
from reclra_graph.verify import verify
from tests.models import figure1


def problems(value: Any) -> tuple[rg.Problem, ...]:
    with pytest.raises(rg.VerificationError) as error:
        verify(value)
    return error.value.problems


def assert_named(value: Any, place: str, cause: str) -> None:
    """Some problem says ``cause`` at ``place`` (both patterns); all have a cause, a place and a remedy."""
    found = problems(value)
    assert all(problem.cause and problem.place and problem.advice for problem in found)
    assert any(re.search(place, problem.place) and re.search(cause, problem.cause) for problem in found), [
        str(p) for p in found
    ]


def with_one(items: tuple[Any, ...], index: int, **changes: Any) -> tuple[Any, ...]:
    return (*items[:index], replace(items[index], **changes), *items[index + 1 :])


def schedule() -> Schedule:
    return figure1().schedule


def tasks() -> TaskGraph:
    return schedule().tasks


def plan() -> WiringPlan:
    return tasks().plan


def regions() -> RegionGraph:
    return plan().regions


def graph() -> OperatorGraph:
    return regions().graph
