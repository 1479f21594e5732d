"""What charts share: the head of the picture with its colours, light and dark, and round numbers along an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_STYLE = (
    "text{font:11px system-ui,'DejaVu Sans',sans-serif;fill:#20242c}.bg{fill:#fbfbfa}.rule{stroke:#d3d8e2}"
    ".soft{fill:#5d6678}.h{font-size:14px;font-weight:700}.mark{fill:#9fb8da;stroke:#fff}.on{fill:#cb4b45}"
    ".line{fill:none;stroke:#cb4b45;stroke-width:1.5}.whisker{fill:none;stroke:#20242c}"
    "@media (prefers-color-scheme:dark){text{fill:#e4e7ee}.bg{fill:#15181e}.rule{stroke:#39414f}.soft{fill:#9aa4b7}"
    ".mark{fill:#4d6f9c;stroke:#15181e}.on{fill:#f0736c}.line{stroke:#f0736c}.whisker{stroke:#e4e7ee}}"
)


def head(title: str, width: int, height: int, left: int) -> list[str]:
    """The first lines of a chart, which ends with ``</svg>``: its size, colours, ground, and title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f'<style>{_STYLE}</style><rect class="bg" width="{width}" height="{height}"/>',
        f'<text class="h" x="{left}" y="24">{escape(title)}</text>',
    ]


def ticks(values: Sequence[float]) -> list[float]:
    """Four to eight round numbers around all values; two at least, also around a single value."""
    low, high = min(values), max(values)
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 0.1), high + (abs(high) * 0.1 or 0.1)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
