"""How the tests look at refusals: the codes, and that every problem says where and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import reclra_graph as rg
from reclra_graph.errors import CODES


def refused(kind: type[rg.ReclraError], work: Callable[[], object], *codes: str) -> rg.ReclraError:
    """The error of ``kind`` that ``work`` raises, with exactly these codes."""
    with pytest.raises(kind) as error:
        work()
    assert error.value.codes == codes
    for problem in error.value.problems:
        assert problem.cause.strip()
        assert problem.place.strip(), problem
        assert problem.advice.strip()
        assert problem.name == CODES[problem.code][0]
        assert str(problem) in str(error.value)
    return error.value
