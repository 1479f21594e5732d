"""When every lane works on what, as an SVG chart: the schedule's slots in the unit-cost model."""

from __future__ import annotations

from html import escape

from reclra_graph.export.boxes import time_text
from reclra_graph.export.layout import number
from reclra_graph.export.svg import DEEPEST
from reclra_graph.ir.schedule import Schedule, Slot

_LEFT, _ROW, _BAR = 64.0, 26.0, 20.0


def gantt_svg(schedule: Schedule) -> str:
    """Lanes as rows, time from left to right; about 900 px wide, more where slots would get too narrow to see."""
    device = schedule.tasks.plan.device
    least = 5.0 if device.clock == "unit" else 0.0
    unit = max(least, min(44.0, 860.0 / max(1, schedule.makespan)))
    rows = {lane.id: at for at, lane in enumerate(schedule.lanes)}
    width = _LEFT + unit * schedule.makespan + 16
    height = 12 + _ROW * len(rows) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rg-gantt" role="group" aria-labelledby="rg-gt rg-gd" '
        f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}">',
        '<title id="rg-gt">What each lane does over time</title>',
        f'<desc id="rg-gd">{len(rows)} lanes, {time_text(schedule)}. y7 is the target of region 7, '
        "W7 its update.</desc>",
    ]
    for lane in schedule.lanes:
        y = 12 + _ROW * rows[lane.id]
        place = f"GPU {lane.device}" + (f", stream {lane.stream}" if lane.stream else "")
        parts.append(
            f'<g><title>lane {lane.id}: {place}</title><text x="0" y="{number(y + 14)}">lane {lane.id}</text>'
            f'<path class="rg-rule" d="M{number(_LEFT)} {number(y + _BAR + 3)}H{number(width - 8)}"/></g>'
        )
    room = 26 if device.clock == "unit" else 64
    step = next(
        size for size in (digit * 10**power for power in range(16) for digit in (1, 2, 5)) if size * unit >= room
    )
    bottom = 12 + _ROW * len(rows)
    for time in range(0, schedule.makespan + 1, step):
        x = _LEFT + time * unit
        parts.append(f'<path class="rg-rule" d="M{number(x)} 8V{number(bottom)}"/>')
        parts.append(f'<text class="rg-tick" x="{number(x)}" y="{number(bottom + 14)}">{device.shown(time)}</text>')
    parts += [_bar(schedule, slot, unit, 12 + _ROW * rows[slot.lane]) for slot in schedule.slots if slot.lane in rows]
    return "\n".join([*parts, "</svg>"])


def slot_region(slot: Slot) -> int | None:
    """Region that a slot's group of tasks is about, if it is about one."""
    tail = slot.group.rpartition(":")[2]
    return int(tail) if tail.isascii() and tail.isdigit() else None


def _bar(schedule: Schedule, slot: Slot, unit: float, y: float) -> str:
    plan = schedule.tasks.plan
    region = slot_region(slot)
    kind = slot.group.partition(":")[0]
    depth = min(plan.level.get(region, 0), DEEPEST) if region is not None else 0
    if region is None:
        label, words = "", slot.group
    elif kind == "target":
        output = region in plan.regions.outputs
        label = f"{'e' if output else 'y'}{region}"
        words = f"{'loss and error' if output else 'target and error'} of region {region}"
    else:
        label, words = f"W{region}", f"{kind} of region {region}"
    x, wide = _LEFT + slot.start * unit, max(2.0, (slot.end - slot.start) * unit - 1)
    focus = "" if region is None else f' data-region="{region}"'
    shape = "rg-target" if kind == "target" else "rg-update"
    text = f'<text x="{number(x + wide / 2)}" y="{number(y + 14)}">{escape(label)}</text>' if wide >= 24 else ""
    return (
        f'<g class="rg-slot {shape} rg-g{depth}"{focus}><title>{escape(words)}: lane {slot.lane}, '
        f"time {plan.device.shown(slot.start)} to {plan.device.shown(slot.end)}</title>"
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(wide)}" height="{number(_BAR)}" rx="3"/>{text}</g>'
    )
