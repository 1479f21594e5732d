"""Where panels stand on the page, and how wires run between and beside them.

Error wiring is orthogonal: along channels above the rows of panels, down beside the boxes of a panel, up the right
margin from row to row. Lines of one source share their way; lines of different sources get tracks of their own, up to
a limit beyond which the last track is shared, so that the page stays linear in the plan's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reclra_graph.export.boxes import Picture
from reclra_graph.export.layout import BOX_HEIGHT, BOX_WIDTH, DOT, Inner, arrange, wrap
from reclra_graph.export.lines import Line, Point, head, merged, polyline, tracks
from reclra_graph.export.nets import MARGIN, TRACK, Leg, Net, channels, draw_net, margins
from reclra_graph.export.panels import Panel
from reclra_graph.ir.wiring import Edge, WiringPlan

PAGE = 1250.0
HEAD = 42.0
"""From the top of a panel to its boxes."""
_LEFT, _GAP, _PAD, _FOOT = 28.0, 32.0, 19.0, 18.0
_SIDE_TRACK = 7.0


@dataclass(frozen=True)
class Placed:
    """A panel on the page: its upper left corner, its size, and the origin of its boxes."""

    panel: Panel
    inner: Inner
    x: float
    y: float
    width: float
    height: float
    left: float

    def spot(self, box: str) -> Point:
        """Centre of a box on the page."""
        x, y = self.inner.spots[box]
        return self.left + x, self.y + HEAD + y


@dataclass(frozen=True)
class Page:
    """A drawn plan. ``ways`` has the path data of every error edge by itself, to highlight it."""

    width: float
    height: float
    panels: tuple[Placed, ...]
    lines: tuple[Line, ...]
    ways: dict[str, str]


@dataclass
class _Beside:
    """One vertical piece beside the boxes of a panel, and the boxes it serves: (box, whether the error leaves it)."""

    panel: int
    side: int
    outside: bool
    serves: dict[tuple[str, bool], None] = field(default_factory=dict)
    ports: dict[tuple[str, bool], tuple[Point, ...]] = field(default_factory=dict)
    track: int = 0


def lay_out(plan: WiringPlan, picture: Picture) -> Page:
    """Coordinates of everything on the page."""
    inner = _inner(picture)
    edges = [edge for edge in plan.edges if edge.source in picture.post and edge.target in picture.post]
    beside = _beside(picture, inner, edges)
    pieces = [item for items in beside.values() for item in items]
    ways = {(item.side, box, leaves) for item in pieces for box, leaves in item.serves}
    both = {(side, box) for side, box, leaves in ways if leaves and (side, box, False) in ways}
    for item in pieces:
        _ports(item, inner[item.panel], both)
    sides = _assign_tracks(beside, len(inner))
    widths = []
    for panel, content, (left, right) in zip(picture.panels, inner, sides, strict=True):
        title = 24 + 7.3 * max(len(panel.title), 0.85 * len(panel.shape)) + (_SIDE_TRACK * right + 10 if right else 0)
        widths.append(max(content.width + 2 * _PAD + _SIDE_TRACK * (left + right), title, 96.0))
    rows = wrap(widths, _GAP, PAGE - _LEFT - MARGIN - 2 * TRACK)
    row_of = {at: row for row, members in enumerate(rows) for at in members}
    xs, height = {}, []
    for members in rows:
        x = _LEFT
        for at in members:
            xs[at] = x
            x += widths[at] + _GAP
        height.append(HEAD + max(inner[at].height for at in members) + _FOOT)
    origin = {}
    for at, (left, right) in enumerate(sides):
        spare = widths[at] - inner[at].width - 2 * _PAD - _SIDE_TRACK * (left + right)
        origin[at] = xs[at] + _PAD + _SIDE_TRACK * left + spare / 2
    right_edge = max(xs[row[-1]] + widths[row[-1]] for row in rows)
    nets = _error_nets(plan, edges, picture, inner, beside, origin, row_of, rows)
    panel_links = sorted({(picture.panel_of[one], picture.panel_of[two]) for one, two in picture.wires})
    hops = [(one, two) for one, two in panel_links if one != two]
    nets += _forward_nets([hop for hop in hops if hop[1] != hop[0] + 1], xs, widths, row_of)
    wraps = {row_of[two] for one, two in hops if two == one + 1 and row_of[one] != row_of[two]}
    margin_x = margins(nets, right_edge)
    lanes = channels(nets, len(rows), margin_x)
    tops, y = [], 8.0
    for row in range(len(rows)):
        y += 24 + TRACK * lanes[row] + (16 if row in wraps else 0)
        tops.append(y)
        y += height[row]
    panels = tuple(
        Placed(panel, inner[at], xs[at], tops[row_of[at]], widths[at], HEAD + inner[at].height + _FOOT, origin[at])
        for at, panel in enumerate(picture.panels)
    )
    lines: list[Line] = []
    alone: dict[str, str] = {}
    base = [tops[row] - 16 - TRACK * lanes[row] - (16 if row in wraps else 0) for row in range(len(rows))]
    for net in nets:
        lines.append(draw_net(net, tops, base, margin_x, alone))
    lines += [_hop(panels, one, two, row_of, tops) for one, two in hops if two == one + 1]
    lines += _inside(plan, edges, picture, panels, beside, alone)
    lines.sort(key=lambda line: (line.depth, line.source))
    most = max((net.margin + 1 for net in nets if net.uses_margin), default=0)
    return Page(max(right_edge + 34 + TRACK * most, 300.0), y + 24, panels, tuple(lines), alone)


def _inner(picture: Picture) -> list[Inner]:
    inside: list[list[tuple[str, str]]] = [[] for _ in picture.panels]
    fed: list[list[str]] = [[] for _ in picture.panels]
    for source, name in picture.wires:
        at = picture.panel_of[name]
        if picture.panel_of[source] == at:
            inside[at].append((source, name))
        else:
            fed[at].append(name)
    return [arrange(panel.boxes, inside[at], fed[at]) for at, panel in enumerate(picture.panels)]


def _beside(picture: Picture, inner: Sequence[Inner], edges: Sequence[Edge]) -> dict[int, list[_Beside]]:
    """The vertical pieces of every source region: at the right of a panel (clear of its title) for edges that leave it,
    else at the side from which most boxes can be reached straight, which is the left where both are equal."""
    table: dict[int, dict[tuple[int, bool], _Beside]] = {}
    for edge in edges:
        items = table.setdefault(edge.source, {})
        start, end = picture.post[edge.source], picture.post[edge.target]
        home, away = picture.panel_of[start], picture.panel_of[end]
        for at, box, leaves in ((home, start, True), (away, end, False)):
            item = items.setdefault((at, home != away), _Beside(at, 1, home != away))
            item.serves[(box, leaves)] = None
    for items in table.values():
        for item in items.values():
            if not item.outside:
                free = {side: sum(inner[item.panel].free(box, side) for box, _ in item.serves) for side in (-1, 1)}
                item.side = 1 if free[1] > free[-1] else -1
    return {source: list(items.values()) for source, items in table.items()}


def _ports(item: _Beside, inner: Inner, both: set[tuple[int, str]]) -> None:
    """Points from each box to the vertical piece, the piece's own x left out: the last point's x is the box's.
    Where lines arrive and leave at one side of a box (``both``), they do so a little apart."""
    for box, leaves in item.serves:
        x, y = inner.spots[box]
        if inner.free(box, item.side):
            shift = 0.0 if (item.side, box) not in both else 4.0 if leaves == item.outside else -4.0
            item.ports[(box, leaves)] = ((x + item.side * BOX_WIDTH / 2, y + shift),)
        else:
            x += item.side * (BOX_WIDTH / 2 - 14)
            # Between two rows run, from above: what leaves a panel, what stays, what arrives from outside, from inside.
            beyond = (3.0 if item.outside else 6.0) if leaves else (-10.0 if item.outside else -6.0)
            edge = y + (BOX_HEIGHT / 2 if leaves else -BOX_HEIGHT / 2)
            item.ports[(box, leaves)] = ((x, edge), (x, edge + beyond))


def _assign_tracks(beside: dict[int, list[_Beside]], count: int) -> list[tuple[int, int]]:
    """Give every vertical piece a track; how many tracks each panel has at its left and right."""
    used = [[0, 0] for _ in range(count)]
    groups: dict[tuple[int, int], list[tuple[float, float, _Beside]]] = {}
    for items in beside.values():
        for item in items:
            ys = [points[-1][1] for points in item.ports.values()]
            low = -HEAD if item.outside else min(ys)
            groups.setdefault((item.panel, item.side), []).append((low, max(ys), item))
    for (panel, side), members in sorted(groups.items()):
        members.sort(key=lambda member: (member[1] - member[0], member[1]))
        found = tracks([(low, high) for low, high, _ in members])
        for at, (_, _, item) in zip(found, members, strict=True):
            item.track = at
        used[panel][side > 0] = max(found) + 1
    return [(left, right) for left, right in used]


def _vertical(item: _Beside, inner: Inner, origin: float) -> float:
    """x of a vertical piece on the page."""
    step = 13 + _SIDE_TRACK * item.track
    return origin + (inner.width + step if item.side > 0 else -step)


def _error_nets(
    plan: WiringPlan,
    edges: Sequence[Edge],
    picture: Picture,
    inner: Sequence[Inner],
    beside: dict[int, list[_Beside]],
    origin: dict[int, float],
    row_of: dict[int, int],
    rows: Sequence[Sequence[int]],
) -> list[Net]:
    """One net for every region that sends its error to another panel."""

    def leg(item: _Beside, box: str, leaves: bool) -> Leg:
        at = item.panel
        x = _vertical(item, inner[at], origin[at])
        points = tuple((origin[at] + px, HEAD + py) for px, py in item.ports[(box, leaves)])
        last = leaves and item.side > 0 and rows[row_of[at]][-1] == at
        return Leg(row_of[at], x, points, margin=last)

    nets: dict[int, Net] = {}
    for edge in edges:
        start, end = picture.post[edge.source], picture.post[edge.target]
        home, away = picture.panel_of[start], picture.panel_of[end]
        if home == away:
            continue
        pieces = {item.panel: item for item in beside[edge.source] if item.outside}
        if edge.source not in nets:
            depth = plan.level.get(edge.source, 0) + 1
            nets[edge.source] = Net(edge.source, depth, leg(pieces[home], start, True), [])
        nets[edge.source].ends.append((edge.name, leg(pieces[away], end, False)))
    return list(nets.values())


def _forward_nets(
    hops: Sequence[tuple[int, int]], xs: dict[int, float], widths: Sequence[float], row_of: dict[int, int]
) -> list[Net]:
    """Forward wires that pass over panels."""
    y = HEAD + DOT + 9
    nets: dict[int, Net] = {}
    for one, two in hops:
        out = xs[one] + widths[one]
        if one not in nets:
            nets[one] = Net(one, 0, Leg(row_of[one], out + 9 + 3 * (one % 3), ((out, y),)), [])
        nets[one].ends.append(("", Leg(row_of[two], xs[two] - 9 - 3 * (one % 3), ((xs[two], y),))))
    return list(nets.values())


def _inside(
    plan: WiringPlan,
    edges: Sequence[Edge],
    picture: Picture,
    panels: Sequence[Placed],
    beside: dict[int, list[_Beside]],
    ways: dict[str, str],
) -> list[Line]:
    """Error edges within one panel."""
    found: dict[int, list[list[Point]]] = {}
    for edge in edges:
        start, end = picture.post[edge.source], picture.post[edge.target]
        at = picture.panel_of[start]
        if picture.panel_of[end] != at:
            continue
        item = next(item for item in beside[edge.source] if not item.outside)
        placed = panels[at]
        x = _vertical(item, placed.inner, placed.left)
        ends = []
        for box, leaves in ((start, True), (end, False)):
            points = [(placed.left + px, placed.y + HEAD + py) for px, py in item.ports[(box, leaves)]]
            ends.append([*points, (x, points[-1][1])])
        points = [*ends[0], *reversed(ends[1])]
        ways[edge.name] = polyline(points)
        found.setdefault(edge.source, []).append(points)
    return [
        Line(source, plan.level.get(source, 0) + 1, merged(many), tuple(dict.fromkeys(head(points) for points in many)))
        for source, many in found.items()
    ]


def _hop(panels: Sequence[Placed], one: int, two: int, row_of: dict[int, int], tops: Sequence[float]) -> Line:
    """The forward arrow to the next panel, or around to the next row."""
    first, second = panels[one], panels[two]
    start = (first.x + first.width, first.y + HEAD + DOT)
    end = (second.x, second.y + HEAD + DOT)
    if row_of[one] == row_of[two]:
        points = [start, end]
    else:
        x, y, back = start[0] + 16, tops[row_of[two]] - 16, second.x - 14
        points = [start, (x, start[1]), (x, y), (back, y), (back, end[1]), end]
    return Line(one, 0, polyline(points), (head(points),))
