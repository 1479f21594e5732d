"""Lines on the page as points and as SVG path data. Lengths are in pixels, y grows downwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from reclra_graph.export.layout import number

Point: TypeAlias = tuple[float, float]

MOST_TRACKS = 14


@dataclass(frozen=True)
class Line:
    """All lines of one source. ``depth`` 0 is forward; ``heads`` are (x, y, direction), direction one of ``<>v``."""

    source: int
    depth: int
    data: str
    heads: tuple[tuple[float, float, str], ...]


def tracks(spans: Sequence[tuple[float, float]], most: int = MOST_TRACKS) -> list[int]:
    """First track on which each span meets no earlier one; beyond ``most`` the last track is shared."""
    taken: list[list[tuple[float, float]]] = []
    found = []
    for low, high in spans:
        free = (at for at, others in enumerate(taken) if all(high < one - 2 or low > two + 2 for one, two in others))
        at = next(free, min(len(taken), most - 1))
        if at == len(taken):
            taken.append([])
        taken[at].append((low, high))
        found.append(at)
    return found


def head(points: Sequence[Point]) -> tuple[float, float, str]:
    """Where a line ends and which way it points there."""
    (x1, y1), (x2, y2) = points[-2:]
    return (x2, y2, "v" if abs(x1 - x2) < 0.1 and y2 > y1 else ">" if x2 > x1 else "<")


def polyline(points: Iterable[Point]) -> str:
    """Path data through points, without repeats."""
    data: list[str] = []
    last: Point | None = None
    for x, y in points:
        if last is None:
            data.append(f"M{number(x)} {number(y)}")
        elif abs(x - last[0]) < 0.05 and abs(y - last[1]) < 0.05:
            continue
        else:
            data.append(
                f"V{number(y)}"
                if abs(x - last[0]) < 0.05
                else f"H{number(x)}"
                if abs(y - last[1]) < 0.05
                else f"L{number(x)} {number(y)}"
            )
        last = (x, y)
    return "".join(data)


def merged(ways: Iterable[Sequence[Point]]) -> str:
    """Path data that covers orthogonal lines once each: shared stretches are not drawn again, so dashes stay dashes."""
    level: dict[float, list[Point]] = {}
    upright: dict[float, list[Point]] = {}
    for points in ways:
        for (x1, y1), (x2, y2) in pairwise(points):
            if abs(y1 - y2) < 0.05 and abs(x1 - x2) >= 0.05:
                level.setdefault(round(y1, 1), []).append((min(x1, x2), max(x1, x2)))
            elif abs(x1 - x2) < 0.05 and abs(y1 - y2) >= 0.05:
                upright.setdefault(round(x1, 1), []).append((min(y1, y2), max(y1, y2)))
    parts = []
    for along, table in (("H", level), ("V", upright)):
        for at in sorted(table):
            low, high = -1.0, -2.0
            for start, end in [*sorted(table[at]), (float("inf"), float("inf"))]:
                if start <= high:
                    high = max(high, end)
                    continue
                if high >= low:
                    first = f"{number(low)} {number(at)}" if along == "H" else f"{number(at)} {number(low)}"
                    parts.append(f"M{first}{along}{number(high)}")
                low, high = start, end
    return "".join(parts)
