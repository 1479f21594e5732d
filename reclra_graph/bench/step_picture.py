"""The picture of ``reclra bench step``: for each case and arm, how many times as fast as the best backpropagation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from reclra_graph.export.chart import head, ticks

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 190, 60, 52, 40
_BAR, _GAP, _TITLE = 16, 12, 18


def speed_svg(cases: Sequence[Mapping[str, Any]]) -> str:
    """Bars by case, with their quartiles; of an arm in two memory formats the faster. A line at 1, where the best
    backpropagation ends."""
    groups = [(case, list(_fastest(case))) for case in cases]
    groups = [(case, cells) for case, cells in groups if cells]
    height = _TOP + _BOTTOM + sum(_TITLE + _BAR * len(cells) + _GAP for _, cells in groups)
    lines = head("Times as fast as the best backpropagation", WIDTH, height, 16)
    if not groups:
        return "\n".join([*lines, f'<text x="16" y="{_TOP}">Nothing was measured.</text>', "</svg>", ""])
    ends = [cell["speedup"]["quartiles"][1] for _, cells in groups for _, cell in cells]
    across = ticks([0.0, *ends, 1.0])

    def x(value: float) -> float:
        return round(_LEFT + value / across[-1] * (WIDTH - _LEFT - _RIGHT), 1)

    for value in across:
        lines.append(f'<path class="rule" d="M{x(value)} {_TOP - 8}V{height - _BOTTOM}"/>')
        lines.append(
            f'<text class="soft" x="{x(value)}" y="{height - _BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>'
        )
    y = _TOP
    for case, cells in groups:
        lines.append(f'<text class="soft" x="16" y="{y + 10}">{escape(str(case["title"]))}</text>')
        y += _TITLE
        for name, cell in cells:
            middle, (low, high) = cell["speedup"]["median"], cell["speedup"]["quartiles"]
            told = escape(f"{case['name']}, {name}: {middle:.3f} ({low:.3f} to {high:.3f})")
            kind = "mark" if cell["peer"] else "on"
            lines.append(f'<text x="{_LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(str(cell["arm"]))}</text>')
            lines.append(
                f'<rect class="{kind}" x="{_LEFT}" y="{y + 2}" width="{round(x(middle) - _LEFT, 1)}" '
                f'height="{_BAR - 4}"><title>{told}</title></rect>'
            )
            lines.append(f'<path class="whisker" d="M{x(low)} {y + _BAR / 2}H{x(high)}"/>')
            lines.append(f'<text x="{max(x(middle), x(high)) + 6}" y="{y + 11}">{middle:.2f}</text>')
            y += _BAR
        y += _GAP
    lines.append(f'<path class="line" d="M{x(1.0)} {_TOP - 8}V{height - _BOTTOM}"/>')
    return "\n".join([*lines, "</svg>", ""])


def _fastest(case: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Of every arm the cell with the highest ratio."""
    best: dict[str, str] = {}
    cells = case["cells"]
    for name, cell in cells.items():
        if "speedup" in cell:
            held = best.setdefault(cell["arm"], name)
            if cell["speedup"]["median"] > cells[held]["speedup"]["median"]:
                best[cell["arm"]] = name
    return [(name, cells[name]) for name in best.values()]
