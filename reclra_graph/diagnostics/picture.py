"""Looks over time as a picture: a panel for each figure, with regions or edges in the order of their depth.

A panel of a few has a line for each, named at its right end and coloured from the input's side (blue) to the output's
(red). One of many has a row for each, with time from left to right and the number as a colour: twenty lines that cross
all the time cannot be told apart, twenty rows can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from reclra_graph.diagnostics.heat import RAMP, STYLE, colour, heat_panel
from reclra_graph.diagnostics.record import Look
from reclra_graph.diagnostics.series import Figure, Series, spread
from reclra_graph.export.chart import head, ticks

WIDTH = 960
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEAD = 64, 250, 40, 40, 30
_LOWEST, _ROW = 190, 12.5
FEW = 8
"""Up to this many are drawn as lines."""
MOST = 60
"""Rows of a panel; more are thinned out evenly."""
POINTS = 120
"""Points of a line, or columns; of more looks, those that fall together are averaged."""

_LINES = ".way{fill:none;stroke-width:1.8}.lead{stroke-width:.7;opacity:.6;fill:none}.end{font-size:10px}"
_FIGURES = (
    Figure("cosine", "Cosine of each region's update with backprop's", False, middle=0.0, reach=1.0),
    Figure("angle", "Angle between each error synapse and its weights, degrees", True, middle=90.0),
    Figure("sent", "Angle between what each error synapse sends and the derivative, degrees", True, middle=90.0),
    Figure("discrepancy", "Discrepancy D of each region", False, logarithmic=True),
    Figure("update_flips", "Share of each region's updates whose sign flipped since the look before", False),
)


@dataclass(frozen=True)
class _Place:
    """Where a panel stands."""

    left: float
    right: float
    high: float
    low: float


def diagnostics_svg(looks: Sequence[Look], title: str = "Diagnostics while training") -> str:
    """The picture of looks in order; figures that no look has numbers for have no panel."""
    steps = [number if look.step is None else look.step for number, look in enumerate(looks)]
    panels: list[str] = []
    level: float = _TOP
    for figure in _FIGURES:
        drawn, text = figure.series(looks, steps, POINTS), figure.text
        if len(drawn) > MOST:
            text += f" ({MOST} of {len(drawn)})"
            drawn = [drawn[round(at * (len(drawn) - 1) / (MOST - 1))] for at in range(MOST)]
        if not drawn:
            continue
        many = len(drawn) > FEW
        inner = _ROW * len(drawn) if many else max(_LOWEST, _ROW * len(drawn))
        place = _Place(_LEFT, WIDTH - _RIGHT, level + _HEAD, level + _HEAD + inner)
        panels.append(f'<text x="{_LEFT}" y="{level + 16:.1f}">{escape(text)}</text>')
        panels += _axis(drawn, place, (place.right - place.left) / len(drawn[0].steps) / 2 if many else 0.0)
        if many:
            panels += heat_panel(drawn, figure, place.left, place.right, place.high, _ROW)
        else:
            panels += _line_panel(drawn, figure, place)
        level += _HEAD + inner + _BOTTOM
    found = head(title, WIDTH, math.ceil(level) if panels else _TOP + 40, 16)
    found.append(f"<style>{_LINES}{STYLE}</style>")
    if not panels:
        found.append(f'<text x="16" y="{_TOP + 8}">No look has numbers to draw.</text>')
    return "\n".join([*found, *panels, "</svg>", ""])


def _axis(drawn: Sequence[Series], place: _Place, inset: float) -> list[str]:
    """Training steps below a panel; the first and the last stand so far inside of it."""
    first, last = drawn[0].steps[0], drawn[0].steps[-1]
    found = []
    for step in [step for step in ticks(drawn[0].steps) if first <= step <= last] or [first]:
        x = place.left + inset + (step - first) / ((last - first) or 1) * (place.right - place.left - 2 * inset)
        found.append(f'<path class="rule" d="M{x:.1f} {place.low:.1f}v5"/>')
        found.append(f'<text class="soft" x="{x:.1f}" y="{place.low + 17:.1f}" text-anchor="middle">{step:,.6g}</text>')
    return found


def _line_panel(drawn: Sequence[Series], figure: Figure, place: _Place) -> list[str]:
    up = ticks([value for line in drawn for value in line.values if value is not None])
    first, last = drawn[0].steps[0], drawn[0].steps[-1]

    def x(step: float) -> float:
        return round(place.left + (step - first) / ((last - first) or 1) * (place.right - place.left), 1)

    def y(value: float) -> float:
        return round(place.low - (value - up[0]) / (up[-1] - up[0]) * (place.low - place.high), 1)

    found = []
    for value in up:
        at, said = f'x="{place.left - 8}" y="{y(value) + 4:.1f}"', figure.said(value)
        found.append(f'<path class="rule" d="M{place.left} {y(value)}H{place.right}"/>')
        found.append(f'<text class="soft" {at} text-anchor="end">{said}</text>')
    labels = spread([y(line.last) for line in drawn], place.high, place.low, _ROW)
    for number, (line, label) in enumerate(zip(drawn, labels, strict=True)):
        ink = colour(RAMP, number / max(1, len(drawn) - 1))
        told = f"<title>{escape(line.name)}: {figure.said(line.last)} at last</title>"
        for way in line.pieces:
            joined = " ".join(f"{x(step)},{y(value)}" for step, value in way)
            if len(way) > 1:
                found.append(f'<polyline class="way" style="stroke:{ink}" points="{joined}">{told}</polyline>')
            else:
                step, value = way[0]
                found.append(f'<circle style="fill:{ink}" cx="{x(step)}" cy="{y(value)}" r="2.5">{told}</circle>')
        ends = f"M{place.right + 2} {y(line.last)}L{place.right + 16} {label}"
        found.append(f'<path class="lead" style="stroke:{ink}" d="{ends}"/>')
        found.append(
            f'<text class="end" style="fill:{ink}" x="{place.right + 19}" y="{label + 3.5:.1f}">{escape(line.short)} '
            f"{figure.said(line.last)}</text>"
        )
    return found
