"""Where the pictures put things: boxes apart, lines from and to the right boxes and through no other."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from reclra_graph.export.layout import BOX_HEIGHT, BOX_WIDTH, wrap
from reclra_graph.export.lines import merged, polyline, tracks
from reclra_graph.export.routing import Page
from reclra_graph.ir.schedule import Schedule
from tests.unit.drawn_cases import CASES, drawn, every_case
from tests.unit.drawn_plans import FIGURE_1, chain, flat, mlp, residual


def points(data: str) -> list[tuple[float, float]]:
    """Corners of one polyline."""
    x = y = 0.0
    found = []
    for letter, numbers in re.findall(r"([MHVL])([-\d. ]+)", data):
        values = [float(value) for value in numbers.split()]
        if letter == "H":
            x = values[0]
        elif letter == "V":
            y = values[0]
        else:
            x, y = values
        found.append((x, y))
    return found


def segments(data: str) -> list[tuple[float, float, float, float]]:
    """Straight pieces of a path of several polylines, as left, top, right, bottom."""
    found = []
    for piece in re.findall(r"M[^M]+", data):
        for (x1, y1), (x2, y2) in pairwise(points(piece)):
            assert x1 == x2 or y1 == y2, "not orthogonal"
            found.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found


def on_border(point: tuple[float, float], centre: tuple[float, float]) -> bool:
    dx, dy = abs(point[0] - centre[0]), abs(point[1] - centre[1])
    beside = abs(dx - BOX_WIDTH / 2) < 0.11 and dy <= BOX_HEIGHT / 2
    above = abs(dy - BOX_HEIGHT / 2) < 0.11 and dx <= BOX_WIDTH / 2
    return beside or above


def check_lines(schedule: Schedule) -> None:
    """Every error edge leaves its source's z, and ends at its target's z with an arrowhead; no line between or beside
    panels, forward or error, runs through a box."""
    scene, page = drawn(schedule)
    centres = {name: page.panels[at].spot(name) for name, at in scene.panel_of.items()}
    heads = {(source, x, y) for source, _, lines in _heads(page) for x, y, _ in lines}
    assert set(page.ways) == {edge.name for edge in schedule.tasks.plan.edges}
    for edge in schedule.tasks.plan.edges:
        way = points(page.ways[edge.name])
        assert on_border(way[0], centres[scene.post[edge.source]]), edge.name
        assert on_border(way[-1], centres[scene.post[edge.target]]), edge.name
        assert any(
            source == edge.source and abs(x - way[-1][0]) < 0.11 and abs(y - way[-1][1]) < 0.11
            for source, x, y in heads
        ), edge.name
    for line in [*(line.data for line in page.lines), *page.ways.values()]:
        for left, top, right, bottom in segments(line):
            for name, (x, y) in centres.items():
                apart = (
                    right <= x - BOX_WIDTH / 2 + 0.11
                    or left >= x + BOX_WIDTH / 2 - 0.11
                    or bottom <= y - BOX_HEIGHT / 2 + 0.11
                    or top >= y + BOX_HEIGHT / 2 - 0.11
                )
                assert apart, f"{line} runs through {name}"


def _heads(page: Page) -> list[tuple[int, int, tuple[tuple[float, float, str], ...]]]:
    return [(line.source, line.depth, line.heads) for line in page.lines if line.depth]


@every_case
def test_boxes_and_panels_do_not_overlap(case: str) -> None:
    _, page = drawn(CASES[case]())
    for at, one in enumerate(page.panels):
        for two in page.panels[at + 1 :]:
            beside = one.x + one.width < two.x or two.x + two.width < one.x
            assert beside or one.y + one.height < two.y or two.y + two.height < one.y
        spots = [one.spot(name) for name in one.panel.boxes]
        for place, (x, y) in enumerate(spots):
            assert one.x < x - BOX_WIDTH / 2 < x + BOX_WIDTH / 2 < one.x + one.width
            assert one.y + 32 < y - BOX_HEIGHT / 2 < y + BOX_HEIGHT / 2 < one.y + one.height
            for x2, y2 in spots[place + 1 :]:
                assert abs(x - x2) >= BOX_WIDTH or abs(y - y2) >= BOX_HEIGHT


@every_case
def test_error_lines_join_the_right_boxes_and_cross_none(case: str) -> None:
    check_lines(CASES[case]())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 14), st.data())
def test_error_lines_of_any_wiring(layers: int, data: st.DataObject) -> None:
    pairs = []
    for target in range(1, layers):
        sources = data.draw(st.sets(st.integers(target + 1, layers), min_size=1, max_size=3))
        pairs += [(source, target) for source in sorted(sources)]
    check_lines(mlp(layers, pairs))


def test_error_lines_run_beside_their_boxes() -> None:
    """Within a panel at the left, where it is free; from another panel at the right, clear of the title."""
    schedule = residual(4)
    scene, page = drawn(schedule)
    for edge in schedule.tasks.plan.edges:
        placed = page.panels[scene.panel_of[scene.post[edge.target]]]
        turn = points(page.ways[edge.name])[-2]
        boxes = [placed.spot(name)[0] for name in placed.panel.boxes]
        if edge.source == schedule.tasks.plan.regions.output:
            assert max(boxes) + BOX_WIDTH / 2 < turn[0] < placed.x + placed.width
        else:
            assert placed.x < turn[0] < min(boxes) - BOX_WIDTH / 2


@every_case
def test_forward_wires_follow_the_graph(case: str) -> None:
    schedule = CASES[case]()
    scene, page = drawn(schedule)
    order = {name: at for at, name in enumerate(scene.boxes)}
    assert all(order[source] < order[name] for source, name in scene.wires)
    inside = [wire for wire in scene.wires if scene.panel_of[wire[0]] == scene.panel_of[wire[1]]]
    fed = {name for source, name in scene.wires if scene.panel_of[source] != scene.panel_of[name]}
    assert sum(len(placed.inner.heads) for placed in page.panels) == len(inside) + len(fed)
    for placed in page.panels:
        for source, name in inside:
            if source in placed.inner.rows:
                assert placed.inner.rows[source] < placed.inner.rows[name]


def test_panels_of_a_plan_without_blocks_follow_the_relays() -> None:
    scene, _ = drawn(mlp(9, FIGURE_1, 5))
    assert [panel.regions for panel in scene.panels] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9,)]
    scene, _ = drawn(mlp(5, flat(5)))
    assert len(scene.panels) == 5
    for pairs in (flat(200), chain(200)):
        scene, _ = drawn(mlp(200, pairs))
        assert 15 <= len(scene.panels) <= 24
        assert max(len(panel.regions) for panel in scene.panels) <= 13


def test_tracks_are_shared_only_where_free_or_full() -> None:
    assert tracks([(0, 10), (5, 15), (20, 30), (13, 17)]) == [0, 1, 0, 0]
    assert tracks([(0, 10)] * 4, most=3) == [0, 1, 2, 2]


def test_rows_are_few_and_even() -> None:
    assert wrap([100] * 6, 10, 450) == [[0, 1, 2], [3, 4, 5]]
    assert wrap([900, 100, 100], 10, 500) == [[0], [1, 2]]
    assert wrap([100], 10, 1000) == [[0]]


def test_shared_stretches_are_drawn_once() -> None:
    down = [(0.0, 0.0), (50.0, 0.0), (50.0, 20.0)]
    further = [(0.0, 0.0), (80.0, 0.0), (80.0, 20.0)]
    assert merged([down, further]) == "M0 0H80M50 0V20M80 0V20"
    assert polyline(further) == "M0 0H80V20"
