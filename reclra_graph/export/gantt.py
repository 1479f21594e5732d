"""When every lane works on what, as an SVG chart: the schedule's slots, its copies and its waits."""

from __future__ import annotations

from html import escape

from reclra_graph.export.boxes import time_text
from reclra_graph.export.layout import number
from reclra_graph.export.spans import Span, spans
from reclra_graph.export.svg import DEEPEST
from reclra_graph.ir.schedule import Schedule, Slot

_LEFT, _ROW, _BAR, _TOP = 64.0, 26.0, 20.0, 12.0
_WIDE = 860.0
_NARROWEST = 5.0
"""Pixels of the shortest slot, where that does not make the chart more than a few screens wide."""


def gantt_svg(schedule: Schedule) -> str:
    """Lanes as rows, time from left to right; about 900 px wide, more where slots would get too narrow to see."""
    scale = _scale(schedule)
    rows = {lane.id: at for at, lane in enumerate(schedule.lanes)}
    width = _LEFT + scale * schedule.makespan + 16
    height = _TOP + _ROW * len(rows) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rg-gantt" role="group" aria-labelledby="rg-gt rg-gd" '
        f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}">',
        '<title id="rg-gt">What each lane does over time</title>',
        f'<desc id="rg-gd">{len(rows)} lanes, {time_text(schedule)}. y7 is the target of region 7, '
        "W7 its update, z7 its forward pass; y7@2 is that of micro-batch 2. Dotted: the lane waits. "
        "A line under a bar: it lies on one longest path.</desc>",
    ]
    for lane in schedule.lanes:
        y = _TOP + _ROW * rows[lane.id]
        place = f"GPU {lane.device}" + (f", stream {lane.stream}" if lane.stream else "")
        parts.append(
            f'<g><title>lane {lane.id}: {place}</title><text x="0" y="{number(y + 14)}">lane {lane.id}</text>'
            f'<path class="rg-rule" d="M{number(_LEFT)} {number(y + _BAR + 3)}H{number(width - 8)}"/></g>'
        )
    bottom = _TOP + _ROW * len(rows)
    step = _step(26 if schedule.clock == "unit" else 80, scale)
    for time in range(0, schedule.makespan + 1, step):
        x = _LEFT + time * scale
        parts.append(f'<path class="rg-rule" d="M{number(x)} 8V{number(bottom)}"/>')
        label = schedule.tasks.plan.device.shown(time)
        parts.append(f'<text class="rg-tick" x="{number(x)}" y="{number(bottom + 14)}">{label}</text>')
    held = {(slot.group, slot.lane): slot for slot in schedule.slots}
    for span in spans(schedule):
        if span.lane in rows:
            y = _TOP + _ROW * rows[span.lane]
            slot = held.get((span.name, span.lane))
            parts.append(_pause(schedule, span, scale, y) if slot is None else _bar(schedule, slot, span, scale, y))
    return "\n".join([*(part for part in parts if part), "</svg>"])


def slot_region(slot: Slot) -> int | None:
    """Region that a slot's group of tasks is about, if it is about one."""
    tail = slot.group.partition("@")[0].rpartition(":")[2]
    return int(tail) if tail.isascii() and tail.isdigit() else None


def _scale(schedule: Schedule) -> float:
    """Pixels per unit of the schedule's clock."""
    whole = max(1, schedule.makespan)
    if schedule.clock == "unit":
        return max(_NARROWEST, min(44.0, _WIDE / whole))
    shortest = min((slot.end - slot.start for slot in schedule.slots if slot.end > slot.start), default=whole)
    return min(max(_WIDE / whole, _NARROWEST / shortest), 4 * _WIDE / whole)


def _step(least: float, scale: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, … units that is at least so many pixels wide."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if size * factor * scale >= least:
                return size * factor
        size *= 10


def _pause(schedule: Schedule, span: Span, scale: float, y: float) -> str:
    """A wait as a hatched field, a copy as a bar half as high; what takes no time is not drawn."""
    if span.end == span.start:
        return ""
    x, wide = _LEFT + span.start * scale, max(1.0, (span.end - span.start) * scale - 1)
    what = ", ".join(span.tasks[:6]) + (f" and {len(span.tasks) - 6} more" if len(span.tasks) > 6 else "")
    words = f"copy of {what}" if span.category == "copy" else f"wait for {what}" if what else "nothing to do"
    top, high = (y + 5, _BAR - 10) if span.category == "copy" else (y, _BAR)
    return (
        f'<g class="rg-{span.category}"><title>{escape(words)}: lane {span.lane}, {_from_to(schedule, span)}</title>'
        f'<rect x="{number(x)}" y="{number(top)}" width="{number(wide)}" height="{number(high)}" rx="2"/></g>'
    )


def _from_to(schedule: Schedule, span: Span) -> str:
    shown = schedule.tasks.plan.device.shown
    return f"time {shown(span.start)} to {shown(span.end)}"


def _bar(schedule: Schedule, slot: Slot, span: Span, scale: float, y: float) -> str:
    plan = schedule.tasks.plan
    region = slot_region(slot)
    group, _, part = slot.group.partition("@")
    kind = group.partition(":")[0]
    depth = min(plan.level.get(region, 0), DEEPEST) if region is not None else 0
    if region is None:
        label, words = (kind if kind == "forward" else ""), group
    elif kind == "forward":
        label, words = f"z{region}", f"forward pass of region {region}"
    elif kind == "target":
        output = region in plan.regions.outputs
        label = f"{'e' if output else 'y'}{region}"
        words = f"{'loss and error' if output else 'target and error'} of region {region}"
    elif kind == "synapses":
        label, words = f"E{region}", f"synapses into region {region}"
    elif kind == "mirror":
        label, words = f"E{region}", f"mirrors into region {region}"
    else:
        label, words = f"W{region}", f"{kind} of region {region}"
    x, wide = _LEFT + slot.start * scale, max(2.0, (slot.end - slot.start) * scale - 1)
    focus = "" if region is None else f' data-region="{region}"'
    shape = "rg-target" if kind == "target" else "rg-forward" if kind == "forward" else "rg-update"
    words += f", micro-batch {part}" if part else ""
    words += ", on a longest path" if span.critical else ""
    labels = (f"{label}@{part}", label) if part and label else (label,)
    shown = next((text for text in labels if wide >= 7 * len(text) + 8), "")
    text = f'<text x="{number(x + wide / 2)}" y="{number(y + 14)}">{escape(shown)}</text>' if shown else ""
    mark = (
        f'<path class="rg-critical" d="M{number(x)} {number(y + _BAR + 2)}h{number(wide + 1)}"/>'
        if span.critical
        else ""
    )
    return (
        f'<g class="rg-slot {shape} rg-g{depth}"{focus}><title>{escape(words)}: lane {slot.lane}, '
        f"{_from_to(schedule, span)}</title>"
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(wide)}" height="{number(_BAR)}" rx="3"/>{text}{mark}</g>'
    )
