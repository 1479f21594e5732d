"""The picture of ``reclra bench epochs``: for each case, error on held-out images against seconds of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from reclra_graph.export.chart import head, ticks

WIDTH, PANEL = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 44
_KEY = 15
_STYLE = (
    ".way{fill:none;stroke-width:1.6}.target{stroke:#5d6678;stroke-dasharray:2 4}"
    ".w0{stroke:#3f6ea8}.w1{stroke:#3f6ea8;stroke-dasharray:6 3}.w2{stroke:#cb4b45}.w3{stroke:#d98a00}"
    ".w4{stroke:#7d5ba6}.w5{stroke:#cb4b45;stroke-dasharray:6 3}"
    "@media (prefers-color-scheme:dark){.w0,.w1{stroke:#7ba6dc}.w2,.w5{stroke:#f0736c}.w3{stroke:#f2b04a}"
    ".w4{stroke:#b394dd}.target{stroke:#9aa4b7}}"
)
_KINDS = ("backprop-compiled", "backprop-eager", "dense", "channel", "token", "dense-eager")


def curves_svg(cases: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each case: a line for each arm and seed, the targets as dashed rules. Errors above twice the first
    target are cut off."""
    shown = [(case, ways) for case in cases if (ways := _ways(case))]
    height = _TOP + PANEL * max(1, len(shown)) if shown else _TOP + 40
    lines = head("Error on held-out images against seconds of training", WIDTH, height, 16)
    lines.append(f"<style>{_STYLE}</style>")
    if not shown:
        lines.append(f'<text x="16" y="{_TOP + 8}">Nothing was measured.</text>')
    for number, (case, ways) in enumerate(shown):
        lines += _panel(case, ways, _TOP + PANEL * number)
    return "\n".join([*lines, "</svg>", ""])


def _ways(case: Mapping[str, Any]) -> list[tuple[str, int, Sequence[Sequence[float]]]]:
    """(arm, seed, curve) of every run that was judged."""
    return [
        (name, run["seed"], run["curve"]) for name, arm in case["arms"].items() for run in arm["runs"] if run["curve"]
    ]


def _panel(case: Mapping[str, Any], ways: Sequence[tuple[str, int, Sequence[Sequence[float]]]], top: int) -> list[str]:
    targets = case["targets"]
    ceiling = min(1.0, max(2 * targets[0], min(point[2] for _, _, way in ways for point in way) * 1.2))
    across = ticks([0.0, *(way[-1][1] for _, _, way in ways)])
    up = ticks([0.0, *(min(point[2], ceiling) for _, _, way in ways for point in way)])
    high, low = top + 24, top + PANEL - _BOTTOM

    def x(seconds: float) -> float:
        return round(_LEFT + seconds / across[-1] * (WIDTH - _LEFT - _RIGHT), 1)

    def y(error: float) -> float:
        return round(low - min(error, up[-1]) / up[-1] * (low - high), 1)

    found = [f'<text class="soft" x="16" y="{top + 10}">{escape(str(case["title"]))}</text>']
    for value in up:
        found.append(f'<path class="rule" d="M{_LEFT} {y(value)}H{WIDTH - _RIGHT}"/>')
        found.append(
            f'<text class="soft" x="{_LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{100 * value:.3g} %</text>'
        )  # fmt: skip
    for value in across:
        found.append(f'<path class="rule" d="M{x(value)} {low}v5"/>')
        found.append(f'<text class="soft" x="{x(value)}" y="{low + 18}" text-anchor="middle">{value:.4g} s</text>')
    found += [
        f'<path class="target" d="M{_LEFT} {y(target)}H{WIDTH - _RIGHT}"/>' for target in targets if target < up[-1]
    ]  # fmt: skip
    for name, seed, way in ways:
        points = " ".join(f"{x(seconds)},{y(error)}" for _, seconds, error in way)
        told = escape(f"{case['name']}, {name}, seed {seed}: {100 * way[-1][2]:.2f} % after {way[-1][1]:.1f} s")
        found.append(f'<polyline class="way {_kind(name)}" points="{points}"><title>{told}</title></polyline>')
    for index, name in enumerate(dict.fromkeys(name for name, _, _ in ways)):
        level = high + 8 + _KEY * index
        found.append(f'<path class="way {_kind(name)}" d="M{WIDTH - _RIGHT - 150} {level}h26"/>')
        found.append(f'<text x="{WIDTH - _RIGHT - 118}" y="{level + 4}">{escape(name)}</text>')
    return found


def _kind(name: str) -> str:
    return f"w{_KINDS.index(name)}" if name in _KINDS else "w5"
