"""Numbers over time, for pictures: one figure of every region, or of every edge, from looks in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reclra_graph.diagnostics.record import Look

_NAME = 34


@dataclass(frozen=True)
class Series:
    """The numbers of one region or edge at steps of training, None where there is none; one at least is a number."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float | None, ...]

    @property
    def last(self) -> float:
        """The last number."""
        return next(value for value in reversed(self.values) if value is not None)

    @property
    def short(self) -> str:
        """The name, or its end where it is long."""
        return self.name if len(self.name) <= _NAME else f"…{self.name[1 - _NAME :]}"

    @property
    def pieces(self) -> list[list[tuple[float, float]]]:
        """(step, number) in stretches without a gap."""
        found: list[list[tuple[float, float]]] = [[]]
        for step, value in zip(self.steps, self.values, strict=True):
            if value is None:
                found.append([])
            else:
                found[-1].append((step, value))
        return [piece for piece in found if piece]


@dataclass(frozen=True)
class Figure:
    """A figure of ``RegionLook``, or of ``EdgeLook`` where it is ``of_edges``. ``logarithmic``: its numbers are drawn
    as powers of ten. ``middle``: the number that means nothing either way; ``reach``: how far from it colours go, or as
    far as the numbers do."""

    name: str
    text: str
    of_edges: bool
    logarithmic: bool = False
    middle: float | None = None
    reach: float | None = None

    def said(self, value: float) -> str:
        """A number as it is drawn, in words."""
        return f"{10**value:.2g}" if self.logarithmic else f"{value:.3g}"

    def series(self, looks: Sequence[Look], steps: Sequence[float], most: int) -> list[Series]:
        """Of every region or edge that has a number at all; looks that are not among the first ``most`` places share
        them, and are averaged."""
        found: dict[str, list[float | None]] = {}
        names: dict[str, str] = {}
        for place, look in enumerate(looks):
            for item in look.edges if self.of_edges else look.regions:
                key = str(getattr(item, "id", item.name))
                names[key] = item.name if self.of_edges else f"r{key} {item.name}"
                value: float | None = getattr(item, self.name)
                if self.logarithmic and value is not None:
                    value = math.log10(value) if value > 0 else None
                found.setdefault(key, [None] * len(looks))[place] = value
        size = max(1, math.ceil(len(looks) / most))
        starts = range(0, len(looks), size)
        at = tuple(_mean(list(steps[start : start + size])) or 0.0 for start in starts)
        drawn = [
            Series(names[key], at, tuple(_mean(values[start : start + size]) for start in starts))
            for key, values in found.items()
        ]
        return [item for item in drawn if any(value is not None for value in item.values)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def spread(levels: Sequence[float], high: float, low: float, row: float) -> list[float]:
    """Levels for labels, as near as can be to those wanted, and never nearer than a row to each other."""
    order = sorted(range(len(levels)), key=lambda at: levels[at])
    placed: dict[int, float] = {}
    free = high
    for rank, at in enumerate(order):
        after = low - row * (len(order) - 1 - rank)  # what is left below must hold the others
        placed[at] = min(max(levels[at], free), max(after, free))
        free = placed[at] + row
    return [round(placed[at], 1) for at in range(len(levels))]
