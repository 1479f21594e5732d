"""Lines between panels: along channels above the rows of panels, and from row to row in the right margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reclra_graph.export.lines import Line, Point, head, merged, polyline, tracks

TRACK = 9.0
"""Between parallel lines of different sources."""
MARGIN = 26.0
"""From the panels' right edge to the first line of the margin."""


@dataclass(frozen=True)
class Leg:
    """From a box or panel to the vertical at ``x``; y counts from the top of the row of panels."""

    row: int
    x: float
    points: tuple[Point, ...]
    margin: bool = False


@dataclass
class Net:
    """All lines of one source. ``tracks`` are those of the channel above each row, ``margin`` that of the margin."""

    source: int
    depth: int
    start: Leg
    ends: list[tuple[str, Leg]]
    tracks: dict[int, int] = field(default_factory=dict)
    margin: int = 0

    @property
    def uses_margin(self) -> bool:
        """Whether the net leaves its row, or comes from a row's last panel."""
        return self.start.margin or any(leg.row != self.start.row for _, leg in self.ends)

    @property
    def rows(self) -> dict[int, list[float]]:
        """x of everything that meets the channel above each row."""
        table: dict[int, list[float]] = {}
        for leg in [self.start, *(leg for _, leg in self.ends)]:
            if not leg.margin:
                table.setdefault(leg.row, []).append(leg.x)
        return table


def margins(nets: Sequence[Net], right_edge: float) -> float:
    """Give tracks in the right margin; x of the first."""
    members = []
    for net in nets:
        if net.uses_margin:
            rows = [leg.row for leg in (net.start, *(leg for _, leg in net.ends))]
            members.append((max(rows) - min(rows), min(rows), max(rows), net))
    members.sort(key=lambda member: (member[0], -member[1], member[3].source))
    # A track is taken from the channel above the first row down to the last row: 3 apart, so that touching rows clash.
    for at, (*_, net) in zip(tracks([(3.0 * low, 3.0 * high) for _, low, high, _ in members]), members, strict=True):
        net.margin = at
    return right_edge + MARGIN


def channels(nets: Sequence[Net], rows: int, margin_x: float) -> list[int]:
    """Give tracks in the channel above each row, the deepest wiring nearest to the panels; how many each has."""
    counts = []
    for row in range(rows):
        members = []
        for net in nets:
            xs = net.rows.get(row)
            if xs:
                xs = [*xs, margin_x + TRACK * net.margin] if net.uses_margin else xs
                members.append((net.depth or 99, min(xs) - max(xs), min(xs), max(xs), net))
        members.sort(key=lambda member: (member[0], member[1], member[2], member[4].source))
        found = tracks([(low, high) for _, _, low, high, _ in members])
        for at, (*_, net) in zip(found, members, strict=True):
            net.tracks[row] = at
        counts.append(max(found, default=-1) + 1)
    return counts


def draw_net(net: Net, tops: Sequence[float], base: Sequence[float], margin_x: float, ways: dict[str, str]) -> Line:
    """Path of every edge of a net, and of all of them together."""
    side = margin_x + TRACK * net.margin

    def on_page(leg: Leg) -> list[Point]:
        points = [(x, y + tops[leg.row]) for x, y in leg.points]
        return [*points, (side if leg.margin else leg.x, points[-1][1])]

    def channel(row: int) -> float:
        return base[row] + TRACK * net.tracks[row]

    found = []
    for name, end in net.ends:
        points = on_page(net.start)
        if not net.start.margin:
            points.append((net.start.x, channel(net.start.row)))
        if net.start.margin or end.row != net.start.row:
            points += [(side, points[-1][1]), (side, channel(end.row))]
        back = on_page(end)
        points += [(end.x, channel(end.row)), *reversed(back)]
        found.append(points)
        if name:
            ways[name] = polyline(points)
    return Line(net.source, net.depth, merged(found), tuple(dict.fromkeys(head(points) for points in found)))
