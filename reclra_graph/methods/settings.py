"""Checks of the numbers that a method of its own takes: all that is wrong, as RG405."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reclra_graph.errors import Problem


def one_of(name: str, value: object, allowed: Sequence[object]) -> list[Problem]:
    """A choice."""
    if value in allowed and isinstance(value, type(allowed[0])):
        return []
    choices = ", ".join(repr(item) for item in allowed)
    return [Problem("RG405", f"{name} is {value!r}", name, f"Choose one of {choices}.")]


def above(name: str, value: object) -> list[Problem]:
    """A number above 0."""
    good = _number(value) and value > 0  # type: ignore[operator]
    return [] if good else [Problem("RG405", f"{name} is {value!r}", name, "Give a number above 0.")]


def at_least(name: str, value: object) -> list[Problem]:
    """A number of at least 0."""
    good = _number(value) and value >= 0  # type: ignore[operator]
    return [] if good else [Problem("RG405", f"{name} is {value!r}", name, "Give a number of at least 0.")]


def whole(name: str, value: object) -> list[Problem]:
    """A whole number of at least 0."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return [] if good else [Problem("RG405", f"{name} is {value!r}", name, "Give a whole number of at least 0.")]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
