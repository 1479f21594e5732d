"""pareto.svg: held-out error against the predicted time of a step, a dot per finished trial, the front as a line."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from reclra_graph.export.chart import head, ticks

if TYPE_CHECKING:
    from reclra_graph.search.study import Row

WIDTH, HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 52


def pareto_svg(rows: Sequence[Row], front: Sequence[Row], clock: str) -> str:
    """The picture; it says so where no trial finished."""
    done = [(row, row.time, row.error) for row in rows if row.error is not None and row.state == "finished"]
    unit = "ms" if clock == "ns" else "units"
    scale = 1e-6 if clock == "ns" else 1.0
    lines = head("Held-out error against predicted step time", WIDTH, HEIGHT, _LEFT)
    if not done:
        return "\n".join([*lines, f'<text x="{_LEFT}" y="60">No trial has finished.</text>', "</svg>", ""])
    across = ticks([time * scale for _, time, _ in done])
    up = ticks([error for _, _, error in done])

    def x(time: float) -> float:
        share = (time * scale - across[0]) / (across[-1] - across[0])
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(error: float) -> float:
        return round(HEIGHT - _BOTTOM - (error - up[0]) / (up[-1] - up[0]) * (HEIGHT - _TOP - _BOTTOM), 1)

    for value in up:
        lines.append(f'<path class="rule" d="M{_LEFT} {y(value)}H{WIDTH - _RIGHT}"/>')
        lines.append(f'<text class="soft" x="{_LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value:.3g}</text>')
    for value in across:
        place = x(value / scale)
        lines.append(f'<path class="rule" d="M{place} {HEIGHT - _BOTTOM}v5"/>')
        lines.append(
            f'<text class="soft" x="{place}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:.4g}</text>'
        )
    lines.append(
        f'<text class="soft" x="{(WIDTH + _LEFT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">predicted step, '
        f"{unit}</text>"
    )
    way = " ".join(f"{x(row.time)},{y(row.error or 0)}" for row in front)
    lines.append(f'<polyline class="line" points="{way}"/>')
    best = {row.number for row in front}
    for row, time, error in sorted(done, key=lambda item: item[0].number in best):
        said = ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in row.options.items())  # fmt: skip
        kind = "mark on" if row.number in best else "mark"
        title = escape(f"trial {row.number}: {error:.4f}; {said}")
        lines.append(f'<circle class="{kind}" cx="{x(time)}" cy="{y(error)}" r="5"><title>{title}</title></circle>')
        if row.number in best:
            lines.append(f'<text x="{x(time) + 8}" y="{y(error) - 6}">{row.number}</text>')
    return "\n".join([*lines, "</svg>", ""])
