"""Coordinates for the boxes of one panel, and for the panels on the page. Lengths are in pixels.

Inside a panel the boxes stand in rows by longest path (a short branch waits until it is needed), chains stand
straight, and a wire over several rows gets a column of its own. Every step is linear in rows times columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

BOX_WIDTH, BOX_HEIGHT = 94.0, 24.0
ROW = 44.0
DOT = 5.0
ENTRY = ""
"""Name of the dot at which a panel's input arrives."""

_GAP = 20.0
_WIRE_GAP = 13.0
_SWEEPS = 12

_Cell = tuple[str, int]
"""A box (its name, -1), or the passage of a box's wire through a row (the box's name, the row)."""


@dataclass(frozen=True)
class Inner:
    """Boxes of one panel: centres, rows, SVG path data of the wires, arrowheads (x, y, pointing down), and the size.
    The origin is the upper left corner of the content."""

    spots: dict[str, tuple[float, float]]
    rows: dict[str, int]
    paths: tuple[str, ...]
    heads: tuple[tuple[float, float], ...]
    width: float
    height: float

    def free(self, name: str, side: int) -> bool:
        """Whether a horizontal line reaches the box from the left (-1) or right (1) without crossing another box."""
        here = self.spots[name][0]
        return not any(
            row == self.rows[name] and (self.spots[other][0] - here) * side > 0
            for other, row in self.rows.items()
            if other not in (name, ENTRY)
        )


@dataclass
class _Net:
    """The layered graph while it is being laid out."""

    layer: dict[str, int]
    cells: dict[_Cell, int] = field(default_factory=dict)
    below: dict[_Cell, list[_Cell]] = field(default_factory=dict)
    above: dict[_Cell, list[_Cell]] = field(default_factory=dict)

    def join(self, upper: _Cell, lower: _Cell) -> None:
        """Connect two cells of neighbouring rows."""
        self.below[upper].append(lower)
        self.above[lower].append(upper)


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def arrange(names: Sequence[str], wires: Sequence[tuple[str, str]], fed: Sequence[str]) -> Inner:
    """Lay out one panel. ``names`` come in an order in which they can run, ``wires`` connect them, ``fed`` are the
    boxes that read something from outside: they hang on a dot at the top."""
    nodes = [ENTRY, *names] if fed else list(names)
    pairs = [(ENTRY, name) for name in dict.fromkeys(fed)] + list(dict.fromkeys(wires))
    net = _cells(nodes, pairs, _layers(nodes, pairs))
    runs = _runs(net)
    centre = _columns(net, runs)
    shift = min(centre[cell] - _width(cell) / 2 for cell in net.cells)
    rows = {name: net.layer[name] for name in nodes}
    only_dot = [name for name in nodes if rows[name] == 0] == [ENTRY]

    def y_of(row: int) -> float:
        if only_dot:
            return row * ROW + 2 if row else DOT
        return row * ROW + BOX_HEIGHT / 2 + 14

    spots = {name: (centre[(name, -1)] - shift, y_of(rows[name])) for name in nodes}
    paths, heads = _wires(net, {cell: centre[cell] - shift for cell in net.cells}, y_of, pairs)
    width = max(centre[cell] + _width(cell) / 2 for cell in net.cells) - shift
    return Inner(spots, rows, paths, heads, width, y_of(max(rows.values())) + BOX_HEIGHT / 2)


def _layers(nodes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Row of every node: its longest path from the top, then as late as its readers allow where that saves wire."""
    above: dict[str, list[str]] = {name: [] for name in nodes}
    below: dict[str, list[str]] = {name: [] for name in nodes}
    for source, name in pairs:
        above[name].append(source)
        below[source].append(name)
    layer: dict[str, int] = {}
    for name in nodes:
        layer[name] = max((layer[source] + 1 for source in above[name]), default=0)
    for name in reversed(nodes):
        if name != ENTRY and below[name] and len(above[name]) <= len(below[name]):
            layer[name] = min(layer[reader] for reader in below[name]) - 1
    lowest = min(layer.values())
    return {name: row - lowest for name, row in layer.items()}


def _cells(nodes: Sequence[str], pairs: Sequence[tuple[str, str]], layer: dict[str, int]) -> _Net:
    """Add the passages of long wires; all wires of one source share theirs."""
    net = _Net(layer)
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for source, name in pairs:
        readers[source].append(name)
    for name in nodes:
        for row in (-1, *range(layer[name] + 1, max((layer[reader] for reader in readers[name]), default=0))):
            cell = (name, row)
            net.cells[cell] = layer[name] if row < 0 else row
            net.below[cell], net.above[cell] = [], []
    for name in nodes:
        before: _Cell = (name, -1)
        for row in range(layer[name] + 1, max((layer[reader] for reader in readers[name]), default=0)):
            net.join(before, (name, row))
            before = (name, row)
        for reader in readers[name]:
            last = layer[reader] - 1
            net.join((name, -1) if last == layer[name] else (name, last), (reader, -1))
    return net


def _runs(net: _Net) -> list[list[_Cell]]:
    """Cells that stand in one straight column, ordered from left to right."""
    run_of: dict[_Cell, int] = {}
    runs: list[list[_Cell]] = []
    for cell in sorted(net.cells, key=lambda item: net.cells[item]):
        above = net.above[cell]
        passing = cell[1] >= 0 and len(above) == 1 and above[0][1] >= 0
        if passing or (len(above) == 1 and len(net.below[above[0]]) == 1):
            run_of[cell] = run_of[above[0]]
            runs[run_of[cell]].append(cell)
        else:
            run_of[cell] = len(runs)
            runs.append([cell])
    boxes = [sum(cell[1] < 0 for cell in run) for run in runs]
    key: dict[int, float] = {}
    waiting = sorted(range(len(runs)), key=lambda at: net.cells[runs[at][0]])
    for at in waiting:
        # Depth first, the branch with the fewest boxes at the left: a skip runs left of what it skips.
        stack = [at]
        while stack:
            here = stack.pop()
            if here in key:
                continue
            key[here] = float(len(key))
            after = {run_of[lower] for cell in runs[here] for lower in net.below[cell]} - key.keys()
            stack.extend(sorted(after, key=lambda item: (-boxes[item], -item)))
    near = [
        sorted({run_of[other] for cell in run for other in (*net.above[cell], *net.below[cell])} - {at})
        for at, run in enumerate(runs)
    ]
    for _ in range(4):
        mean = {at: sum(key[other] for other in near[at]) / len(near[at]) if near[at] else key[at] for at in key}
        order = sorted(key, key=lambda at: (round(mean[at], 6), boxes[at], key[at]))
        key = {at: float(place) for place, at in enumerate(order)}
    return [runs[at] for at in sorted(key, key=lambda at: key[at])]


def _width(cell: _Cell) -> float:
    return 2.0 if cell[1] >= 0 else 2 * DOT if cell[0] == ENTRY else BOX_WIDTH


def _gap(left: _Cell, right: _Cell) -> float:
    space = _GAP if left[1] < 0 and right[1] < 0 else _WIRE_GAP
    return (_width(left) + _width(right)) / 2 + space


def _columns(net: _Net, runs: list[list[_Cell]]) -> dict[_Cell, float]:
    """x of every cell: pushed apart in rows, then pulled towards the middle of their neighbours."""
    run_of = {cell: at for at, run in enumerate(runs) for cell in run}
    rows: dict[int, list[_Cell]] = {}
    for run in runs:
        for cell in run:
            rows.setdefault(net.cells[cell], []).append(cell)
    apart: list[dict[int, float]] = [{} for _ in runs]
    right_of: list[dict[int, float]] = [{} for _ in runs]
    for row in rows.values():
        for left, right in pairwise(row):
            one, two = run_of[left], run_of[right]
            space = max(apart[two].get(one, 0.0), _gap(left, right))
            apart[two][one] = right_of[one][two] = space
    x = [0.0] * len(runs)
    for at in range(len(runs)):
        x[at] = max((x[left] + space for left, space in apart[at].items()), default=0.0)
    near = [
        [run_of[other] for cell in run for other in (*net.above[cell], *net.below[cell]) if run_of[other] != at]
        for at, run in enumerate(runs)
    ]
    order = list(range(len(runs)))
    for sweep in range(_SWEEPS):
        for at in order if sweep % 2 else reversed(order):
            if near[at]:
                wish = sum(x[other] for other in near[at]) / len(near[at])
                low = max((x[left] + space for left, space in apart[at].items()), default=-inf)
                high = min((x[right] - space for right, space in right_of[at].items()), default=inf)
                x[at] = max(low, min(high, wish))
    return {cell: x[at] for cell, at in run_of.items()}


def _wires(
    net: _Net, x: dict[_Cell, float], y_of: Callable[[int], float], pairs: Sequence[tuple[str, str]]
) -> tuple[tuple[str, ...], tuple[tuple[float, float], ...]]:
    """Path data of all wires, one path per source, and their arrowheads. Arrivals at one box are spread by x."""
    port: dict[tuple[_Cell, _Cell], float] = {}
    for cell, above in net.above.items():
        ordered = sorted(above, key=lambda item: (x[item], item))
        step = min(34.0, BOX_WIDTH * 0.6 / max(1, len(ordered) - 1)) if len(ordered) > 1 else 0.0
        for place, upper in enumerate(ordered):
            port[(upper, cell)] = x[cell] + (place - (len(ordered) - 1) / 2) * step

    def edge(cell: _Cell, lower: bool) -> float:
        half = DOT if cell[0] == ENTRY and cell[1] < 0 else BOX_HEIGHT / 2
        return y_of(net.cells[cell]) + (half if lower else -half)

    paths, heads = [], []
    for source in dict.fromkeys(source for source, _ in pairs):
        todo: list[_Cell] = [(source, -1)]
        parts: list[str] = []
        while todo:
            cell = todo.pop()
            for lower in net.below[cell]:
                x1, y1, x2, y2 = x[cell], edge(cell, True), port[(cell, lower)], edge(lower, False)
                if lower[1] < 0:
                    y2 -= 5
                    heads.append((x2, edge(lower, False)))
                middle = y1 + 0.35 * (y2 - y1)
                bend = (
                    f"V{number(y2)}"
                    if abs(x1 - x2) < 0.1
                    else (f"C{number(x1)} {number(middle)} {number(x2)} {number(middle)} {number(x2)} {number(y2)}")
                )
                tail = f"V{number(edge(lower, True))}" if lower[1] >= 0 else ""
                parts.append(f"M{number(x1)} {number(y1)}{bend}{tail}")
                if lower[1] >= 0:
                    todo.append(lower)
        paths.append("".join(parts))
    return tuple(paths), tuple(heads)


def wrap(widths: Sequence[float], gap: float, limit: float) -> list[list[int]]:
    """Indices of the panels row by row: as few rows as fit into ``limit``, as even as they can be."""

    def fill(room: float) -> list[list[int]]:
        rows: list[list[int]] = []
        used = 0.0
        for at, width in enumerate(widths):
            if rows and used + gap + width <= room:
                rows[-1].append(at)
                used += gap + width
            else:
                rows.append([at])
                used = width
        return rows

    best = fill(limit)
    room = limit
    while room > 0:
        room -= 20
        tighter = fill(room)
        if len(tighter) > len(best):
            return best
        best = tighter
    return best
