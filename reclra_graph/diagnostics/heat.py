"""A panel of rows: a region or an edge in each, time from left to right, the number as a colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TypeAlias

from reclra_graph.diagnostics.series import Figure, Series

Ramp: TypeAlias = tuple[tuple[int, int, int], ...]

RAMP: Ramp = ((79, 121, 214), (22, 160, 160), (104, 168, 60), (217, 148, 20), (206, 70, 64))
"""Colours of lines, by depth."""
_APART: Ramp = ((178, 34, 48), (231, 150, 120), (233, 233, 230), (120, 170, 215), (30, 90, 165))
"""Around a middle: red below it, blue above."""
_UPWARDS: Ramp = ((238, 240, 232), (150, 195, 190), (40, 120, 150), (20, 50, 95))
LEVELS = 40
_KEY = 120


def colour(ramp: Ramp, share: float) -> str:
    """A colour of a ramp, 0 … 1."""
    place = share * (len(ramp) - 1)
    at = min(int(place), len(ramp) - 2)
    mixed = [round(a + (b - a) * (place - at)) for a, b in zip(ramp[at], ramp[at + 1], strict=True)]
    return f"#{mixed[0]:02x}{mixed[1]:02x}{mixed[2]:02x}"


STYLE = "".join(
    f".{kind}{level}{{fill:{colour(ramp, level / LEVELS)}}}"
    for kind, ramp in (("a", _APART), ("u", _UPWARDS))
    for level in range(LEVELS + 1)
)


def heat_panel(
    drawn: Sequence[Series], figure: Figure, left: float, right: float, high: float, row: float
) -> list[str]:
    """Rows with their names and last numbers at the right, and a key of the colours above. Angles below 90° are blue,
    as cosines above 0 are: both say that two things agree."""
    known = [value for line in drawn for value in line.values if value is not None]
    if figure.middle is None:
        low, top, kind = min(known), max(known), "u"
    else:
        reach = figure.reach or max(abs(value - figure.middle) for value in known)
        low, top, kind = figure.middle - reach, figure.middle + reach, "a"
    if figure.of_edges:
        low, top = top, low

    def level(value: float) -> int:
        return round(LEVELS * min(1.0, max(0.0, (value - low) / ((top - low) or 1.0))))

    columns = len(drawn[0].steps)
    wide = (right - left) / columns
    found = []
    for at, line in enumerate(drawn):
        y = high + at * row
        cells: dict[int, list[str]] = {}
        for column, value in enumerate(line.values):
            if value is not None:
                # Half a pixel more than a cell is wide, so that no ground shows between two.
                cells.setdefault(level(value), []).append(
                    f"M{left + column * wide:.1f} {y:.1f}h{wide + 0.5:.1f}v{row - 1:.1f}h-{wide + 0.5:.1f}z"
                )
        for number, parts in sorted(cells.items()):
            found.append(f'<path class="{kind}{number}" d="{"".join(parts)}"/>')
        said = f'{escape(line.short)} <tspan class="soft">{figure.said(line.last)}</tspan>'
        found.append(f'<text class="end" x="{right + 6}" y="{y + row - 3.5:.1f}">{said}</text>')
    step, y = _KEY / (LEVELS + 1), high - 17
    for number in range(LEVELS + 1):
        x = right - _KEY + number * step
        found.append(f'<path class="{kind}{number}" d="M{x:.1f} {y:.1f}h{step + 0.3:.1f}v8h-{step + 0.3:.1f}z"/>')
    for x, value, anchor in ((right - _KEY - 4, low, "end"), (right + 4, top, "start")):
        found.append(f'<text class="soft" x="{x}" y="{y + 8:.1f}" text-anchor="{anchor}">{figure.said(value)}</text>')
    return found
